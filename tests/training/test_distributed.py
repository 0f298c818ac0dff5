"""Runs of several processes on the CPU: the numbers of one process, and no process left over."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.context import ForkProcess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from newllm.errors import ConfigError, RunError
from newllm.run import follower
from newllm.run.prepare import frozen_config, prepare
from newllm.runtime import Place, Runtime
from newllm.store.run_directory import RunDirectory
from newllm.train import __main__ as train
from newllm.training import distributed
from newllm.training.distributed import Team, device_of
from newllm.training.loop import Loop
from newllm.training.step import Step
from tests.support.forks import ended, forked
from tests.support.small_runs import SMALL_RUN, read_status, small_config, timeless_results

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}

# Imported by a rank's interpreter before everything else: its prepare() fails.
BROKEN = """
import os
if os.environ.get("RANK") == "1":
    import newllm.run.prepare
    def prepare(*args, **options):
        raise OSError("no space for this")
    newllm.run.prepare.prepare = prepare
"""


def test_two_processes_reproduce_the_result_of_one(tmp_path: Path, do_run: Callable[..., int]) -> None:
    """With batches in pieces, rows that are scored in part, and a last batch that has no row for the second process."""
    overrides = ["facts=reversal", "facts.repeats=2", "precision=fp32", "trainer.accumulate=2"]
    rows = len(prepare(small_config(tmp_path / "data", *overrides)).data.train)
    size = next(size for size in range(6, 16) if rows % size == 1)
    for devices in (1, 2):
        more = [f"batch_size={size}", f"trainer.devices={devices}", f"trainer.recompute={devices == 2}"]
        assert do_run(tmp_path / str(devices), *overrides, *more) == 0
    (one, one_results), (two, two_results) = timeless_results(tmp_path / "1"), timeless_results(tmp_path / "2")
    assert len(one) == len(two) > 20
    for ours, theirs in zip(two, one, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
    assert two_results["val/ppl"] == pytest.approx(one_results["val/ppl"], rel=1e-5)
    assert (tmp_path / "2" / "train.log").read_text().count("Best: epoch") == 1


class ForkedRank:
    """Another rank in a forked process, which does what its command would: a subprocess.Popen for `Team`."""

    def __init__(self, command: list[str], env: dict[str, str], **streams: Any) -> None:
        log, changed = Path(command[-1], "rank.log"), dict(env.items() - os.environ.items())

        def follow() -> int:
            return follower.follow(frozen_config(RunDirectory(command[-1])), Place.from_environment())

        self._process = forked(follow, log, **changed)
        self.pid, self.kill = self._process.pid, self._process.kill

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        return self._process.exitcode or 0


def test_a_run_of_three_processes_resumes_to_the_bit(
    tmp_path: Path, do_run: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the last bit, moments included. With three it matters where in DDP's buckets a gradient stands, and with MLA
    DDP moves some after its first step."""
    real, calls = Step.__call__, []

    def signalling(self: Step, *args):
        calls.append(None)
        if len(calls) == 7:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, *args)

    popen = SimpleNamespace(Popen=ForkedRank, PIPE=subprocess.PIPE, TimeoutExpired=subprocess.TimeoutExpired)
    monkeypatch.setattr(distributed, "subprocess", popen)
    overrides = ["trainer.devices=3", "epochs=1", "attention=mla", "kv_dim=8"]
    with monkeypatch.context() as patch:
        patch.setattr(Step, "__call__", signalling)
        assert do_run(tmp_path / "stopped", *overrides) == 128 + signal.SIGTERM
    assert read_status(tmp_path / "stopped")["state"] == "interrupted"
    assert read_status(tmp_path / "stopped")["progress"]["step"] == 7
    assert do_run(tmp_path / "stopped", *overrides) == 0
    assert do_run(tmp_path / "whole", *overrides) == 0
    assert timeless_results(tmp_path / "stopped") == timeless_results(tmp_path / "whole")
    stopped, whole = (load_file(tmp_path / name / "checkpoints/last.safetensors") for name in ("stopped", "whole"))
    assert stopped.keys() == whole.keys()
    assert not [name for name, tensor in whole.items() if not torch.equal(tensor, stopped[name])]


