"""What a planned run will cost: parameters, by building it without memory; time, by runs that are done."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

from newllm.config.groups import groups, parts_of, stages
from newllm.errors import ConfigError
from newllm.store.run_directory import RunDirectory

PARTS = ("model", *parts_of("model"))
_STAGES = tuple(group for stage in stages() for group in (stage, *parts_of(stage)))
_ALIKE = (  # groups in which a finished run is equal to a planned one; the first that any run fits tells its time
    tuple(group.name for group in groups().values() if group.numbers),
    (*PARTS, *_STAGES, "eval"),
    (*PARTS, *_STAGES),
    ("model", *_STAGES),
)

Node = Mapping[str, Any]


class Estimates:
    """Costs of runs, remembered: most runs of a sweep share their sizes.

    Args:
        folders: where finished runs may be found, the nearest first.
    """

    def __init__(self, folders: Iterable[Path]) -> None:
        self._folders = [folder for folder in dict.fromkeys(folders) if folder.is_dir()]
        self._parameters: dict[tuple[str, ...], int | None] = {}
        self._texts: dict[int, tuple[Any, str]] = {}

    def parameters(self, config: Node) -> int | None:
        """Number of parameters; None where only the tokenizer, once it is read, will tell."""
        vocabulary = config["model"].get("vocab_size") or _vocabulary(config["data"])
        if vocabulary is None:
            return self._done.parameters.get(self._key(config, PARTS))
        key = (*self._key(config, PARTS), str(config["data"]["seq_len"]), str(vocabulary))
        if key not in self._parameters:
            self._parameters[key] = count_parameters(config, vocabulary)
        return self._parameters[key]

    def seconds(self, config: Node) -> float | None:
        """Wall time by that of finished runs, scaled by the tokens trained on: of runs that differ in nothing but the
        seed, else of the same model, encoding and attention, else of the same model. None: nothing is known."""
        if not self._done.rates:
            return None
        found = (self._done.rates.get(self._key(config, parts)) for parts in _ALIKE)
        rates = next(filter(None, found), None)
        return fmean(rates) * _work(config) if rates else None

    @cached_property
    def _done(self) -> "_Done":
        done = _Done()
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
                    for parts in _ALIKE:
                        rates = done.rates.setdefault(self._key(config, parts), [])
                        rates.append(results["speed/wall_seconds"] / _work(config))
                    done.parameters.setdefault(self._key(config, PARTS), int(results["params/total"]))
        return done

    def _key(self, config: Node, parts: Iterable[str]) -> tuple[str, ...]:
        """These nodes as texts, equal for runs that differ in seeds only; runs of one sweep share most nodes."""
        texts = []
        for part in parts:
            node = config.get(part)
            if id(node) not in self._texts:  # the node is kept, so that nothing else can have its id
                self._texts[id(node)] = (node, json.dumps(seedless(node), sort_keys=True))
            texts.append(self._texts[id(node)][1])
        return tuple(texts)


@dataclass
class _Done:
    """What is known of finished runs that are alike. rates: wall seconds by the work; parameters: of the first."""

    rates: dict[tuple[str, ...], list[float]] = field(default_factory=dict)
    parameters: dict[tuple[str, ...], int] = field(default_factory=dict)


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
    rows = data.get("samples") or data.get("documents") or 1
    return float(trainer.get("tokens") or rows * data["seq_len"] * (trainer.get("epochs") or 1))


def seedless(value: Any) -> Any:
    """A node without its seeds, however deep they are."""
    return {k: seedless(v) for k, v in value.items() if k != "seed"} if isinstance(value, Mapping) else value
