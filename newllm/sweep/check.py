"""Builds every part of every planned run once before the first run starts, so that a bad value is found early."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from newllm.config.groups import groups, parts_of, stages
from newllm.errors import NewllmError
from newllm.sweep.workers import sentence

PARTS = ("model", *parts_of("model"))

# Path, node (for the model and for a stage, with the nodes of its parts), and the places of the runs that have it.
Part = tuple[str, dict[str, Any], list[int]]


def parts(configs: Iterable[Mapping[str, Any]]) -> list[Part]:
    """The parts of these effective configurations, each once: nodes that differ only in seeds are equal. No torch."""
    distinct: dict[str, Part] = {}
    for place, config in enumerate(configs):
        known = groups(config)
        nodes: dict[str, Mapping[str, Any]] = {}
        for name, node in config.items():
            built_by_other = name == "model" or (name in known and (known[name].part_of or known[name].stage))
            if built_by_other or not isinstance(node, Mapping):
                continue
            inner = {f"{name}.{key}": value for key, value in node.items() if isinstance(value, Mapping)}
            options = {name: node} if "_target_" in node else inner
            nodes |= {path: value for path, value in options.items() if "_target_" in value}
        nodes["model"] = {
            **{part: dict(config[part]) for part in PARTS},
            "data": {"seq_len": config["data"]["seq_len"]},
            "trainer": {"seed": config["trainer"]["seed"]},
            "choices": {part: config["choices"].get(part) for part in PARTS},
        }
        for stage in stages(config):
            nodes[stage] = {group: dict(config.get(group) or {}) for group in (stage, *parts_of(stage, config))}
        for path, node in nodes.items():
            key = json.dumps([path, seedless(node)], sort_keys=True)
            distinct.setdefault(key, (path, dict(node), []))[2].append(place)
    return list(distinct.values())


def build_all(nodes: Iterable[Part]) -> dict[int, str]:
    """Place of each run that cannot be built -> why. Models are built on the meta device."""
    refused: dict[int, str] = {}
    for path, node, places in nodes:
        try:
            _build(path, node)
        except Exception as error:  # a class of a user may raise any
            reason = str(error) if isinstance(error, NewllmError) else sentence(error)
            refused |= {place: reason for place in places if place not in refused}
    return dict(sorted(refused.items()))


def _build(path: str, node: dict[str, Any]) -> None:
    """Raises ConfigError if the options of a part are refused."""
    from omegaconf import OmegaConf

    from newllm.build import build
    from newllm.config.values import check_values, convert_options
    from newllm.data.corpora.corpus import Corpus
    from newllm.data.facts import ReversalFacts
    from newllm.evaluation import Evaluator
    from newllm.run.stage import build_stage
    from newllm.training.optimizer import AdamW
    from newllm.training.trainer import Trainer

    known = groups()
    kinds: dict[str, type] = {
        "data": Corpus, "facts": ReversalFacts, "optim": AdamW, "trainer": Trainer, "eval": Evaluator,
    }  # fmt: skip
    if path == "model":
        check_values(OmegaConf.create(node))
        count_parameters(node, int(node["model"].get("vocab_size") or 64))
    elif "_target_" not in node:
        build_stage(path, node, seed=0)
    else:
        node = convert_options(node, path)
        if path in known and not known[path].numbers:
            return  # depends on the machine and the directory of the run
        part: Any = build(node, kinds.get(path.partition(".")[0], object))
        if path == "data":
            part.fingerprint()  # raises if files of the corpus are missing


def count_parameters(config: Mapping[str, Any], vocabulary: int) -> int:
    """Number of parameters for this vocabulary size, counted on the meta device.

    Raises ConfigError if the model cannot be built.
    """
    import torch
    from omegaconf import OmegaConf

    from newllm.model import build_model

    with torch.device("meta"):
        model = build_model(OmegaConf.create(dict(config)), tokens=vocabulary)
    return sum(parameter.numel() for parameter in model.parameters())


def seedless(value: Any) -> Any:
    """The node without `seed` keys, at any depth."""
    return {k: seedless(v) for k, v in value.items() if k != "seed"} if isinstance(value, Mapping) else value
