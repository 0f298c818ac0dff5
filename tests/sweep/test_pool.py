"""The pool's decisions, with fake workers; test_local.py tests its processes."""

import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import count
from pathlib import Path

import pytest

from newllm.errors import STOPPING, RunError
from newllm.store.run_directory import RunDirectory
from newllm.sweep.launches import Policy
from newllm.sweep.pool import Pool, earlier_threads, execute
from newllm.sweep.slots import Slots
from tests.support.sweep_folders import RecordingDisplay

KILLED = -signal.SIGKILL


def finish(run: RunDirectory) -> None:
    run.write_results({"val/ppl": 9.0})
    run.end_attempt("done")


class FakeWorkers:
    """Workers that end in the order of their start; those that get SIGTERM save and stop.

    The name of a run says how it ends: ``fails``, ``fails_once`` (the first time), ``refused`` (exit status 2) or
    ``killed`` (by SIGKILL); any other run is done.
    """

    def __init__(self) -> None:
        self.started: list[str] = []
        self.at_once = 0
        self.environments: list[Mapping[str, str]] = []
        self.on_start: dict[str, Callable[[], None]] = {}
        self.max_starts: int | None = None
        self.packs: list[list[str]] = []
        self._just_started = False
        self._numbers = count(1)
        self._running: dict[int, tuple[list[RunDirectory], dict[int, bool]]] = {}

    def start(self, runs: Sequence[Path], environment: Mapping[str, str]) -> int:
        if self.max_starts is not None and len(self.started) >= self.max_starts:
            raise RunError("No process can be started")
        self._just_started = True
        self.packs.append([run.name for run in runs])
        self.started += self.packs[-1]
        self.environments.append(environment)
        directories = [RunDirectory(run) for run in runs]
        for directory in directories:
            directory.update_status(state="running")
        number = next(self._numbers)
        self._running[number] = (directories, {})
        self.at_once = max(self.at_once, len(self._running))
        for run in runs:
            self.on_start.get(run.name, lambda: None)()
        return number

    def signal(self, number: int, signum: int) -> None:
        self._running[number][1][signum] = True

    def wait(self, seconds: float) -> list[tuple[int, int]]:
        if self._just_started:  # time for the pool to handle signals
            self._just_started = False
            return []
        signalled = [number for number, (_, signals) in self._running.items() if signals]
        number = signalled[0] if signalled else next(iter(self._running))
        runs, signals = self._running.pop(number)
        if signal.SIGKILL in signals:
            return [(number, KILLED)]
        if signal.SIGTERM in signals:
            for run in runs:
                run.end_attempt("interrupted")
            return [(number, 143)]
        statuses = [self._outcome(run) for run in runs]
        return [(number, next((status for status in statuses if status != 0), 0))]

    def _outcome(self, run: RunDirectory) -> int:
        name = run.path.name
        if name.startswith("killed"):
            return KILLED
        if name.startswith("fails") and not (name.startswith("fails_once") and self.started.count(name) > 1):
            run.end_attempt("failed", error="the loss is nan")
            return 1
        if name.startswith("refused"):
            run.end_attempt("failed", error="no such file")
            return 2
        finish(run)
        return 0


class Sweep:
    """Frozen runs, fake workers and the pool between them."""

    def __init__(self, folder: Path, *names: str, slots: int = 2, policy: Policy | None = None, pack: int = 1) -> None:
        self.runs = [folder / name for name in names]
        for run in self.runs:
            RunDirectory(run).freeze({"runtime": {"threads": "auto"}, "trainer": {}})
        self.workers, self.display = FakeWorkers(), RecordingDisplay()
        machine = Slots(cores=slots, gpus=(), runs=len(names), slots=slots)
        packs = [self.runs[i : i + pack] for i in range(0, len(names), pack)]
        self.pool = Pool(packs, machine, self.workers, policy or Policy(), self.display, threads={})

    def state(self, name: str) -> str:
        return str(RunDirectory(self.runs[0].parent / name).status()["state"])

    def states(self) -> list[str]:
        return [self.state(run.name) for run in self.runs]


