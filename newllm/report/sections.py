"""The report in its order: tables first, then figures, then what stands beside."""

import pkgutil
from collections.abc import Callable, Sequence

from newllm.config.groups import groups
from newllm.report import curves, tradeoffs
from newllm.report.beside import agreement_tables, published_table
from newllm.report.comparison_table import comparison_table, repeats
from newllm.report.drawing import Drawing
from newllm.report.figures.style import styled
from newllm.report.laws import scaling_laws
from newllm.report.long_context import long_context
from newllm.report.main_table import main_table
from newllm.report.section import Section
from newllm.report.study import Part, Study
from newllm.report.unfinished import unfinished_table

FIGURES: list[tuple[str, str, Callable[[Part, str], Sequence[Drawing]]]] = [
    ("curves", "Learning curves", lambda part, _: curves.learning(part)),
    ("position", "Position in the row", lambda part, _: curves.by_position(part)),
    ("qk", "Queries and keys", lambda part, _: curves.queries_and_keys(part)),
    ("cache", "Quality and KV cache", tradeoffs.cache),
    ("axes", "Swept axes", tradeoffs.swept),
    ("reversal", "Reversal Curse", lambda part, _: tradeoffs.reversal(part)),
]


def sections(study: Study, figures: bool) -> list[Section]:
    """All sections that have something to show; without `figures`, the tables alone."""
    metric = (study.options.compare or study.options.metrics)[0]
    made = [_results(study), _comparisons(study, metric)]
    with styled():
        for group in groups().values():
            if group.report:
                section = pkgutil.resolve_name(group.report)
                made.append(section(study, _capped(study) if figures else (), figures))
        made += long_context(study, _capped(study) if figures else (), figures)
        if figures:
            for name, title, draw in FIGURES:
                drawings = [drawing for part in study.drawn_parts for drawing in draw(part, metric)]
                made.append(Section(name, title, _capped(study), (), drawings))
        tables, drawings = scaling_laws(study, metric)
        made.append(Section("scaling", "Scaling law", (), tables, drawings if figures else ()))
    published = published_table(study)
    made.append(Section("published", "Published tables", (), [published] if published else []))
    tables, lines = agreement_tables(study)
    made.append(Section("agreement", "Another result set", lines, tables))
    unfinished = unfinished_table(study.unfinished)
    made.append(Section("unfinished", "Runs without results", (), [unfinished] if unfinished else []))
    return [one for one in made if one.tables or one.drawings or (one.name == "agreement" and one.lines)]


def _results(study: Study) -> Section:
    lines = [study.reason] if study.reason else []
    if any(len(set(part.baseline.runs["seed"])) < 2 for part in study.parts if part.baseline):
        lines.append("The baseline has one seed: nothing can be said of other seeds, so there are no verdicts.")
    return Section("results", "Results", lines, [main_table(part) for part in study.parts])


def _comparisons(study: Study, metric: str) -> Section:
    tables = [comparison_table(part, study.request.rule.words) for part in study.parts]
    return Section(
        "comparisons",
        "Which differences are real",
        [repeats(study.done, metric)],
        [table for table in tables if table],
    )


def _capped(study: Study) -> list[str]:
    groups = sum(len(part.groups) for part in study.parts)
    drawn = sum(len(part.drawn) for part in study.drawn_parts)
    if drawn == groups:
        return []
    if len(study.parts) > len(study.drawn_parts):
        return [f"Drawn are groups of the {len(study.drawn_parts)} largest of {len(study.parts)} tables."]
    return [
        f"Drawn are {drawn} of {groups:,} groups: the baseline and the best by "
        f"{(study.options.compare or study.options.metrics)[0]}; curves=N draws more."
    ]
