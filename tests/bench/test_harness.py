"""Turns, ratios, and contestants in processes of their own."""

import multiprocessing
import os
import signal
from collections import Counter
from collections.abc import Callable
from functools import partial

import pytest

from newllm.bench.harness import Result, alternate, turns
from newllm.bench.processes import alternate_in_processes
from newllm.errors import ConfigError, RunError


def test_every_contestant_has_its_calls_in_every_round_in_changing_order() -> None:
    calls: list[str] = []
    names = ["a", "b", "c"]
    seconds = alternate({name: lambda name=name: calls.append(name) for name in names}, rounds=4, calls=2)
    assert {name: len(times) for name, times in seconds.items()} == {"a": 4, "b": 4, "c": 4}
    assert calls[:3] == names  # the untimed round
    rounds = [calls[i : i + 6] for i in range(3, len(calls), 6)]
    assert [Counter(played) for played in rounds] == [Counter({"a": 2, "b": 2, "c": 2})] * 4


def test_neighbours_change_sides_and_everybody_comes_first() -> None:
    orders = turns(["a", "b", "c"], 6)
    assert orders[:2] == [["a", "b", "c"], ["c", "b", "a"]]
    assert {order[0] for order in orders} == {"a", "b", "c"}
    assert len(turns(["a", "b"], 5)) == 5


def test_ratio_is_of_the_rounds_and_not_of_the_medians() -> None:
    result = Result({})
    assert result.ratio("ratio/peer", [2.0, 30.0, 4.0], [1.0, 10.0, 4.0]) == "2.00 x (1.00 … 3.00)"
    assert result.metrics == {"ratio/peer": 2.0, "ratio/peer/min": 1.0, "ratio/peer/max": 3.0}


def counting(file: str, name: str) -> Callable[[], None]:
    """Notes every call with the process that makes it."""

    def call() -> None:
        with open(file, "a") as log:
            log.write(f"{name} {os.getpid()}\n")

    return call


def dying(after: int, how: signal.Signals) -> Callable[[], None]:
    calls = iter(range(1, after + 2))

    def call() -> None:
        if next(calls) > after:
            os.kill(os.getpid(), how)

    return call


def failing(error: Exception) -> Callable[[], None]:
    raise error


def test_each_has_a_process_of_its_own_and_they_take_turns(tmp_path) -> None:
    log = tmp_path / "calls"
    contestants = {name: partial(counting, str(log), name) for name in "ab"}
    seconds, left_out = alternate_in_processes(contestants, rounds=2, calls=2)
    assert {name: len(times) for name, times in seconds.items()} == {"a": 2, "b": 2}
    assert left_out == {}
    lines = [line.split() for line in log.read_text().splitlines()]
    assert sorted(name for name, _ in lines[:2]) == ["a", "b"]  # building makes a call
    assert [name for name, _ in lines[2:]] == ["a"] * 3 + ["b"] * 6 + ["a"] * 3  # an untimed call in each turn
    owners = dict(map(tuple, lines))
    assert len({*owners.values(), str(os.getpid())}) == 3


def test_a_contestant_that_dies_ends_the_bench_with_a_sentence() -> None:
    contestants = {"a": partial(dying, 99, signal.SIGTERM), "b": partial(dying, 2, signal.SIGKILL)}
    with pytest.raises(RunError, match=r"the process of b was killed, as .* memory runs out"):
        alternate_in_processes(contestants, rounds=2, calls=1)
    assert not multiprocessing.active_children()


def test_only_an_optional_contestant_is_left_out() -> None:
    broken = partial(failing, RuntimeError("no C++ compiler found\nand much more"))
    contestants = {"a": partial(dying, 99, signal.SIGTERM), "b": broken}
    seconds, left_out = alternate_in_processes(contestants, rounds=1, calls=1, optional=["b"])
    assert left_out == {"b": "b failed: no C++ compiler found"}
    assert seconds.keys() == {"a"}
    with pytest.raises(RunError, match="b failed: no C"):
        alternate_in_processes({"b": broken}, rounds=1, calls=1)
    unusable = partial(failing, ConfigError("the tokenizer is not there."))
    with pytest.raises(ConfigError, match="the tokenizer is not there"):
        alternate_in_processes({"b": unusable}, rounds=1, calls=1, optional=["b"])
