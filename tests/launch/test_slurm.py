"""The SLURM launcher on a real SLURM of one machine, which launch/slurm/one_machine.sh starts and stops."""

import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import newllm
from newllm.config import effective, run_directory
from newllm.run.execute import run
from newllm.status import main as status_main
from newllm.store.run_directory import RunDirectory
from newllm.sweep import slurm
from newllm.sweep.launches import Policy
from newllm.sweep.slurm import Slurm
from newllm.sweep.slurm_states import job_states
from newllm.train.__main__ import main
from tests.support.small_runs import SMALL_RUN, read_status, timeless_results

pytestmark = pytest.mark.xdist_group("slurm")

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "launch" / "slurm" / "one_machine.sh"
SMALL = [*SMALL_RUN, "eval=[loss]"]
ENDLESS = ["epochs=100000"]


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    path = f"{os.environ['PATH']}:/usr/sbin"
    missing = [name for name in ("slurmctld", "slurmd", "munged", "sbatch") if not shutil.which(name, path=path)]
    if missing:
        pytest.skip(f"SLURM: {', '.join(missing)} not installed")
    if os.getuid() != 0:
        pytest.skip("SLURM: starting slurmd needs root")
    folder = tempfile.mkdtemp(prefix="slurm-", dir="/tmp")  # the path of a socket must be short
    try:
        started = subprocess.run([SCRIPT, "up", folder], capture_output=True, text=True)
        assert started.returncode == 0, started.stderr
        os.environ["SLURM_CONF"] = started.stdout.strip().removeprefix("export SLURM_CONF=")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(slurm, "TICK", 0.2)
            yield
    finally:
        subprocess.run([SCRIPT, "down", folder], check=True)
        os.environ.pop("SLURM_CONF", None)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def frozen(tmp_path: Path) -> Callable[..., Path]:
    """frozen(*overrides): a queued run in the sweep folder tmp_path."""

    def freeze(*overrides: str) -> Path:
        cfg = newllm.compose([*SMALL, *overrides])
        path = Path(run_directory(cfg, str(tmp_path)))
        RunDirectory(path).freeze(effective(cfg))
        return path

    return freeze


def test_a_sweep_of_two_arrays_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [
        "-m", "--config-dir", str(ROOT / "launch" / "slurm" / "profiles"), "hydra/launcher=one_machine",
        "hydra.launcher.max_running=2", f"hydra.sweep.dir={tmp_path}", *SMALL, "seed=1,2,3",
    ]  # fmt: skip
    assert main(command) == 0
    jobs = [read_status(run)["slurm"] for run in runs_in(tmp_path)]
    assert [read_status(run)["state"] for run in runs_in(tmp_path)] == ["done"] * 3
    assert len(set(jobs)) == 3
    assert len({job.split("_")[0] for job in jobs}) == 2, "three tasks need two arrays where MaxArraySize is 2"
    assert "Submitted 3 runs as 2 jobs" in capsys.readouterr().out
    [snapshot] = (tmp_path / ".sweep" / "code").iterdir()
    code = [json.loads((run / "environment.json").read_text())["git"] for run in runs_in(tmp_path)]
    assert {state["source_sha256"] for state in code} == {snapshot.name}, "the jobs ran the snapshot"


def test_a_run_requeued_during_training_ends_with_the_uninterrupted_result(
    tmp_path: Path, frozen: Callable[..., Path]
) -> None:
    longer = ["epochs=12", "runtime.checkpoint_steps=1000"]
    requeued = frozen(*longer)
    assert Slurm(time_min=10, signal_delay_s=30, wait=False).start(tmp_path, [requeued], Policy()) == 0
    wait_for(lambda: lines(requeued) > 30)
    subprocess.run(["scancel", "--signal=USR2", read_status(requeued)["slurm"]], check=True)
    wait_for(lambda: read_status(requeued)["attempt"] == 2)
    step = read_status(requeued)["progress"]["step"]
    wait_for(lambda: read_status(requeued)["state"] == "done")
    assert "Attempt 2: goes on after step" in (requeued / "train.log").read_text()
    assert 20 < step < read_status(requeued)["progress"]["steps"]

    assert run(newllm.compose([*SMALL, *longer, f"hydra.run.dir={tmp_path / 'whole'}"])) == 0
    assert timeless_results(requeued) == timeless_results(tmp_path / "whole")


def test_cancelling_from_another_shell_leaves_runs_interrupted_with_the_state_of_their_jobs(
    tmp_path: Path, frozen: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [frozen(f"seed={seed}", *ENDLESS) for seed in (1, 2)]

    def cancel_once_running(seconds: float) -> None:
        sleep(seconds)
        if lines(runs[0]) > 3:
            monkeypatch.setattr(time, "sleep", sleep)
            assert status_main([str(tmp_path), "--cancel"]) == 0

    sleep = time.sleep
    monkeypatch.setattr(time, "sleep", cancel_once_running)
    assert Slurm(time_min=10, signal_delay_s=30, max_running=1).start(tmp_path, runs, Policy()) == 1
    assert [read_status(run)["state"] for run in runs] == ["interrupted", "interrupted"]
    assert read_status(runs[0])["error"] == f"SLURM ended job {read_status(runs[0])['slurm']}: CANCELLED."
    assert read_status(runs[1])["error"] == "Cancelled before it began."
    assert (runs[0] / "checkpoints" / "last.safetensors").exists()


def test_a_failed_run_fails_its_job_but_not_the_other_run_of_the_job(
    tmp_path: Path, frozen: Callable[..., Path]
) -> None:
    broken, good = frozen("lr=1e30"), frozen("seed=1")
    assert Slurm(time_min=10, signal_delay_s=30, runs_per_job=2).start(tmp_path, [broken, good], Policy()) == 1
    assert read_status(broken)["state"] == "failed"
    assert read_status(broken)["error"].startswith("Training diverged at step")
    assert read_status(good)["state"] == "done"
    job = read_status(broken)["slurm"]
    wait_for(lambda: job_states([job])[job] == "FAILED (NonZeroExitCode)")


def test_a_refusal_of_sbatch_is_one_sentence_and_the_runs_stay_queued(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    command = ["-m", "hydra/launcher=slurm", "hydra.launcher.partition=nowhere", f"hydra.sweep.dir={tmp_path}", *SMALL]
    assert main([*command, "seed=1,2"]) == 2
    errors = capfd.readouterr().err.splitlines()
    assert len(errors) == 1
    assert errors[0].startswith("newllm: sbatch refused the jobs: invalid partition specified: nowhere; ")
    assert [read_status(run)["state"] for run in runs_in(tmp_path)] == ["queued", "queued"]


def runs_in(sweep: Path) -> list[Path]:
    return sorted(file.parent for file in sweep.glob("*/config.yaml"))


def lines(run: Path) -> int:
    metrics = run / "metrics.jsonl"
    return metrics.read_bytes().count(b"\n") if metrics.exists() else 0


def wait_for(condition: Callable[[], bool], seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.05)
