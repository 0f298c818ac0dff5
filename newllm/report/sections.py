"""The sections of a report in their order. Groups of choices add their own: `report` in conf/groups.yaml."""

import pkgutil

from newllm.config.groups import groups
from newllm.report import curves, factors, laws, long_context, result_tables, tradeoffs
from newllm.report.figures import styled
from newllm.report.study import DrawFigures, Section, Study

FIGURES: list[tuple[str, str, DrawFigures]] = [  # name and title of a section, and what draws its figures
    ("curves", "Learning curves", curves.learning_curves),
    ("position", "Position in the row", curves.by_position),
    ("qk", "Queries and keys", curves.queries_and_keys),
    ("cache", "Quality and KV cache", tradeoffs.quality_and_cache),
    ("axes", "Swept axes", tradeoffs.metric_by_axis),
    ("reversal", "Reversal Curse", tradeoffs.reversal),
]


def make_sections(study: Study) -> list[Section]:
    """All sections that have something to show."""
    with styled():
        every = [
            *result_tables.results(study),
            factors.factors(study),
            *(pkgutil.resolve_name(group.report)(study) for group in groups().values() if group.report),
            *long_context.long_context(study),
            *(study.figure_section(name, title, draw) for name, title, draw in FIGURES),
            laws.scaling_laws(study),
            result_tables.published(study),
            result_tables.other_results(study),
            result_tables.unfinished(study),
        ]
    return [section for section in every if section.lines or section.tables or section.drawings]
