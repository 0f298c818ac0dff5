"""Runs of several processes on the CPU: the numbers of one process, and no process left over."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from newllm.errors import ConfigError, RunError
from newllm.run.prepare import prepare
from newllm.runtime import Place, Runtime
from newllm.train import __main__ as train
from newllm.training import distributed
from newllm.training.distributed import Team, device_of
from newllm.training.loop import Loop
from newllm.training.step import Step
from tests.support.small_runs import SMALL_RUN, read_status, small_config, timeless_results

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}

# What a sweep does: a process that has everything imported forks, and the child does the run. Then the other rank is
# killed where this one cannot notice by itself, as in a kernel that waits for it.
STUCK = """
import os, signal, sys, time
sys.path[:0] = [{tests!r}]
from tests.support.small_runs import small_config
from newllm.run.execute import run
from newllm.training.distributed import Team
from newllm.training.step import Step
join, step, calls, teams = Team.join, Step.__call__, [], []
def joining(self):
    teams.append(self)
    join(self)
def stuck(self, *args):
    calls.append(None)
    if len(calls) == 3:
        os.kill(teams[0]._processes[0].pid, signal.SIGKILL)
        time.sleep(600)
    return step(self, *args)
Team.join, Step.__call__ = joining, stuck
child = os.fork()
if child == 0:
    os.setsid()
    os._exit(run(small_config({directory!r}, "trainer.devices=2")))
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


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


def test_a_run_stuck_waiting_for_a_lost_process_ends_with_its_reason(tmp_path: Path) -> None:
    script = STUCK.format(tests=str(Path(__file__).parent), directory=str(tmp_path / "run"))
    done = subprocess.run(
        [sys.executable, "-c", script], env=ENVIRONMENT, cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1, done.stderr
    assert done.stderr.splitlines()[-1].startswith("newllm: Process 2 of this run's 2 was killed by SIGKILL")
    assert read_status(tmp_path / "run")["state"] == "failed"


def test_ctrl_c_to_all_processes_saves_and_a_killed_run_leaves_none_behind(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "newllm.train", *SMALL_RUN, "epochs=400", "trainer.devices=2"]
    command.append(f"hydra.run.dir={tmp_path / 'run'}")
    log = tmp_path / "run" / "metrics.jsonl"

    def started(more: int) -> subprocess.Popen[str]:
        """The run in a process group of its own, once metrics.jsonl has `more` lines more."""
        lines = (log.read_bytes().count(b"\n") if log.exists() else 0) + more
        process = subprocess.Popen(
            command, env=ENVIRONMENT, cwd=ROOT, start_new_session=True, text=True, stderr=subprocess.STDOUT,
            stdout=subprocess.PIPE,
        )  # fmt: skip
        deadline = time.monotonic() + 90
        while not (log.exists() and log.read_bytes().count(b"\n") >= lines):
            if process.poll() is not None or time.monotonic() > deadline:
                os.killpg(process.pid, signal.SIGKILL)
                pytest.fail(f"the run did not come to {lines} lines: {process.communicate()[0]}")
            time.sleep(0.01)
        return process

    def group_ends(process: subprocess.Popen[str]) -> bool:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                os.killpg(process.pid, 0)
            except ProcessLookupError:
                return True
            time.sleep(0.02)
        return False

    process = started(5)
    os.killpg(process.pid, signal.SIGINT)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 130, output
    assert "Stopped by Ctrl-C. The same command goes on" in output
    assert "Traceback" not in output
    assert read_status(tmp_path / "run")["state"] == "interrupted"
    assert group_ends(process)

    process = started(5)
    process.kill()
    output = process.communicate(timeout=60)[0]
    assert "goes on after step" in output
    assert "Traceback" not in output
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


def torchrun(*words: str) -> subprocess.CompletedProcess[str]:
    """`newllm train` in two processes, as torchrun starts it."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.run(
        [*command, "-m", "newllm.train", *SMALL_RUN, *words], env=ENVIRONMENT, cwd=ROOT, capture_output=True, text=True,
        timeout=120,
    )  # fmt: skip


def test_torchrun_reproduces_the_result_of_trainer_devices(tmp_path: Path, do_run: Callable[..., int]) -> None:
    """To the bit, since trainer.devices starts the same processes; then the run is done, and all processes end."""
    first = torchrun(f"hydra.run.dir={tmp_path / 'torchrun'}")
    assert first.returncode == 0, first.stderr
    assert first.stdout.count("Best: epoch") == 1
    assert do_run(tmp_path / "devices", "trainer.devices=2") == 0
    assert timeless_results(tmp_path / "torchrun") == timeless_results(tmp_path / "devices")
    again = torchrun(f"hydra.run.dir={tmp_path / 'torchrun'}")
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("This run is done") == 1


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
