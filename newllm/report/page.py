"""The report as one HTML page that works offline, and all other files that were asked for."""

import json
import os
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

import pandas as pd

from newllm.analysis.frame import known_metrics
from newllm.analysis.settings import flatten
from newllm.errors import ConfigError
from newllm.report.figures import COLOURS
from newllm.report.study import Section, Study
from newllm.report.tables import WRITERS
from newllm.store.atomic import replacing, write_text

DIGITS = 6  # of metrics on the page
MOST_COLUMNS = 12  # choices and axes in the table of runs
_MISSING = object()


def write_report(study: Study, sections: Sequence[Section]) -> list[Path]:
    """Writes all files; returns their paths, the page first."""
    folder, formats = study.options.folder, study.options.formats
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        message = f"{folder} cannot be created ({error.strerror}); choose another folder with out=FOLDER."
        raise ConfigError(message) from None
    content: dict[str, str | bytes] = {"report.html": page(study, sections)} if "html" in formats else {}
    for section in sections:
        for table in section.tables:
            content |= {f"{table.name}.{ending}": WRITERS[ending](table) for ending in WRITERS.keys() & formats}
        for drawing in section.drawings:
            content |= {f"{drawing.name}.svg": drawing.file} if "svg" in formats else {}
            content |= {f"{drawing.name}.png": drawing.png()} if "png" in formats else {}
    for name, text in content.items():
        if isinstance(text, str):
            write_text(folder / name, text)
        else:
            with replacing(folder / name) as temporary:
                temporary.write_bytes(text)
    return [folder / name for name in content]


def page(study: Study, sections: Sequence[Section]) -> str:
    """The HTML text."""
    from jinja2 import Environment

    def asset(name: str) -> str:
        return files("newllm.report").joinpath("assets", name).read_text(encoding="utf-8")

    groups = sum(len(part.groups) for part in study.parts if part.whole)
    baseline = next((part.baseline.words for part in study.parts if part.baseline.words), "")
    facts = [
        f"{len(study.frame):,} runs, {len(study.done):,} of them done",
        f"{groups:,} group{'s' if groups != 1 else ''}",
        f"{study.done['seed'].nunique():,} seeds",
        *([f"baseline: {baseline}"] if baseline else []),
        datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    ]
    legend = [(drawn.index, part.named(drawn.label)) for part in study.drawn_parts for drawn in part.drawn]
    title = ", ".join(Path(folder).name or os.fspath(folder) for folder in study.options.folders)
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(asset("page.html")).render(
        title=f"newllm report: {title}",
        facts=facts,
        sections=sections,
        legend=legend if len(legend) > 1 else [],
        colours=len(COLOURS),
        css=asset("report.css"),
        data=to_json(_runs_and_columns(study)),
        script=asset("tables.js") + asset("runs.js"),
    )


def to_json(data: Any) -> str:
    """JSON that may stand in a <script> element."""
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _runs_and_columns(study: Study) -> dict[str, Any]:
    """All runs for the page, and the columns of its table: name, state, group, then the choices and axes that differ,
    then the main metrics."""
    frame = study.frame
    metrics = known_metrics(frame)
    members = ((group, [*group.positions, *group.lost]) for part in study.parts for group in part.groups)
    label = {path: group.label for group, rows in members for path in group.frame["path"].iloc[rows]}
    groups = [label.get(path, "") for path in frame["path"]]
    data = encode_runs(frame, groups, metrics, study.options.folder / "report.html")
    columns = [("run", "run", "")]
    columns += [(name, "words", name) for name in ("state", "sweep") if len(data["words"][name]["values"]) > 1]
    if sum(len(part.groups) for part in study.parts) > 1:
        columns.append(("group", "words", "group"))
    keys = [key for key in data["config"] if key.startswith("choices.") or "." not in key]
    keys = sorted((key for key in keys if key != "overrides"), key=lambda key: (key == "seed", "." not in key))
    columns += [(key.removeprefix("choices."), "config", key) for key in keys[:MOST_COLUMNS]]
    columns += [(name, "metric", name) for name in study.options.metrics]
    return {**data, "columns": [dict(zip(("name", "kind", "key"), column, strict=True)) for column in columns]}


def encode_runs(frame: pd.DataFrame, groups: Sequence[str], metrics: Sequence[str], page: Path) -> dict[str, Any]:
    """The rows of `frame` (see `load_runs`) as compact JSON: what all runs share once, and per run only what differs.

    groups: the label of each run's group. page: where the page will be, since folders are relative to it.
    common: flat key -> value that all runs have. config, words: column -> {values, at}, where `at` holds each run's
    index into `values` (-1: the run has none). bare: runs without a readable configuration. metrics: name -> one
    rounded number per run, or null. Ten thousand runs with seventy metrics take about six megabytes.
    """
    flats = [flatten(config) if config else {} for config in frame["config"]]
    readable = [flat for flat in flats if flat]
    common, differing = {}, {}
    for key in dict.fromkeys(key for flat in flats for key in flat):
        column = _distinct(flat.get(key, _MISSING) for flat in flats)
        if len(column["values"]) == 1 and len(flats) - column["at"].count(-1) == len(readable):
            common[key] = column["values"][0]
        else:
            differing[key] = column
    folders = [Path(os.path.relpath(path, page.parent)).as_posix() for path in frame["path"]]
    return {
        "count": len(frame),
        "common": common,
        "config": differing,
        "bare": [row for row, flat in enumerate(flats) if not flat],
        "words": {
            "state": _distinct(frame["state"]),
            "group": _distinct(groups),
            "sweep": _distinct(frame["sweep"]),
            "error": _distinct(value if isinstance(value, str) else _MISSING for value in frame["error"]),
        },
        "run": list(frame["run"]),
        "folder": _distinct(os.path.dirname(folder) for folder in folders),
        "metrics": {name: [_rounded(value) for value in frame[name]] for name in metrics},
    }


def _distinct(values: Iterable[Any]) -> dict[str, list[Any]]:
    """The distinct values, and for each value its index among them; -1 where it is missing."""
    known: dict[str, tuple[int, Any]] = {}
    at = [-1 if value is _MISSING else known.setdefault(repr(value), (len(known), value))[0] for value in values]
    return {"values": [value for _, value in known.values()], "at": at}


def _rounded(value: float) -> float | int | None:
    if not abs(value) < float("inf"):
        return None
    return int(value) if value == int(value) and abs(value) < 1e15 else float(f"{value:.{DIGITS}g}")
