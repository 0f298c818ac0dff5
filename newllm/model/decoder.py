"""Decoding: a model, its cache, and weights that are cast once instead of at every token."""

import torch
import torch.nn.functional as F
from torch import Tensor

from newllm.attention import Cache
from newllm.model import LanguageModel
from newllm.model.cast import cast_products
from newllm.precision import Precision, autocast

PIECE = 2048  # tokens of a prompt per forward pass, which bounds the memory that a long one needs


class Decoder:
    """``decoder(ids [B, T]) -> logits [B, vocab_size]`` (fp32) of the next token, after these and all earlier ids.

    Holds up to `capacity` tokens per row. In "bf16" the weights of matrix products are cast once; the numbers are those
    of the model under autocast.
    """

    def __init__(self, model: LanguageModel, capacity: int, precision: Precision = "fp32"):
        self.device = model.embed.weight.device
        self.precision = precision
        self.model = cast_products(model, torch.bfloat16) if precision == "bf16" else model
        self.cache: Cache = model.new_cache(capacity=capacity)

    @torch.inference_mode()
    def __call__(self, ids: Tensor) -> Tensor:
        with autocast(self.device, self.precision):
            for piece in ids.to(self.device).split(PIECE, dim=1):
                hidden = self.model.hidden(piece, self.cache)
            return F.linear(hidden[:, -1], self.model.head_weight).float()
