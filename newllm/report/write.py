"""The files of a report, in the formats that were asked for."""

import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from newllm.errors import ConfigError
from newllm.report.page import page
from newllm.report.runs import encode
from newllm.report.section import Section
from newllm.report.study import Study
from newllm.report.writers import to_csv, to_latex, to_markdown
from newllm.store.atomic import replacing, write_text

_WORDS = {"csv": to_csv, "md": to_markdown, "tex": to_latex}
MOST_COLUMNS = 12  # of the table of runs, beside its metrics


def write(study: Study, sections: Sequence[Section]) -> list[Path]:
    """Write all files; returns their paths, the page first."""
    out, formats = study.request.out, study.options.formats
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{out} cannot be made ({error.strerror}); choose another folder with out=FOLDER.") from None
    written = []
    if "html" in formats:
        written.append(out / "report.html")
        write_text(written[0], html(study, sections))
    for section in sections:
        for table in section.tables:
            for ending in [one for one in _WORDS if one in formats]:
                written.append(out / f"{table.name}.{ending}")
                write_text(written[-1], _WORDS[ending](table))
        for drawing in section.drawings:
            for ending in [one for one in ("svg", "png") if one in formats]:
                written.append(out / f"{drawing.name}.{ending}")
                _write_bytes(written[-1], drawing.file if ending == "svg" else drawing.png())
    return written


def html(study: Study, sections: Sequence[Section]) -> str:
    """The page."""
    frame, out = study.frame, study.request.out
    metrics = [str(name) for name in frame if "/" in str(name) and frame[name].notna().any()]
    label = {path: group.label for part in study.parts for group in part.groups for path in group.runs["path"]}
    data = encode(frame, [label.get(path, "") for path in frame["path"]], metrics, out / "report.html")
    data["columns"] = _columns(study, data)
    title = ", ".join(Path(folder).name or os.fspath(folder) for folder in study.request.folders)
    legend = [(one.index, part.named(one.group.label)) for part in study.drawn_parts for one in part.drawn]
    return page(f"newllm report: {title}", _facts(study), sections, legend if len(legend) > 1 else [], data)


def _facts(study: Study) -> list[str]:
    done, all_runs = len(study.done), len(study.frame)
    groups = sum(len(part.groups) for part in study.parts)
    baseline = next((part.baseline for part in study.parts if part.baseline), None)
    facts = [
        f"{all_runs:,} runs, {done:,} of them done",
        f"{groups:,} group{'s' if groups != 1 else ''}",
        f"{study.done['seed'].nunique():,} seeds",
        *([f"baseline {baseline.label}"] if baseline else []),
        datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    ]
    return facts


def _columns(study: Study, data: dict[str, Any]) -> list[dict[str, str]]:
    """Of the table of runs: name, state, group, then the choices and axes that differ, then the main metrics."""
    columns = [{"name": "run", "kind": "run", "key": ""}]
    columns += [{"name": name, "kind": "words", "key": name} for name in ("state", "sweep") if _varies(data, name)]
    if sum(len(part.groups) for part in study.parts) > 1:
        columns.append({"name": "group", "kind": "words", "key": "group"})
    keys = [key for key in data["config"] if key.startswith("choices.") or "." not in key]
    keys = sorted((key for key in keys if key != "overrides"), key=lambda key: (key == "seed", "." not in key))
    columns += [{"name": key.removeprefix("choices."), "kind": "config", "key": key} for key in keys[:MOST_COLUMNS]]
    return columns + [{"name": name, "kind": "metric", "key": name} for name in study.options.metrics]


def _varies(data: dict[str, Any], name: str) -> bool:
    return len(data["words"][name]["values"]) > 1


def _write_bytes(path: Path, content: bytes) -> None:
    with replacing(path) as temporary:
        temporary.write_bytes(content)
