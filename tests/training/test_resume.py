"""Interrupted runs: by SIGKILL in processes of their own, as a user's would be; by other signals in this process."""

import errno
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.context import ForkProcess
from pathlib import Path

import numpy as np
import pytest
import torch

from newllm.errors import ConfigError, Interrupted, RunError
from newllm.run import prepare as prepare_module
from newllm.run.execute import run
from newllm.store.run_directory import RunDirectory
from newllm.training import loop
from newllm.training.loop import Loop
from newllm.training.step import BatchLoss, Step
from tests.support.forks import ended, forked
from tests.support.small_runs import read_status, small_config, timeless_results

OVERRIDES = [
    "facts=reversal",
    "facts.repeats=2",
    "samples=240",
    "epochs=3",
    "runtime.checkpoint_steps=3",
    "trainer.log_every=2",
]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict], dict]:
    """The metrics and results of a small run that nothing has stopped."""
    directory = tmp_path_factory.mktemp("uninterrupted") / "run"
    run(small_config(directory))
    return timeless_results(directory)


def wait_for_lines(process: ForkProcess, directory: Path, lines: int) -> None:
    """Wait until metrics.jsonl has this many lines."""
    metrics = directory / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while not (metrics.exists() and metrics.read_bytes().count(b"\n") >= lines):
        if not process.is_alive() or time.monotonic() > deadline:
            process.kill()
            pytest.fail(f"the run did not come to {lines} lines: {(directory.parent / 'log').read_text()}")
        time.sleep(0.002)


def test_killed_at_random_steps_and_resumed_equals_uninterrupted(tmp_path: Path, do_run: Callable[..., int]) -> None:
    do_run(tmp_path / "whole", *OVERRIDES)
    directory = tmp_path / "killed"
    total = len(timeless_results(tmp_path / "whole")[0])
    for lines in sorted(random.sample(range(3, total - 8), 2)):
        process = forked(partial(do_run, directory, *OVERRIDES), tmp_path / "log")
        wait_for_lines(process, directory, lines)
        process.kill()
        assert ended(process) == -signal.SIGKILL
        assert read_status(directory)["state"] == "running"  # kill -9 leaves no chance to say otherwise
    assert do_run(directory, *OVERRIDES) == 0
    assert "Attempt 3: goes on after step" in (directory / "train.log").read_text()
    assert timeless_results(directory) == timeless_results(tmp_path / "whole")
    assert read_status(directory)["state"] == "done"


