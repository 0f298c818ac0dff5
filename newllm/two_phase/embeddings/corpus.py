"""Embeddings trained beforehand on the text of the run, by an ordinary newllm run in the cache folder."""

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf, open_dict
from torch import Tensor

from newllm.config import compose, run_directory
from newllm.console import Console
from newllm.data import Dataset, Tokenizer
from newllm.data.cache import cache_folder, locked
from newllm.errors import ConfigError
from newllm.runtime import Runtime
from newllm.store.run_directory import RunDirectory
from newllm.two_phase.embeddings.base import Embeddings
from newllm.two_phase.embeddings.finished import weights

HEAD_DIM = 64  # of the small transformer's heads, where the width is a multiple of it; else it has one head


class Corpus(Embeddings):
    """The tied embeddings of a small transformer (`model=tiny`, this wide) that predicts the next token of the corpus.

    It is a run like any other: made once for all runs that agree in the data node and in these options, resumed where
    it broke off, found in `<cache folder>/embeddings/<slug>-<signature>`. Another process that needs it waits.

    tokens: what it trains on: `same`, the rows of the run itself; `all`, the whole corpus but what validates; or so
        many tokens of it. What validates and the tokenizer are the run's in any case.
    num_layers, epochs, lr: of that run. batch_tokens: tokens in a step, in whole rows.
    seed: its own, so that runs with other seeds share the embeddings.
    """

    def __init__(
        self,
        tokens: int | Literal["same", "all"] = "same",
        num_layers: int = 1,
        epochs: int = 1,
        batch_tokens: int = 2048,
        lr: float = 1e-3,
        seed: int = 42,
    ) -> None:
        for name, value in (("tokens", tokens), ("batch_tokens", batch_tokens), ("epochs", epochs)):
            if not isinstance(value, str) and value <= 0:
                raise ConfigError(
                    f"embeddings.{name} must be greater than 0, not {value}; leave it out for its default."
                )
        self.tokens, self.num_layers, self.epochs = tokens, num_layers, epochs
        self.batch_tokens, self.lr, self.seed = batch_tokens, lr, seed

    def check(self, cfg: DictConfig, tokenizer: Tokenizer, embed_dim: int) -> None:
        from newllm.model import build_model

        if self.tokens != "same" and cfg.data.split != "document":
            raise ConfigError(
                f"embeddings.tokens={self.tokens} would train on rows that validate here, since data.split="
                f"{cfg.data.split} takes other rows of another budget; type embeddings.tokens=same."
            )
        with torch.device("meta"):  # refuses sizes that are none
            build_model(self._config(cfg, embed_dim, cfg.runtime.threads), tokens=tokenizer.vocab_size)

    def matrix(self, cfg: DictConfig, data: Dataset, embed_dim: int, runtime: Runtime, console: Console) -> Tensor:
        if self.tokens != "same" and np.may_share_memory(data.stream("train"), data.stream("val")):
            raise ConfigError(
                "the corpus is a single document, of which the last rows validate, and "
                f"embeddings.tokens={self.tokens} would train on them; type embeddings.tokens=same."
            )
        mine = self._config(cfg, embed_dim, runtime.threads)
        folder = run_directory(mine, cache_folder(runtime) / "embeddings")
        directory = RunDirectory(folder)
        if directory.is_done():
            console.line(f"Embeddings: trained on this text already, by the run {folder}.")
            return weights(directory)
        console.line(f"Embeddings: trained on this text first, by an ordinary run in {folder}.")
        with locked(folder, "embeddings"):
            if not directory.is_done():  # by the process that this one has waited for
                _train(mine, folder)
        runtime.apply(cfg.trainer.devices)  # as it was before that run
        console.line(f"The embeddings are trained; runs that need the same ones take them from {folder}.")
        return weights(directory)

    def _config(self, cfg: DictConfig, embed_dim: int, threads: int | str) -> DictConfig:
        """The ordinary run: the defaults, but for what is said here, on the data node of `cfg`."""
        rows = max(1, self.batch_tokens // cfg.data.seq_len)
        made = compose([
            "model=tiny", f"model.hidden_size={embed_dim}", f"model.num_layers={self.num_layers}",
            f"model.heads={embed_dim // HEAD_DIM if embed_dim % HEAD_DIM == 0 else 1}",
            f"model.mlp_size={8 * embed_dim // 3}",  # as many parameters as two matrices of 4 x the width
            "facts=none", "eval=[loss]",
            f"epochs={self.epochs}", f"batch_size={rows}", f"lr={self.lr}", f"seed={self.seed}",
            f"precision={cfg.trainer.precision}",
        ])  # fmt: skip
        data = OmegaConf.to_container(cfg.data, resolve=True)
        assert isinstance(data, dict)
        if self.tokens != "same":
            data |= {"documents": None, "samples": None, "tokens": None if self.tokens == "all" else self.tokens}
        with open_dict(made):
            made.data = data
            made.choices.data = (cfg.get("choices") or {}).get("data") or made.choices.data
            made.runtime = {**OmegaConf.to_container(cfg.runtime, resolve=True), "threads": threads}  # type: ignore[dict-item]
        return made


def _train(cfg: DictConfig, folder: Path) -> None:
    """Do the run, in this process. Raises Interrupted if a signal has ended it; it goes on from there next time."""
    from newllm.run.execute import run
    from newllm.training.signals import Interrupted

    with open_dict(cfg):
        cfg.run_dir = str(folder)
    status = run(cfg)
    if status:
        raise Interrupted(status - 128)
