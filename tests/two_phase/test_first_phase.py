"""The lines of a first phase in metrics.jsonl, over attempts."""

from pathlib import Path
from typing import Any

import pytest

from newllm.store.run_directory import RunDirectory
from newllm.two_phase.first_phase import leading_bytes, write_lines


def line(number: int, seconds: float = 0.0, **more: Any) -> dict[str, Any]:
    return {"phase": "p", "iteration": number, "phase1/loss": number / 8, "time/seconds": seconds, **more}


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path)


def add(directory: RunDirectory, *given: dict[str, Any]) -> None:
    for count in range(len(given) + 1):
        write_lines(directory, given[:count], ended=count == len(given))


def test_missing_lines_are_added_and_those_there_keep_their_times(directory: RunDirectory) -> None:
    add(directory, line(1, 1.0), line(2, 2.0))
    with directory.metrics_file.open("a") as file:
        file.write('{"phase": "p", "itera')  # cut off
    add(directory, line(1, 5.0), line(2, 6.0), line(3, 7.0))
    assert directory.metrics() == [line(1, 1.0), line(2, 2.0), line(3, 7.0)]
    assert leading_bytes(directory) == directory.metrics_file.stat().st_size


def test_equal_lines_leave_what_comes_after_them(directory: RunDirectory) -> None:
    add(directory, line(1), line(2))
    directory.append_metrics({"step": 1})
    before = directory.metrics_file.read_bytes()
    add(directory, line(1, 9.0), line(2, 9.0))
    assert directory.metrics_file.read_bytes() == before
    assert leading_bytes(directory) == len(before) - len('{"step": 1}\n')


def test_other_lines_take_the_place_of_all_that_follows(directory: RunDirectory) -> None:
    add(directory, line(1), line(2), line(3))
    directory.append_metrics({"step": 1})
    add(directory, line(1), line(2, other=1.0))
    assert directory.metrics() == [line(1), line(2, other=1.0)]
    add(directory, line(1))
    assert directory.metrics() == [line(1)]


def test_there_may_be_none(directory: RunDirectory) -> None:
    assert leading_bytes(directory) == 0
    directory.append_metrics({"step": 1})
    assert leading_bytes(directory) == 0
