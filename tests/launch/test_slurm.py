"""The SLURM launcher on a real SLURM of one machine, which launch/slurm/one_machine.sh starts and ends."""

import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

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
from newllm.train import main

pytestmark = pytest.mark.xdist_group("slurm")

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "launch" / "slurm" / "one_machine.sh"
SMALL = [
    "samples=160", "seq_len=32", "data.vocab_size=512", "facts=none", "batch_size=8", "epochs=2",
    "model.hidden_size=32", "model.num_layers=2", "model.heads=2", "model.mlp_size=64",
    "trainer.log_every=1", "runtime.threads=1", "eval=[loss]",
]  # fmt: skip
ENDLESS = ["epochs=100000"]


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    path = f"{os.environ['PATH']}:/usr/sbin"
    missing = [name for name in ("slurmctld", "slurmd", "munged", "sbatch") if not shutil.which(name, path=path)]
    if missing:
        pytest.skip(f"SLURM: {', '.join(missing)} not installed")
    if os.getuid() != 0:
        pytest.skip("SLURM: starting slurmd needs root")
    folder = tempfile.mkdtemp(prefix="slurm-", dir="/tmp")  # short, as a socket's path must be
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
    jobs = [status(run)["slurm"] for run in runs_in(tmp_path)]
    assert [status(run)["state"] for run in runs_in(tmp_path)] == ["done"] * 3
    assert len(set(jobs)) == 3
    assert len({job.split("_")[0] for job in jobs}) == 2, "three tasks need two arrays where MaxArraySize is 2"
    assert "Submitted 3 runs as 2 jobs" in capsys.readouterr().out
    [snapshot] = (tmp_path / ".sweep" / "code").iterdir()
    code = [json.loads((run / "environment.json").read_text())["git"] for run in runs_in(tmp_path)]
    assert {state["source_sha256"] for state in code} == {snapshot.name}, "the jobs ran the snapshot"


def test_a_run_requeued_in_mid_training_ends_with_the_uninterrupted_result(
    tmp_path: Path, frozen: Callable[..., Path]
) -> None:
    longer = ["epochs=12", "runtime.checkpoint_steps=1000"]
    requeued = frozen(*longer)
    assert Slurm(time_min=10, signal_delay_s=30, wait=False).start(tmp_path, [requeued], Policy()) == 0
    wait_for(lambda: lines(requeued) > 30)
    subprocess.run(["scancel", "--signal=USR2", status(requeued)["slurm"]], check=True)
    wait_for(lambda: status(requeued)["attempt"] == 2)
    step = status(requeued)["progress"]["step"]
    wait_for(lambda: status(requeued)["state"] == "done")
    assert "Attempt 2: goes on after step" in (requeued / "train.log").read_text()
    assert 20 < step < status(requeued)["progress"]["steps"]

    assert run(newllm.compose([*SMALL, *longer, f"hydra.run.dir={tmp_path / 'whole'}"])) == 0
    assert repeatable(requeued) == repeatable(tmp_path / "whole")


def test_a_job_cancelled_from_another_shell_leaves_its_runs_interrupted_with_slurms_word(
    tmp_path: Path, frozen: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [frozen(f"seed={seed}", *ENDLESS) for seed in (1, 2)]

    def cancel_once_running(seconds: float) -> None:
        sleep(seconds)
        if lines(runs[0]) > 3:
            assert status_main([str(tmp_path), "--cancel"]) == 0

    sleep = time.sleep
    monkeypatch.setattr("newllm.sweep.slurm.time.sleep", cancel_once_running)
    assert Slurm(time_min=10, signal_delay_s=30, max_running=1).start(tmp_path, runs, Policy()) == 1
    assert [status(run)["state"] for run in runs] == ["interrupted", "interrupted"]
    assert status(runs[0])["error"] == f"SLURM ended job {status(runs[0])['slurm']}: CANCELLED."
    assert status(runs[1])["error"] == "Cancelled before it began."
    assert (runs[0] / "checkpoints" / "last.safetensors").exists()


def test_a_failed_run_fails_its_job_and_not_its_neighbour(tmp_path: Path, frozen: Callable[..., Path]) -> None:
    broken, sound = frozen("lr=1e30"), frozen("seed=1")
    assert Slurm(time_min=10, signal_delay_s=30, runs_per_job=2).start(tmp_path, [broken, sound], Policy()) == 1
    assert status(broken)["state"] == "failed"
    assert status(broken)["error"].startswith("Training diverged at step")
    assert status(sound)["state"] == "done"
    job = status(broken)["slurm"]
    wait_for(lambda: job_states([job])[job] == "FAILED (NonZeroExitCode)")


def test_what_sbatch_refuses_is_one_sentence_and_the_runs_stay_queued(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    command = ["-m", "hydra/launcher=slurm", "hydra.launcher.partition=nowhere", f"hydra.sweep.dir={tmp_path}", *SMALL]
    assert main([*command, "seed=1,2"]) == 2
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 1
    assert said[0].startswith("newllm: sbatch refused the jobs: invalid partition specified: nowhere; ")
    assert [status(run)["state"] for run in runs_in(tmp_path)] == ["queued", "queued"]


def runs_in(sweep: Path) -> list[Path]:
    return sorted(file.parent for file in sweep.glob("*/config.yaml"))


def status(run: Path) -> dict[str, Any]:
    return RunDirectory(run).status()


def lines(run: Path) -> int:
    metrics = run / "metrics.jsonl"
    return metrics.read_bytes().count(b"\n") if metrics.exists() else 0


def wait_for(condition: Callable[[], bool], seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.05)


def repeatable(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl and results.json without what depends on the clock."""
    values = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    values.append(json.loads((run / "results.json").read_text()))
    return [{key: v for key, v in line.items() if not key.startswith(("time/", "speed/"))} for line in values]
