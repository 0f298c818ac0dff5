"""What decoding really keeps in memory."""

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from newllm.errors import ConfigError
from newllm.evaluation.subject import Findings, Subject
from newllm.model import Transformer, build_model


class KVCache:
    """`kv_cache/bytes_per_token` after decoding real tokens one by one; `kv_cache/reduction` against the MHA twin.

    The twin is the same configuration with multi-head attention, built and decoded as well: reduction = 1 − bytes
    per token / the twin's. `kv_cache/max_logit_error` is the largest difference between the logits of cached
    decoding and of one pass over all tokens, in the precision of the weights (autocast off).

    tokens: how many are decoded, at most the first validation row.
    """

    def __init__(self, tokens: int = 64):
        if tokens < 1:
            raise ConfigError(f"eval.kv_cache.tokens must be at least 1, as in eval.kv_cache.tokens=64; got {tokens}.")
        self.tokens = tokens

    @torch.inference_mode()
    def __call__(self, subject: Subject) -> Findings:
        ids = next(subject.batches(size=1))[0][:, : self.tokens]  # [1, T]
        with subject.autocast():
            held, _ = decode(subject.model, ids)
            twin, _ = decode(multi_head_twin(subject).to(subject.device).eval(), ids)
        _, logits = decode(subject.model, ids)
        error = float((logits - subject.model(ids)).abs().max())

        metrics = {
            "kv_cache/bytes_per_token": held,
            "kv_cache/mha_bytes_per_token": twin,
            "kv_cache/reduction": 1 - held / twin,
            "kv_cache/max_logit_error": error,
        }
        body: list = [
            f"{held:,.0f} bytes per token measured over {ids.shape[1]} decoded tokens; {twin:,.0f} with multi-head "
            f"attention: {1 - held / twin:.2%} less",
            f"Cached and full logits differ by at most {error:.1e}",
        ]
        return Findings("KV cache", metrics, body=body)


def decode(model: Transformer, ids: Tensor) -> tuple[float, Tensor]:
    """Feed ids [1, T] one at a time through a cache: bytes it then holds per token, and the logits [1, T, V]."""
    cache = model.new_cache(batch=1, capacity=ids.shape[1])
    logits = [model(ids[:, t : t + 1], cache=cache) for t in range(ids.shape[1])]
    return cache.nbytes / cache.length, torch.cat(logits, dim=1).float()


def multi_head_twin(subject: Subject) -> Transformer:
    """The model of the same sizes with multi-head attention. Its weights are new: a cache does not depend on them,
    nor on the encoding, which the twin does without (one may not fit both a latent's rotary key and a whole head).
    """
    config = DictConfig(OmegaConf.to_container(subject.config, resolve=True))
    config.attention = {"_target_": "newllm.attention.MultiHead"}
    config.pos_encoding = {"_target_": "newllm.position.NoPE"}
    return build_model(config, tokens=subject.data.tokenizer.vocab_size)
