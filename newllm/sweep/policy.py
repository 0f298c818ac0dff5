"""What a launcher does about failures."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Policy:
    """How failures are met.

    Args:
        retries: further attempts of a run that failed.
        fail_fast: the first failure (after its retries) stops the sweep; running ones save and end.
        canary: one run goes first, alone; the others start when it is done.
    """

    retries: int = 0
    fail_fast: bool = False
    canary: bool = False
