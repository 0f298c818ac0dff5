"""A model made ready to decode: its matrices cast once, not at every token."""

import torch
import torch.nn.functional as F
from torch import Tensor

from newllm.attention import Cache
from newllm.model import LanguageModel
from newllm.model.cast import cast_products
from newllm.precision import Precision, autocast

PIECE = 2048  # tokens of a prompt that pass through the layers together; bounds the memory of a long one


class Decoder:
    """``decoder(ids [B, T]) -> logits [B, vocab_size]`` (fp32) of the token after them and after all that came before.

    Rows decode side by side, `capacity` tokens at most. In "bf16" the products' weights are held in bf16, which is
    what autocast would make of them at every call; all numbers are those of the model under autocast.
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
