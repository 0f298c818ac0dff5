"""The options of `sweep`: which runs to do, and how."""

from typing import Any, Literal

from newllm.errors import ConfigError
from newllm.sweep.launches import Policy


class Sweep:
    """The node `sweep` of the configuration.

    Args:
        seeds: number of seeds; N is the same as seed=1,2,…,N.
        grids: mappings of keys to values; each stands for all combinations of its values, and the sweep has the runs
            of all grids. Values are a list, or a text as on the command line (``1,2`` or ``range(1,4)``).
            Keys on the command line override those of a grid.
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
        if seeds is not None and seeds < 1:
            raise ConfigError(f"seeds must be at least 1; {seeds} was given, try seeds=5")
        if retries < 0:
            raise ConfigError(f"retries must be at least 0; {retries} was given, try retries=2")
        if isinstance(pack, int) and pack < 1:
            raise ConfigError(f"pack must be at least 1, auto or null; {pack} was given, try pack=4")
        self.seeds, self.grids, self.zip, self.only = seeds, grids or [], zip or [], only
        self.dry_run, self.rerun = dry_run, rerun
        self.policy = Policy(retries, fail_fast, canary, pack)
