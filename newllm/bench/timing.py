"""Times of several contestants, in turns, so that a machine that slows down slows them all."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence


def turns(names: Sequence[str], rounds: int) -> list[list[str]]:
    """The order of the contestants in each round: every other round is the one before it backwards, the next starts
    with somebody else."""
    shifted = [[*names[turn % len(names) :], *names[: turn % len(names)]] for turn in range((rounds + 1) // 2)]
    return [order for forth in shifted for order in (forth, forth[::-1])][:rounds]


def alternate(contestants: Mapping[str, Callable[[], object]], rounds: int, calls: int) -> dict[str, list[float]]:
    """Seconds per call, one figure a round. In each round every contestant makes `calls` calls, in changing order.

    A first, untimed round warms caches and allocators.
    """
    for call in contestants.values():
        call()
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for order in turns(list(contestants), rounds):
        for name in order:
            seconds[name].append(per_call(contestants[name], calls))
    return seconds


def per_call(call: Callable[[], object], calls: int) -> float:
    """Seconds per call."""
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - start) / calls


def ratio(slow: list[float], fast: list[float]) -> dict[str, float]:
    """How many times faster `fast` is: median, least and greatest of the rounds' own ratios."""
    ratios = [a / b for a, b in zip(slow, fast, strict=True)]
    return {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}


def ratio_metrics(name: str, slow: list[float], fast: list[float]) -> dict[str, float]:
    """`ratio` as metrics: name, name/min, name/max."""
    found = ratio(slow, fast)
    return {name: found["median"], f"{name}/min": found["min"], f"{name}/max": found["max"]}
