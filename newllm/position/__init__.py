"""Position encodings: one small class each. See `newllm.position.encoding` for the contract."""

from importlib import import_module
from typing import Any

_HOMES = {
    "Alibi": "alibi",
    "Cope": "cope",
    "Fire": "fire",
    "Fope": "fope",
    "KerpleLog": "kerple",
    "KerplePower": "kerple",
    "KeyMatrix": "key_matrix",
    "Learned": "absolute",
    "NoPE": "nope",
    "PositionEncoding": "encoding",
    "Rope": "rope",
    "Rope3D": "rope3d",
    "RopeEvq": "rope_evq",
    "Sinusoidal": "absolute",
    "Sum": "sum",
    "T5": "t5",
    "XPos": "xpos",
}


def __getattr__(name: str) -> Any:
    """Import a class on first use, so that reports can import `newllm.position.frequencies` without torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"newllm.position.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]
