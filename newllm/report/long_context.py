"""The long-context part: what each group reaches at each length, which differences are real, retrieval, spectra."""

from collections.abc import Sequence

from newllm.report.drawing import Drawing
from newllm.report.length_figures import by_length, by_position_in_long_rows, spectra_beside
from newllm.report.length_tables import at_each_length, ruler
from newllm.report.retrieval_figures import depth_by_length, distance, passkey
from newllm.report.section import Section
from newllm.report.study import Part, Study
from newllm.report.table import Table

_FIGURES = (by_length, by_position_in_long_rows, spectra_beside, passkey, depth_by_length, distance)


def long_context(study: Study, lines: Sequence[str], figures: bool) -> list[Section]:
    """Its two sections, empty where nothing was evaluated at other lengths; `lines` stand above the first."""
    tables: list[Table] = []
    comparisons: list[Table] = []
    for part in study.parts:
        by_length, in_full = at_each_length(part, study.request.rule)
        tables += [*by_length, *ruler(part)]
        comparisons += in_full
    drawings: list[Drawing] = []
    if figures:
        drawings = [one for part in study.drawn_parts for one in _drawn(part)]
    return [
        Section("length", "Long context", lines, tables, drawings),
        Section("length-comparisons", "Long context: all comparisons", (), comparisons),
    ]


def _drawn(part: Part) -> list[Drawing]:
    return [one for figure in _FIGURES for one in figure(part)]
