"""All runs as compact JSON for the page: what they share once, and per run only what differs.

Configuration values and words are numbered (each distinct value is written once); metrics are rounded to six digits.
Ten thousand runs with seventy metrics take about six megabytes.
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas

DIGITS = 6


def encode(frame: "pandas.DataFrame", groups: Sequence[str], metrics: Sequence[str], page: Path) -> dict[str, Any]:
    """The rows of `frame` (see `load_runs`), the group label of each, and where they lie as seen from `page`.

    common: flat key -> value that all runs have. config, words: column -> {values, at}, where `at` holds each run's
    index into `values` (-1: the run has none). bare: runs without a readable configuration. metrics: name -> one
    rounded number per run, or null.
    """
    configs = [config if isinstance(config, dict) else {} for config in frame["config"]]
    common, differing = _parted(configs)
    folders = [_relative(path, page) for path in frame["path"]]
    return {
        "count": len(frame),
        "common": common,
        "config": differing,
        "bare": [row for row, config in enumerate(configs) if not config],
        "words": {
            "state": _numbered(frame["state"]),
            "group": _numbered(groups),
            "sweep": _numbered(frame["sweep"]),
            "error": _numbered(value if isinstance(value, str) else _NOTHING for value in frame["error"]),
        },
        "run": list(frame["run"]),
        "folder": _numbered(os.path.dirname(folder) for folder in folders),
        "metrics": {name: _column(frame[name]) for name in metrics},
    }


def to_json(data: Any) -> str:
    """JSON that may stand in a <script> element."""
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def flatten(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one: ``{"a": {"b": 1}}`` is ``{"a.b": 1}``; lists are values."""
    found: dict[str, Any] = {}
    for key, value in node.items():
        if isinstance(value, Mapping) and value:
            found |= flatten(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


class _Nothing:
    pass


_NOTHING = _Nothing()


def _parted(configs: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What all configurations have alike, and the numbered columns of the other keys.

    Works node by node: `load_runs` gives equal nodes as one object, so that few of them are different.
    """
    common: dict[str, Any] = {}
    differing: dict[str, Any] = {}
    for name in dict.fromkeys(name for config in configs for name in config):
        number: dict[int, int] = {}
        flats: list[dict[str, Any]] = []
        at: list[int | None] = []  # of each readable run, the number of its node; -1: it has none
        for config in configs:
            if name in config and id(config[name]) not in number:
                number[id(config[name])] = len(flats)
                flats.append(flatten({name: config[name]}))
            at.append(number[id(config[name])] if name in config else -1 if config else None)
        everywhere = -1 not in at
        for key in dict.fromkeys(key for flat in flats for key in flat):
            column = _numbered(flat.get(key, _NOTHING) for flat in flats)
            if everywhere and len(column["values"]) == 1 and -1 not in column["at"]:
                common[key] = column["values"][0]
            else:
                codes = column["at"]
                column["at"] = [-1 if node is None or node < 0 else codes[node] for node in at]
                differing[key] = column
    return common, differing


def _numbered(values: Iterable[Any]) -> dict[str, list[Any]]:
    known: dict[str, int] = {}
    distinct: list[Any] = []
    at: list[int] = []
    for value in values:
        if value is _NOTHING:
            at.append(-1)
            continue
        mark = repr(value)
        if mark not in known:
            known[mark] = len(distinct)
            distinct.append(value)
        at.append(known[mark])
    return {"values": distinct, "at": at}


def _column(values: Iterable[Any]) -> list[float | None]:
    return [_rounded(float(value)) if value is not None else None for value in values]


def _rounded(value: float) -> float | int | None:
    if value != value or value in (float("inf"), float("-inf")):
        return None
    if value == int(value) and abs(value) < 1e15:
        return int(value)
    return float(f"{value:.{DIGITS}g}")


def _relative(path: Any, page: Path) -> str:
    return Path(os.path.relpath(path, page.parent)).as_posix()
