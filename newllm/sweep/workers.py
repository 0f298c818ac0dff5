"""The pool's workers: children of a nursery, which is started again if it dies."""

import json
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from newllm.errors import RunError
from newllm.store.atomic import write_text
from newllm.sweep.check import Part
from newllm.sweep.pool import Ended
from newllm.sweep.prefork import send_signal
from newllm.sweep.warm import take

DEATHS = 3  # of nurseries in a row, no worker having ended in between, before there is no more trying
PATIENCE = 35.0  # seconds for the workers of a dead nursery; they kill themselves a little before


class NurseryWorkers:
    """Starts the nursery at once, so that it can import while the sweep is being prepared.

    Args:
        environment: of the nursery and, with what each run adds, of the workers.
        log: where a nursery that has died leaves what it wrote to stderr.
    """

    say: Callable[[str], None]  # told in a sentence when the nursery has died

    def __init__(self, environment: Mapping[str, str], log: Path) -> None:
        self._environment = dict(environment)
        self._log, self.say = log, print
        self._deaths = 0
        self._pids: dict[int, int | None] = {}  # id -> process, once there is one
        self._orphans: dict[int, tuple[int, float]] = {}  # of a dead nursery: id -> process, when it is to be killed
        self._woken, self._waker = os.pipe()
        os.set_blocking(self._woken, False)
        os.set_blocking(self._waker, False)
        self._unread = b""
        self._selector = selectors.DefaultSelector()
        self._begin()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """Close the nursery; workers that still run save and end."""
        with suppress(BrokenPipeError):
            assert self._nursery.stdin is not None
            self._nursery.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self._nursery.wait(PATIENCE)
        self._selector.close()
        os.close(self._woken)
        os.close(self._waker)
        self._stderr.close()

    def check(self, parts: Sequence[Part]) -> str | None:
        """The sentence with which the first of these parts is refused; None if all can be built."""
        return self._ask({"id": 0, "check": parts}).get("refused")

    def measure(
        self, runs: Sequence[Path], sizes: Sequence[int], environment: Mapping[str, str]
    ) -> tuple[str | None, list[float]]:
        """The sentence with which these runs cannot be packed, if so, and else how many steps of runs a second takes
        in packs of each of these sizes."""
        answer = self._ask(
            {"id": 0, "measure": [str(run.resolve()) for run in runs], "sizes": list(sizes), "env": dict(environment)}
        )
        return answer.get("refused"), answer.get("speeds") or []

    def _ask(self, request: Mapping[str, object]) -> dict[str, Any]:
        """What the nursery answers, while nothing else is under way; nothing if it dies: the runs will tell."""
        self._send(request)
        while not self._dead:
            self._selector.select()
            for answer in self._answers():
                return answer
        self._mourn()
        return {}

    def start(self, number: int, runs: Sequence[Path], environment: Mapping[str, str]) -> None:
        if self._dead:
            if self._deaths >= DEATHS:
                raise RunError(f"The process that starts runs has died {DEATHS} times{self._why()}")
            self._begin()
        self._pids[number] = None
        self._send({"id": number, "runs": [str(run.resolve()) for run in runs], "env": dict(environment)})

    def signal(self, number: int, signum: int) -> None:
        if not (self._ready or self._dead):  # it imports, and would hear of it only when it has done so
            self._nursery.kill()
            return
        self._send({"id": number, "signal": int(signum)})
        if number in self._orphans:
            send_signal(self._orphans[number][0], signum)

    def wake(self) -> None:
        with suppress(OSError):  # full: it has been woken
            os.write(self._waker, b".")

    def wait(self, seconds: float) -> list[Ended]:
        if ends := self._bury():
            return ends
        for key, _ in self._selector.select(min(seconds, 0.1) if self._orphans else seconds):
            if key.fd == self._woken:
                os.read(self._woken, 4096)
                continue
            for answer in self._answers():
                if "pid" in answer:
                    self._pids[answer["id"]] = answer["pid"]
                else:
                    del self._pids[answer["id"]]
                    self._deaths = 0
                    ends.append(Ended(answer["id"], answer["status"]))
            if self._dead:
                ends += self._mourn()
        return ends

    def _answers(self) -> list[dict[str, Any]]:
        """What the nursery says now; nothing if it is dead."""
        assert self._nursery.stdout is not None
        got = os.read(self._nursery.stdout.fileno(), 1 << 16)
        if not got:
            self._dead = True
            return []
        *lines, self._unread = (self._unread + got).split(b"\n")
        self._ready = True
        return [json.loads(line) for line in lines]

    def _begin(self) -> None:
        warm = take()
        self._nursery, self._stderr = warm.become_nursery(self._environment), warm.stderr
        self._dead, self._ready, self._unread = False, False, b""
        self._selector.close()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._woken, selectors.EVENT_READ)
        assert self._nursery.stdout is not None
        self._selector.register(self._nursery.stdout.fileno(), selectors.EVENT_READ)

    def _send(self, request: Mapping[str, object]) -> None:
        assert self._nursery.stdin is not None
        with suppress(BrokenPipeError):  # it has died, as `wait` will see
            self._nursery.stdin.write(json.dumps(request).encode() + b"\n")

    def _mourn(self) -> list[Ended]:
        """The nursery is dead. Its workers have noticed by the end of their pipe, and have some time to save; those
        that it had not begun yet have ended."""
        status = self._nursery.wait()
        self._deaths += 1
        self._selector.close()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._woken, selectors.EVENT_READ)
        deadline = time.monotonic() + PATIENCE
        self._orphans |= {number: (pid, deadline) for number, pid in self._pids.items() if pid is not None}
        unborn = [Ended(number, None) for number, pid in self._pids.items() if pid is None]
        self._pids.clear()
        next_steps = "runs under way save and go on in a new one" if self._orphans else "another one may do better"
        if status == -signal.SIGKILL and not self._ready:  # our own doing, most likely
            return unborn
        how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        self.say(f"The process that starts runs {how}; {next_steps}.")
        return unborn

    def _why(self) -> str:
        """The last line on stderr of nurseries that died, and where all of it is."""
        self._stderr.seek(0)
        text = self._stderr.read().decode(errors="replace").strip()
        if not text:
            return ""
        write_text(self._log, text + "\n")
        return f" ({text.splitlines()[-1]}); {self._log} tells more"

    def _bury(self) -> list[Ended]:
        """Those of dead nurseries' workers that have ended by now."""
        for pid, deadline in self._orphans.values():
            if time.monotonic() > deadline:
                send_signal(pid, signal.SIGKILL)
        ended = [number for number, (pid, _) in self._orphans.items() if not _alive(pid)]
        for number in ended:
            del self._orphans[number]
        return [Ended(number, None) for number in ended]


def _alive(pid: int) -> bool:
    """Does a process that is nobody's child here still run? One that nobody has waited for does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    return True
