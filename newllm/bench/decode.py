"""Decoding, one token after another, against the tokens that the cache holds; contestants take turns in one process.

Multi-head attention (RoPE, and ALiBi) and absorbed MLA (ALiBi) in the shape of one model, with new weights: the time
of a step does not depend on them, nor on the tokens. The peer is transformers' model with its DynamicCache, in the
dtype of our arithmetic.

  contexts  tokens in the cache       rounds   turns of each contestant     tokens   decoded in a turn
  kv_dim    MLA's latent width        batch    rows side by side            peer     transformers as well
"""

import statistics
from collections.abc import Callable
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from newllm.bench.hf_reference import peer as peer_of
from newllm.bench.result import Result
from newllm.bench.timing import alternate, ratio_metrics
from newllm.build import build
from newllm.config import compose
from newllm.model import build_model
from newllm.model.decoder import Decoder
from newllm.training.precision import Precision, resolve

PURPOSE = "decoding against the context's length: tokens per second and cache bytes, mha and absorbed mla"
OPTIONS: dict[str, Any] = {
    "contexts": [512, 1024, 2048, 4096, 8192],
    "kv_dim": 128,
    "batch": 1,
    "rounds": 5,
    "tokens": 4,
    "peer": True,
}
DEFAULTS = ["model=pythia_70m", "seq_len=128"]
_LABELS = {
    "mha": "mha, RoPE",
    "mha_alibi": "mha, ALiBi",
    "mla": "mla, ALiBi, absorbed",
    "transformers": "transformers, DynamicCache",
}


def measure(
    overrides: list[str], *, contexts: list[int], kv_dim: int, batch: int, rounds: int, tokens: int, peer: bool
) -> Result:
    """For each context length N: seconds/<contestant>/N of every round (a step of the batch),
    decode/tokens_per_second/<contestant>/N, cache/bytes/<contestant>/N, ratio/mla_over_mha/N and
    ratio/transformers/N (our mha against transformers'); cache/ratio: mha's bytes over mla's."""
    nodes = {
        "mha": ["pos_encoding=rope", "attention=mha"],
        "mha_alibi": ["pos_encoding=alibi", "attention=mha"],
        "mla": ["pos_encoding=alibi", "attention=mla", f"kv_dim={kv_dim}"],
    }
    configs = {name: compose([*overrides, *words]) for name, words in nodes.items()}
    cfg = configs["mha"]
    runtime = build(cfg.runtime)
    runtime.apply()
    device = runtime.device()
    precision = resolve(cfg.trainer.precision, device)
    contexts = sorted(contexts)
    room = contexts[-1] + len(contexts) * (rounds * tokens + 1)
    contestants: dict[str, _Contestant] = {}
    for name, config in configs.items():
        model = build_model(config).to(device).eval()
        contestants[name] = _Ours(Decoder(model, room, precision), batch)
    if peer:
        contestants["transformers"] = _Peer(cfg, batch, device, precision)

    shape = f"{cfg.choices.model}, batch {batch}, {precision}, {device}, {runtime.threads} threads"
    result = Result(
        {
            "model": cfg.choices.model, "precision": precision, "device": str(device), "threads": runtime.threads,
            "batch": batch, "kv_dim": kv_dim, "rounds": rounds, "tokens": tokens, "contexts": contexts,
        },
        tables=[],
        notes=[f"Medians of {rounds} rounds of {tokens} tokens. Weights are cast once, not at each token."],
    )  # fmt: skip
    for context in contexts:
        _at(contestants, context, rounds, tokens, result.metrics)
    last = contexts[-1]
    result.metrics["cache/ratio"] = (
        result.metrics[f"cache/bytes/mha/{last}"] / result.metrics[f"cache/bytes/mla/{last}"]
    )
    result.tables = [
        _table(f"ms per token: {shape}", contexts, contestants, lambda name, at: _ms(result.metrics, name, at)),
        _table(
            "tokens per second", contexts, contestants,
            lambda name, at: f"{result.metrics[f'decode/tokens_per_second/{name}/{at}']:.1f}",
        ),
        _table(
            "MB in the cache", contexts, contestants,
            lambda name, at: f"{result.metrics[f'cache/bytes/{name}/{at}'] / 1e6:.2f}",
        ),
    ]  # fmt: skip
    return result


