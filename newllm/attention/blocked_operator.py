"""Blocked attention under torch.compile, which would otherwise unroll its loops into hundreds of kernels.

Without a bias, or with a linear one, it is a custom operator, a single node of the graph. Other biases are Python
functions, which an operator cannot take as arguments, so they break the graph.
"""

from typing import Any

import torch
from torch import Tensor

from newllm.attention import blocked
from newllm.attention.blocked import backward, forward
from newllm.position.bias import Bias, LinearBias

_outside_the_graph = torch.compiler.disable(blocked.blocked)


def blocked_in_graph(q: Tensor, k: Tensor, v: Tensor, bias: Bias | None, scale: float) -> Tensor:
    """The same as `newllm.attention.blocked.blocked`, for use while torch.compile traces."""
    if isinstance(bias, LinearBias | None):
        node: Tensor = _operator(q, k, v, bias.slopes if bias else None, scale)[0]
        return node
    out: Tensor = _outside_the_graph(q, k, v, bias, scale)
    return out


def _bias(slopes: Tensor | None) -> LinearBias | None:
    return None if slopes is None else LinearBias(slopes)


@torch.library.custom_op("newllm::blocked", mutates_args=())
def _operator(q: Tensor, k: Tensor, v: Tensor, slopes: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    return forward(q, k, v, _bias(slopes), scale)


@_operator.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, slopes: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    out = v.new_empty(*q.shape[:3], v.shape[-1])
    return out, q.new_empty(*q.shape[:3], 1, dtype=torch.promote_types(q.dtype, torch.float32))


@torch.library.custom_op("newllm::blocked_backward", mutates_args=())
def _backward_operator(
    q: Tensor, k: Tensor, v: Tensor, log_sums: Tensor, d_out: Tensor, slopes: Tensor | None, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    return backward(q, k, v, log_sums, d_out, _bias(slopes), scale)[:3]


@_backward_operator.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, log_sums: Tensor, d_out: Tensor, slopes: Tensor | None, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, ctx.slopes, ctx.scale = inputs
    ctx.save_for_backward(q, k, v, output[1])


def _gradients(ctx: Any, d_out: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    q, k, v, log_sums = ctx.saved_tensors
    return *_backward_operator(q, k, v, log_sums, d_out, ctx.slopes, ctx.scale), None, None


_operator.register_autograd(_gradients, setup_context=_save)
