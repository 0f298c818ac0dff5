"""Every part of every planned run is built once before the first run starts, so that a bad value is refused at once."""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from newllm.sweep.estimate import PARTS, count_parameters, seedless

_LATER = ("runtime", "logger")  # of the machine that a run will run on, and of its directory
_MODEL, _PHASE = "model", "phase1"
_TOGETHER = (*PARTS, _PHASE, "objective")  # groups whose nodes are not built each by itself

Part = tuple[str, dict[str, Any]]  # where it stands, its node; of a whole model or a first phase, the nodes it needs


def parts(configs: Iterable[Mapping[str, Any]]) -> list[Part]:
    """What there is to build in these effective configurations; once, what differs in seeds only. Needs no torch."""
    found: dict[str, Part] = {}
    for config in configs:
        sizes = {"data": {"seq_len": config["data"]["seq_len"]}, "trainer": {"seed": config["trainer"]["seed"]}}
        whole = {**{part: dict(config[part]) for part in PARTS}, **sizes}
        phase = {part: dict(config.get(part) or {}) for part in (_PHASE, "objective")}
        for path, node in (*_nodes(config), (_MODEL, whole), (_PHASE, phase)):
            found.setdefault(json.dumps([path, seedless(node)], sort_keys=True), (path, dict(node)))
    return list(found.values())


def build_all(found: Iterable[Part]) -> None:
    """ConfigError of the first part that its constructor refuses; models are built without memory."""
    from newllm.build import build
    from newllm.run.stages import first_phase

    for path, node in found:
        if path == _MODEL:
            count_parameters(node, int(node["model"].get("vocab_size") or 64))
            continue
        if path == _PHASE:
            first_phase(node[_PHASE], node["objective"], seed=0)
            continue
        part = build(node)
        if path == "data":
            part.fingerprint()  # refuses a corpus whose files are not there


def _nodes(config: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The nodes that need nothing handed over but what stands in them."""
    for group, node in config.items():
        if group in _TOGETHER or group in _LATER or not isinstance(node, Mapping):
            continue
        if "_target_" in node:
            yield group, node
        else:
            inner = ((f"{group}.{name}", one) for name, one in node.items() if isinstance(one, Mapping))
            yield from ((path, one) for path, one in inner if "_target_" in one)
