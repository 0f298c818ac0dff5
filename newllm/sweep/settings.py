"""The options of `sweep`: which runs there are, and how they are done."""

from typing import Any, Literal

from newllm.errors import ConfigError
from newllm.sweep.launches import Policy


class Sweep:
    """What the key `sweep` of the configuration says.

    Args:
        seeds: so many seeds, 1, 2, …; the same as seed=1,2,….
        grids: mappings of keys to values; each stands for all combinations of its values, and the sweep has the runs
            of all grids. A list gives values; a text is read as on the command line (``1,2`` or ``range(1,4)``).
            Keys given on the command line take the place of a grid's.
        zip: mappings of keys to lists of equal length whose values go in step, on every grid. A grid may have a
            `zip` of its own.
        only: numbers, in the plan, of the runs that are wanted.
        dry_run: show the plan and start nothing.
        rerun: which of the runs that have ended are run again. "failed": those that failed go on from their last
            checkpoint; "none": no run; "all": all are trained afresh. Interrupted runs go on in any case.
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
