"""Precision: bf16 autocast over fp32 weights if the processor supports it natively, else fp32.

Emulated bf16 is slower and less exact than fp32, so it is never used.
"""

from contextlib import AbstractContextManager
from typing import Literal

import torch

Precision = Literal["fp32", "bf16"]


def resolve(precision: Literal["auto", "fp32", "bf16"], device: torch.device) -> Precision:
    """The precision on `device`: "bf16" if `precision` is "bf16" or "auto" and the device supports it natively."""
    return "bf16" if precision != "fp32" and native_bf16(device) else "fp32"


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """Matrix products in bf16; norms, softmax, residual stream and weights stay in fp32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def native_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bf16 matrices in hardware."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        return any(capabilities.get(feature, False) for feature in ("avx512_bf16", "amx_bf16", "bf16"))
    return False
