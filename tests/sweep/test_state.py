"""The states of runs, from their directories, their locks and SLURM."""

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from newllm.errors import RunError
from newllm.store.run_directory import RunDirectory
from newllm.sweep.launches import Policy, recorded
from newllm.sweep.state import RunState, count_states, read_states
from tests.support.sweep_folders import make_run

LOCKER = """
import sys, time; from newllm.store.run_directory import RunDirectory
with RunDirectory(sys.argv[1]).locked():
    print(flush=True); time.sleep(60)
"""


def only_run(sweep: Path) -> RunState:
    (run,) = read_states(sweep)
    return run


def states(sweep: Path) -> list[tuple[str, bool]]:
    return [(run.state, run.attended) for run in read_states(sweep)]


@contextmanager
def locked_elsewhere(run: RunDirectory) -> Iterator[subprocess.Popen]:
    """Another process holds the run's directory."""
    with subprocess.Popen([sys.executable, "-c", LOCKER, str(run.path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        try:
            yield process
        finally:
            process.kill()


def test_a_finished_run_has_its_perplexity_and_time(tmp_path: Path) -> None:
    began = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    times = {"started": began.isoformat(), "finished": (began + timedelta(minutes=2)).isoformat()}
    make_run(tmp_path, "a-s1", "done", attempt=1, **times)
    run = only_run(tmp_path)
    assert (run.name, run.state, run.val_ppl, run.seconds, run.attended) == ("a-s1", "done", 98.76, 120.0, False)


def test_a_failed_run_has_its_error(tmp_path: Path) -> None:
    make_run(tmp_path, "a-s1", "failed", error="The loss is nan.")
    assert (only_run(tmp_path).state, only_run(tmp_path).error) == ("failed", "The loss is nan.")


def test_a_run_is_running_while_its_process_lives_and_interrupted_when_that_is_killed(tmp_path: Path) -> None:
    progress = {"step": 25, "steps": 100, "epoch": 1, "loss": 4.5, "seconds_left": 192.0}
    started = (datetime.now(UTC) - timedelta(days=1)).isoformat()
    directory = make_run(tmp_path, "a-s1", "running", started=started, progress=progress)
    with locked_elsewhere(directory) as process:
        run = only_run(tmp_path)
        assert (run.state, run.attended, run.step, run.steps, run.loss) == ("running", True, 25, 100, 4.5)
        assert run.seconds == pytest.approx(86400, rel=0.01)
        assert run.seconds_left == 192.0
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert states(tmp_path) == [("interrupted", False)]
        assert "process is gone" in (only_run(tmp_path).error or "")


def test_a_queued_run_is_attended_while_its_launcher_lives(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, name).path for name in ("a-s1", "a-s2")]
    with recorded(tmp_path, "local", {}, Policy(), runs[:1]):
        assert states(tmp_path) == [("queued", True), ("queued", False)]
    assert states(tmp_path) == [("queued", False)] * 2


@pytest.mark.parametrize("content", ['{"state": "run', "[1]", '"done"', '{"state": "finished"}', b"\xff\xfe"])
def test_a_broken_status_is_listed_as_unreadable_and_hides_no_other(tmp_path: Path, content: str | bytes) -> None:
    directory = make_run(tmp_path, "a-s1")
    directory.status_file.write_bytes(content if isinstance(content, bytes) else content.encode())
    make_run(tmp_path, "a-s2", "failed")
    broken, other = read_states(tmp_path)
    assert (broken.state, other.state) == ("unreadable", "failed")
    assert str(directory.status_file) in (broken.error or "")


@pytest.mark.parametrize("results", ["", "{", "[]", "{}"])
def test_a_finished_run_with_broken_results_is_unreadable(tmp_path: Path, results: str) -> None:
    directory = make_run(tmp_path, "a-s1", "done")
    directory.results_file.write_text(results)
    assert only_run(tmp_path).state == "unreadable"
    assert str(directory.path) in (only_run(tmp_path).error or "")


def test_a_finished_run_whose_results_were_deleted_is_to_be_evaluated_again(tmp_path: Path) -> None:
    directory = make_run(tmp_path, "a-s1", "done")
    directory.results_file.unlink()
    assert only_run(tmp_path).state == "interrupted"
    assert "evaluates it again" in (only_run(tmp_path).error or "")


def test_a_run_of_another_version_is_listed_with_what_can_be_known(tmp_path: Path) -> None:
    directory = make_run(tmp_path, "old-s1", "interrupted", progress={"step": "one"}, started="yesterday")
    directory.config_file.write_text("model: {longer: no}\nunknown: {nodes: 1}\n")
    run = only_run(tmp_path)
    assert (run.state, run.attempt, run.step, run.seconds) == ("interrupted", 0, None, None)
    with locked_elsewhere(directory):
        directory.update_status(state="running", progress={"step": 1, "steps": 2, "seconds_left": "10"})
        assert (only_run(tmp_path).state, only_run(tmp_path).seconds_left) == ("running", None)


Answer = Callable[[list[str]], dict[str, str]]


@pytest.fixture
def slurm(monkeypatch: pytest.MonkeyPatch) -> Callable[[Answer], list[list[str]]]:
    """Makes SLURM answer queries about jobs with a function; returns the queries."""

    def set_answer(answer: Answer) -> list[list[str]]:
        queries: list[list[str]] = []

        def job_states(ids: list[str]) -> dict[str, str]:
            queries.append(ids)
            return answer(ids)

        monkeypatch.setattr(sys.modules["newllm.sweep.state"], "job_states", job_states)
        return queries

    return set_answer


@pytest.mark.parametrize(
    ("claimed", "job_state", "state", "attended"),
    [
        ("queued", "PENDING (Priority)", "queued", True),
        ("queued", "RUNNING", "queued", True),
        ("running", "RUNNING", "running", True),
        ("running", "PENDING (BeginTime)", "queued", True),  # requeued
        ("interrupted", "PENDING (BeginTime)", "queued", True),
        ("interrupted", "COMPLETING", "interrupted", True),  # about to be requeued
        ("queued", "CANCELLED by 0", "interrupted", False),
        ("running", "TIMEOUT (TimeLimit)", "interrupted", False),
        ("running", "OUT_OF_MEMORY (OutOfMemory)", "failed", False),
        ("running", None, "interrupted", False),  # a job that SLURM has forgotten
        ("failed", "FAILED (NonZeroExitCode)", "failed", False),
        ("done", "FAILED (NonZeroExitCode)", "done", False),  # another run of the same job has failed
    ],
)
def test_a_run_under_slurm_has_the_state_of_its_job(
    tmp_path: Path, slurm: Callable, claimed: str, job_state: str | None, state: str, attended: bool
) -> None:
    make_run(tmp_path, "a-s1", claimed, slurm="12_3", host="node7").write_results({"val/ppl": 9.0})
    queries = slurm(lambda ids: {"12_3": job_state} if job_state else {})
    run = only_run(tmp_path)
    assert (run.state, run.attended, run.slurm) == (state, attended, "12_3")
    assert queries == ([["12_3"]] if claimed != "done" else [])
    if state in ("interrupted", "failed") and claimed in ("queued", "running"):
        assert (run.error or "").startswith("SLURM ended job 12_3")


def test_slurm_is_asked_once_for_all_and_without_it_the_status_counts(tmp_path: Path, slurm: Callable) -> None:
    for seed in range(3):
        make_run(tmp_path, f"a-s{seed}", "running", slurm=f"12_{seed}", host="node7")

    def refuse(ids: list[str]) -> dict[str, str]:
        raise RunError("SLURM's squeue failed: Unable to contact slurm controller")

    queries = slurm(refuse)
    assert count_states(read_states(tmp_path)) == {"running": 3}
    assert queries == [["12_0", "12_1", "12_2"]]


def test_a_run_that_ended_while_slurm_was_asked_is_not_called_interrupted(tmp_path: Path, slurm: Callable) -> None:
    directory = make_run(tmp_path, "a-s1", "running", slurm="12")

    def end_the_run(ids: list[str]) -> dict[str, str]:
        directory.write_results({"val/ppl": 9.0})
        directory.end_attempt("done")
        return {"12": "COMPLETED"}

    slurm(end_the_run)
    assert only_run(tmp_path).state == "done"