class _Contestant:
    """Decodes what it is given, and knows what its cache holds."""

    def __init__(self, batch: int, vocab_size: int, device: torch.device) -> None:
        self.batch, self.vocab_size, self.device = batch, vocab_size, device

    def read(self, ids: Tensor) -> Tensor:
        """Logits [B, V] after ids [B, T]."""
        raise TypeError(f"{type(self).__name__} has no read")

    @property
    def length(self) -> int:
        raise TypeError(f"{type(self).__name__} has no length")

    @property
    def nbytes(self) -> int:
        raise TypeError(f"{type(self).__name__} has no nbytes")

    def fill(self, length: int) -> None:
        """Read on until the cache holds `length` tokens."""
        if length > self.length:
            ids = torch.arange(self.length, length, device=self.device) % self.vocab_size
            self.step = self.read(ids.expand(self.batch, -1)).argmax(-1, keepdim=True)

    def __call__(self) -> None:
        """One greedy step."""
        self.step = self.read(self.step).argmax(-1, keepdim=True)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


class _Ours(_Contestant):
    def __init__(self, decoder: Decoder, batch: int) -> None:
        super().__init__(batch, decoder.model.vocab_size, decoder.device)
        self.read = decoder  # type: ignore[method-assign]
        self.cache = decoder.cache

    @property
    def length(self) -> int:
        return self.cache.length

    @property
    def nbytes(self) -> int:
        return self.cache.nbytes


class _Peer(_Contestant):
    """transformers' model, its weights in the dtype of the arithmetic."""

    def __init__(self, cfg: DictConfig, batch: int, device: torch.device, precision: Precision) -> None:
        from transformers import DynamicCache

        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self.model = peer_of(cfg, cfg.model.vocab_size).to(device, dtype).eval()
        super().__init__(batch, cfg.model.vocab_size, device)
        self.cache: Any = DynamicCache()

    @torch.inference_mode()
    def read(self, ids: Tensor) -> Tensor:
        model: Callable[..., Any] = self.model
        logits: Tensor = model(input_ids=ids, past_key_values=self.cache, use_cache=True, logits_to_keep=1).logits
        return logits[:, -1].float()

    @property
    def length(self) -> int:
        return int(self.cache.get_seq_length())

    @property
    def nbytes(self) -> int:
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in self.cache.layers if self.length)


def _at(contestants: dict[str, _Contestant], context: int, rounds: int, tokens: int, metrics: dict[str, Any]) -> None:
    for name, contestant in contestants.items():
        contestant.fill(context)
        metrics[f"cache/bytes/{name}/{context}"] = round(contestant.nbytes / contestant.length * context)
    seconds = alternate(contestants, rounds, tokens)
    for name, times in seconds.items():
        metrics[f"seconds/{name}/{context}"] = times
        batch = contestants[name].batch
        metrics[f"decode/tokens_per_second/{name}/{context}"] = batch / statistics.median(times)
    metrics |= ratio_metrics(f"ratio/mla_over_mha/{context}", seconds["mha"], seconds["mla"])
    if "transformers" in seconds:
        metrics |= ratio_metrics(f"ratio/transformers/{context}", seconds["transformers"], seconds["mha"])


def _ms(metrics: dict[str, Any], name: str, context: int) -> str:
    text = f"{1e3 * statistics.median(metrics[f'seconds/{name}/{context}']):.1f}"
    if name == "mla":
        return f"{text} ({metrics[f'ratio/mla_over_mha/{context}']:.2f} x mha's speed)"
    return text


def _table(
    title: str, contexts: list[int], contestants: dict[str, _Contestant], cell: Callable[[str, int], str]
) -> tuple[str, list[str], list[list[str]]]:
    rows = [[f"{context:,}", *(cell(name, context) for name in contestants)] for context in contexts]
    return title, ["context", *(_LABELS[name] for name in contestants)], rows
