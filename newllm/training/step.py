"""One optimizer step: the hot path of training, alone, so that the bench times what the loop runs."""

import math

import torch
from torch import Tensor

from newllm.model import Transformer
from newllm.training.loss import IGNORED, linear_cross_entropy
from newllm.training.optimizer import AdamW
from newllm.training.precision import Precision, autocast


class Step:
    """``step(pieces, rate)``: forward, backward, clipping and AdamW on a batch. Nothing in it waits for the device."""

    def __init__(self, model: Transformer, optim: AdamW, device: torch.device, precision: Precision) -> None:
        self.model, self.device, self.precision = model, device, precision
        self.optimizer = optim.optimizer(model)
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.clip = math.inf if optim.clip is None else optim.clip

    def __call__(self, pieces: list[tuple[Tensor, Tensor]], rate: float) -> tuple[Tensor, Tensor, int]:
        """Train on the pieces (inputs, labels: [b, T] each) of one batch at the learning rate `rate`.

        Returns, the first two still on the device: mean loss, norm of the gradient before clipping, scored tokens.
        """
        scored = sum(int((labels != IGNORED).sum()) for _, labels in pieces)
        loss = torch.zeros((), device=self.device)
        for inputs, labels in pieces:
            with autocast(self.device, self.precision):
                hidden = self.model.hidden(self._to_device(inputs))  # [b, T, hidden]
                part = linear_cross_entropy(
                    hidden.flatten(0, 1), self.model.head_weight, self._to_device(labels).flatten(), total=scored
                )
            part.backward()
            loss += part.detach()
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        if self.clip < math.inf:
            self._clip(norm)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss, norm, scored

    def _clip(self, norm: Tensor) -> None:
        """Scale the gradient to the largest norm allowed; the fused optimizer does it in its own pass."""
        if self.optimizer.defaults["fused"]:
            # What torch's GradScaler sets: the kernel divides the gradients by it.
            self.optimizer.grad_scale = (norm / self.clip).clamp(min=1.0)  # type: ignore[attr-defined]
        else:
            torch.nn.utils.clip_grads_with_norm_(self.parameters, self.clip, norm)

    def tensors(self) -> list[Tensor]:
        """What is alive between two steps: parameters, buffers and the optimizer's state."""
        state = [value for values in self.optimizer.state.values() for value in values.values()]
        return [*self.parameters, *self.model.buffers(), *state]

    def _to_device(self, tensor: Tensor) -> Tensor:
        if self.device.type == "cuda":
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor.to(self.device)
