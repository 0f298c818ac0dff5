"""The options of `sweep`: which runs to do, and how."""

from typing import Any, Literal

from newllm.errors import ConfigError
from newllm.sweep.launches import Policy


class Sweep:
    """The node `sweep` of the configuration.

    Args:
        seeds: number of seeds; N is the same as seed=1,2,…,N.
        grids: mappings of keys to values; the sweep has all combinations of each grid. Values are a list, or a text as
            on the command line (``1,2`` or ``range(1,4)``). Keys on the command line override those of a grid.
        zip: mappings of keys to lists of equal length that vary together, in every grid. A grid may have its own
            `zip`.
        only: numbers of the wanted runs in the plan.
        dry_run: show the plan and start nothing.
        rerun: which ended runs to run again. "failed": failed runs resume from their last checkpoint; "none": no run;
            "all": all are trained afresh. Interrupted runs resume in any case.
        retries, fail_fast, canary, pack: see `Policy`.
    """

    def __init__(
        self,
        seeds: int | None = None,
        grids: list[dict[str, Any]] | None = None,
        zip: list[dict[str, Any]] | None = None,
        only: list[int] | None = None,
        dry_run: bool = False,
        rerun: Literal["failed", "none", "all"] = "failed",
        retries: int = 0,
        fail_fast: bool = False,
        canary: bool = False,
        pack: int | Literal["auto"] | None = None,
    ) -> None:
        for name, value, least, example in (("seeds", seeds, 1, 5), ("retries", retries, 0, 2), ("pack", pack, 1, 4)):
            if isinstance(value, int) and value < least:
                raise ConfigError(f"{name} must be at least {least}; {value} was given, try {name}={example}")
        self.seeds, self.grids, self.zip, self.only = seeds, grids or [], zip or [], only
        self.dry_run, self.rerun = dry_run, rerun
        self.policy = Policy(retries, fail_fast, canary, pack)
