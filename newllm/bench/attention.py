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

import torch
import torch.nn.functional as F
from torch import Tensor

from newllm.attention.kernels import attend
from newllm.bench.harness import Result, alternate
from newllm.position.alibi import geometric_slopes
from newllm.position.bias import Bias, LinearBias, MatrixBias
from newllm.precision import native_bf16
from newllm.runtime import Runtime
from newllm.training.memory import peak_bytes

DEFAULTS: list[str] = []
LABELS = {
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
MASKS = {"alibi": "mask", "alibi_heads": "mask", "learned": "learned_mask"}


def measure(
    overrides: list[str],
    *,
    lengths: tuple[int, ...] = (512, 1024, 2048, 4096),
    rounds: int = 5,
    batch: int = 2,
    heads: int = 8,
    width: int = 64,
    rotary: int = 16,
) -> Result:
    """seconds/<contestant>/<dtype>/<T> of every round; temporary_bytes/<contestant>/<dtype>/<T>;

    ratio/causal/<contestant>/<dtype>/<T>: how many times faster than torch's causal attention without a bias;
    ratio/mask/<contestant>/<dtype>/<T>: than torch's attention with the bias as a T x T mask.
    """
    runtime = Runtime()
    runtime.apply()
    device = runtime.device()
    result = Result({"device": str(device), "threads": runtime.threads, "batch": batch, "heads": heads, "width": width})
    result.notes.append(f"Medians of {rounds} rounds; in brackets, times the first row's (MLA: its own first row's).")
    dtypes = {"bf16": torch.bfloat16, "fp32": torch.float32}
    if not native_bf16(device):
        del dtypes["bf16"]
        result.notes.append(f"{device} has no native bf16, which is left out.")
    for dtype_name, dtype in dtypes.items():
        times = {name: [label] for name, label in LABELS.items()}
        memory = {name: [label] for name, label in LABELS.items()}
        for length in lengths:
            contestants = _contestants(device, dtype, (batch, heads, length, width), rotary)
            seconds = alternate(contestants, rounds, calls=max(1, 2048 // length))
            for name, taken in seconds.items():
                setting = f"{name}/{dtype_name}/{length}"
                result.metrics[f"seconds/{setting}"] = taken
                reference = seconds["mla_causal" if name.startswith("mla") else "causal"]
                result.ratio(f"ratio/causal/{setting}", reference, taken)
                if name in MASKS:
                    result.ratio(f"ratio/mask/{setting}", seconds[MASKS[name]], taken)
                added = result.metrics[f"temporary_bytes/{setting}"] = contestants[name].temporary_bytes(device)
                share = 1 / result.metrics[f"ratio/causal/{setting}"]
                times[name].append(f"{1e3 * statistics.median(taken):.1f} ({share:.2f} x)")
                memory[name].append(f"{added / 1e6:,.1f}")
        shape = f"{batch} x {heads} x T x {width}, {dtype_name}, {device}, {runtime.threads} threads"
        columns = ["kernel", *(f"T = {length}" for length in lengths)]
        result.table(f"ms forward and backward: {shape}", columns, [*times.values()])
        result.table(f"MB of temporary memory: {shape}", columns, [*memory.values()])
    return result


class Contestant:
    """Forward and backward of one kernel.

    inputs: what gradients are taken of. held: a tensor that serves every call and counts as temporary: a mask.
    """

    def __init__(
        self, forward: Callable[[], Tensor], inputs: list[Tensor], gradient: Tensor, held: Tensor | None = None
    ) -> None:
        self.forward, self.inputs, self.gradient, self.held = forward, inputs, gradient, held

    def __call__(self) -> None:
        torch.autograd.grad(self.forward(), self.inputs, self.gradient)
        if self.gradient.is_cuda:
            torch.cuda.synchronize()

    def temporary_bytes(self, device: torch.device) -> int:
        given = [*self.inputs, self.gradient]
        resident = given if self.held is None else [*given, self.held]
        return peak_bytes(self, resident, device) - sum(tensor.nbytes for tensor in given)


def _contestants(
    device: torch.device, dtype: torch.dtype, shape: tuple[int, int, int, int], rotary: int
) -> dict[str, Contestant]:
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

    def ours(bias: Bias | None) -> Callable[[], Tensor]:
        return partial(attend, q, k, v, bias, scale)

    def ours_mla(bias: Bias | None) -> Callable[[], Tensor]:
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
        "causal": Contestant(causal, qkv, gradient),
        "none": Contestant(ours(None), qkv, gradient),
        "alibi": Contestant(ours(uniform), qkv, gradient),
        "alibi_heads": Contestant(ours(per_head), qkv, gradient),
        "learned": Contestant(ours(learned), [*qkv, table], gradient),
        "mask": Contestant(masked, qkv, gradient, held=mask),
        "learned_mask": Contestant(learned_mask, [*qkv, table], gradient),
        "mla_causal": Contestant(padded, wide, gradient),
        "mla": Contestant(ours_mla(None), wide, gradient),
        "mla_alibi": Contestant(ours_mla(per_head), wide, gradient),
    }
