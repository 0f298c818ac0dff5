"""Settings of runs as flat keys (``attention.kv_dim``), and which of them can make two runs differ."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from newllm.config import identity
from newllm.config.groups import groups

Flat = dict[str, Any]

# Of which the last part of the path is the setting.
_FOLDERS = {f"{group.name}.{key}" for group in groups().values() for key, kind in group.paths.items() if kind != "name"}


class Settings:
    """The flat settings of many effective configurations.

    Keys of choices, of nodes that never change a number (runtime, logger) and root axes are not among them: what a
    choice or an axis sets is in a node. Of evaluators, those are among them that have several sets of options here:
    whether one has been called makes no other run of it. Nodes that configurations share are looked at once.
    """

    def __init__(self, configs: Iterable[Mapping[str, Any]]) -> None:
        self._flat: dict[int, Flat] = {}
        self._kept: list[Any] = []  # keeps the nodes alive, so that their ids stay theirs
        self.nodes: list[dict[str, Any]] = [identity.counting(config) for config in configs]
        self._kept += [nodes[group] for nodes in self.nodes for group in nodes]
        self._keep_contested_evaluators()

    def _keep_contested_evaluators(self) -> None:
        whole = {id(node): node for nodes in self.nodes if (node := nodes.get("eval")) is not None}
        sets: dict[str, set[str]] = {}
        for node in whole.values():
            for name, options in node.items():
                sets.setdefault(name, set()).add(canonical(options))
        reduced = {
            mark: {name: options for name, options in node.items() if len(sets[name]) > 1}
            for mark, node in whole.items()
        }
        self._kept += whole.values()
        for nodes in self.nodes:
            if "eval" in nodes:
                nodes["eval"] = reduced[id(nodes["eval"])]

    def node(self, row: int, name: str) -> Flat:
        """The flat settings of one node of one run, {} where the run has no such node."""
        node = self.nodes[row].get(name)
        if node is None:
            return {}
        if id(node) not in self._flat:
            self._flat[id(node)] = flatten(node, name)
            self._kept.append(node)
        return self._flat[id(node)]

    def row(self, row: int) -> Flat:
        """All flat settings of one run."""
        merged: Flat = {}
        for name in self.nodes[row]:
            merged |= self.node(row, name)
        return merged

    def identities(self, without: Sequence[str] = ()) -> list[tuple[str, ...]]:
        """One value per run, equal for runs whose settings are equal but for seeds and for the keys `without`."""
        names = sorted({name for nodes in self.nodes for name in nodes})
        texts: dict[int, str] = {}

        def text(row: int, name: str) -> str:
            flat = self.node(row, name)
            if not flat:  # of a run without the node: nobody keeps it, so that its id is soon another's
                return ""
            if id(flat) not in texts:
                kept = {key: value for key, value in flat.items() if not is_seed(key) and key not in without}
                texts[id(flat)] = canonical(kept)
            return texts[id(flat)]

        return [tuple(text(row, name) for name in names) for row in range(len(self.nodes))]


def flatten(value: Any, prefix: str = "") -> Flat:
    """Nested mappings as one with dotted keys. Lists are values; an empty mapping is the value {}."""
    if not isinstance(value, Mapping) or not value:
        return {prefix: Path(value).name if prefix in _FOLDERS and isinstance(value, str) else value}
    flat: Flat = {}
    for key, item in value.items():
        flat |= flatten(item, f"{prefix}.{key}" if prefix else str(key))
    return flat


def is_seed(key: str) -> bool:
    """Is it a seed of the run? (`data.split_seed` is not one: it belongs to the data.)"""
    return key.rpartition(".")[2] == "seed"


def canonical(value: Any) -> str:
    """Equal texts for equal values; 1e4 and 10000 are one number."""
    if value is None or isinstance(value, str | int | float):
        return repr(identity.canonical(value))
    return json.dumps(identity.canonical(value), sort_keys=True, default=str)


def varying(flats: Sequence[Flat]) -> list[str]:
    """The keys whose values differ among `flats`, seeds left out; a key that some lack differs."""
    keys = dict.fromkeys(key for flat in flats for key in flat if not is_seed(key))
    return [key for key in keys if len({canonical(flat[key]) if key in flat else "" for flat in flats}) > 1]
