"""Muon for the hidden matrices, AdamW for all other parameters."""

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from newllm.model import LanguageModel
from newllm.precision import Precision
from newllm.training.optimizer import AdamW, hidden_matrices, require


class Muon(AdamW):
    """Muon (Jordan 2024, kellerjordan.github.io/posts/muon) for the weights of the linear layers in the blocks; AdamW
    for embedding, head, norms, biases and all else.

        B = momentum B + (1 - momentum) G          O = orthogonalize((1 - momentum) G + momentum B)
        W = (1 - lr weight_decay) W - lr 0.2 sqrt(max(rows, columns)) O

    The factor gives the update the root mean square of AdamW's, so that one lr and weight_decay can serve both (Liu et
    al. 2025, arXiv 2502.16982); the best lr is above that of AdamW alone (docs/optimization_small.md). A layer that
    holds several matrices in one (q | k | v, gate | up, MLA's keys and values) has each of them orthogonalized alone,
    in trainer.precision. With model.width_base, Muon's rate is divided by the root of what AdamW's is divided by, since
    the norm of an orthogonal matrix with this factor grows only with the root of the width.

    Args:
        momentum: decay of the mean gradient, in [0, 1).
        lr, betas, eps, weight_decay, decay, clip, schedule, warmup, final, cooldown, cooldown_shape, embedding_rate: as
            in AdamW; betas, eps and embedding_rate are those of the other parameters.
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
        warmup: float = 0.1,
        final: float = 0.0,
        cooldown: float = 0.2,
        cooldown_shape: Literal["sqrt", "linear"] = "sqrt",
        embedding_rate: float = 1.0,
        momentum: float = 0.95,
    ) -> None:
        super().__init__(
            lr, betas, eps, weight_decay, decay, clip, schedule, warmup, final, cooldown, cooldown_shape, embedding_rate
        )
        require(0 <= momentum < 1, f"optim.momentum must lie in [0, 1); {momentum} was given, try optim.momentum=0.95")
        self.momentum = momentum

    def optimizer(self, model: nn.Module, fused: bool = True, precision: Precision = "fp32") -> torch.optim.AdamW:
        """One optimizer of all trainable parameters, in groups as AdamW's; `fused` concerns AdamW's part."""
        layers = hidden_matrices(model)
        divisor = model.rate_divisor if isinstance(model, LanguageModel) else 1.0
        groups = self._groups(model, layers, divisor**-0.5)
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        return _MuonAndAdamW(groups, layers, self.momentum, dtype, **self._options(model, fused))


class _MuonAndAdamW(torch.optim.AdamW):
    """AdamW that leaves the weights of `layers` to Muon. Rates may be tensors on the device, which are not read back,
    so that a CUDA graph can hold the step."""

    def __init__(
        self,
        groups: list[dict[str, Any]],
        layers: dict[Tensor, nn.Linear],
        momentum: float,
        dtype: torch.dtype,
        **options: Any,
    ) -> None:
        super().__init__(groups, **options)
        self._layers, self._momentum, self._dtype = layers, momentum, dtype

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for weight in group["params"]:
                if weight in self._layers and weight.grad is not None:
                    update = self._update(weight, weight.grad).mul_(group["lr"])
                    weight.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update)
                    weight.grad = None  # so that AdamW leaves it out
        return super().step(closure)

    def _update(self, weight: Tensor, grad: Tensor) -> Tensor:
        scale = getattr(self, "grad_scale", None)  # set by Step; AdamW's kernel divides by it as well
        if scale is not None:
            grad = grad / scale
        state, layer = self.state[weight], self._layers[weight]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(weight)
        mean = state["momentum_buffer"].lerp_(grad, 1 - self._momentum)
        mixed = grad.lerp(mean, self._momentum)
        heads, rows = getattr(layer, "heads", 1), getattr(layer, "rows", (layer.out_features,))
        parts = []
        for part in mixed.unflatten(0, (heads, -1)).split(rows, dim=1):  # [heads, rows, in]
            matrix = part.flatten(0, 1)
            orthogonal = orthogonalize(matrix, self._dtype).to(weight.dtype)
            parts.append((0.2 * math.sqrt(max(matrix.shape)) * orthogonal).view_as(part))
        return torch.cat(parts, dim=1).flatten(0, 1)


def orthogonalize(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """About U V^T of the matrix's singular value decomposition U S V^T, computed and returned in `dtype`.

    Five steps of Jordan's iteration, which brings the singular values to between 0.7 and 1.2. torch.optim.Muon does the
    same, always in bf16, which takes thirty times as long as fp32 on CPUs that have no products in bf16.
    """
    x = matrix.to(dtype)
    tall = x.shape[0] > x.shape[1]
    x = x.mT if tall else x
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return x.mT if tall else x
