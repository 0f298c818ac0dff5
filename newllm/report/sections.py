"""The sections of a report in their order. Groups of choices add their own: `report` in conf/groups.yaml."""

import pkgutil
from functools import partial

from newllm.config.groups import groups
from newllm.report import curves, laws, long_context, result_tables, tradeoffs
from newllm.report.figures import styled
from newllm.report.study import Figures, Section, Study

FIGURES: list[tuple[str, str, tuple[Figures, ...]]] = [  # name and title of a section, its figures
    ("curves", "Learning curves", (curves.learning,)),
    ("position", "Position in the row", (curves.by_position,)),
    ("qk", "Queries and keys", (curves.sizes, curves.bands)),
    ("cache", "Quality and KV cache", (tradeoffs.cache,)),
    ("axes", "Swept axes", (tradeoffs.axes,)),
    ("reversal", "Reversal Curse", (tradeoffs.reversal,)),
]


def sections(study: Study) -> list[Section]:
    """All sections that have something to show."""
    of_groups = [pkgutil.resolve_name(group.report) for group in groups().values() if group.report]
    makers = [
        result_tables.groups,
        result_tables.comparisons,
        *of_groups,
        long_context.by_length,
        long_context.comparisons,
        *(partial(_figures, *row) for row in FIGURES),
        laws.scaling_laws,
        result_tables.published,
        result_tables.other_results,
        result_tables.unfinished,
    ]
    with styled():
        made = [make(study) for make in makers]
    return [one for one in made if one.lines or one.tables or one.drawings]


def _figures(name: str, title: str, figures: tuple[Figures, ...], study: Study) -> Section:
    drawings = study.draw(*figures)
    return Section(name, title, study.left_out if drawings else (), (), drawings)
