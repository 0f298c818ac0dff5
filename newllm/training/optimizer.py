"""AdamW and the learning rate of each step."""

import math
from collections.abc import Collection
from typing import Any, Literal

import torch
from torch import Tensor, nn

from newllm.errors import ConfigError
from newllm.model import LanguageModel
from newllm.precision import Precision


class AdamW:
    """AdamW (Loshchilov & Hutter, arXiv 1711.05101) with a linear warm-up, then a rate that follows a schedule.

    With w warm-up steps of S in all, the rate of step s = 0, 1, … is ``lr * s / w`` for s < w, and afterwards
    ``lr * (final + (1 - final) * f)`` with

        constant    f = 1 and no `final`
        cosine      f = (1 + cos(pi * (s - w) / (S - w))) / 2
        wsd         f = 1 up to the cool-down, the last c steps, then 1 - sqrt(x) or 1 - x with x = (s - (S - c)) / c

    wsd (warm-up, stable, decay) as in Hägele et al. 2024, arXiv 2405.18392: up to its cool-down, a run does not depend
    on its length.

    Args:
        lr: highest learning rate.
        betas: decay of the two moments, each in [0, 1).
        eps: added to the root of the second moment.
        weight_decay: decoupled weight decay per unit of learning rate.
        decay: which parameters decay: "matrices" (those with two or more dims) or "all".
        clip: largest norm of the gradient over all parameters; None: no clipping.
        schedule: the rate after the warm-up.
        warmup: a fraction of all steps if below 1, else a number of steps.
        final: last rate of cosine and wsd as a fraction of `lr`.
        cooldown: last steps of wsd: a fraction of all steps if at most 1, else a number of steps.
        cooldown_shape: "sqrt" (1 - sqrt(x)) or "linear" (1 - x).
        embedding_rate: rate of a language model's token embedding (and of the head that is tied to it) as a multiple of
            the others'; its decay per step stays that of the others (docs/optimization_small.md measures it).
    """

    def __init__(
        self,
        lr: float,
        betas: list[float],
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        decay: Literal["matrices", "all"] = "matrices",
        clip: float | None = 1.0,
        schedule: Literal["constant", "cosine", "wsd"] = "cosine",
        warmup: float = 0.0,
        final: float = 0.0,
        cooldown: float = 0.2,
        cooldown_shape: Literal["sqrt", "linear"] = "sqrt",
        embedding_rate: float = 1.0,
    ) -> None:
        require(lr > 0, f"optim.lr must be above 0; {lr} was given, try lr=1e-3")
        require(
            len(betas) == 2 and all(0 <= beta < 1 for beta in betas),
            f"optim.betas must be two numbers in [0, 1); {betas} was given, try 'optim.betas=[0.9,0.95]'",
        )
        require(eps > 0, f"optim.eps must be above 0; {eps} was given, try optim.eps=1e-8")
        require(weight_decay >= 0, f"optim.weight_decay must be at least 0; {weight_decay} was given")
        require(clip is None or clip > 0, f"optim.clip must be above 0, or null for none; {clip} was given")
        require(
            warmup >= 0 and (warmup < 1 or warmup == int(warmup)),
            f"optim.warmup must be a share in [0, 1) or a whole number of steps; {warmup} was given",
        )
        require(
            cooldown > 0 and (cooldown <= 1 or cooldown == int(cooldown)),
            f"optim.cooldown must be a share in (0, 1] or a whole number of steps; {cooldown} was given",
        )
        require(0 <= final <= 1, f"optim.final is a share of lr in [0, 1]; {final} was given")
        require(embedding_rate > 0, f"optim.embedding_rate must be above 0; {embedding_rate} was given, try 1 or 10")
        self.lr, self.betas, self.eps = lr, (betas[0], betas[1]), eps
        self.weight_decay, self.decay, self.clip = weight_decay, decay, clip
        self.schedule, self.warmup, self.final = schedule, warmup, final
        self.cooldown, self.cooldown_shape = cooldown, cooldown_shape
        self.embedding_rate = embedding_rate

    def optimizer(self, model: nn.Module, fused: bool = True, precision: Precision = "fp32") -> torch.optim.AdamW:
        """The optimizer of all trainable parameters, with the fused kernel if `fused` and the device has one.

        The rate of a step is multiplied by each group's `rate_factor`: 1, except for the embedding, for parameters that
        a module lists in its `rate_factors` (name -> factor), which do not decay either, and for the hidden matrices of
        a model with a `rate_divisor`. precision: of the run; AdamW always computes in that of the weights.
        """
        divisor = model.rate_divisor if isinstance(model, LanguageModel) else 1.0
        apart = () if divisor == 1 else hidden_matrices(model)
        return torch.optim.AdamW(self._groups(model, apart, 1 / divisor), **self._options(model, fused))

    def _options(self, model: nn.Module, fused: bool) -> dict[str, Any]:
        fused = fused and all(p.device.type in ("cpu", "cuda", "mps") for p in model.parameters() if p.requires_grad)
        return {"lr": self.lr, "betas": self.betas, "eps": self.eps, "fused": fused}

    def _groups(self, model: nn.Module, apart: Collection[Tensor], apart_factor: float) -> list[dict[str, Any]]:
        """Each trainable parameter in one group; those `apart` are matrices with a group and a rate factor of their
        own."""
        factors = {
            module.get_parameter(name): factor
            for module in model.modules()
            for name, factor in getattr(module, "rate_factors", {}).items()
        }
        embedding = {model.embed.weight} if isinstance(model, LanguageModel) else set()
        parameters = [p for p in model.parameters() if p.requires_grad]
        common = [p for p in parameters if p not in factors]
        decayed = [p for p in common if self.decay == "all" or p.dim() >= 2]
        others = [p for p in common if self.decay == "matrices" and p.dim() < 2]
        usual = [p for p in decayed if p not in apart and p not in embedding]
        decay, faster = self.weight_decay, self.embedding_rate
        groups = [
            {"params": [p for p in decayed if p in apart], "weight_decay": decay, "rate_factor": apart_factor},
            {"params": usual, "weight_decay": decay, "rate_factor": 1.0},
            {"params": [p for p in decayed if p in embedding], "weight_decay": decay / faster, "rate_factor": faster},
            {"params": others, "weight_decay": 0.0, "rate_factor": 1.0},
            *({"params": [p], "weight_decay": 0.0, "rate_factor": factor} for p, factor in factors.items()),
        ]
        return [group for group in groups if group["params"]]

    def rate(self, step: int, steps: int) -> float:
        """Learning rate of step `step` (from 0) of `steps`."""
        warmup = self.warmup_steps(steps)
        if step < warmup:
            return self.lr * step / warmup
        if self.schedule == "constant":
            return self.lr
        if self.schedule == "cosine":
            height = (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup))) / 2
        else:
            stable = self.stable_steps(steps)
            past = max(0, step - stable) / max(1, steps - stable)
            height = 1 - (math.sqrt(past) if self.cooldown_shape == "sqrt" else past)
        return self.lr * (self.final + (1 - self.final) * height)

    def warmup_steps(self, steps: int) -> int:
        """Number of steps of the warm-up in a run of `steps`."""
        return int(self.warmup * steps) if self.warmup < 1 else int(self.warmup)

    def stable_steps(self, steps: int) -> int:
        """Number of steps before the cool-down of wsd in a run of `steps`."""
        cooldown = round(self.cooldown * steps) if self.cooldown <= 1 else int(self.cooldown)
        return max(0, steps - cooldown)


def hidden_matrices(model: nn.Module) -> dict[Tensor, nn.Linear]:
    """The trainable matrices of the layers in a language model's blocks, with their layers; empty for other modules."""
    layers = model.hidden_layers() if isinstance(model, LanguageModel) else []
    return {layer.weight: layer for layer in layers if layer.weight.requires_grad}


def lower_rate(rate: float) -> float:
    """What to try after `rate` has diverged: a tenth of it, at most 1e-3, which most models bear."""
    return min(rate / 10, 1e-3)


def require(holds: bool, message: str) -> None:
    """Raises ConfigError with this message unless `holds`."""
    if not holds:
        raise ConfigError(message)
