"""What a planned run will cost: parameters, by building it without memory; time, by runs that are done."""

import json
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

from newllm.errors import ConfigError
from newllm.results.run_directory import RunDirectory

PARTS = ("model", "pos_encoding", "attention")


class Estimates:
    """Costs of runs, remembered: most runs of a sweep share their sizes.

    Args:
        folders: where finished runs may be found, the nearest first.
    """

    def __init__(self, folders: Iterable[Path]) -> None:
        self._folders = [folder for folder in dict.fromkeys(folders) if folder.is_dir()]
        self._parameters: dict[str, int | None] = {}

    def parameters(self, config: Mapping[str, Any]) -> int | None:
        """Number of parameters; None where only the tokenizer, once it is read, will tell."""
        vocabulary = config["model"].get("vocab_size") or _vocabulary(config["data"])
        if vocabulary is None:
            return next((int(r["params/total"]) for c, r in self._done if _same(c, config, PARTS)), None)
        key = json.dumps([config[part] for part in PARTS] + [config["data"]["seq_len"], vocabulary], sort_keys=True)
        if key not in self._parameters:
            self._parameters[key] = count_parameters(config, vocabulary)
        return self._parameters[key]

    def seconds(self, config: Mapping[str, Any]) -> float | None:
        """Wall time by that of finished runs, scaled by the tokens trained on: of runs that differ in nothing but the
        seed, else of the same model, encoding and attention, else of the same model. None: nothing is known."""
        work = _work(config)
        for parts in ((*PARTS, "data", "trainer", "optim", "eval", "facts"), (*PARTS, "eval"), PARTS, ("model",)):
            times = [r["speed/wall_seconds"] * work / _work(c) for c, r in self._done if _same(c, config, parts)]
            if times:
                return fmean(times)
        return None

    @cached_property
    def _done(self) -> list[tuple[dict[str, Any], dict[str, float]]]:
        found = []
        for folder in self._folders:
            for path in folder.iterdir():
                directory = RunDirectory(path)
                if not directory.results_file.exists():
                    continue
                try:
                    config, results = directory.config(), directory.results()
                except (ConfigError, TypeError):
                    continue
                if results.get("speed/wall_seconds") and all(part in config for part in (*PARTS, "data", "trainer")):
                    found.append((config, results))
        return found


def _vocabulary(data: Mapping[str, Any]) -> int | None:
    return int(data["vocab_size"]) if data.get("tokenizer") in (None, "auto") and data.get("vocab_size") else None


def count_parameters(config: Mapping[str, Any], vocabulary: int) -> int:
    """Parameters of the model with so many tokens, built without memory; ConfigError if it cannot be built."""
    import torch
    from omegaconf import OmegaConf

    from newllm.model import build_model

    with torch.device("meta"):
        model = build_model(OmegaConf.create(dict(config)), tokens=vocabulary)
    return sum(parameter.numel() for parameter in model.parameters())


def _work(config: Mapping[str, Any]) -> float:
    """Tokens to be trained on, in proportion."""
    trainer, data = config["trainer"], config["data"]
    rows = data.get("samples") or 1
    return float(trainer.get("tokens") or rows * data["seq_len"] * (trainer.get("epochs") or 1))


def _same(one: Mapping[str, Any], other: Mapping[str, Any], parts: Iterable[str]) -> bool:
    return all(seedless(one.get(part)) == seedless(other.get(part)) for part in parts)


def seedless(value: Any) -> Any:
    """A node without its seeds, however deep they are."""
    return {k: seedless(v) for k, v in value.items() if k != "seed"} if isinstance(value, Mapping) else value