@pytest.mark.parametrize(
    ("signum", "place"),
    [
        (signal.SIGTERM, "step"),
        (signal.SIGINT, "step"),
        (signal.SIGUSR1, "validation"),
        (signal.SIGUSR2, "step"),
        (signal.SIGHUP, "step"),
        (signal.SIGTERM, "evaluation"),
    ],
)
def test_a_signal_saves_and_the_same_command_resumes_to_equal_results(
    tmp_path: Path,
    do_run: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    uninterrupted: tuple[list[dict], dict],
    signum: signal.Signals,
    place: str,
) -> None:
    places = {
        "step": (Step, "__call__"),
        "validation": (Loop, "_validation_loss"),
        "evaluation": (sys.modules["newllm.run.execute"], "evaluate"),
    }
    owner, name = places[place]
    real, calls = getattr(owner, name), []

    def signalling(*args, **kwargs):
        calls.append(None)
        if len(calls) == (7 if place == "step" else 1):
            os.kill(os.getpid(), signum)
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, signalling)
        assert do_run(tmp_path / "stopped") == 128 + signum
    status = read_status(tmp_path / "stopped")
    assert status["state"] == "interrupted"
    steps = status["progress"]["steps"]
    assert status["progress"]["step"] == {"step": 7, "validation": steps // 2, "evaluation": steps}[place]
    assert "The same command goes on" in (tmp_path / "stopped" / "train.log").read_text()

    assert do_run(tmp_path / "stopped") == 0
    assert timeless_results(tmp_path / "stopped") == uninterrupted


def test_a_second_ctrl_c_ends_at_once_and_the_run_still_resumes(
    tmp_path: Path, do_run: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = Step.__call__, []

    def impatient(self: Step, *args):
        calls.append(None)
        if len(calls) == 10:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGINT)
        return real(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Step, "__call__", impatient)
        assert do_run(tmp_path / "run", "runtime.checkpoint_steps=4") == 130
    assert read_status(tmp_path / "run")["state"] == "interrupted"
    assert do_run(tmp_path / "run", "runtime.checkpoint_steps=4") == 0
    assert "goes on after step 8 of" in (tmp_path / "run" / "train.log").read_text()


def test_a_full_disk_fails_the_run_and_the_last_checkpoint_stays(
    tmp_path: Path,
    do_run: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    uninterrupted: tuple[list[dict], dict],
) -> None:
    real = RunDirectory.append_metrics

    def full(self: RunDirectory, values: dict) -> None:
        if values["step"] == 9:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(self, values)

    with monkeypatch.context() as patch:
        patch.setattr(RunDirectory, "append_metrics", full)
        with pytest.raises(RunError, match=r"disk .* is full"):
            do_run(tmp_path / "run", "runtime.checkpoint_steps=4")
    assert read_status(tmp_path / "run")["state"] == "failed"
    assert do_run(tmp_path / "run", "runtime.checkpoint_steps=4") == 0
    assert "goes on after step 8 of" in (tmp_path / "run" / "train.log").read_text()
    assert timeless_results(tmp_path / "run") == uninterrupted


def test_a_resumed_run_keeps_the_number_of_threads_it_began_with(
    tmp_path: Path, do_run: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def threads(*overrides: str) -> list[int]:
        assert do_run(directory, *overrides) == 0
        noted = json.loads((directory / "environment.json").read_text())["threads"]
        return [noted, torch.get_num_threads()]

    try:
        for directory, resumed, expected in [
            (tmp_path / "auto", "runtime.threads=auto", 2),
            (tmp_path / "given", "runtime.threads=1", 1),
        ]:
            monkeypatch.setenv("OMP_NUM_THREADS", "2")
            with monkeypatch.context() as patch:
                patch.setattr(sys.modules["newllm.run.execute"], "evaluate", _send_sigterm)
                assert do_run(directory, "runtime.threads=auto") == 128 + signal.SIGTERM
            monkeypatch.setenv("OMP_NUM_THREADS", "1")
            assert threads(resumed) == [expected, expected]
            told = "goes on with 2 threads, as it began" in (directory / "train.log").read_text()
            assert told == (resumed == "runtime.threads=auto")
    finally:
        torch.set_num_threads(1)


def _send_sigterm(*args) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_the_traceback_of_an_unexpected_error_is_kept_until_the_next_attempt(
    tmp_path: Path, do_run: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args) -> None:
        raise ZeroDivisionError("one by none")

    with monkeypatch.context() as patch:
        patch.setattr(sys.modules["newllm.run.execute"], "evaluate", broken)
        with pytest.raises(ZeroDivisionError):
            do_run(tmp_path / "run")
    status = read_status(tmp_path / "run")
    assert (status["state"], status["error"]) == ("failed", "one by none")
    assert "in broken" in status["traceback"]
    assert status["traceback"].rstrip().endswith("ZeroDivisionError: one by none")
    assert do_run(tmp_path / "run") == 0
    assert read_status(tmp_path / "run")["traceback"] is None


def test_a_directory_in_use_is_left_alone(tmp_path: Path, do_run: Callable[..., int]) -> None:
    with RunDirectory(tmp_path / "run").locked() as directory:
        directory.begin_attempt()
        before = {path: path.read_bytes() for path in directory.path.iterdir()}
        with pytest.raises(ConfigError, match=f"in use by process {os.getpid()}"):
            do_run(tmp_path / "run")
        assert {path: path.read_bytes() for path in directory.path.iterdir()} == before


def test_no_except_exception_swallows_an_interruption() -> None:
    assert not issubclass(Interrupted, Exception)


def test_a_run_without_enough_memory_says_what_fits_and_goes_on_with_recomputed_layers(
    tmp_path: Path, uninterrupted: tuple[list[dict], dict], do_run: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = BatchLoss.forward, []

    def refused(self: BatchLoss, *args):
        calls.append(None)
        if len(calls) == 7:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 1.00 GiB free.")
        return real(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(BatchLoss, "forward", refused)
        with pytest.raises(RunError):
            do_run(tmp_path / "run", "runtime.checkpoint_steps=3")
    assert read_status(tmp_path / "run")["error"] == (
        "The memory is not enough for a step on 8 x 32 tokens: it ran out when 2.15 GB more were asked for; "
        "trainer.recompute=true goes on with this run in less memory; in a new run trainer.accumulate=2 keeps the "
        "batch, or batch_size=4 should fit"
    )
    assert do_run(tmp_path / "run", "trainer.recompute=true") == 0
    assert "goes on after step 6" in (tmp_path / "run" / "train.log").read_text()
    assert timeless_results(tmp_path / "run") == uninterrupted


@pytest.fixture
def fp16_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs compute in fp16 as on a GPU, with a scale that overflows at first and again every few steps."""
    monkeypatch.setattr(prepare_module, "resolve", lambda *args: "fp16")
    monkeypatch.setattr(prepare_module, "_require_scale", lambda *args: None)
    scaler = partial(torch.amp.GradScaler, init_scale=2.0**24, growth_interval=3, growth_factor=8.0)
    monkeypatch.setattr(torch.amp, "GradScaler", scaler)


@pytest.mark.usefixtures("fp16_on_a_cpu")
def test_an_fp16_run_goes_on_with_its_scale_and_counts_skipped_steps(
    tmp_path: Path, do_run: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = Step.__call__, []

    def signalling(self: Step, *args):
        calls.append(None)
        if len(calls) == 15:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, *args)

    do_run(tmp_path / "whole", "epochs=1", "eval=[]")
    monkeypatch.setattr(Step, "__call__", signalling)
    assert do_run(tmp_path / "stopped", "epochs=1", "eval=[]") == 128 + signal.SIGTERM
    assert do_run(tmp_path / "stopped", "epochs=1", "eval=[]") == 0
    assert timeless_results(tmp_path / "stopped") == timeless_results(tmp_path / "whole")
    lines, results = timeless_results(tmp_path / "whole")
    skipped = [line["train/skipped_steps"] for line in lines if "train/lr" in line]
    assert skipped[-1] == results["train/skipped_steps"]
    assert 0 < skipped[14] < skipped[-1] < results["train/steps"]
    assert [line["train/grad_norm"] is None for line in lines if "train/lr" in line] == list(np.diff([0, *skipped]) > 0)


@pytest.mark.usefixtures("fp16_on_a_cpu")
def test_an_fp16_run_that_skips_every_step_has_diverged(
    tmp_path: Path, do_run: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "MOST_SKIPPED", 8)
    monkeypatch.setattr(torch.amp, "GradScaler", partial(torch.amp.GradScaler, init_scale=2.0**60, backoff_factor=0.9))
    with pytest.raises(RunError, match=r"diverged at step 9: the loss is 6\..* and the gradient norm (inf|nan)"):
        do_run(tmp_path / "run")
