"""Builds every part of every planned run once before the first run starts, so that a bad value is found early."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from newllm.config.catalog import plain
from newllm.config.groups import groups, parts_of, stages
from newllm.errors import NewllmError
from newllm.sweep.workers import sentence

PARTS = ("model", *parts_of("model"))

# Path; a configuration of its node, for the model and for a stage also of the nodes of its parts, and of the axes that
# these refer to; the places of the runs that have it.
Part = tuple[str, dict[str, Any], list[int]]


def parts(configs: Iterable[Mapping[str, Any]]) -> list[Part]:
    """The parts of these effective configurations, each once: nodes that differ only in seeds are equal. No torch."""
    distinct: dict[str, Part] = {}
    for place, config in enumerate(configs):
        known = groups(config)
        small: dict[str, dict[str, Any]] = {}
        for name, node in config.items():
            built_by_other = name == "model" or (name in known and (known[name].part_of or known[name].stage))
            if built_by_other or not isinstance(node, Mapping):
                continue
            inner = {f"{name}.{key}": value for key, value in node.items() if isinstance(value, Mapping)}
            options = {name: node} if "_target_" in node else inner
            small |= {path: _with_axes({path: value}, config) for path, value in options.items() if "_target_" in value}
        small["model"] = {
            **_with_axes({part: config[part] for part in PARTS}, config),
            "data": {"seq_len": config["data"]["seq_len"]},
            "trainer": {"seed": config["trainer"]["seed"]},
            "choices": {part: config["choices"].get(part) for part in PARTS},
        }
        for stage in stages(config):
            small[stage] = {group: dict(config.get(group) or {}) for group in (stage, *parts_of(stage, config))}
            small[stage] |= {"groups": config["groups"]} if "groups" in config else {}  # of the user's folder
        for path, content in small.items():
            key = json.dumps([path, seedless(content)], sort_keys=True)
            distinct.setdefault(key, (path, content, []))[2].append(place)
    return list(distinct.values())


def _with_axes(nodes: Mapping[str, Mapping[str, Any]], config: Mapping[str, Any]) -> dict[str, Any]:
    """The nodes with references to the axes that give their values, and these axes: errors name what users type."""
    axes = {
        name: config[name]
        for node in nodes.values()
        for name, value in node.items()
        if name in config and not isinstance(value, Mapping) and config[name] == value
    }
    referring = {
        path: {name: f"${{{name}}}" if name in axes and axes[name] == value else value for name, value in node.items()}
        for path, node in nodes.items()
    }
    return {**axes, **referring}


def build_all(nodes: Iterable[Part]) -> dict[int, str]:
    """Place of each run that cannot be built -> why. Models are built on the meta device."""
    refused: dict[int, str] = {}
    for path, content, places in nodes:
        try:
            _build(path, content)
        except Exception as error:  # a class of a user may raise any
            reason = str(error) if isinstance(error, NewllmError) else sentence(error)
            refused |= {place: reason for place in places if place not in refused}
    return dict(sorted(refused.items()))


def _build(path: str, content: dict[str, Any]) -> None:
    """Raises ConfigError if the options of a part are refused."""
    from omegaconf import OmegaConf

    from newllm.build import build
    from newllm.config.values import check_values
    from newllm.data.corpora.corpus import Corpus
    from newllm.data.facts import ReversalFacts
    from newllm.evaluation import Evaluator
    from newllm.run.stage import build_stage
    from newllm.training.optimizer import AdamW
    from newllm.training.trainer import Trainer

    known = groups(content)
    kinds: dict[str, type] = {
        "data": Corpus, "facts": ReversalFacts, "optim": AdamW, "trainer": Trainer, "eval": Evaluator,
    }  # fmt: skip
    cfg = check_values(OmegaConf.create(content))
    if path == "model":
        count_parameters(plain(cfg, resolve=True), cfg.model.get("vocab_size") or 64)
    elif path in known and known[path].stage:
        build_stage(path, {name: plain(cfg[name], resolve=True) for name in content if name != "groups"}, seed=0)
    elif (root := path.partition(".")[0]) not in known or known[root].numbers:
        # else it depends on the machine and the directory of the run
        part: Any = build(plain(cfg[path], resolve=True), kinds.get(root, object))
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
    """The node without seeds, at any depth; a seed that is no number stays, since it will be refused."""
    if not isinstance(value, Mapping):
        return value
    return {key: seedless(item) for key, item in value.items() if key != "seed" or not isinstance(item, int)}
