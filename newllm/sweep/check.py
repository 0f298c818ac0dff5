"""Every part of every planned run is built once before the first run starts, so that a bad value is refused at once."""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from newllm.sweep.estimate import PARTS, count_parameters, seedless

_LATER = ("runtime", "logger")  # of the machine that a run will run on, and of its directory


def check(configs: Iterable[Mapping[str, Any]]) -> None:
    """ConfigError of the first node that its constructor refuses, or of the first model that cannot be built.

    Nodes that differ in seeds only are built once; models are built without memory.
    """
    from newllm.build import build

    seen: set[str] = set()

    def new(*content: Any) -> bool:
        key = json.dumps(content, sort_keys=True)
        if key in seen:
            return False
        seen.add(key)
        return True

    for config in configs:
        for path, node in _nodes(config):
            if new(path, seedless(node)):
                part = build(node)
                if path == "data":
                    part.fingerprint()  # refuses a corpus whose files are not there
        model = {part: config[part] for part in PARTS}
        vocabulary = int(config["model"].get("vocab_size") or 64)
        if new(seedless(model), config["data"]["seq_len"], vocabulary):
            count_parameters(config, vocabulary)


def _nodes(config: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The nodes that need nothing handed over but what stands in them."""
    for group, node in config.items():
        if group in PARTS or group in _LATER or not isinstance(node, Mapping):
            continue
        if "_target_" in node:
            yield group, node
        else:
            yield from (
                (f"{group}.{name}", n) for name, n in node.items() if isinstance(n, Mapping) and "_target_" in n
            )
