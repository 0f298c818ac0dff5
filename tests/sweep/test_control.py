"""Cancelling and retrying runs by `newllm status`: with a local launcher, with SLURM, without a launcher."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import newllm
from newllm.config import effective, signature
from newllm.status import main
from newllm.store.run_directory import RunDirectory
from newllm.sweep.launches import Policy, recorded
from newllm.sweep.local import Local
from tests.support.sweep_folders import make_run

TINY_RUN = [
    "samples=160", "seq_len=32", "data.vocab_size=512", "facts=none", "batch_size=8", "epochs=1",
    "model.hidden_size=32", "model.num_layers=2", "model.heads=2", "model.mlp_size=64", "eval=[loss]",
]  # fmt: skip
SLEEP = "print(flush=True); time.sleep(60)"
LAUNCHER = f"""
import signal, sys, time; from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell ignore it
from newllm.sweep.launches import Policy; from newllm.sweep.launches import recorded
sweep = Path(sys.argv[1])
with recorded(sweep, "local", {{}}, Policy(), [sweep / "tiny-s1", sweep / "tiny-s2"]):
    {SLEEP}
"""
WORKER = f"""
import sys, time; from newllm.store.run_directory import RunDirectory
run = RunDirectory(sys.argv[1])
with run.locked():
    run.begin_attempt()
    {SLEEP}
"""


def freeze_run(sweep: Path, state: str, *overrides: str) -> RunDirectory:
    """A run that can train, as a plan freezes it."""
    cfg = newllm.compose([*TINY_RUN, *overrides])
    run = RunDirectory(sweep / f"tiny-s{cfg.seed}-{signature(cfg)}")
    run.freeze(effective(cfg))
    run.update_status(state=state)
    return run


def start_process(code: str, argument: Path) -> subprocess.Popen:
    """A process that has printed its first line."""
    process = subprocess.Popen([sys.executable, "-c", code, str(argument)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline()
    return process


def state(run: RunDirectory) -> str:
    return run.status()["state"]


def test_cancel_stops_the_launcher_and_keeps_queued_runs_from_starting(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    waiting = [make_run(tmp_path, name) for name in ("tiny-s1", "tiny-s2")]
    done = make_run(tmp_path, "tiny-s3", "done")
    with start_process(LAUNCHER, tmp_path) as launcher:
        assert main([str(tmp_path), "--cancel"]) == 0
        launcher.wait(timeout=20)
    assert [*map(state, waiting), state(done)] == ["interrupted", "interrupted", "done"]
    out = capsys.readouterr().out
    assert f"Asking the launcher, process {launcher.pid}, to stop" in out
    assert "2 runs will not be started." in out
    assert main([str(tmp_path), "--cancel"]) == 0
    assert "Nothing to cancel" in capsys.readouterr().out


def test_cancel_of_named_runs_leaves_the_launcher_and_the_others_alone(tmp_path: Path) -> None:
    running, queued, other = (make_run(tmp_path, f"tiny-s{seed}") for seed in (1, 2, 3))
    with start_process(LAUNCHER, tmp_path) as launcher, start_process(WORKER, running.path) as worker:
        assert main([str(tmp_path), "tiny-s1", "tiny-s2", "--cancel"]) == 0
        assert worker.wait(timeout=20) == -15
        assert launcher.poll() is None
        assert [running.observed(), state(queued), state(other)] == ["interrupted", "interrupted", "queued"]
        launcher.kill()


def test_cancel_says_so_if_a_run_is_on_another_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path, "tiny-s1", "running", host="elsewhere", pid=os.getpid())
    with run.locked():
        assert main([str(run.path), "--cancel"]) == 1
    assert "on elsewhere; cancel it there" in capsys.readouterr().out


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A SLURM whose jobs 7_0 and 7_1 run; the file gets the arguments of scancel."""
    cancelled = tmp_path / "cancelled"
    commands = {"squeue": "echo '7_0|RUNNING|None'; echo '7_1|RUNNING|None'", "scancel": f'echo "$@" >> {cancelled}'}
    for name, line in commands.items():
        file = tmp_path / "bin" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"#!/bin/sh\n{line}\n")
        file.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    return cancelled


