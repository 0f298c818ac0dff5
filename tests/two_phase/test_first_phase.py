"""The lines of a first phase in metrics.jsonl, over several attempts."""

from pathlib import Path
from typing import Any

import pytest

from newllm.store.run_directory import RunDirectory
from newllm.two_phase.first_phase import phase_bytes, write_lines


def line(number: int, seconds: float = 0.0, **values: Any) -> dict[str, Any]:
    return {"phase": "p", "iteration": number, "phase1/loss": number / 8, "time/seconds": seconds, **values}


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path)


def write_one_by_one(directory: RunDirectory, *lines: dict[str, Any]) -> None:
    for count in range(len(lines) + 1):
        write_lines(directory, lines[:count], complete=count == len(lines))


def test_missing_lines_are_added_and_equal_ones_keep_their_times(directory: RunDirectory) -> None:
    write_one_by_one(directory, line(1, 1.0), line(2, 2.0))
    with directory.metrics_file.open("a") as file:
        file.write('{"phase": "p", "itera')  # cut off
    write_one_by_one(directory, line(1, 5.0), line(2, 6.0), line(3, 7.0))
    assert directory.metrics() == [line(1, 1.0), line(2, 2.0), line(3, 7.0)]
    assert phase_bytes(directory) == directory.metrics_file.stat().st_size


def test_equal_lines_keep_the_lines_after_them(directory: RunDirectory) -> None:
    write_one_by_one(directory, line(1), line(2))
    directory.append_metrics({"step": 1})
    before = directory.metrics_file.read_bytes()
    write_one_by_one(directory, line(1, 9.0), line(2, 9.0))
    assert directory.metrics_file.read_bytes() == before
    assert phase_bytes(directory) == len(before) - len('{"step": 1}\n')


def test_a_different_line_replaces_all_that_follows(directory: RunDirectory) -> None:
    write_one_by_one(directory, line(1), line(2), line(3))
    directory.append_metrics({"step": 1})
    write_one_by_one(directory, line(1), line(2, other=1.0))
    assert directory.metrics() == [line(1), line(2, other=1.0)]
    write_one_by_one(directory, line(1))
    assert directory.metrics() == [line(1)]


def test_a_run_without_phase_lines(directory: RunDirectory) -> None:
    assert phase_bytes(directory) == 0
    directory.append_metrics({"step": 1})
    assert phase_bytes(directory) == 0
