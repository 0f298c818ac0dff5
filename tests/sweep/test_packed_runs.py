"""Runs that train together, from their directories to their results, against the same runs alone."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import newllm
from newllm.config import effective
from newllm.pack import measure, meeting
from newllm.pack.packed_step import PackedStep
from newllm.store.run_directory import RunDirectory, State, metrics_of
from newllm.sweep.launches import Policy
from newllm.sweep.local import Local
from newllm.sweep.workers import ask_to_end, work
from tests.support.small_runs import SMALL_RUN, read_status, timeless_results

FEW = ["samples=80", "eval=[position]"]  # nine steps in an epoch
LINES = {"a": ["seed=1", "theta=100"], "b": ["seed=2", "lr=1e-2"], "c": ["seed=3"]}


def freeze_runs(folder: Path, *shared: str, lines: dict[str, list[str]] = LINES) -> list[Path]:
    runs = [folder / name for name in lines]
    for run, line in zip(runs, lines.values(), strict=True):
        RunDirectory(run).freeze(effective(newllm.compose([*SMALL_RUN, *FEW, *shared, *line])))
    return runs


@pytest.fixture(scope="module")
def runs_alone(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    runs = freeze_runs(tmp_path_factory.mktemp("alone"))
    assert [work(run) for run in runs] == [0, 0, 0]
    return runs


def assert_equal(run: Path, other: Path) -> None:
    """metrics.jsonl and results.json, numbers to 1e-5 of a nat or of themselves."""
    for ours, theirs in zip(*(_metrics_and_results(one) for one in (run, other)), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-5, nan_ok=True)


def _metrics_and_results(run: Path) -> list[dict]:
    lines, results = timeless_results(run)
    return [*lines, metrics_of(results)]


def states(runs: list[Path]) -> list[State]:
    return [read_status(run)["state"] for run in runs]


def call_at_step(monkeypatch: pytest.MonkeyPatch, number: int, act: Callable[[], object]) -> None:
    """Have `act` called before the packed step of this number, from 1."""
    real, calls = PackedStep.__call__, []

    def counting(self: PackedStep, *args):
        calls.append(None)
        if len(calls) == number:
            act()
        return real(self, *args)

    monkeypatch.setattr(PackedStep, "__call__", counting)


def test_packed_runs_end_with_the_results_of_the_same_runs_alone(tmp_path: Path, runs_alone: list[Path]) -> None:
    runs = freeze_runs(tmp_path)
    assert work(*runs) == 0
    for run, other in zip(runs, runs_alone, strict=True):
        assert_equal(run, other)
        assert read_status(run)["state"] == "done"
        assert "Trains together with 2 other runs" in (run / "train.log").read_text()
    before = [(run / "results.json").stat().st_mtime_ns for run in runs]
    assert work(*runs) == 0
    assert [(run / "results.json").stat().st_mtime_ns for run in runs] == before


def test_a_run_that_stops_early_or_breaks_leaves_the_others_to_go_on(tmp_path: Path) -> None:
    lines = {"good": ["seed=1"], "stops": ["seed=2", "lr=1e-30"], "breaks": ["seed=3", "lr=1e30", "optim.clip=null"]}
    shared = ["trainer.patience=1", "epochs=3", "eval=[]"]
    separate, runs = (
        freeze_runs(tmp_path / "separate", *shared, lines=lines),
        freeze_runs(tmp_path / "runs", *shared, lines=lines),
    )
    assert [work(run) for run in separate] == [0, 0, 1]
    assert work(*runs) == 1
    assert states(runs) == ["done", "done", "failed"]
    for run, other in zip(runs[:2], separate[:2], strict=True):
        assert_equal(run, other)
    assert "Stopped early" in (runs[1] / "train.log").read_text()
    assert "Stopped early" not in (runs[0] / "train.log").read_text()
    assert read_status(runs[2])["error"] == read_status(separate[2])["error"]
    assert "Training diverged at step" in read_status(runs[2])["error"]


def test_a_signal_stops_all_and_they_go_on_alone_or_packed(
    tmp_path: Path, runs_alone: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = freeze_runs(tmp_path)
    with monkeypatch.context() as patch:
        call_at_step(patch, 5, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert work(*runs) == 128 + signal.SIGTERM
    assert states(runs) == ["interrupted"] * 3
    assert {read_status(run)["progress"]["step"] for run in runs} == {7}  # the first two are each run's own
    assert work(runs[0]) == 0
    assert work(*runs[1:]) == 0
    for run, other in zip(runs, runs_alone, strict=True):
        assert_equal(run, other)
        assert "Attempt 2: goes on after step 7" in (run / "train.log").read_text()


def test_a_run_that_began_alone_goes_on_in_a_pack(
    tmp_path: Path, runs_alone: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = freeze_runs(tmp_path)
    with monkeypatch.context() as patch:
        call_at_step(patch, 9, lambda: os.kill(os.getpid(), signal.SIGINT))
        assert work(*runs[:2]) == 128 + signal.SIGINT
    assert work(*runs) == 0  # two at step 11, one from its start
    for run, other in zip(runs, runs_alone, strict=True):
        assert_equal(run, other)


def test_killed_runs_go_on_from_their_checkpoints(tmp_path: Path, runs_alone: list[Path]) -> None:
    runs = freeze_runs(tmp_path, "runtime.checkpoint_steps=4")
    pid = os.fork()
    if pid == 0:
        os.setsid()
        work(*runs)
        os._exit(0)
    deadline = time.monotonic() + 60
    while sum(_length(run) >= 12 for run in runs) < 3 and time.monotonic() < deadline:
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert states(runs) == ["running"] * 3
    assert [RunDirectory(run).observed() for run in runs] == ["interrupted"] * 3
    assert work(*runs) == 0
    for run, other in zip(runs, runs_alone, strict=True):
        assert_equal(run, other)


def _length(run: Path) -> int:
    metrics = run / "metrics.jsonl"
    return metrics.read_bytes().count(b"\n") if metrics.exists() else 0


def test_one_run_of_a_pack_can_be_cancelled(
    tmp_path: Path, runs_alone: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = freeze_runs(tmp_path)
    monkeypatch.setattr(meeting, "_POLL_SECONDS", 0.001)
    with monkeypatch.context() as patch:
        call_at_step(patch, 5, lambda: ask_to_end(RunDirectory(runs[1])))
        assert work(*runs) == 128 + signal.SIGTERM
    assert states(runs) == ["done", "interrupted", "done"]
    for place in (0, 2):
        assert_equal(runs[place], runs_alone[place])
    assert work(runs[1]) == 0
    assert_equal(runs[1], runs_alone[1])


def test_runs_that_differ_in_shape_are_refused_together(tmp_path: Path) -> None:
    runs = freeze_runs(tmp_path, lines={"a": ["batch_size=8"], "b": ["batch_size=4"]})
    assert work(*runs) == 2
    for run in runs:
        assert read_status(run)["state"] == "failed"
        assert "pack=2: the runs differ in trainer.batch_size (8, 4)" in read_status(run)["error"]


def test_packs_are_timed_on_the_runs_own_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "_SECONDS", 0.0)
    runs = freeze_runs(tmp_path)
    speeds = measure.measure(runs, [1, 2])
    assert len(speeds) == 2
    assert all(speed > 0 for speed in speeds)
    assert measure.measure(runs, []) == []
    assert [_length(run) for run in runs] == [0, 0, 0]


def test_the_local_launcher_packs_what_it_can(
    tmp_path: Path, runs_alone: list[Path], capfd: pytest.CaptureFixture[str]
) -> None:
    runs = freeze_runs(tmp_path, lines={**LINES, "odd": ["epochs=1"]})
    assert Local(slots=1, threads=1).start(tmp_path, runs, Policy(pack=3)) == 0
    for run, other in zip(runs[:3], runs_alone, strict=True):
        assert_equal(run, other)
    printed = capfd.readouterr().out
    assert "4 runs, 3 at once, in packs of up to 3 that train together" in printed
    assert "1 run trains alone, since no other shares its trainer.epochs." in printed
    pids = [read_status(run)["pid"] for run in runs]
    assert len(set(pids[:3])) == 1
    assert pids[3] != pids[0]
