"""Attention kernels, forward and backward, with each kind of bias. Contestants take turns in one process.

Random q, k, v [batch, heads, T, width]. The kernels that newllm trains with are compared with torch's fused causal
attention, which has no bias at all, and with the T x T masks that others pass to it for ALiBi and for learned biases;
on a GPU also with torch's flex_attention, compiled.
Temporary memory is the peak of what a call adds to its inputs: output, gradients, masks and saved tensors; on a CPU
the scratch memory of kernels is not counted.

  lengths   tokens T                rounds   turns of each contestant
  batch, heads, width               sizes; MLA's keys have `rotary` more dims than its values
"""

import statistics
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from newllm.attention.kernels import attend
from newllm.bench.harness import Result, alternate
from newllm.position.alibi import geometric_slopes
from newllm.position.bias import LinearBias, MatrixBias
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
    "flex": "torch, flex, no bias",
    "flex_alibi": "torch, flex, ALiBi",
    "flex_learned": "torch, flex, learned bias",
    "mask": "torch, T x T ALiBi mask",
    "learned_mask": "torch, learned T x T mask",
    "mla_causal": "torch, MLA padded, no bias",
    "mla": "newllm, MLA, no bias",
    "mla_alibi": "newllm, MLA, ALiBi",
}
Kernels = dict[str, tuple[Callable[[], Tensor], list[Tensor]]]  # the forward pass, and what gradients are taken of
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
    """seconds/<contestant>/<dtype>/<T> and temporary_bytes/<contestant>/<dtype>/<T>;

    ratio/causal/<contestant>/<dtype>/<T>: how many times faster than torch's causal attention without a bias;
    ratio/mask/<contestant>/<dtype>/<T>: than torch's attention with the bias as a T x T mask.
    """
    runtime = Runtime()
    runtime.apply()
    device = runtime.device()
    result = Result({"device": str(device), "threads": runtime.threads, "batch": batch, "heads": heads, "width": width})
    result.notes.append(f"Medians of {rounds} rounds; in brackets, the time over the first row's (MLA: its own first).")
    dtypes = {"bf16": torch.bfloat16, "fp32": torch.float32}
    if not native_bf16(device):
        del dtypes["bf16"]
        result.notes.append(f"{device} has no native bf16, which is left out.")
    for dtype_name, dtype in dtypes.items():
        flex = device.type == "cuda"  # on a CPU it has no backward pass
        labels = {name: label for name, label in LABELS.items() if flex or "flex" not in name}
        times, memory = ({name: [label] for name, label in labels.items()} for _ in range(2))
        for length in lengths:
            kernels, gradient, mask = _kernels(device, dtype, (batch, heads, length, width), rotary, flex)

            def forward_and_backward(name: str, kernels: Kernels = kernels, gradient: Tensor = gradient) -> None:
                forward, inputs = kernels[name]
                torch.autograd.grad(forward(), inputs, gradient)
                if gradient.is_cuda:
                    torch.cuda.synchronize()

            contestants = {name: partial(forward_and_backward, name) for name in kernels}
            seconds = alternate(contestants, rounds, calls=max(1, 2048 // length))
            for name, taken in seconds.items():
                key = f"{name}/{dtype_name}/{length}"
                result.metrics[f"seconds/{key}"] = taken
                result.ratio(f"ratio/causal/{key}", seconds["mla_causal" if "mla" in name else "causal"], taken)
                if name in MASKS:
                    result.ratio(f"ratio/mask/{key}", seconds[MASKS[name]], taken)
                permanent = [*kernels[name][1], gradient]
                resident = [*permanent, mask] if name == "mask" else permanent  # the mask serves every call
                added = peak_bytes(contestants[name], resident, device) - sum(tensor.nbytes for tensor in permanent)
                result.metrics[f"temporary_bytes/{key}"] = added
                relative = 1 / result.metrics[f"ratio/causal/{key}"]
                times[name].append(f"{1e3 * statistics.median(taken):.1f} ({relative:.2f} x)")
                memory[name].append(f"{added / 1e6:,.1f}")
        shape = f"{batch} x {heads} x T x {width}, {dtype_name}, {device}, {runtime.threads} threads"
        columns = ["kernel", *(f"T = {length}" for length in lengths)]
        result.table(f"ms forward and backward: {shape}", columns, times.values())
        result.table(f"MB of temporary memory: {shape}", columns, memory.values())
    return result


def _kernels(
    device: torch.device, dtype: torch.dtype, shape: tuple[int, int, int, int], rotary: int, flex: bool
) -> tuple[Kernels, Tensor, Tensor]:
    """The kernels, the gradient of their output, and the mask of the contestant "mask"."""
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

    def as_mask(bias: LinearBias | MatrixBias) -> Tensor:
        return bias.matrix(positions, positions).masked_fill(future, float("-inf")).to(dtype)[None]

    def padded() -> Tensor:
        out = F.scaled_dot_product_attention(wide_q, wide_k, F.pad(v, (0, rotary)), is_causal=True, scale=wide_scale)
        return out[..., :width]

    def learned_mask() -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=as_mask(learned), scale=scale)

    mask = as_mask(per_head)
    causal = partial(F.scaled_dot_product_attention, q, k, v, is_causal=True, scale=scale)
    masked = partial(F.scaled_dot_product_attention, q, k, v, attn_mask=mask, scale=scale)
    ours, ours_mla = partial(attend, q, k, v, scale=scale), partial(attend, wide_q, wide_k, v, scale=wide_scale)
    qkv, wide = [q, k, v], [wide_q, wide_k, v]
    kernels: Kernels = {
        "causal": (causal, qkv),
        "none": (partial(ours, bias=None), qkv),
        "alibi": (partial(ours, bias=uniform), qkv),
        "alibi_heads": (partial(ours, bias=per_head), qkv),
        "learned": (partial(ours, bias=learned), [*qkv, table]),
        "mask": (masked, qkv),
        "learned_mask": (learned_mask, [*qkv, table]),
        "mla_causal": (padded, wide),
        "mla": (partial(ours_mla, bias=None), wide),
        "mla_alibi": (partial(ours_mla, bias=per_head), wide),
    }
    if flex:
        torch.compiler.reset()  # it compiles one function for a few shapes only
        attention = torch.compile(flex_attention, dynamic=False) if device.type == "cuda" else flex_attention
        past = create_block_mask(lambda b, h, i, j: i >= j, None, None, length, length, device=str(device))
        flexible = partial(attention, q, k, v, block_mask=past, scale=scale)
        slopes = per_head.slopes
        kernels |= {
            "flex": (flexible, qkv),
            "flex_alibi": (partial(flexible, score_mod=lambda s, b, h, i, j: s - slopes[h] * (i - j)), qkv),
            "flex_learned": (partial(flexible, score_mod=lambda s, b, h, i, j: s + table[h, i - j]), [*qkv, table]),
        }
    return kernels, gradient, mask
