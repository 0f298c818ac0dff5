"""A Python that has imported torch before it is known which code it is to run.

That takes two seconds, which a sweep spends on composing its runs in the meantime.
"""

import atexit
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from typing import IO

# The order is read byte by byte, since what follows it is for the nursery.
_BOOT = """
import json, os, sys
import torch
order = b""
while not order.endswith(b"\\n"):
    byte = os.read(0, 1)
    if not byte:
        os._exit(0)
    order += byte
environment = json.loads(order)
os.environ.update(environment)
sys.path[:0] = environment.get("PYTHONPATH", "").split(os.pathsep)
from newllm.sweep.prefork import main
main()
"""


class Warm:
    """One such process. What it writes to stderr is in the file `stderr`, which has no name."""

    def __init__(self) -> None:
        self.stderr: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (of the process's own lifetime)
        # More threads than one would already be there when workers are forked; they get their number then.
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", _BOOT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.stderr,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            start_new_session=True,
            bufsize=0,
        )

    def become_nursery(self, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
        """Have it run newllm.sweep.prefork with this environment, PYTHONPATH first of all."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # it has died, as whoever reads from it will see
            self.process.stdin.write(json.dumps({**environment, "OMP_NUM_THREADS": "1"}).encode() + b"\n")
        return self.process


_waiting: list[Warm] = []


def begin() -> None:
    """Start one that `take` will hand out; if nobody takes it, it ends with this process."""
    _waiting.append(Warm())
    atexit.register(_end)


def _end() -> None:
    while _waiting:
        _waiting.pop().process.kill()


def take() -> Warm:
    """The one that has been begun, or a new one."""
    return _waiting.pop() if _waiting else Warm()