def test_cancel_ends_a_slurm_job_if_it_has_no_other_runs(slurm: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    make_run(folder, "tiny-s1", "running", slurm="7_0", host="node1")
    make_run(folder, "tiny-s2", "done", slurm="7_0")
    shared = [make_run(folder, f"tiny-s{seed}", slurm="7_1") for seed in (3, 4)]
    assert main([str(folder), "s1", "s3", "--cancel"]) == 0
    assert slurm.read_text() == "7_0\n"
    assert [*map(state, shared)] == ["interrupted", "queued"]
    assert main([str(folder), "--cancel"]) == 0
    assert slurm.read_text().split() == ["7_0", "7_0", "7_1"]


def test_the_table_shows_jobs_of_slurm(slurm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "sweep"
    make_run(folder, "tiny-s1", "running", slurm="7_0")
    make_run(folder, "tiny-s2", "running", slurm="7_2")
    assert main([str(folder)]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [row[1:] for row in rows[1:3]] == [
        ["s1", "running", "7_0", "RUNNING"],
        ["s2", "interrupted", "7_2", "not", "known"],
    ]


def test_retry_runs_what_is_not_done(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    failed, queued = freeze_run(tmp_path, "failed", "seed=1"), freeze_run(tmp_path, "queued", "seed=2")
    done = make_run(tmp_path, "tiny-s3", "done")
    assert main([str(tmp_path), "--retry", "all"]) == 0
    assert [state(failed), state(queued), done.results()] == ["done", "done", {"val/ppl": 98.76}]
    assert main([str(tmp_path), "--retry", "all"]) == 0
    assert "Nothing to retry" in capfd.readouterr().out


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list:
    """The starts of local launchers, which do nothing: (slots, names, policy)."""
    calls: list = []

    def start(self: Local, sweep: Path, runs: list[Path], policy: Policy) -> int:
        calls.append((self.options["slots"], [run.name for run in runs], policy))
        return 7

    monkeypatch.setattr(Local, "start", start)
    return calls


def test_retry_uses_launcher_and_policy_of_the_latest_launch(tmp_path: Path, started: list) -> None:
    runs = {name: freeze_run(tmp_path, name, f"seed={i}") for i, name in enumerate(("failed", "interrupted", "queued"))}
    for slots in (3, 2):
        with recorded(tmp_path, "local", {"slots": slots}, Policy(retries=slots), []):
            pass
    for typed in (["--retry"], ["--retry", "interrupted"], ["--retry", runs["failed"].path.name]):
        runs["failed"].update_status(state="failed")
        assert main([str(tmp_path), *typed]) == 7
    names = {name: run.path.name for name, run in runs.items()}
    assert started == [
        (2, [names["failed"]], Policy(retries=2)),
        (2, [names["interrupted"], names["queued"]], Policy(retries=2)),
        (2, [names["failed"]], Policy(retries=2)),
    ]


def test_retry_refuses_while_a_launcher_runs_and_for_runs_of_another_version(
    tmp_path: Path, started: list, capsys: pytest.CaptureFixture[str]
) -> None:
    run = freeze_run(tmp_path, "failed")
    with recorded(tmp_path, "local", {}, Policy(), []):
        assert main([str(tmp_path), "--retry"]) == 2
    assert f"process {os.getpid()} on" in capsys.readouterr().err
    run.write_config({**run.config(), "trainer": {"batch_size": 99}})
    assert main([str(tmp_path), "--retry"]) == 2
    assert "from another version of newllm" in capsys.readouterr().err
    assert state(run) == "failed"
    with recorded(tmp_path, "local", {"unknown_option": 3}, Policy(), []):
        pass
    assert main([str(tmp_path), "--retry"]) == 2
    assert "from another version of newllm" in capsys.readouterr().err
    assert not started