def test_all_runs_are_done_in_order_and_slots_are_never_exceeded(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, *"abcdefg", slots=3)
    assert sweep.pool.run() == 0
    assert sweep.workers.started == list("abcdefg")
    assert sweep.workers.at_once == 3
    assert sweep.states() == ["done"] * 7


def test_a_failed_and_a_killed_run_do_not_affect_the_others(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, "a", "fails", "killed", "b", "c")
    assert sweep.pool.run() == 1
    assert sweep.states() == ["done", "failed", "failed", "done", "done"]
    assert "killed by SIGKILL, as the system does when memory runs out" in RunDirectory(sweep.runs[2]).status()["error"]


def test_failed_runs_are_tried_again_but_not_those_that_were_refused(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, "fails", "fails_once", "refused", "killed", "a", slots=1, policy=Policy(retries=2))
    assert sweep.pool.run() == 1
    counts = {name: sweep.workers.started.count(name) for name in ("fails", "fails_once", "refused", "killed", "a")}
    assert counts == {"fails": 3, "fails_once": 2, "refused": 1, "killed": 3, "a": 1}
    assert sweep.states() == ["failed", "done", "failed", "failed", "done"]
    assert sweep.workers.started.index("a") < 5  # failed runs go to the end of the queue


def test_fail_fast_stops_starting_and_lets_the_others_save(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, "fails", "a", "b", "c", policy=Policy(fail_fast=True))
    assert sweep.pool.run() == 1
    assert "A run failed, so no more start; 1 running run will save and stop (fail_fast)." in sweep.display.lines
    assert sweep.states() == ["failed", "interrupted", "queued", "queued"]


def test_fail_fast_waits_for_the_retries(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, "fails_once", "a", "b", policy=Policy(retries=1, fail_fast=True))
    assert sweep.pool.run() == 0
    assert sweep.states() == ["done"] * 3


def test_the_canary_goes_first_and_alone(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, "a", "b", "c", policy=Policy(canary=True))
    alone: list[int] = []
    sweep.workers.on_start["b"] = lambda: alone.append(sweep.states().count("done"))
    assert sweep.pool.run() == 0
    assert alone == [1]
    assert sweep.workers.at_once == 2


def test_nothing_starts_after_a_dead_canary(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, "fails", "b", "c", policy=Policy(canary=True, retries=1))
    assert sweep.pool.run() == 1
    assert sweep.workers.started == ["fails", "fails"]
    assert sweep.states() == ["failed", "queued", "queued"]


def test_runs_that_are_no_longer_queued_are_left_alone(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, "a", "b", "c", "d", "e", slots=1)

    def end_two_runs() -> None:
        RunDirectory(sweep.runs[1]).update_status(state="interrupted", error="Cancelled before it began.")
        finish(RunDirectory(sweep.runs[2]))

    sweep.workers.on_start["a"] = end_two_runs
    with RunDirectory(sweep.runs[3]).locked() as held:
        held.update_status(state="running")
        assert sweep.pool.run() == 1  # not all are done
    assert sweep.workers.started == ["a", "e"]
    assert "b interrupted: Cancelled before it began." in sweep.display.lines
    assert "d elsewhere" in sweep.display.lines


