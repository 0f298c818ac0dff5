"""Packed layers: one module in place of K equal ones, each with the parameters of its own run.

A packed batch is run-major: x [K * B, ...] has the B rows of the first run first. The parameters stay those of the
runs' own models, and their gradients arrive there, so that a run's optimizer, clipping and checkpoints know of nothing.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class Linears(nn.Module):
    """x [K * B, ..., in] -> [K * B, ..., out]."""

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        super().__init__()
        self._parts = [layer.weight for layer in layers]
        self._biases = [layer.bias for layer in layers if layer.bias is not None]

    def forward(self, x: Tensor) -> Tensor:
        runs, dtype = len(self._parts), x.dtype
        if torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
        rows = x.to(dtype).reshape(runs, -1, x.shape[-1])  # [K, N, in]
        y: Tensor = _Products.apply(rows, runs, *self._parts, *self._biases)  # [K, N, out]
        return y.view(*x.shape[:-1], y.shape[-1])


class _Products(torch.autograd.Function):
    """``y_k = x_k W_k^T + b_k`` for x [K, N, in]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, runs: int, *parameters: Tensor) -> Tensor:
        weights = [weight.to(x.dtype) for weight in parameters[:runs]]
        biases = [bias.to(x.dtype) for bias in parameters[runs:]]
        ctx.save_for_backward(x, *weights)
        ctx.dtypes = [parameter.dtype for parameter in parameters]
        if not _one_by_one(x):
            stacked = torch.stack(weights).mT
            return torch.baddbmm(torch.stack(biases)[:, None], x, stacked) if biases else torch.bmm(x, stacked)
        y = x.new_empty(runs, x.shape[1], weights[0].shape[0])
        for k, weight in enumerate(weights):
            if biases:
                torch.addmm(biases[k], x[k], weight.T, out=y[k])
            else:
                torch.mm(x[k], weight.T, out=y[k])
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grad_outputs  # [K, N, out]
        x, *weights = ctx.saved_tensors
        wants_x, _, *wanted = ctx.needs_input_grad
        runs = len(weights)
        d_x: Tensor | None = None
        if not _one_by_one(x):
            d_x = torch.bmm(grad, torch.stack(weights)) if wants_x else None
            found = [*torch.bmm(grad.mT, x).unbind(), *(grad.sum(1).unbind() if len(wanted) > runs else ())]
        else:
            if wants_x:
                d_x = torch.empty_like(x)
                for k, weight in enumerate(weights):
                    torch.mm(grad[k], weight, out=d_x[k])
            found = [torch.mm(grad[k].T, x[k]) for k in range(runs)]
            found += [grad[k].sum(0) for k in range(len(wanted) - runs)]
        given = zip(found, wanted, ctx.dtypes, strict=True)
        return d_x, None, *(g.to(dtype) if wants else None for g, wants, dtype in given)


def _one_by_one(x: Tensor) -> bool:
    """On a CPU products one by one are as fast as a batched one, and equal to a run's own to the last bit."""
    return x.is_cpu


class Norms(nn.Module):
    """LayerNorm or RMSNorm of x [K * B, ..., *shape]: normalised once, scaled (and shifted) by each run's own."""

    def __init__(self, layers: Sequence[nn.LayerNorm | nn.RMSNorm]) -> None:
        super().__init__()
        first = layers[0]
        self._shape, self._eps = list(first.normalized_shape), first.eps
        self._centred = isinstance(first, nn.LayerNorm)
        self._scales: list[Tensor] = [layer.weight for layer in layers if layer.weight is not None]
        shifts = [getattr(layer, "bias", None) for layer in layers]
        self._shifts: list[Tensor] = [shift for shift in shifts if shift is not None]

    def forward(self, x: Tensor) -> Tensor:
        if self._centred:
            normed = F.layer_norm(x, self._shape, eps=self._eps or 1e-5)
        else:
            normed = F.rms_norm(x, self._shape, eps=self._eps)
        if not self._scales:
            return normed
        rows = normed.view(len(self._scales), -1, *self._shape) * torch.stack(self._scales)[:, None]
        if self._shifts:
            rows = rows + torch.stack(self._shifts)[:, None]
        return rows.view_as(x)


class Split(nn.Module):
    """The K modules themselves, each on the rows of its run."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self._layers = list(layers)  # no submodules: they belong to the runs' models

    def forward(self, x: Tensor) -> Tensor:
        chunks = x.chunk(len(self._layers))
        return torch.cat([layer(chunk) for layer, chunk in zip(self._layers, chunks, strict=True)])
