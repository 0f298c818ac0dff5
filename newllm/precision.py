"""Precision of the arithmetic: bf16 autocast over fp32 weights where the processor has it natively, else
fp32.

Emulated bf16 is slower than fp32 and less exact, so nobody gets it by default or by asking for it.
"""

from contextlib import AbstractContextManager
from typing import Literal

import torch

Precision = Literal["fp32", "bf16"]


def resolve(precision: Literal["auto", "fp32", "bf16"], device: torch.device) -> Precision:
    """What `precision` comes to on `device`: "bf16" only where it is asked for or "auto", and native."""
    return "bf16" if precision != "fp32" and native_bf16(device) else "fp32"


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """Matrix products in bf16; norms, softmax, residual stream and weights stay in fp32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def native_bf16(device: torch.device) -> bool:
    """Does the device multiply bf16 matrices in hardware?"""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        has = torch.cpu.get_capabilities()
        return any(has.get(feature, False) for feature in ("avx512_bf16", "amx_bf16", "bf16"))
    return False