@pytest.mark.parametrize(
    ("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGUSR2, 140)]
)
def test_a_signal_lets_running_runs_save_and_leaves_the_rest_queued(
    tmp_path: Path, signum: signal.Signals, status: int
) -> None:
    sweep = Sweep(tmp_path, "a", "b", "c", "d")
    sweep.workers.on_start["c"] = lambda: sweep.pool.stop(signum)
    assert sweep.pool.run() == status
    assert sweep.states() == ["done", "interrupted", "interrupted", "queued"]


def test_a_signal_before_the_first_run_starts_leaves_all_runs_queued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = Sweep(tmp_path, "a", "b")
    monkeypatch.setattr(
        sys.modules["newllm.sweep.pool"], "pack", lambda *arguments: signal.raise_signal(signal.SIGTERM)
    )
    handlers = {signum: signal.getsignal(signum) for signum in STOPPING}
    try:
        assert execute(tmp_path, sweep.runs, Policy(), partial(Slots, 1, ()), nullcontext()) == 143
    finally:
        for signum, handler in handlers.items():
            signal.signal(signum, handler)
    assert sweep.states() == ["queued", "queued"]


def test_a_second_ctrl_c_kills_and_a_repeated_sigterm_does_not(tmp_path: Path) -> None:
    for second, lines in ((signal.SIGINT, ["Killed; their last checkpoints stay."]), (signal.SIGTERM, [])):
        sweep = Sweep(tmp_path / second.name, "a", "b")

        def twice(sweep: Sweep = sweep, second: signal.Signals = second) -> None:
            sweep.pool.stop(signal.SIGTERM)
            sweep.pool.stop(second)

        sweep.workers.on_start["b"] = twice
        assert sweep.pool.run() == 143
        assert sweep.states() == ["interrupted", "interrupted"]
        assert [line for line in sweep.display.lines if line.startswith("Killed")] == lines


def test_if_no_process_can_be_started_the_other_runs_stay_queued(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, "a", "b", "c")
    sweep.workers.max_starts = 1
    assert sweep.pool.run() == 1
    assert sweep.states() == ["interrupted", "queued", "queued"]
    assert "No process can be started" in sweep.display.lines


def test_a_run_that_cannot_be_read_fails_alone(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, "a", "b", "c")
    (sweep.runs[0] / "config.yaml").write_text("[")
    (sweep.runs[1] / "status.json").write_text("{")
    assert sweep.pool.run() == 1
    assert sweep.workers.started == ["c"]
    assert sweep.state("a") == "failed"


def test_resumed_runs_keep_the_threads_that_they_began_with(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, "resumed", "configured", "new", "unreadable")
    RunDirectory(sweep.runs[1]).freeze({"runtime": {"threads": 2}, "trainer": {}})
    for run in (*sweep.runs[:2], sweep.runs[3]):
        directory = RunDirectory(run)
        directory.write_environment({"threads": 1, "compiled": False, "precision": "fp32"})
        directory.last_checkpoint.parent.mkdir()
        directory.last_checkpoint.touch()
    directory.environment_file.write_text("{")
    threads = earlier_threads(sweep.runs)
    assert threads == {"resumed": 1, "configured": 1}
    slots = Slots(cores=8, gpus=(), runs=2)
    assert Pool([[run] for run in sweep.runs], slots, sweep.workers, Policy(), sweep.display, threads).run() == 0
    assert [environment["OMP_NUM_THREADS"] for environment in sweep.workers.environments] == ["1", "2", "4", "4"]


def test_a_pack_is_one_worker_and_each_of_its_runs_ends_by_itself(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, "a", "fails_once", "b", "c", "d", slots=1, pack=3, policy=Policy(retries=1))
    assert sweep.pool.run() == 0
    assert sweep.workers.packs == [["a", "fails_once", "b"], ["c", "d"], ["fails_once"]]
    assert sweep.states() == ["done"] * 5


def test_runs_of_a_killed_pack_fail_unless_they_were_done_before(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, "a", "killed", "killed too", "b", pack=3)
    assert sweep.pool.run() == 1
    assert sweep.states() == ["done", "failed", "failed", "done"]
    assert "killed by SIGKILL" in RunDirectory(sweep.runs[2]).status()["error"]


def test_the_canary_leaves_its_pack(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, "a", "b", "c", pack=3, policy=Policy(canary=True))
    assert sweep.pool.run() == 0
    assert sweep.workers.packs == [["a"], ["b", "c"]]


def test_a_run_of_a_pack_that_was_cancelled_meanwhile_is_not_started(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, "a", "b", "c", pack=3)
    RunDirectory(sweep.runs[1]).update_status(state="interrupted")
    assert sweep.pool.run() == 1
    assert sweep.workers.packs == [["a", "c"]]
