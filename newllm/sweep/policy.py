"""How a launcher goes about its runs: what it does about failures, and which it packs."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Policy:
    """How failures are met, and how many runs train together.

    Args:
        retries: further attempts of a run that failed.
        fail_fast: the first failure (after its retries) stops the sweep; running ones save and end.
        canary: one run goes first, alone; the others start when it is done.
        pack: so many runs that differ in seeds or real numbers only train in one process as one batched model;
            "auto": as many as are measured to pay. None: each has a process of its own.
    """

    retries: int = 0
    fail_fast: bool = False
    canary: bool = False
    pack: int | Literal["auto"] | None = None
