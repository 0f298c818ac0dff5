"""Precision of matrix products; weights, norms, softmax and sums are always in fp32.

bf16: autocast, where the processor multiplies bf16 natively; emulated bf16 is slower and less exact than fp32, so it is
never used. fp16: autocast, on GPUs without bf16 such as T4 and V100; its range ends at 65504 and its smallest gradients
vanish, so training scales the loss (`newllm.training.step`). tf32: fp32 rounded to 10 bits, on GPUs since Ampere.
"""

from contextlib import AbstractContextManager
from typing import Literal

import torch

Precision = Literal["fp32", "tf32", "bf16", "fp16"]
DTYPES: dict[Precision, torch.dtype] = {
    "fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16,
}  # fmt: skip


def resolve(precision: Literal["auto", "fp32", "tf32", "bf16", "fp16"], device: torch.device) -> Precision:
    """The precision on `device`: fp32 in place of one that the device does not have; "auto" is bf16 or fp32.

    "auto" never is fp16, in which steps can be skipped and large numbers overflow.
    """
    wanted: Precision = "bf16" if precision == "auto" else precision
    native = {"fp32": True, "tf32": _has_tf32(device), "bf16": native_bf16(device), "fp16": device.type == "cuda"}
    return wanted if native[wanted] else "fp32"


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """Matrix products in bf16 or fp16; norms, softmax, residual stream and weights stay in fp32."""
    half = precision in ("bf16", "fp16")
    return torch.autocast(device.type, dtype=DTYPES[precision] if half else torch.bfloat16, enabled=half)


def allow_tf32(allowed: bool) -> None:
    """Let this process multiply fp32 matrices in TF32 on CUDA, or not.

    Since torch.backends.cuda.matmul.fp32_precision = "tf32", torch.compile fails (torch 2.11): it still reads the older
    setting, which raises an error unless both have been set together, as here.
    """
    torch.set_float32_matmul_precision("high" if allowed else "highest")


def native_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bf16 matrices in hardware."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        return any(capabilities.get(feature, False) for feature in ("avx512_bf16", "amx_bf16", "bf16"))
    return False


def _has_tf32(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
