"""A part of the report: sentences, tables and figures under one heading."""

from collections.abc import Sequence
from dataclasses import dataclass

from newllm.report.drawing import Drawing
from newllm.report.table import Table


@dataclass(frozen=True)
class Section:
    """`name` is its anchor on the page."""

    name: str
    title: str
    lines: Sequence[str] = ()
    tables: Sequence[Table] = ()
    drawings: Sequence[Drawing] = ()
