"""Position encodings: one small class each. See `newllm.position.encoding` for the contract."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from newllm.position.absolute import Learned, Sinusoidal
    from newllm.position.alibi import Alibi
    from newllm.position.cope import Cope
    from newllm.position.encoding import PositionEncoding
    from newllm.position.fire import Fire
    from newllm.position.fope import Fope
    from newllm.position.kerple import KerpleLog, KerplePower
    from newllm.position.key_matrix import KeyMatrix
    from newllm.position.nope import NoPE
    from newllm.position.rope import Rope
    from newllm.position.rope3d import Rope3D
    from newllm.position.rope_evq import RopeEvq
    from newllm.position.sum import Sum
    from newllm.position.t5 import T5
    from newllm.position.xpos import XPos

__all__ = [
    "T5",
    "Alibi",
    "Cope",
    "Fire",
    "Fope",
    "KerpleLog",
    "KerplePower",
    "KeyMatrix",
    "Learned",
    "NoPE",
    "PositionEncoding",
    "Rope",
    "Rope3D",
    "RopeEvq",
    "Sinusoidal",
    "Sum",
    "XPos",
]


_HOMES = {
    "Learned": "absolute",
    "Sinusoidal": "absolute",
    "Alibi": "alibi",
    "PositionEncoding": "encoding",
    "Cope": "cope",
    "Fire": "fire",
    "Fope": "fope",
    "KerpleLog": "kerple",
    "KerplePower": "kerple",
    "KeyMatrix": "key_matrix",
    "NoPE": "nope",
    "Rope": "rope",
    "Rope3D": "rope3d",
    "RopeEvq": "rope_evq",
    "Sum": "sum",
    "T5": "t5",
    "XPos": "xpos",
}


def __getattr__(name: str) -> Any:
    """The class that is imported above under this name, loaded when asked for: `frequencies` needs no torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"newllm.position.{_HOMES[name]}"), name)
