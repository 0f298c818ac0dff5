"""The losses of all windows, length by length; a length that fails leaves the others."""

import math
import time
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch

from newllm.evaluation.extrapolation.windows import Windows, by_position, mean
from newllm.evaluation.memory import free_bytes, gigabytes, row_bytes
from newllm.evaluation.subject import Subject, Table


@dataclass(frozen=True)
class Part:
    """Windows of one length, and what is asked with them."""

    protocol: Literal["slices", "tail", "sliding"]
    windows: Windows


@dataclass(frozen=True)
class Measured:
    """What came of a part: its numbers, or why it failed.

    numbers: tokens scored, loss, se, ppl, bytes of text, bits_per_byte. by_position: of slices, the mean loss by tokens
    of context.
    """

    part: Part
    seconds: float
    failed: str = ""
    numbers: dict[str, Any] = field(default_factory=dict)
    by_position: Table = field(default_factory=list)

    @property
    def ppl(self) -> float:
        return float(self.numbers["ppl"])

    @property
    def failure(self) -> str:
        return f"{self.part.protocol} of {self.part.windows.length:,} tokens: {self.failed}"

    def row(self) -> dict[str, Any]:
        """Its line in tables/extrapolation.csv. Times are left out: what a table holds repeats to the bit."""
        windows = self.part.windows
        row = {"length": windows.length, "protocol": self.part.protocol, "chunks": len(windows)}
        return {**row, **self.numbers, "failed": self.failed}


def measure(subject: Subject, parts: list[Part]) -> list[Measured]:
    """All parts in their order. Windows that the part before has read, and scored as far, are not read again."""
    done: list[Measured] = []
    before: tuple[Windows, np.ndarray] | None = None
    for part in parts:
        began = time.perf_counter()
        failed = ""
        if before is not None and before[0].cover(part.windows):
            losses: np.ndarray | None = before[1][:, -part.windows.scored :]
        else:
            losses, failed = _losses(subject, part.windows)
        if losses is None:
            done.append(Measured(part, time.perf_counter() - began, failed))
            continue
        before = part.windows, losses
        numbers = _numbers(losses, _bytes(subject, part.windows))
        bins = [{"length": part.windows.length, **row} for row in by_position(losses)]
        seconds = time.perf_counter() - began
        done.append(Measured(part, seconds, "", numbers, bins if part.protocol == "slices" else []))
    return done


def _losses(subject: Subject, windows: Windows) -> tuple[np.ndarray | None, str]:
    """The windows' losses [N, scored], or why there are none."""
    needed, free = row_bytes(subject.model, windows.length), free_bytes(subject.device)
    if free is not None and needed > free:  # trying would have the system kill the process, and all numbers with it
        return None, f"a row takes about {gigabytes(needed)} and {gigabytes(free)} are free on {subject.device}"
    try:
        with subject.at_length(windows.length):
            losses = windows.losses(subject)
    except (MemoryError, RuntimeError) as error:  # torch reports memory that runs out as either
        if subject.device.type == "cuda":
            torch.cuda.empty_cache()
        return None, (str(error) or type(error).__name__).splitlines()[0]
    if not np.isfinite(losses).all():
        return None, "its loss is not finite"
    return losses, ""


def _numbers(losses: np.ndarray, text_bytes: int) -> dict[str, Any]:
    loss, se = mean(losses)
    bits = loss * losses.size / math.log(2)
    return {
        "tokens": losses.size,
        "loss": loss,
        "se": se,
        "ppl": math.exp(loss),
        "bytes": text_bytes,
        "bits_per_byte": bits / max(text_bytes, 1),
    }


def _bytes(subject: Subject, windows: Windows) -> int:
    """UTF-8 bytes of the text that the scored tokens stand for."""
    return int(subject.data.tokenizer.token_bytes[windows.targets(subject.data.val_tokens)].sum())
