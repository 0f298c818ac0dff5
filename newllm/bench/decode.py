"""Decoding, one token after another, by the number of tokens in the cache. Contestants take turns in one process.

Multi-head attention (RoPE, and ALiBi) and absorbed MLA (ALiBi) in one model's shape, with new weights: the time of a
step depends neither on them nor on the tokens. The peer is transformers' model with its DynamicCache, in the dtype of
our arithmetic.

  contexts  tokens in the cache       rounds   turns of each contestant     tokens   decoded per turn
  kv_dim    MLA's latent width        batch    rows decoded together        peer     measure transformers too
"""

import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from newllm.attention import Cache
from newllm.bench.harness import Result, alternate, setup_metrics
from newllm.bench.hf_reference import peer as reference_model
from newllm.build import build
from newllm.config import compose
from newllm.model import build_model
from newllm.model.decoder import Decoder
from newllm.precision import DTYPES, Precision, resolve
from newllm.runtime import Runtime

DEFAULTS = ["model=pythia_70m", "seq_len=128"]
LABELS = {
    "mha": "mha, RoPE",
    "mha_alibi": "mha, ALiBi",
    "mla": "mla, ALiBi, absorbed",
    "transformers": "transformers, DynamicCache",
}


def measure(
    overrides: list[str],
    *,
    contexts: tuple[int, ...] = (512, 1024, 2048, 4096, 8192),
    kv_dim: int = 128,
    batch: int = 1,
    rounds: int = 5,
    tokens: int = 4,
    peer: bool = True,
) -> Result:
    """For each context length N: seconds/<contestant>/N (per step of the batch),
    decode/tokens_per_second/<contestant>/N, cache/bytes/<contestant>/N, ratio/mla_over_mha/N and
    ratio/transformers/N (our mha against transformers'); cache/ratio: mha's bytes over mla's."""
    variants = {
        "mha": ["pos_encoding=rope", "attention=mha"],
        "mha_alibi": ["pos_encoding=alibi", "attention=mha"],
        "mla": ["pos_encoding=alibi", "attention=mla", f"kv_dim={kv_dim}"],
    }
    cfg = compose([*overrides, *variants["mha"]])
    runtime = build(cfg.runtime, Runtime)
    runtime.apply()
    device = runtime.device()
    precision = resolve(cfg.trainer.precision, device)
    contexts = tuple(sorted(contexts))
    capacity = contexts[-1] + len(contexts) * (rounds * tokens + 1)
    readers: dict[str, Callable[[Tensor], Tensor]] = {}  # ids [B, T] -> logits [B, V] of the next token
    caches: dict[str, Callable[[], tuple[int, int]]] = {}  # tokens and bytes
    for name, words in variants.items():
        model = build_model(compose([*overrides, *words])).to(device).eval()
        readers[name] = decoder = Decoder(model, capacity, precision)
        caches[name] = partial(_cached, decoder.cache)
    if peer:
        readers["transformers"], caches["transformers"] = _transformers(cfg, device, precision)
    last: dict[str, Tensor] = {}  # the ids that greedy decoding reads next

    def read(name: str, ids: Tensor | None = None) -> None:
        last[name] = readers[name](last[name] if ids is None else ids).argmax(-1, keepdim=True)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    sizes = {"batch": batch, "kv_dim": kv_dim, "rounds": rounds, "tokens": tokens, "contexts": contexts}
    result = Result({**setup_metrics(cfg, precision, device, runtime), **sizes})
    result.notes.append(f"Medians of {rounds} rounds of {tokens} tokens. Weights are cast once, not at each token.")
    metrics = result.metrics
    for context in contexts:
        for name, cache in caches.items():
            if (cached := cache()[0]) < context:
                ids = torch.arange(cached, context, device=device) % model.vocab_size
                read(name, ids.expand(batch, -1))
            cached, nbytes = cache()
            metrics[f"cache/bytes/{name}/{context}"] = round(nbytes / cached * context)
        seconds = alternate({name: partial(read, name) for name in readers}, rounds, tokens)
        result.ratio(f"ratio/mla_over_mha/{context}", seconds["mha"], seconds["mla"])
        if peer:
            result.ratio(f"ratio/transformers/{context}", seconds["transformers"], seconds["mha"])
        for name, times in seconds.items():
            metrics[f"seconds/{name}/{context}"] = times
            metrics[f"decode/tokens_per_second/{name}/{context}"] = batch / statistics.median(times)
    metrics["cache/ratio"] = metrics[f"cache/bytes/mha/{contexts[-1]}"] / metrics[f"cache/bytes/mla/{contexts[-1]}"]

    def milliseconds(name: str, context: int) -> str:
        against = f" ({metrics[f'ratio/mla_over_mha/{context}']:.2f} x mha's speed)" if name == "mla" else ""
        return f"{1e3 * statistics.median(metrics[f'seconds/{name}/{context}']):.1f}{against}"

    cells: dict[str, Callable[[str, int], str]] = {
        f"ms per token: {cfg.choices.model}, batch {batch}, {result.setup}": milliseconds,
        "tokens per second": lambda name, context: f"{metrics[f'decode/tokens_per_second/{name}/{context}']:.1f}",
        "MB in the cache": lambda name, context: f"{metrics[f'cache/bytes/{name}/{context}'] / 1e6:.2f}",
    }
    for title, cell in cells.items():
        rows = [[f"{context:,}", *(cell(name, context) for name in readers)] for context in contexts]
        result.table(title, ["context", *(LABELS[name] for name in readers)], rows)
    return result


def _cached(cache: Cache) -> tuple[int, int]:
    return cache.length, cache.nbytes


def _transformers(
    cfg: DictConfig, device: torch.device, precision: Precision
) -> tuple[Callable[[Tensor], Tensor], Callable[[], tuple[int, int]]]:
    """A reader of transformers' model, and the tokens and bytes of its cache."""
    from transformers import DynamicCache

    cache: Any = DynamicCache()
    dtype = DTYPES[precision]
    model: Callable[..., Any] = reference_model(cfg, int(cfg.model.vocab_size)).to(device, dtype).eval()

    @torch.inference_mode()
    def read(ids: Tensor) -> Tensor:
        logits: Tensor = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
        return logits[:, -1].float()

    def cached() -> tuple[int, int]:
        return int(cache.get_seq_length()), sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)

    return read, cached
