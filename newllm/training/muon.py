"""Muon for the hidden matrices, AdamW for all other parameters."""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim._muon import muon  # the function behind torch.optim.Muon

from newllm.model import LanguageModel
from newllm.training.optimizer import AdamW, hidden_matrices, require

_COEFFICIENTS, _STEPS, _EPS = (3.4445, -4.7750, 2.0315), 5, 1e-7  # of the Newton-Schulz iteration, torch's defaults


class Muon(AdamW):
    """Muon (Jordan 2024, kellerjordan.github.io/posts/muon) for the weights of the linear layers in the blocks; AdamW
    for embedding, head, norms, biases and all else.

        B = momentum B + (1 - momentum) G          O = orthogonalize((1 - momentum) G + momentum B)
        W = (1 - lr weight_decay) W - lr 0.2 sqrt(max(rows, columns)) O

    The factor gives the update the root mean square of AdamW's, so that AdamW's lr and weight_decay suit both (Liu et
    al. 2025, arXiv 2502.16982). A layer that holds several matrices in one (q | k | v, gate | up, MLA's keys and
    values) has each of them orthogonalized alone. torch computes the orthogonalization in bf16, whatever
    trainer.precision is. With model.width_base, Muon's rate is divided by the root of what AdamW's is divided by, since
    the norm of an orthogonal matrix with this factor grows with the root of the width only.

    Args:
        momentum: decay of the mean gradient, in [0, 1).
        lr, betas, eps, weight_decay, decay, clip, schedule, warmup, final, cooldown, cooldown_shape: as in AdamW; betas
            and eps are those of the other parameters.
    """

    def __init__(
        self,
        lr: float,
        betas: list[float],
        eps: float = 1e-8,
        weight_decay: float = 0.1,
        decay: Literal["matrices", "all"] = "matrices",
        clip: float | None = 1.0,
        schedule: Literal["constant", "cosine", "wsd"] = "cosine",
        warmup: float = 0.0,
        final: float = 0.0,
        cooldown: float = 0.2,
        cooldown_shape: Literal["sqrt", "linear"] = "sqrt",
        momentum: float = 0.95,
    ) -> None:
        super().__init__(lr, betas, eps, weight_decay, decay, clip, schedule, warmup, final, cooldown, cooldown_shape)
        require(0 <= momentum < 1, f"optim.momentum must lie in [0, 1); {momentum} was given, try optim.momentum=0.95")
        self.momentum = momentum

    def optimizer(self, model: nn.Module, fused: bool = True) -> torch.optim.AdamW:
        """One optimizer of all trainable parameters, in groups as AdamW's; its `fused` concerns the AdamW part."""
        layers = hidden_matrices(model)
        divisor = model.rate_divisor if isinstance(model, LanguageModel) else 1.0
        groups = self._groups(model, layers, divisor**-0.5)
        return _MuonAndAdamW(groups, layers, self.momentum, **self._options(model, fused))


class _MuonAndAdamW(torch.optim.AdamW):
    """AdamW that leaves the weights of `layers` to Muon. Rates may be tensors on the device, which are not read back,
    so that a CUDA graph can hold the step."""

    def __init__(
        self, groups: list[dict[str, Any]], layers: dict[Tensor, nn.Linear], momentum: float, **options: Any
    ) -> None:
        super().__init__(groups, **options)
        self._layers, self._momentum = layers, momentum

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for weight in group["params"]:
                if weight in self._layers and weight.grad is not None:
                    self._muon(weight, group["lr"], group["weight_decay"])
                    weight.grad = None  # AdamW leaves it out
        return super().step(closure)

    def _muon(self, weight: nn.Parameter, rate: float | Tensor, weight_decay: float) -> None:
        assert weight.grad is not None
        scale = getattr(self, "grad_scale", None)  # set by Step; AdamW's kernel divides by it as well
        state, grad = self.state[weight], weight.grad if scale is None else weight.grad / scale
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(weight)  # the layer's matrices one below the other
        layer = self._layers[weight]
        heads, rows = getattr(layer, "heads", 1), getattr(layer, "rows", (layer.out_features,))
        grads = [part.flatten(0, 1) for part in grad.unflatten(0, (heads, -1)).split(rows, dim=1)]
        updates = [torch.zeros_like(part) for part in grads]
        muon(
            updates,
            grads,
            list(state["momentum_buffer"].split([heads * number for number in rows])),
            lr=1.0,  # the rate may be a tensor, which torch's function would read back
            weight_decay=0.0,
            momentum=self._momentum,
            nesterov=True,
            ns_coefficients=_COEFFICIENTS,
            ns_steps=_STEPS,
            eps=_EPS,
            adjust_lr_fn="match_rms_adamw",
            has_complex=False,
        )
        update = torch.cat([part.unflatten(0, (heads, -1)) for part in updates], dim=1).flatten(0, 1)
        weight.mul_(1 - rate * weight_decay).add_(update.mul_(rate))
