"""Tables of the main effects and interactions of a crossed sweep."""

from collections.abc import Sequence

from newllm.analysis.baselines import nearest_to_defaults
from newllm.analysis.comparison import family_in_words, judge
from newllm.analysis.effects import Effect, find_crossing, interactions, main_effects
from newllm.report.result_tables import comparison_cells
from newllm.report.study import Part, Section, Study
from newllm.report.tables import Table, make_row

_METHOD = (
    "Each difference is computed seed by seed, averaged with equal weights over the combinations of the other factors, "
    "and tested over the seeds with Student's t; the seeds are those that all these groups have."
)
_MEANING = {
    "effects": "A main effect is the difference to the value in {}.",
    "interactions": "An interaction is how much a difference changes where a second factor leaves its value in {}: "
    "near 0, the effects add up.",
}
_HINTS = {"combinations": "of the other factors, which are averaged", "seeds": "that all these groups have"}


def factors(study: Study) -> Section:
    """Main effects and interactions of each part whose groups cross two factors or more."""
    tables = []
    for part in study.parts:
        trained = [group for group in part.groups if "evaluated" not in group.config["choices"]]
        crossing = find_crossing(trained) if part.whole else None
        if crossing is None:
            continue
        baselines = [group for group in trained if group.label in part.baseline.labels]
        reference = nearest_to_defaults(baselines or trained)
        measured = {"effects": main_effects, "interactions": interactions}
        for name, measure in measured.items():
            every = [effect for metric in part.options.compare for effect in measure(crossing, reference, metric)]
            if every:
                tables.append(_table(part, name, every, reference.label))
    return Section("factors", "Factors", (), tables)


def _table(part: Part, name: str, effects: Sequence[Effect], reference: str) -> Table:
    options, title = part.options, {"effects": "Main effects", "interactions": "Interactions"}[name]
    judged = judge([effect.comparison for effect in effects], options.rule, options.confidence, options.interval)
    rows = [
        make_row({
            "factor": effect.factor,
            "change": effect.change,
            "metric": comparison.metric,
            "combinations": effect.over,
            "seeds": comparison.n,
            **comparison_cells(comparison),
        })
        for effect, comparison in zip(effects, judged, strict=True)
    ]  # fmt: skip
    family = family_in_words(judged, options.rule, options.confidence, f"rows of this table ({title.lower()})")
    notes = [_MEANING[name].format(reference), _METHOD, options.rule.words, *([family] if family else [])]
    return Table(f"{name}{part.mark}", part.named(title), rows, notes, _HINTS)
