"""The sections of a report in their order. Groups of choices add their own: `report` in conf/groups.yaml."""

import pkgutil

from newllm.config.groups import groups
from newllm.report import curves, long_context, results, scaling, tradeoffs
from newllm.report.figures import styled
from newllm.report.study import Section, Study


def sections(study: Study) -> list[Section]:
    """All sections that have something to show."""
    of_groups = [pkgutil.resolve_name(group.report) for group in groups().values() if group.report]
    makers = [
        results.groups,
        results.comparisons,
        *of_groups,
        long_context.by_length,
        long_context.comparisons,
        curves.learning,
        curves.by_position,
        curves.queries_and_keys,
        tradeoffs.cache,
        tradeoffs.axes,
        tradeoffs.reversal,
        scaling.laws,
        results.published,
        results.other_results,
        results.unfinished,
    ]
    with styled():
        made = [make(study) for make in makers]
    return [one for one in made if one.tables or one.drawings or (one.name == "agreement" and one.lines)]
