"""What a planned sweep can show: the smallest difference, at the noise of former runs."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from math import exp, expm1, isfinite, sqrt
from typing import Any

import numpy as np
import pandas as pd

from newllm.analysis.comparison import measure
from newllm.analysis.run_groups import groups
from newllm.analysis.scored import split_scored
from newllm.analysis.settings import identity_of, nodes_of, places_of
from newllm.analysis.statistics import bonferroni, effect_shown, repeat_spread

METRIC = "val/ppl"
MOST_GROUPS = 20  # former ones that are looked at
LEAST_SEEDS = 3  # of the shipped rules for verdicts


def what_it_can_show(configs: Sequence[Mapping[str, Any]], former: pd.DataFrame, confidence: float = 0.95) -> str:
    """A sentence: the smallest difference of perplexities that the seeds of a sweep show with 80 % power.

    configs: the effective configurations of its runs; each that differs in more than the seed is compared with one
    baseline. former: runs with the same text and model, from `load_runs`.
    """
    sizes = [len(places) for places in places_of(identity_of(nodes) for nodes in nodes_of(configs)).values()]
    seeds, comparisons = min(sizes), max(1, len(sizes) - 1)
    if seeds < LEAST_SEEDS:
        plural = "s" if seeds > 1 else ""
        return f"With {seeds} seed{plural} a report gives no verdict: that takes {LEAST_SEEDS}; type seeds=5."
    spread, known = paired_spread(former)
    planned = f"{seeds} seeds and {comparisons} comparison{'s' if comparisons > 1 else ''} with a baseline"
    if not isfinite(spread):
        return f"What {planned} can show is not known: no finished runs of several seeds have this text and model."
    effect = effect_shown(seeds, alpha=1 - bonferroni(confidence, comparisons)) * spread
    return (
        f"{planned} show a difference in {METRIC} of {_ratio(effect)} or more with 80 % power, by the noise of "
        f"{known}: paired differences spread by {_ratio(spread)}."
    )


def paired_spread(runs: pd.DataFrame) -> tuple[float, str]:
    """Standard deviation of the differences by seed in ln perplexity of two groups, NaN if unknown; and its source in
    words.

    Pooled over all pairs of groups. With a single group, its runs are taken as independent of each other.
    """
    if METRIC not in runs:
        return float("nan"), ""
    found = [group for group in groups(split_scored(runs)[0]) if len(group.by_seed(METRIC)) > 1]
    if not found:
        return float("nan"), ""
    found = found[:MOST_GROUPS]
    pairs = (measure(one, other, METRIC) for one, other in combinations(found, 2))
    differences = [one.differences for one in pairs if one and one.n > 1 and one.scale == "log" and not one.incomplete]
    members = sum(len(group.by_seed(METRIC)) for group in found)
    if differences:
        return repeat_spread(differences).std, f"{members} former runs of {len(found)} groups"
    alone = repeat_spread(np.log([*group.by_seed(METRIC).values()]) for group in found)
    return sqrt(2) * alone.std, f"{members} former runs, as if seeds had nothing in common"


def _ratio(log_ratio: float) -> str:
    return f"{100 * expm1(log_ratio):.2g} %" if log_ratio < 1 else f"a factor of {exp(log_ratio):.2g}"