@pytest.mark.parametrize("place", ["step", "validation"])
def test_a_lost_process_fails_the_run_with_its_reason(
    tmp_path: Path, do_run: Callable[..., int], monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    owner, name = {"step": (Step, "__call__"), "validation": (Loop, "_validation_loss")}[place]
    real, join, teams = getattr(owner, name), Team.join, []

    def joining(self: Team) -> None:
        teams.append(self)
        join(self)

    def killing(*args):
        other = teams[0]._processes[0]
        if other.returncode is None:
            other.kill()
            if place == "validation":
                teams[0].lost.wait(60)
        return real(*args)

    monkeypatch.setattr(Team, "join", joining)
    monkeypatch.setattr(owner, name, killing)
    with pytest.raises(RunError, match=r"Process 2 of this run's 2 was killed by SIGKILL.*goes on from the last"):
        do_run(tmp_path / "run", "trainer.devices=2")
    assert read_status(tmp_path / "run")["state"] == "failed"
    assert "killed by SIGKILL" in read_status(tmp_path / "run")["error"]
    assert read_status(tmp_path / "run")["traceback"] is None  # the sentence says it all


def test_a_process_that_fails_to_prepare_ends_the_run_with_its_reason(
    tmp_path: Path, do_run: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "sitecustomize.py").write_text(BROKEN)
    monkeypatch.syspath_prepend(str(tmp_path / "own"))
    with pytest.raises(RunError, match=r"Process 2 of this run's 2 failed: no space for this"):
        do_run(tmp_path / "run", "trainer.devices=2")
    assert read_status(tmp_path / "run")["state"] == "failed"


def test_a_launched_process_that_never_gets_ready_fails_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when it is killed while it prepares, and its launcher lets the others live."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    monkeypatch.setattr(distributed, "launched_store", lambda: store)
    monkeypatch.setattr(distributed, "READY_SECONDS", 0.0)
    run: Any = SimpleNamespace(place=Place(0, 2, 0, 1, launched=True), started=time.monotonic())
    others = Team(run)
    with pytest.raises(RunError, match=r"Process 2 of this run's 2 was not ready"):
        others.join()
    others.end()
    assert store.get("train") == b"no"


def test_a_run_stuck_waiting_for_a_lost_process_ends_with_its_reason(
    tmp_path: Path, do_run: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a forked process, as in a sweep. The other rank is killed where this one cannot notice by itself, as in a
    kernel that waits for it."""
    join, step, calls, teams = Team.join, Step.__call__, [], []

    def joining(self: Team) -> None:
        teams.append(self)
        join(self)

    def stuck(self: Step, *args):
        calls.append(None)
        if len(calls) == 3:
            teams[0]._processes[0].kill()
            time.sleep(600)
        return step(self, *args)

    monkeypatch.setattr(distributed, "GRACE", 0.5)
    monkeypatch.setattr(Team, "join", joining)
    monkeypatch.setattr(Step, "__call__", stuck)
    log = tmp_path / "log"
    assert ended(forked(lambda: do_run(tmp_path / "run", "trainer.devices=2"), log), 120) == 1
    assert log.read_text().splitlines()[-1].startswith("newllm: Process 2 of this run's 2 was killed by SIGKILL")
    assert read_status(tmp_path / "run")["state"] == "failed"


def test_ctrl_c_to_all_processes_saves_and_a_killed_run_leaves_none_behind(tmp_path: Path) -> None:
    command = [*SMALL_RUN, "epochs=400", "trainer.devices=2", f"hydra.run.dir={tmp_path / 'run'}"]
    metrics, log = tmp_path / "run" / "metrics.jsonl", tmp_path / "log"

    def started(more: int) -> ForkProcess:
        """The run in a process group of its own, once metrics.jsonl has `more` lines more."""
        log.unlink(missing_ok=True)
        lines = (metrics.read_bytes().count(b"\n") if metrics.exists() else 0) + more
        process = forked(lambda: train.main(command), log)
        deadline = time.monotonic() + 90
        while not (metrics.exists() and metrics.read_bytes().count(b"\n") >= lines):
            if not process.is_alive() or time.monotonic() > deadline:
                os.killpg(process.pid or 0, signal.SIGKILL)
                pytest.fail(f"the run did not come to {lines} lines: {log.read_text()}")
            time.sleep(0.01)
        return process

    def group_ends(process: ForkProcess) -> bool:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                os.killpg(process.pid or 0, 0)
            except ProcessLookupError:
                return True
            time.sleep(0.02)
        return False

    process = started(5)
    os.killpg(process.pid or 0, signal.SIGINT)
    assert ended(process) == 130, log.read_text()
    assert "Stopped by Ctrl-C. The same command goes on" in log.read_text()
    assert "Traceback" not in log.read_text()
    assert read_status(tmp_path / "run")["state"] == "interrupted"
    assert group_ends(process)

    process = started(5)
    process.kill()
    assert ended(process) == -signal.SIGKILL
    assert "goes on after step" in log.read_text()
    assert "Traceback" not in log.read_text()
    assert group_ends(process)


def test_missing_devices_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert device_of(torch.device("cuda"), Place(1, 2, 1, 2)) == torch.device("cuda", 1)
    assert device_of(torch.device("cuda"), Place(3, 4, 1, 2, launched=True)) == torch.device("cuda", 1)
    assert device_of(torch.device("cpu"), Place(1, 2, 1, 2)) == torch.device("cpu")
    assert device_of(torch.device("cuda:1"), Place()) == torch.device("cuda:1")
    with pytest.raises(ConfigError, match=r"needs 3 GPUs here, and 2 are visible; try trainer.devices=2"):
        device_of(torch.device("cuda"), Place(0, 3, 0, 3))
    with pytest.raises(ConfigError, match=r"runtime.device=cuda:1 names one; type runtime.device=cuda"):
        device_of(torch.device("cuda:1"), Place(0, 2, 0, 2))
    with pytest.raises(ConfigError, match=r"needs CUDA or the CPU, and this run is on mps"):
        device_of(torch.device("mps"), Place(0, 2, 0, 2))


def test_torchrun_reproduces_the_result_of_trainer_devices(tmp_path: Path, do_run: Callable[..., int]) -> None:
    """To the bit, since trainer.devices starts the same processes. Once the run is done, all launched processes end."""
    words = ["-m", "newllm.train", *SMALL_RUN, f"hydra.run.dir={tmp_path / 'torchrun'}"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *words]
    first = subprocess.run(command, env=ENVIRONMENT, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert first.returncode == 0, first.stderr
    assert first.stdout.count("Best: epoch") == 1
    assert do_run(tmp_path / "devices", "trainer.devices=2") == 0
    assert timeless_results(tmp_path / "torchrun") == timeless_results(tmp_path / "devices")
    with socket.create_server(("127.0.0.1", 0)) as free:
        about = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    about |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    log, again = tmp_path / "log", partial(train.main, words[2:])
    ranks = [forked(again, log, **about, RANK=str(rank), LOCAL_RANK=str(rank)) for rank in range(2)]
    assert [ended(rank) for rank in ranks] == [0, 0], log.read_text()
    assert log.read_text().count("This run is done") == 1


def test_trainer_devices_must_equal_the_processes_of_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert Place.of_run(2) == Place(0, 2, 0, 2, launched=True)
    with pytest.raises(ConfigError, match=r"trainer.devices=3"):
        Place.of_run(3)
    with pytest.raises(ConfigError, match=r"leave torchrun out"):
        train._main(["-m", "seed=1,2"])


def test_tasks_of_a_slurm_step_find_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """They get torchrun's variables; a job of one task is a run of one process."""
    slurm = {"JOB_ID": "7", "JOB_NODELIST": "n[3-4]", "JOB_NUM_NODES": "2", "PROCID": "3", "LOCALID": "1"}
    environment = {f"SLURM_{name}": value for name, value in slurm.items()} | {"OMP_NUM_THREADS": "3"}
    monkeypatch.setattr(os, "environ", environment)
    assert Place.from_environment() == Place()
    environment["SLURM_STEP_NUM_TASKS"] = "4"
    assert Place.from_environment() == Place(3, 4, 1, 2, launched=True)
    assert environment["MASTER_ADDR"] == "n3"
    assert Runtime().threads == 6  # of both processes on this machine
