"""The local launcher with real processes: results, failures, kills and second starts."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from newllm.errors import RunError
from newllm.store.run_directory import RunDirectory
from newllm.sweep.launches import Policy, launches
from newllm.sweep.local import Local
from newllm.sweep.workers import work
from tests.support.small_runs import freeze_small_run, read_status, timeless_results

KILLING = {"killing": {"_target_": "tests.support.small_runs.KillingLogger"}}
SLOW = {"slow": {"_target_": "tests.support.small_runs.SlowLogger"}}
LAUNCH = """
import sys
from pathlib import Path
from newllm.errors import run_command
from newllm.sweep.local import Local
from newllm.sweep.launches import Policy
sweep, *runs = map(Path, sys.argv[1:])
sys.exit(run_command(lambda argv: Local(slots=2).start(sweep, runs, Policy()), None))
"""


@pytest.fixture(autouse=True)
def _workers_find_test_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """undisturbed(seed): that run, done in this process."""
    folder = tmp_path_factory.mktemp("undisturbed")

    def do(seed: int) -> Path:
        run = folder / str(seed)
        if not run.exists():
            assert work(freeze_small_run(run, seed)) == 0
        return run

    return do


def until(condition: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.01)


def in_training(run: Path) -> bool:
    metrics = run / "metrics.jsonl"
    return metrics.exists() and metrics.read_bytes().count(b"\n") >= 3


def forking_process(launcher: int) -> int:
    """The process that forks the runs of this launcher."""
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
                if parent == launcher and b"newllm.sweep.pool" in (process / "cmdline").read_bytes():
                    return int(process.name)
            except (FileNotFoundError, ProcessLookupError):
                continue
    raise AssertionError(f"process {launcher} has no process that forks")


def test_runs_equal_those_of_this_process_and_failures_do_not_affect_them(
    tmp_path: Path, undisturbed: Callable[[int], Path], capfd: pytest.CaptureFixture[str]
) -> None:
    sweep = tmp_path / "a sweep's folder"
    good = [freeze_small_run(sweep / f"tiny-s{seed}", seed) for seed in (1, 2)]
    killed = freeze_small_run(sweep / "tiny-s3", 3, logger=KILLING)
    broken = freeze_small_run(
        sweep / "tiny-s4", 4, eval={"broken": {"_target_": "tests.support.small_runs.BrokenEvaluator"}}
    )
    greedy = freeze_small_run(sweep / "tiny-s5", 5, pos_encoding={"_target_": "tests.support.small_runs.Greedy"})
    assert Local(slots=2).start(sweep, [killed, broken, greedy, *good], Policy()) == 1

    for seed, run in enumerate(good, 1):
        assert read_status(run)["state"] == "done"
        assert timeless_results(run) == timeless_results(undisturbed(seed))
        assert not (run / "stderr.log").exists()
    assert read_status(killed)["state"] == "failed"
    assert "killed by SIGKILL, as the system does when memory runs out" in read_status(killed)["error"]
    assert read_status(broken)["state"] == "failed"
    assert read_status(broken)["error"] == "KeyError: 'head_dim'"
    assert 'raise KeyError("head_dim")' in read_status(broken)["traceback"]

    assert read_status(greedy)["state"] == "failed"
    assert read_status(greedy)["error"].startswith("The memory is not enough for a step on 8 x 32 tokens")

    (launch,) = launches(sweep)
    assert not launch["alive"]
    assert Local(**launch["launcher"]).options["slots"] == 2
    printed = capfd.readouterr().out
    assert f"failed: s4: KeyError: 'head_dim' ({broken / 'train.log'})" in printed
    assert "5 runs in 00:" in printed
    assert "2 done, 3 failed." in printed


def test_a_killed_launcher_leaves_no_process_and_a_second_start_finishes_its_runs(
    tmp_path: Path, undisturbed: Callable[[int], Path]
) -> None:
    runs = [freeze_small_run(tmp_path / f"s{seed}", seed, logger=SLOW) for seed in (1, 2, 3)]
    command = [sys.executable, "-c", LAUNCH, str(tmp_path), *map(str, runs)]
    launcher = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    until(lambda: in_training(runs[0]) and in_training(runs[1]))
    forking = forking_process(launcher.pid)
    assert len(list(Path(f"/proc/{forking}/task").iterdir())) == 1  # threads would not survive a fork
    workers = [read_status(run)["pid"] for run in runs[:2]]
    launcher.kill()
    launcher.wait()
    for pid in (forking, *workers):
        until(lambda pid=pid: not _alive(pid))
    assert [read_status(run)["state"] for run in runs] == ["interrupted", "interrupted", "queued"]
    assert launcher.stdout is not None
    assert "running" not in launcher.stdout.read()  # no summary of runs that still save
    assert all(read_status(run)["progress"]["step"] >= 3 for run in runs[:2])

    for run in runs[:2]:
        RunDirectory(run).freeze(RunDirectory(run).config())
    assert Local(slots=2).start(tmp_path, runs, Policy()) == 0
    for seed, run in enumerate(runs, 1):
        assert timeless_results(run) == timeless_results(undisturbed(seed))
        assert read_status(run)["attempt"] == (2 if seed < 3 else 1)


def test_ctrl_c_lets_runs_save_also_in_a_background_job_under_nohup(tmp_path: Path) -> None:
    def ignore_signals() -> None:  # as a shell script does for its background jobs, and nohup
        for signum in (signal.SIGINT, signal.SIGHUP):
            signal.signal(signum, signal.SIG_IGN)

    runs = [freeze_small_run(tmp_path / f"s{seed}", seed, logger=SLOW) for seed in (1, 2, 3)]
    command = [sys.executable, "-c", LAUNCH, str(tmp_path), *map(str, runs)]
    launcher = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=ignore_signals)
    until(lambda: in_training(runs[0]) and in_training(runs[1]))
    launcher.send_signal(signal.SIGHUP)  # without effect
    launcher.send_signal(signal.SIGINT)
    printed, _ = launcher.communicate(timeout=120)
    assert launcher.returncode == 130
    assert [read_status(run)["state"] for run in runs] == ["interrupted", "interrupted", "queued"]
    assert all((run / "checkpoints" / "last.safetensors").exists() for run in runs[:2])
    assert "Stopping (Ctrl-C): no more runs start; 2 running runs will save." in printed
    assert "0 done, 2 interrupted, 1 queued." in printed
    assert "The same command continues from here." in printed


def test_if_the_process_that_forks_is_killed_runs_go_on_in_a_new_one(
    tmp_path: Path, undisturbed: Callable[[int], Path], capfd: pytest.CaptureFixture[str]
) -> None:
    runs = [freeze_small_run(tmp_path / f"s{seed}", seed, logger=SLOW) for seed in (1, 2)]

    def kill_the_forking_process() -> None:
        until(lambda: all(map(in_training, runs)))
        os.kill(forking_process(os.getpid()), signal.SIGKILL)

    thread = threading.Thread(target=kill_the_forking_process)
    thread.start()
    status = Local(slots=2).start(tmp_path, runs, Policy())
    thread.join()
    assert status == 0
    assert "The process that executes the runs was killed by SIGKILL" in capfd.readouterr().out
    for seed, run in enumerate(runs, 1):
        assert read_status(run)["attempt"] == 2
        assert timeless_results(run) == timeless_results(undisturbed(seed))


def test_a_sweep_that_cannot_begin_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = freeze_small_run(tmp_path / "s1", 1)
    monkeypatch.setattr(sys.modules["newllm.sweep.local"], "python_path", lambda sweep: str(tmp_path / "nothing"))
    (tmp_path / "nothing" / "newllm").mkdir(parents=True)
    (tmp_path / "nothing" / "newllm" / "__init__.py").write_text("raise ImportError('no such machine')")
    with pytest.raises(RunError, match="ImportError: no such machine"):
        Local().start(tmp_path, [run], Policy())
    assert read_status(run)["state"] == "queued"


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
