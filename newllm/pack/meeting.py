"""Packed runs: ordinary runs in threads of their own, which meet before each training step to make it together."""

import signal
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import FrameType

from omegaconf import DictConfig

from newllm.errors import Interrupted
from newllm.pack.packed_step import PackedStep, StepRequest
from newllm.run.execute import execute
from newllm.training.signals import Signals, handling
from newllm.training.step import Numbers, Piece, Step

_POLL_SECONDS = 0.5  # between two checks for runs to be cancelled


def run_packed(
    configs: Sequence[DictConfig], cancelled: Callable[[int], bool] = lambda number: False
) -> list[int | BaseException]:
    """Do the runs, making their training steps together; returns the exit status of each, or the error it raised.

    When a run ends, for whatever reason, the others go on. An error in a common step fails all runs that take part.
    A signal stops all of them, each at its next step or evaluator; a run whose number is `cancelled` is stopped alone,
    as by SIGTERM. The main thread only waits for signals and cancellations.
    """
    meeting = Meeting(len(configs))
    signals = [Signals() for _ in configs]
    ends: list[int | BaseException] = [0] * len(configs)

    def work(number: int) -> None:
        meeting.await_turn(number)
        try:
            signals[number].check()
            ends[number] = execute(configs[number], signals[number], _Seat(meeting, number, len(configs) - 1))
        except Interrupted as stop:  # before the run has begun: it stays queued
            ends[number] = stop.exit_status
        except BaseException as error:
            ends[number] = error
        finally:
            meeting.leave(number)

    def stop_all(signum: int, frame: FrameType | None) -> None:
        for one in signals:
            one.note(signum)

    threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(len(configs))]
    with handling(stop_all):
        for thread in threads:
            thread.start()
        meeting.pass_turn()
        while alive := [thread for thread in threads if thread.is_alive()]:
            alive[0].join(_POLL_SECONDS)
            for number, thread in enumerate(threads):
                if thread.is_alive() and cancelled(number):
                    signals[number].note(signal.SIGTERM)
    return ends


class Meeting:
    """Where packed runs wait for each other before a training step; the last one to arrive makes the steps of all.

    The runs take turns: only one of their threads works at a time, in the order of the runs. So a pack always does the
    same things in the same order, and no run takes cores from another.
    """

    def __init__(self, runs: int) -> None:
        self._turns = [threading.Semaphore(0) for _ in range(runs)]
        self._present = list(range(runs))  # runs that have not ended
        self._requests: dict[int, StepRequest] = {}
        self._results: dict[int, Numbers | BaseException] = {}
        self._packed_step = PackedStep()

    def await_turn(self, number: int) -> None:
        self._turns[number].acquire()

    def pass_turn(self) -> None:
        """Give the turn to the first run that has not requested a step; once all have, make the steps first."""
        if self._requests and len(self._requests) == len(self._present):
            try:
                numbers = self._packed_step(list(self._requests.values()))
                self._results = dict(zip(self._requests, numbers, strict=True))
            except BaseException as error:  # each run writes to its own directory how it ended
                self._results = dict.fromkeys(self._requests, error)
            self._requests = {}
        if waiting := [number for number in self._present if number not in self._requests]:
            self._turns[waiting[0]].release()

    def make_step(self, number: int, request: StepRequest) -> Numbers:
        """Wait until all runs that have not ended request a step; returns the numbers of this run's step."""
        self._requests[number] = request
        self.pass_turn()
        self.await_turn(number)
        result = self._results.pop(number)
        if isinstance(result, BaseException):
            raise result
        return result

    def leave(self, number: int) -> None:
        """The run has ended."""
        self._present.remove(number)
        self.pass_turn()


@dataclass
class _Seat:
    """A run's place at the meeting: its `StepMaker`."""

    meeting: Meeting
    number: int
    others: int

    def __call__(self, step: Step, pieces: list[Piece], rate: float) -> Numbers:
        return self.meeting.make_step(self.number, StepRequest(step, pieces, rate))
