"""AdamW and the learning rate of each step."""

import math
from typing import Literal

import torch
from torch import nn

from newllm.errors import ConfigError


class AdamW:
    """AdamW (Loshchilov & Hutter, arXiv 1711.05101) with a linear warm-up, then a constant or cosine rate.

    With w warm-up steps of S in all, the rate of step s = 0, 1, … is ``lr * s / w`` for s < w, and afterwards
    ``lr`` (constant) or ``lr * (final + (1 - final) * (1 + cos(pi * (s - w) / (S - w))) / 2)`` (cosine).

    Args:
        lr: highest learning rate.
        betas: decay of the two moments, each in [0, 1).
        eps: added to the root of the second moment.
        weight_decay: decoupled weight decay per unit of learning rate.
        decay: which parameters decay: "matrices" (those with two or more dims) or "all".
        clip: largest norm of the gradient over all parameters; None: no clipping.
        schedule: the rate after the warm-up.
        warmup: a fraction of all steps if below 1, else a number of steps.
        final: last rate of the cosine as a fraction of `lr`.
    """

    def __init__(
        self,
        lr: float,
        betas: list[float],
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        decay: Literal["matrices", "all"] = "matrices",
        clip: float | None = 1.0,
        schedule: Literal["constant", "cosine"] = "cosine",
        warmup: float = 0.0,
        final: float = 0.0,
    ) -> None:
        _require(lr > 0, f"optim.lr must be above 0; {lr} was given, try lr=1e-3")
        _require(
            len(betas) == 2 and all(0 <= beta < 1 for beta in betas),
            f"optim.betas must be two numbers in [0, 1); {betas} was given, try 'optim.betas=[0.9,0.95]'",
        )
        _require(eps > 0, f"optim.eps must be above 0; {eps} was given, try optim.eps=1e-8")
        _require(weight_decay >= 0, f"optim.weight_decay must be at least 0; {weight_decay} was given")
        _require(clip is None or clip > 0, f"optim.clip must be above 0, or null for none; {clip} was given")
        _require(
            warmup >= 0 and (warmup < 1 or warmup == int(warmup)),
            f"optim.warmup must be a share in [0, 1) or a whole number of steps; {warmup} was given",
        )
        _require(0 <= final <= 1, f"optim.final is a share of lr in [0, 1]; {final} was given")
        self.lr, self.betas, self.eps = lr, (betas[0], betas[1]), eps
        self.weight_decay, self.decay, self.clip = weight_decay, decay, clip
        self.schedule, self.warmup, self.final = schedule, warmup, final

    def optimizer(self, model: nn.Module, fused: bool = True) -> torch.optim.AdamW:
        """The optimizer of all trainable parameters, with the fused kernel if `fused` and the device has one.

        The rate of a step is multiplied by each group's `rate_factor`: 1, except for parameters that a module lists in
        its `rate_factors` (name -> factor), which do not decay either.
        """
        factors = {
            module.get_parameter(name): factor
            for module in model.modules()
            for name, factor in getattr(module, "rate_factors", {}).items()
        }
        parameters = [p for p in model.parameters() if p.requires_grad]
        common = [p for p in parameters if p not in factors]
        decayed = [p for p in common if self.decay == "all" or p.dim() >= 2]
        others = [p for p in common if self.decay == "matrices" and p.dim() < 2]
        groups = [
            {"params": decayed, "weight_decay": self.weight_decay, "rate_factor": 1.0},
            {"params": others, "weight_decay": 0.0, "rate_factor": 1.0},
            *({"params": [p], "weight_decay": 0.0, "rate_factor": factor} for p, factor in factors.items()),
        ]
        fused = fused and all(p.device.type in ("cpu", "cuda", "mps") for p in parameters)
        groups = [group for group in groups if group["params"]]
        return torch.optim.AdamW(groups, lr=self.lr, betas=self.betas, eps=self.eps, fused=fused)

    def rate(self, step: int, steps: int) -> float:
        """Learning rate of step `step` (from 0) of `steps`."""
        warmup = int(self.warmup * steps) if self.warmup < 1 else int(self.warmup)
        if step < warmup:
            return self.lr * step / warmup
        if self.schedule == "constant":
            return self.lr
        cosine = (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup))) / 2
        return self.lr * (self.final + (1 - self.final) * cosine)


def lower_rate(rate: float) -> float:
    """What to try after `rate` has diverged: a tenth of it, at most 1e-3, which most models bear."""
    return min(rate / 10, 1e-3)


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ConfigError(message)
