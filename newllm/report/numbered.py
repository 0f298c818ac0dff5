"""Metrics whose names end in a number, as `extrapolation/ppl@2048`: found, and drawn over that number."""

import re
from collections.abc import Callable, Sequence

from newllm.report.figures.series import Series, over_seeds
from newllm.report.study import Drawn, Part, by_seed

At = list[tuple[float, str]]  # number, metric; by rising number


def at_number(part: Part, pattern: str, number: Callable[..., float] = float) -> At:
    """The metrics of the part's runs that `pattern` matches whole; `number` makes the number of its groups."""
    frame, rows = part.groups[0].frame, [row for group in part.groups for row in group.positions]
    found = {str(name): match for name in frame if (match := re.fullmatch(pattern, str(name)))}
    there = frame.iloc[rows][list(found)].notna().any()
    return sorted((number(*match.groups()), name) for name, match in found.items() if there[name])


def over_number(drawn: Sequence[Drawn], at: At, log: bool) -> list[Series]:
    """For each drawn group that has any of the metrics, its means over the numbers."""
    metrics, x = [metric for _, metric in at], [number for number, _ in at]
    made = [over_seeds(one.index, one.group.label, x, by_seed(one.group, metrics), log=log) for one in drawn]
    return [one for one in made if len(one.x)]
