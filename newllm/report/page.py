"""The report as one HTML page that needs nothing beside it: no network, no other file."""

from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from newllm.report.figures.style import COLOURS
from newllm.report.runs import to_json
from newllm.report.section import Section


def page(
    title: str,
    facts: Sequence[str],
    sections: Sequence[Section],
    legend: Sequence[tuple[int, str]],
    runs: Mapping[str, Any],
) -> str:
    """The HTML text. legend: index and label of the groups drawn, to be switched on and off.

    `runs` is what `newllm.report.runs.encode` gives, with the columns of its table.
    """
    from jinja2 import Environment

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(_asset("page.html")).render(
        title=title,
        facts=facts,
        sections=sections,
        legend=legend,
        colours=len(COLOURS),
        css=_asset("report.css"),
        data=to_json(runs),
        script=_asset("tables.js") + _asset("runs.js"),
    )


def _asset(name: str) -> str:
    return files("newllm.report").joinpath("assets", name).read_text(encoding="utf-8")
