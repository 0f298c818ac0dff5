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
from torch import Tensor

from newllm.bench.harness import Result, Setup, alternate
from newllm.bench.hf_reference import peer as peer_of
from newllm.config import compose
from newllm.model import build_model
from newllm.model.decoder import Decoder

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
    """For each context length N: seconds/<contestant>/N of every round (a step of the batch),
    decode/tokens_per_second/<contestant>/N, cache/bytes/<contestant>/N, ratio/mla_over_mha/N and
    ratio/transformers/N (our mha against transformers'); cache/ratio: mha's bytes over mla's."""
    nodes = {
        "mha": ["pos_encoding=rope", "attention=mha"],
        "mha_alibi": ["pos_encoding=alibi", "attention=mha"],
        "mla": ["pos_encoding=alibi", "attention=mla", f"kv_dim={kv_dim}"],
    }
    setup = Setup([*overrides, *nodes["mha"]])
    contexts = tuple(sorted(contexts))
    room = contexts[-1] + len(contexts) * (rounds * tokens + 1)
    contestants: dict[str, Contestant] = {}
    for name, words in nodes.items():
        model = build_model(compose([*overrides, *words])).to(setup.device).eval()
        decoder = Decoder(model, room, setup.precision)
        contestants[name] = Contestant(decoder, decoder.cache, batch, model.vocab_size)
    if peer:
        contestants["transformers"] = _peer(setup, batch)

    result = Result(
        {**setup.metrics, "batch": batch, "kv_dim": kv_dim, "rounds": rounds, "tokens": tokens, "contexts": contexts},
        notes=[f"Medians of {rounds} rounds of {tokens} tokens. Weights are cast once, not at each token."],
    )
    metrics = result.metrics
    tables: tuple[list[list[str]], ...] = ([], [], [])
    for context in contexts:
        for name, contestant in contestants.items():
            contestant.fill(context, setup.device)
            metrics[f"cache/bytes/{name}/{context}"] = round(
                contestant.cache.nbytes / contestant.cache.length * context
            )
        seconds = alternate(contestants, rounds, tokens)
        result.ratio(f"ratio/mla_over_mha/{context}", seconds["mha"], seconds["mla"])
        if peer:
            result.ratio(f"ratio/transformers/{context}", seconds["transformers"], seconds["mha"])
        for table in tables:
            table.append([f"{context:,}"])
        for name, times in seconds.items():
            middle = statistics.median(times)
            metrics[f"seconds/{name}/{context}"] = times
            metrics[f"decode/tokens_per_second/{name}/{context}"] = batch / middle
            against = f" ({metrics[f'ratio/mla_over_mha/{context}']:.2f} x mha's speed)" if name == "mla" else ""
            size = metrics[f"cache/bytes/{name}/{context}"]
            cells = f"{1e3 * middle:.1f}{against}", f"{batch / middle:.1f}", f"{size / 1e6:.2f}"
            for table, cell in zip(tables, cells, strict=True):
                table[-1].append(cell)
    metrics["cache/ratio"] = metrics[f"cache/bytes/mha/{contexts[-1]}"] / metrics[f"cache/bytes/mla/{contexts[-1]}"]
    titles = (
        f"ms per token: {setup.cfg.choices.model}, batch {batch}, {setup.machine}",
        "tokens per second",
        "MB in the cache",
    )
    for title, rows in zip(titles, tables, strict=True):
        result.table(title, ["context", *(LABELS[name] for name in contestants)], rows)
    return result


class Contestant:
    """Decodes greedily. read: logits [B, V] after ids [B, T]. cache: has `length` (tokens) and `nbytes`."""

    def __init__(self, read: Callable[[Tensor], Tensor], cache: Any, batch: int, vocab_size: int) -> None:
        self.read, self.cache, self.batch, self.vocab_size = read, cache, batch, vocab_size

    def fill(self, length: int, device: torch.device) -> None:
        """Read on until the cache holds `length` tokens."""
        if length > self.cache.length:
            ids = torch.arange(self.cache.length, length, device=device) % self.vocab_size
            self.step = self.read(ids.expand(self.batch, -1)).argmax(-1, keepdim=True)

    def __call__(self) -> None:
        """One step."""
        self.step = self.read(self.step).argmax(-1, keepdim=True)
        if self.step.is_cuda:
            torch.cuda.synchronize(self.step.device)


def _peer(setup: Setup, batch: int) -> Contestant:
    """transformers' model, its weights in the dtype of the arithmetic."""
    from transformers import DynamicCache

    class Cache(DynamicCache):
        @property
        def length(self) -> int:
            return int(self.get_seq_length())

        @property
        def nbytes(self) -> int:
            layers: list[Any] = self.layers
            return sum(layer.keys.nbytes + layer.values.nbytes for layer in layers)

    cache = Cache()
    dtype = torch.bfloat16 if setup.precision == "bf16" else torch.float32
    vocab_size = int(setup.cfg.model.vocab_size)
    model: Callable[..., Any] = peer_of(setup.cfg, vocab_size).to(setup.device, dtype).eval()

    @torch.inference_mode()
    def read(ids: Tensor) -> Tensor:
        logits: Tensor = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
        return logits[:, -1].float()

    return Contestant(read, cache, batch, vocab_size)
