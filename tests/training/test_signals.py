"""Signals at the very end: while a stopped run unwinds, and while the process ends."""

import signal
import subprocess
import sys

import pytest

from newllm.errors import Interrupted
from newllm.training.signals import Signals


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR2])
def test_a_signal_while_a_stopped_run_unwinds_changes_nothing(second: signal.Signals) -> None:
    unwound = []

    def stop() -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        finally:
            try:
                raise KeyError
            except KeyError:
                signal.raise_signal(second)
            unwound.append(True)

    with Signals().installed(), pytest.raises(Interrupted, match="Stopped by Ctrl-C"):
        stop()
    assert unwound


def test_a_signal_after_the_command_keeps_its_status() -> None:
    script = """if True:
        import atexit, signal
        from newllm.errors import run_command
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
            atexit.register(signal.raise_signal, signum)
        raise SystemExit(run_command(lambda words: 0, None))
    """
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
