"""The memory that decoding keeps for each token."""

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from newllm.attention import Cache
from newllm.data import Dataset
from newllm.evaluation.limits import require_attention, require_positive
from newllm.evaluation.subject import Findings, Subject
from newllm.model import LanguageModel, Transformer, build_model


class KVCache:
    """`kv_cache/bytes_per_token` after decoding real tokens one by one; `kv_cache/reduction` against the MHA twin.

    The twin is the same configuration with multi-head attention, built and decoded as well: reduction = 1 − bytes
    per token / the twin's. A model whose states are narrower than its embeddings has a twin whose states are not; what
    its recurrence carries, one vector however many tokens came, is not in the bytes per token but in
    `kv_cache/state_bytes`. `kv_cache/max_logit_error` is the largest difference between the logits of cached decoding
    and of one pass over all tokens, in the precision of the weights (autocast off).

    tokens: how many are decoded, at most the first validation row.
    """

    def __init__(self, tokens: int = 64):
        require_positive("eval.kv_cache", tokens=tokens)
        self.tokens = tokens

    def check(self, data: Dataset, model: LanguageModel) -> None:
        """Raises ConfigError for a model whose cache holds neither keys nor values."""
        require_attention("eval.kv_cache", model)

    @torch.inference_mode()
    def __call__(self, subject: Subject) -> Findings:
        ids = next(subject.batches(size=1))[0][:, : self.tokens]  # [1, T]
        width = subject.model.embed.embedding_dim
        wider = width > subject.model.hidden_size  # than the states that keys and values are made of
        twin = multi_head_twin(subject, width if wider else None).to(subject.device).eval()
        with subject.autocast():
            cache, _ = decode(subject.model, ids)
            held, twin_held = cache.bytes_per_token, decode(twin, ids)[0].bytes_per_token
        _, logits = decode(subject.model, ids)
        error = float((logits - subject.model(ids)).abs().max())

        metrics = {
            "kv_cache/bytes_per_token": held,
            "kv_cache/mha_bytes_per_token": twin_held,
            "kv_cache/reduction": 1 - held / twin_held,
            "kv_cache/max_logit_error": error,
        }
        attention = f"multi-head attention{f' as wide as the embedding ({width})' if wider else ''}"
        body: list = [
            f"{held:,.0f} bytes per token measured over {ids.shape[1]} decoded tokens; {twin_held:,.0f} with "
            f"{attention}: {1 - held / twin_held:.2%} less",
            f"Cached and full logits differ by at most {error:.1e}",
        ]
        if cache.state_bytes:
            metrics["kv_cache/state_bytes"] = cache.state_bytes
            body.insert(1, f"{cache.state_bytes:,} bytes beside it, of one size however many tokens come")
        return Findings("KV cache", metrics, body=body)


def decode(model: LanguageModel, ids: Tensor) -> tuple[Cache, Tensor]:
    """Feed ids [1, T] one at a time through a cache: the cache, and the logits [1, T, V]."""
    cache = model.new_cache(batch=1, capacity=ids.shape[1])
    logits = [model(ids[:, t : t + 1], cache=cache) for t in range(ids.shape[1])]
    return cache, torch.cat(logits, dim=1).float()


def multi_head_twin(subject: Subject, width: int | None) -> LanguageModel:
    """The model of the same sizes with multi-head attention; with `width`, a transformer that is so wide.

    Its weights are new: a cache does not depend on them, nor on the encoding, which the twin does without (one may not
    fit both a latent's rotary key and a whole head).
    """
    config = DictConfig(OmegaConf.to_container(subject.config, resolve=True))
    if width is not None:
        model = subject.model
        assert isinstance(model, Transformer)
        heads = model.heads if width % model.heads == 0 else 1  # the bytes do not depend on it
        sizes = {"hidden_size": width, "num_layers": model.num_layers, "heads": heads, "mlp_size": width}
        config.model = {"_target_": "newllm.model.Transformer", **sizes}
    config.attention = {"_target_": "newllm.attention.MultiHead"}
    config.pos_encoding = {"_target_": "newllm.position.NoPE"}
    return build_model(config, tokens=subject.data.tokenizer.vocab_size)
