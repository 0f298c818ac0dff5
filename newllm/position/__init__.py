"""Position encodings: one small class each. See `newllm.position.base` for the contract."""

from newllm.position.absolute import Learned, Sinusoidal
from newllm.position.alibi import Alibi
from newllm.position.base import PositionEncoding
from newllm.position.nope import NoPE
from newllm.position.rope import Rope
from newllm.position.sum import Sum

__all__ = ["Alibi", "Learned", "NoPE", "PositionEncoding", "Rope", "Sinusoidal", "Sum"]
