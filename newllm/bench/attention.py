"""Attention kernels, forward and backward, under each kind of bias, taking turns in one process.

Random q, k, v [batch, heads, T, width]. What newllm trains with stands beside torch's fused causal attention, which
has no bias at all, and beside the T x T masks that others hand to it for ALiBi and for learned biases. Temporary memory
is what a call adds to its inputs, at its peak: output, gradients, masks and saved tensors; kernels' own scratch memory
is not seen on a CPU.

  lengths   tokens T                rounds   turns of each contestant
  batch, heads, width               sizes; MLA's keys have `rotary` dims more than its values
"""

import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from newllm.attention.kernels import attend
from newllm.bench.result import Result
from newllm.bench.timing import alternate, ratio_metrics
from newllm.position.alibi import geometric_slopes
from newllm.position.bias import Bias, LinearBias, MatrixBias
from newllm.runtime import Runtime
from newllm.training.memory import peak_bytes
from newllm.training.precision import native_bf16

PURPOSE = "attention kernels under each kind of bias against plain causal attention: time and memory"
OPTIONS: dict[str, Any] = {
    "lengths": [512, 1024, 2048, 4096],
    "rounds": 5,
    "batch": 2,
    "heads": 8,
    "width": 64,
    "rotary": 16,
}
DEFAULTS: list[str] = []
_LABELS = {
    "causal": "torch, causal, no bias",
    "none": "newllm, no bias",
    "alibi": "newllm, ALiBi, one slope",
    "alibi_heads": "newllm, ALiBi, slope per head",
    "learned": "newllm, learned bias",
    "mask": "torch, T x T ALiBi mask",
    "learned_mask": "torch, learned T x T mask",
    "mla_causal": "torch, MLA padded, no bias",
    "mla": "newllm, MLA, no bias",
    "mla_alibi": "newllm, MLA, ALiBi",
}
_REFERENCE = {name: "mla_causal" if name.startswith("mla") else "causal" for name in _LABELS}
_MASKS = {"alibi": "mask", "alibi_heads": "mask", "learned": "learned_mask"}

Forward = Callable[[], Tensor]


def measure(
    overrides: list[str], *, lengths: list[int], rounds: int, batch: int, heads: int, width: int, rotary: int
) -> Result:
    """seconds/<contestant>/<dtype>/<T> of every round; temporary_bytes/<contestant>/<dtype>/<T>;

    ratio/causal/<contestant>/<dtype>/<T>: how many times faster than torch's causal attention without a bias;
    ratio/mask/<contestant>/<dtype>/<T>: than torch's attention with the bias as a T x T mask.
    """
    runtime = Runtime()
    runtime.apply()
    device = runtime.device()
    dtypes = {"bf16": torch.bfloat16, "fp32": torch.float32}
    result = Result({"device": str(device), "threads": runtime.threads, "batch": batch, "heads": heads, "width": width})
    result.notes.append(f"Medians of {rounds} rounds; in brackets, times the first row's (MLA: its own first row's).")
    if not native_bf16(device):
        del dtypes["bf16"]
        result.notes.append(f"{device} has no native bf16, which is left out.")
    for name, dtype in dtypes.items():
        for length in lengths:
            setting = f"{name}/{length}"
            result.metrics |= _at(device, dtype, (batch, heads, length, width), rotary, rounds, setting)
        shape = f"{batch} x {heads} x T x {width}, {name}, {device}, {runtime.threads} threads"
        result.tables.append(_times(result.metrics, name, lengths, f"ms forward and backward: {shape}"))
        result.tables.append(_memory(result.metrics, name, lengths, f"MB of temporary memory: {shape}"))
    return result


