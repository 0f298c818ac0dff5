"""The harness of all benches: turns, ratios, contestants in processes of their own, and written results."""

import json
import multiprocessing
import os
import signal
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from newllm.bench.harness import Result, alternate, alternate_in_processes, in_turns
from newllm.errors import ConfigError, RunError


def test_every_contestant_has_its_calls_in_every_round_in_changing_order() -> None:
    calls: list[str] = []
    names = ["a", "b", "c"]
    seconds = alternate({name: lambda name=name: calls.append(name) for name in names}, rounds=4, calls=2)
    assert {name: len(times) for name, times in seconds.items()} == {"a": 4, "b": 4, "c": 4}
    assert calls[:3] == names  # the untimed round
    rounds = [calls[i : i + 6] for i in range(3, len(calls), 6)]
    assert [Counter(played) for played in rounds] == [Counter({"a": 2, "b": 2, "c": 2})] * 4


def test_every_second_round_is_reversed_and_every_contestant_comes_first() -> None:
    order: list[str] = []
    assert in_turns("abc", 6, order.append) == {name: [None] * 6 for name in "abc"}
    rounds = ["".join(order[i : i + 3]) for i in range(0, 18, 3)]
    assert rounds[:2] == ["abc", "cba"]
    assert {names[0] for names in rounds} == {"a", "b", "c"}


def test_ratio_is_of_the_rounds_and_not_of_the_medians() -> None:
    result = Result({})
    assert result.ratio("ratio/peer", [2.0, 30.0, 4.0], [1.0, 10.0, 4.0]) == "2.00 x (1.00 … 3.00)"
    assert result.metrics == {"ratio/peer": 2.0, "ratio/peer/min": 1.0, "ratio/peer/max": 3.0}


def log_calls(file: str, name: str) -> Callable[[], None]:
    """Builds a contestant that logs its name and process at every call."""

    def call() -> None:
        with open(file, "a") as log:
            log.write(f"{name} {os.getpid()}\n")

    return call


def kill_itself_after(calls: int) -> Callable[[], None]:
    counter = iter(range(calls))

    def call() -> None:
        if next(counter, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)

    return call


def fail(error: Exception) -> Callable[[], None]:
    raise error


def test_each_contestant_has_its_own_process_and_they_take_turns(tmp_path: Path) -> None:
    log = tmp_path / "calls"
    contestants = {name: partial(log_calls, str(log), name) for name in "ab"}
    seconds, left_out = alternate_in_processes(contestants, rounds=2, calls=2)
    assert {name: len(times) for name, times in seconds.items()} == {"a": 2, "b": 2}
    assert left_out == {}
    lines = [line.split() for line in log.read_text().splitlines()]
    assert sorted(name for name, _ in lines[:2]) == ["a", "b"]  # building includes a call
    assert [name for name, _ in lines[2:]] == ["a"] * 3 + ["b"] * 6 + ["a"] * 3  # an untimed call in each turn
    owners = dict(map(tuple, lines))
    assert len({*owners.values(), str(os.getpid())}) == 3


def test_a_killed_contestant_ends_the_bench_with_an_error_that_names_it() -> None:
    contestants = {"a": partial(kill_itself_after, 99), "b": partial(kill_itself_after, 2)}
    with pytest.raises(RunError, match=r"process of b .*memory"):
        alternate_in_processes(contestants, rounds=2, calls=1)
    assert not multiprocessing.active_children()


def test_only_an_optional_contestant_is_left_out() -> None:
    broken = partial(fail, RuntimeError("no C++ compiler found\nand much more"))
    contestants = {"a": partial(kill_itself_after, 99), "b": broken}
    seconds, left_out = alternate_in_processes(contestants, rounds=1, calls=1, optional=["b"])
    assert left_out == {"b": "b failed: no C++ compiler found"}
    assert seconds.keys() == {"a"}
    with pytest.raises(RunError, match="b failed"):
        alternate_in_processes({"b": broken}, rounds=1, calls=1)
    misconfigured = partial(fail, ConfigError("the tokenizer is missing."))
    with pytest.raises(ConfigError, match="tokenizer"):
        alternate_in_processes({"b": misconfigured}, rounds=1, calls=1, optional=["b"])


def test_figures_are_written_with_their_machine_and_tables_as_markdown(tmp_path: Path) -> None:
    table = ("A step", ["contestant", "ms"], [["newllm | ours", "1.5"], ["other", "12.5"]])
    result = Result({"ratio/peer": 2.0, "seconds/newllm": [0.1]}, [table], ["Medians."])
    result.write(tmp_path / "train.json", "train")
    written = json.loads((tmp_path / "train.json").read_text())
    assert (written["bench"], written["ratio/peer"], written["seconds/newllm"]) == ("train", 2.0, [0.1])
    keys = {"cpu", "cores", "threads", "memory_gib", "native_bf16", "python", "packages", "commit", "date"}
    assert keys <= written["machine"].keys()
    assert {"torch", "transformers"} <= written["machine"]["packages"].keys()

    result.write(tmp_path / "train.md", "train")
    lines = (tmp_path / "train.md").read_text().splitlines()
    assert lines[:6] == [
        "A step",
        "",
        "| contestant     |   ms |",
        "| -------------- | ---: |",
        "| newllm \\| ours |  1.5 |",
        "| other          | 12.5 |",
    ]
    assert "Medians." in lines
    assert written["machine"]["cpu"] in lines[-1]
    assert f"torch {written['machine']['packages']['torch']}" in lines[-1]
