"""Position encodings: one small class each. See `newllm.position.encoding` for the contract."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from newllm.config import source

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


def _load(name: str) -> Any:
    """The class that is imported above under this name, loaded when asked for: `frequencies` needs no torch."""
    try:
        module, _ = source.resolve(f"{__name__}.{name}")
    except (source.NotFound, source.Unreadable):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    return getattr(import_module(module.name), name)


__getattr__ = _load  # a name, no function: one would tell newllm.config.source that only an import knows what is here