def _at(
    device: torch.device, dtype: torch.dtype, shape: tuple[int, int, int, int], rotary: int, rounds: int, setting: str
) -> dict[str, Any]:
    contestants = _contestants(device, dtype, shape, rotary)
    seconds = alternate(contestants, rounds, calls=max(1, 2048 // shape[2]))
    found: dict[str, Any] = {}
    for name, times in seconds.items():
        found[f"seconds/{name}/{setting}"] = times
        found |= ratio_metrics(f"ratio/causal/{name}/{setting}", seconds[_REFERENCE[name]], times)
        if name in _MASKS:
            found |= ratio_metrics(f"ratio/mask/{name}/{setting}", seconds[_MASKS[name]], times)
        found[f"temporary_bytes/{name}/{setting}"] = contestants[name].temporary(device)
    return found


class _Contestant:
    """Forward and backward of one kernel.

    inputs: what gradients are taken of. held: a tensor that serves every call and is counted as temporary: a mask.
    """

    def __init__(self, forward: Forward, inputs: list[Tensor], gradient: Tensor, held: Tensor | None = None) -> None:
        self.forward, self.inputs, self.gradient, self.held = forward, inputs, gradient, held

    def __call__(self) -> None:
        torch.autograd.grad(self.forward(), self.inputs, self.gradient)
        if self.gradient.is_cuda:
            torch.cuda.synchronize()

    def temporary(self, device: torch.device) -> int:
        resident = [*self.inputs, self.gradient, *([] if self.held is None else [self.held])]
        given = sum(tensor.nbytes for tensor in (*self.inputs, self.gradient))
        return peak_bytes(self, resident, device) - given


def _contestants(
    device: torch.device, dtype: torch.dtype, shape: tuple[int, int, int, int], rotary: int
) -> dict[str, _Contestant]:
    batch, heads, length, width = shape
    generator = torch.Generator().manual_seed(0)

    def random(size: int) -> Tensor:
        numbers = torch.randn(batch, heads, length, size, generator=generator)
        return numbers.to(device, dtype).requires_grad_()

    q, k, v = (random(width) for _ in range(3))
    wide_q, wide_k = (random(width + rotary) for _ in range(2))
    gradient = random(width).detach()
    scale, wide_scale = width**-0.5, (width + rotary) ** -0.5
    uniform = LinearBias(torch.tensor([0.0625], device=device))
    per_head = LinearBias(torch.tensor(geometric_slopes(heads), device=device))
    table = torch.zeros(heads, length, device=device, requires_grad=True)  # a number for each head and distance
    learned = MatrixBias(lambda i, j: table[:, (i[:, None] - j[None, :]).clamp(min=0)], (table,))
    positions = torch.arange(length, device=device)
    future = positions[None, :] > positions[:, None]
    mask = per_head.matrix(positions, positions).masked_fill(future, float("-inf")).to(dtype)[None]

    def ours(bias: Bias | None) -> Forward:
        return partial(attend, q, k, v, bias, scale)

    def ours_mla(bias: Bias | None) -> Forward:
        return partial(attend, wide_q, wide_k, v, bias, wide_scale)

    def padded() -> Tensor:
        out = F.scaled_dot_product_attention(wide_q, wide_k, F.pad(v, (0, rotary)), is_causal=True, scale=wide_scale)
        return out[..., :width]

    def learned_mask() -> Tensor:
        mask = learned.matrix(positions, positions).masked_fill(future, float("-inf")).to(dtype)[None]
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)

    causal = partial(F.scaled_dot_product_attention, q, k, v, is_causal=True, scale=scale)
    masked = partial(F.scaled_dot_product_attention, q, k, v, attn_mask=mask, scale=scale)
    qkv, wide = [q, k, v], [wide_q, wide_k, v]
    return {
        "causal": _Contestant(causal, qkv, gradient),
        "none": _Contestant(ours(None), qkv, gradient),
        "alibi": _Contestant(ours(uniform), qkv, gradient),
        "alibi_heads": _Contestant(ours(per_head), qkv, gradient),
        "learned": _Contestant(ours(learned), [*qkv, table], gradient),
        "mask": _Contestant(masked, qkv, gradient, held=mask),
        "learned_mask": _Contestant(learned_mask, [*qkv, table], gradient),
        "mla_causal": _Contestant(padded, wide, gradient),
        "mla": _Contestant(ours_mla(None), wide, gradient),
        "mla_alibi": _Contestant(ours_mla(per_head), wide, gradient),
    }


def _times(metrics: dict[str, Any], dtype: str, lengths: list[int], title: str) -> tuple[str, list[str], list[Any]]:
    rows = []
    for name, label in _LABELS.items():
        row = [label]
        for length in lengths:
            setting = f"{name}/{dtype}/{length}"
            times = 1 / metrics[f"ratio/causal/{setting}"]
            row.append(f"{1e3 * statistics.median(metrics[f'seconds/{setting}']):.1f} ({times:.2f} x)")
        rows.append(row)
    return title, ["kernel", *(f"T = {length}" for length in lengths)], rows


def _memory(metrics: dict[str, Any], dtype: str, lengths: list[int], title: str) -> tuple[str, list[str], list[Any]]:
    rows = [
        [label, *(f"{metrics[f'temporary_bytes/{name}/{dtype}/{length}'] / 1e6:,.1f}" for length in lengths)]
        for name, label in _LABELS.items()
    ]
    return title, ["kernel", *(f"T = {length}" for length in lengths)], rows
