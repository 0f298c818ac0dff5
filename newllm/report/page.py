"""The report as one HTML page that needs nothing beside it, and all other files that were asked for."""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

import pandas as pd

from newllm.analysis.frame import metric_names
from newllm.analysis.labels import flatten
from newllm.errors import ConfigError
from newllm.report.figures import COLOURS
from newllm.report.study import Section, Study
from newllm.report.tables import WRITERS
from newllm.store.atomic import replacing, write_text

DIGITS = 6  # of metrics on the page
MOST_COLUMNS = 12  # of the table of runs, beside its metrics


def write(study: Study, sections: Sequence[Section]) -> list[Path]:
    """Writes all files; returns their paths, the page first."""
    out, formats = study.options.folder, study.options.formats
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{out} cannot be made ({error.strerror}); choose another folder with out=FOLDER.") from None
    written = []

    def put(name: str, content: str | bytes) -> None:
        written.append(out / name)
        if isinstance(content, str):
            write_text(written[-1], content)
        else:
            with replacing(written[-1]) as temporary:
                temporary.write_bytes(content)

    if "html" in formats:
        put("report.html", page(study, sections))
    for table in (table for section in sections for table in section.tables):
        for ending in WRITERS.keys() & formats:
            put(f"{table.name}.{ending}", WRITERS[ending](table))
    for drawing in (drawing for section in sections for drawing in section.drawings):
        if "svg" in formats:
            put(f"{drawing.name}.svg", drawing.file)
        if "png" in formats:
            put(f"{drawing.name}.png", drawing.png())
    return written


def page(study: Study, sections: Sequence[Section]) -> str:
    """The HTML text."""
    from jinja2 import Environment

    def asset(name: str) -> str:
        return files("newllm.report").joinpath("assets", name).read_text(encoding="utf-8")

    legend = [(one.index, part.named(one.group.label)) for part in study.drawn_parts for one in part.drawn]
    title = ", ".join(Path(folder).name or os.fspath(folder) for folder in study.options.folders)
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(asset("page.html")).render(
        title=f"newllm report: {title}",
        facts=_facts(study),
        sections=sections,
        legend=legend if len(legend) > 1 else [],
        colours=len(COLOURS),
        css=asset("report.css"),
        data=to_json(_runs(study)),
        script=asset("tables.js") + asset("runs.js"),
    )


def to_json(data: Any) -> str:
    """JSON that may stand in a <script> element."""
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def encode(frame: pd.DataFrame, groups: Sequence[str], metrics: Sequence[str], page: Path) -> dict[str, Any]:
    """The rows of `frame` (see `load_runs`) as compact JSON: what all runs share once, and per run only what differs.

    groups: the label of each run's group. page: where the page will be, since folders are relative to it.
    common: flat key -> value that all runs have. config, words: column -> {values, at}, where `at` holds each run's
    index into `values` (-1: the run has none). bare: runs without a readable configuration. metrics: name -> one
    rounded number per run, or null. Ten thousand runs with seventy metrics take about six megabytes.
    """
    configs = [config if isinstance(config, dict) else {} for config in frame["config"]]
    common, differing = _common_and_differing(configs)
    folders = [Path(os.path.relpath(path, page.parent)).as_posix() for path in frame["path"]]
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
        "metrics": {name: [_rounded(value) for value in frame[name]] for name in metrics},
    }


def _runs(study: Study) -> dict[str, Any]:
    """All runs for the page, and the columns of its table: name, state, group, then the choices and axes that differ,
    then the main metrics."""
    frame = study.frame
    metrics = [name for name in metric_names(frame) if frame[name].notna().any()]
    label = {path: group.label for part in study.parts for group in part.groups for path in group.runs["path"]}
    groups = [label.get(path, "") for path in frame["path"]]
    data = encode(frame, groups, metrics, study.options.folder / "report.html")
    columns = [("run", "run", "")]
    columns += [(name, "words", name) for name in ("state", "sweep") if len(data["words"][name]["values"]) > 1]
    if sum(len(part.groups) for part in study.parts) > 1:
        columns.append(("group", "words", "group"))
    keys = [key for key in data["config"] if key.startswith("choices.") or "." not in key]
    keys = sorted((key for key in keys if key != "overrides"), key=lambda key: (key == "seed", "." not in key))
    columns += [(key.removeprefix("choices."), "config", key) for key in keys[:MOST_COLUMNS]]
    columns += [(name, "metric", name) for name in study.options.metrics]
    return {**data, "columns": [dict(zip(("name", "kind", "key"), column, strict=True)) for column in columns]}


def _facts(study: Study) -> list[str]:
    groups = sum(len(part.groups) for part in study.parts)
    baseline = next((part.baseline for part in study.parts if part.baseline), None)
    return [
        f"{len(study.frame):,} runs, {len(study.done):,} of them done",
        f"{groups:,} group{'s' if groups != 1 else ''}",
        f"{study.done['seed'].nunique():,} seeds",
        *([f"baseline {baseline.label}"] if baseline else []),
        datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    ]


def _common_and_differing(configs: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What all readable configurations share, and the numbered columns of the other keys.

    Works node by node, since few of the nodes are different.
    """
    common: dict[str, Any] = {}
    differing: dict[str, Any] = {}
    for name in dict.fromkeys(name for config in configs for name in config):
        flats: dict[str, dict[str, Any]] = {}  # content of a node -> its flat settings
        nodes = [repr(config[name]) if name in config else None for config in configs]
        for config, node in zip(configs, nodes, strict=True):
            if node is not None and node not in flats:
                flats[node] = flatten(config[name], name)
        place = {node: number for number, node in enumerate(flats)}
        everywhere = all(node is not None for config, node in zip(configs, nodes, strict=True) if config)
        for key in dict.fromkeys(key for flat in flats.values() for key in flat):
            column = _numbered(flat.get(key, _NOTHING) for flat in flats.values())
            if everywhere and len(column["values"]) == 1 and -1 not in column["at"]:
                common[key] = column["values"][0]
            else:
                at = [-1 if node is None else column["at"][place[node]] for node in nodes]
                differing[key] = {"values": column["values"], "at": at}
    return common, differing


_NOTHING = object()


def _numbered(values: Iterable[Any]) -> dict[str, list[Any]]:
    known: dict[str, tuple[int, Any]] = {}
    at = [-1 if value is _NOTHING else known.setdefault(repr(value), (len(known), value))[0] for value in values]
    return {"values": [value for _, value in known.values()], "at": at}


def _rounded(value: float) -> float | int | None:
    if not abs(value) < float("inf"):
        return None
    return int(value) if value == int(value) and abs(value) < 1e15 else float(f"{value:.{DIGITS}g}")
