"""Decoding: a model, its cache, and weights that are cast once instead of at every token; sampling from it."""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from newllm.attention import Cache
from newllm.model import LanguageModel
from newllm.model.cast import cast_products
from newllm.precision import DTYPES, Precision, autocast

PIECE = 2048  # tokens of a prompt per forward pass, which bounds the memory that a long one needs


class Decoder:
    """``decoder(ids [B, T]) -> logits [B, vocab_size]`` (fp32) of the next token, after these and all earlier ids.

    Holds up to `capacity` tokens per row. In "bf16" the weights of matrix products are cast once; the numbers are those
    of the model under autocast.
    """

    def __init__(self, model: LanguageModel, capacity: int, precision: Precision = "fp32"):
        self.device = model.embed.weight.device
        self.precision = precision
        self.model = cast_products(model, DTYPES[precision]) if precision in ("bf16", "fp16") else model
        self.cache: Cache = model.new_cache(capacity=capacity)

    @torch.inference_mode()
    def __call__(self, ids: Tensor) -> Tensor:
        with autocast(self.device, self.precision):
            for piece in ids.to(self.device).split(PIECE, dim=1):
                hidden = self.model.hidden(piece, self.cache)
            return F.linear(hidden[:, -1], self.model.head_weight).float()


def generate(
    model: LanguageModel,
    prompt: Sequence[int],
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    stop: int | None = None,
    precision: Precision = "fp32",
) -> Iterator[int]:
    """Yield up to `max_new_tokens` token ids after `prompt`, decoding from a cache; ends before the id `stop`.

    temperature: 0 takes the likeliest token; else samples from softmax(logits / temperature). top_p: sample only among
    the likeliest tokens whose probabilities reach it (nucleus sampling, Holtzman et al. 2020, arXiv 1904.09751).
    precision: of the matrix products.
    """
    generator = torch.Generator().manual_seed(seed)
    length = len(prompt) + max_new_tokens
    decoder = Decoder(model, length, precision)
    step = torch.tensor([list(prompt)])  # [1, T]: the prompt, then one token at a time
    model.position.adapt(length)  # cached keys stay as they are, so the whole text has one scaling
    try:
        for _ in range(max_new_tokens):
            token = _choose(decoder(step)[0].cpu(), temperature, top_p, generator)
            if token == stop:
                return
            yield token
            step = torch.tensor([[token]])
    finally:
        model.position.adapt(model.seq_len)


def _choose(logits: Tensor, temperature: float, top_p: float, generator: torch.Generator) -> int:
    if temperature == 0:
        return int(logits.argmax())
    scaled = (logits.double() - logits.max()) / temperature  # at most 0: no temperature is too small
    probabilities, tokens = scaled.softmax(-1).sort(descending=True)
    before = probabilities.cumsum(0) - probabilities  # mass of the likelier tokens: 0 for the first, which always stays
    probabilities = probabilities.masked_fill(before >= top_p, 0.0)
    return int(tokens[torch.multinomial(probabilities, 1, generator=generator)])
