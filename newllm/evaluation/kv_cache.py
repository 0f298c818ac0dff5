"""Memory of the KV cache per token."""

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from newllm.attention import Cache
from newllm.data import Dataset
from newllm.evaluation.limits import require_attention, require_positive
from newllm.evaluation.subject import Evaluator, Findings, Subject
from newllm.model import LanguageModel, Transformer, build_model


class KVCache(Evaluator):
    """`kv_cache/bytes_per_token` after decoding real tokens one by one; `kv_cache/reduction` relative to multi-head
    attention (MHA).

    The reference is the same configuration with MHA, built and decoded as well: reduction = 1 − bytes per token /
    reference bytes per token. If a model's states are narrower than its embeddings, the reference has the width of the
    embeddings. The state of a recurrence does not grow with the tokens; it is counted in `kv_cache/state_bytes`.
    `kv_cache/max_logit_error` is the largest difference between the logits of cached decoding and of one pass over all
    tokens, in the precision of the weights (autocast off).

    tokens: number of decoded tokens, at most the first validation row.
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
        wider = width > subject.model.hidden_size  # than the states from which keys and values are projected
        reference = multi_head_reference(subject, width if wider else None).to(subject.device).eval()
        with subject.autocast():
            cache, _ = decode(subject.model, ids)
            size, mha_size = cache.bytes_per_token, decode(reference, ids)[0].bytes_per_token
        _, logits = decode(subject.model, ids)
        error = float((logits - subject.model(ids)).abs().max())

        metrics = {
            "kv_cache/bytes_per_token": size,
            "kv_cache/mha_bytes_per_token": mha_size,
            "kv_cache/reduction": 1 - size / mha_size,
            "kv_cache/max_logit_error": error,
        }
        attention = f"multi-head attention{f' as wide as the embedding ({width})' if wider else ''}"
        body: list = [
            f"{size:,.0f} bytes per token measured over {ids.shape[1]} decoded tokens; {mha_size:,.0f} with "
            f"{attention}: {1 - size / mha_size:.2%} less",
            f"Cached and full logits differ by at most {error:.1e}",
        ]
        if cache.state_bytes:
            metrics["kv_cache/state_bytes"] = cache.state_bytes
            body.insert(1, f"{cache.state_bytes:,} more bytes of recurrent state, independent of the number of tokens")
        return Findings("KV cache", metrics, body=body, scored={})  # sizes do not depend on the text


def decode(model: LanguageModel, ids: Tensor) -> tuple[Cache, Tensor]:
    """Decode ids [1, T] one at a time; returns the cache and the logits [1, T, V]."""
    cache = model.new_cache(batch=1, capacity=ids.shape[1])
    logits = [model(ids[:, t : t + 1], cache=cache) for t in range(ids.shape[1])]
    return cache, torch.cat(logits, dim=1).float()


def multi_head_reference(subject: Subject, width: int | None) -> LanguageModel:
    """The same model with multi-head attention; with `width`, a transformer of that hidden size.

    It has new weights and no position encoding: the size of a cache does not depend on them, and an encoding that fits
    a latent's rotary key may not fit a whole head.
    """
    config = DictConfig(OmegaConf.to_container(subject.config, resolve=True))
    if width is not None:
        model = subject.model
        assert isinstance(model, Transformer)
        heads = model.heads if width % model.heads == 0 else 1  # does not change the bytes
        sizes = {"hidden_size": width, "num_layers": model.num_layers, "heads": heads, "mlp_size": width}
        config.model = {"_target_": "newllm.model.Transformer", **sizes}
    config.attention = {"_target_": "newllm.attention.MultiHead"}
    config.pos_encoding = {"_target_": "newllm.position.NoPE"}
    return build_model(config, tokens=subject.data.tokenizer.vocab_size)
