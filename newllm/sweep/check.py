"""Every part of every planned run is built once before the first run starts, so that a bad value is refused at once."""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from newllm.config.groups import groups, parts_of, stages

PARTS = ("model", *parts_of("model"))

Part = tuple[str, dict[str, Any]]  # its path, its node; of the model and of a stage, the nodes of its parts as well


def parts(configs: Iterable[Mapping[str, Any]]) -> list[Part]:
    """What there is to build in these effective configurations; once, what differs in seeds only. Needs no torch."""
    found: dict[str, Part] = {}
    for config in configs:
        sizes = {"data": {"seq_len": config["data"]["seq_len"]}, "trainer": {"seed": config["trainer"]["seed"]}}
        choices = {part: config["choices"].get(part) for part in PARTS}
        whole = {**{part: dict(config[part]) for part in PARTS}, **sizes, "choices": choices}
        together = {"model": whole}
        for stage in stages(config):
            together[stage] = {group: dict(config.get(group) or {}) for group in (stage, *parts_of(stage, config))}
        for path, node in (*_nodes(config), *together.items()):
            found.setdefault(json.dumps([path, seedless(node)], sort_keys=True), (path, dict(node)))
    return list(found.values())


def build_all(found: Iterable[Part]) -> None:
    """ConfigError of the first part that its constructor refuses; models are built without memory."""
    from omegaconf import OmegaConf

    from newllm.build import build
    from newllm.config.values import check_values, fitted
    from newllm.run.stage import build_stage

    known = groups()
    for path, node in found:
        if path == "model":
            check_values(OmegaConf.create(node))
            count_parameters(node, int(node["model"].get("vocab_size") or 64))
        elif "_target_" not in node:
            build_stage(path, node, seed=0)
        else:
            node = fitted(node, path)
            if path in known and not known[path].numbers:
                continue  # of the machine that the run will run on, and of its directory
            part = build(node)
            if path == "data":
                part.fingerprint()  # refuses a corpus whose files are not there


def count_parameters(config: Mapping[str, Any], vocabulary: int) -> int:
    """Parameters of the model with so many tokens, built without memory; ConfigError if it cannot be built."""
    import torch
    from omegaconf import OmegaConf

    from newllm.model import build_model

    with torch.device("meta"):
        model = build_model(OmegaConf.create(dict(config)), tokens=vocabulary)
    return sum(parameter.numel() for parameter in model.parameters())


def seedless(value: Any) -> Any:
    """A node without its seeds, however deep they are."""
    return {k: seedless(v) for k, v in value.items() if k != "seed"} if isinstance(value, Mapping) else value


def _nodes(config: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The nodes of groups that are judged by themselves."""
    known = groups(config)
    together = {"model", *(group.name for group in known.values() if group.part_of or group.stage)}
    for group, node in config.items():
        if group in together or not isinstance(node, Mapping):
            continue
        if "_target_" in node:
            yield group, node
        else:
            inner = ((f"{group}.{name}", one) for name, one in node.items() if isinstance(one, Mapping))
            yield from ((path, one) for path, one in inner if "_target_" in one)
