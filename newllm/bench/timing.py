"""Times of several contestants, in turns, so that a machine that slows down slows them all."""

import statistics
import time
from collections.abc import Callable, Mapping


def alternate(contestants: Mapping[str, Callable[[], object]], rounds: int, calls: int) -> dict[str, list[float]]:
    """Seconds per call, one figure a round. In each round every contestant makes `calls` calls, in rotating order.

    A first, untimed round warms caches and allocators.
    """
    names = list(contestants)
    for name in names:
        contestants[name]()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            start = time.perf_counter()
            for _ in range(calls):
                contestants[name]()
            seconds[name].append((time.perf_counter() - start) / calls)
    return seconds


def ratio(slow: list[float], fast: list[float]) -> dict[str, float]:
    """How many times faster `fast` is: median, least and greatest of the rounds' own ratios."""
    ratios = [a / b for a, b in zip(slow, fast, strict=True)]
    return {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}
