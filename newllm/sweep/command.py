"""`newllm train -m …` and `hydra/launcher=…`: plan the runs, freeze them, hand them to the launcher."""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from newllm.build import build
from newllm.config.axes import referenced, unused_axis_error
from newllm.config.compose import Composed, Job, catalog_for, compose_many, composed_choices, labels_of, with_values
from newllm.config.grid import combinations
from newllm.config.groups import group_of
from newllm.config.identity import resolved, safe_name, slug
from newllm.config.overrides import Overrides, parse
from newllm.config.values import convert_options
from newllm.errors import ConfigError
from newllm.store.intact import sha256
from newllm.store.output_folder import check_run_folder, check_sweep_folder
from newllm.sweep.check import build_all, parts
from newllm.sweep.launches import Policy, choosing
from newllm.sweep.local import discard_warm, warm_up
from newllm.sweep.packing import require_packable
from newllm.sweep.plan import Plan, by_signature, own_folder, plan

_PLANNING = ("seeds", "grids", "zip", "only")  # options that say which runs there are


class Sweep:
    """The node `sweep` of the configuration.

    Args:
        seeds: number of seeds; N is the same as seed=1,2,…,N.
        grids: mappings of keys to values; the sweep has all combinations of each grid. Values are a list, or a text as
            on the command line (``1,2`` or ``range(1,4)``). Keys on the command line override those of a grid.
        zip: mappings of keys to lists of equal length that vary together, in every grid. A grid may have its own
            `zip`.
        only: number of the wanted run in the plan, or a list of numbers.
        dry_run: show the plan and start nothing.
        skip_invalid: leave out runs that cannot be built, instead of refusing the sweep.
        rerun: which ended runs to run again. "failed": failed runs resume from their last checkpoint; "none": no run;
            "all": all are trained afresh. Interrupted runs resume in any case.
        retries, fail_fast, canary, pack: see `Policy`.
    """

    def __init__(
        self,
        seeds: int | None = None,
        grids: list[dict[str, Any]] | None = None,
        zip: list[dict[str, Any]] | None = None,
        only: int | list[int] | None = None,
        dry_run: bool = False,
        skip_invalid: bool = False,
        rerun: Literal["failed", "none", "all"] = "failed",
        retries: int = 0,
        fail_fast: bool = False,
        canary: bool = False,
        pack: int | Literal["auto"] | None = None,
    ) -> None:
        for name, value, least, example in (("seeds", seeds, 1, 5), ("retries", retries, 0, 2), ("pack", pack, 1, 4)):
            if isinstance(value, int) and value < least:
                raise ConfigError(f"{name} must be at least {least}; {value} was given, try {name}={example}")
        self.seeds, self.grids, self.zip = seeds, grids or [], zip or []
        self.only = [only] if isinstance(only, int) else only
        self.dry_run, self.skip_invalid, self.rerun = dry_run, skip_invalid, rerun
        self.policy = Policy(retries, fail_fast, canary, pack)


@dataclass(frozen=True)
class Request:
    """What a command line asks for: the runs, the options of the sweep, the launcher, and the output folder.

    name: of the sweep's own folder in `folder`; None if `folder` holds the runs.
    """

    runs: list[Job]
    settings: Sweep
    launcher: Mapping[str, Any]
    folder: Path
    name: str | None
    labels: Mapping[str, Any]
    run_dir: str | None

    @contextmanager
    def plan(self, to_start: bool) -> Iterator[Plan]:
        """The plan. to_start: hold the locks of the folders within this block, so that no other launcher takes them."""
        distinct = by_signature(run.config for run in self.runs)
        with ExitStack() as held:
            folder = self.folder
            if self.name is not None:
                if to_start:
                    held.enter_context(_locked(folder))
                folder = own_folder(folder, self.name, distinct)
            if to_start:
                held.enter_context(_locked(folder))
            settings = self.settings
            yield plan(distinct, folder, settings.rerun, settings.only, self.run_dir, len(self.runs))


def run_sweep(
    overrides: Sequence[str], *, config_dir: str | Path | None = None, several: bool = True
) -> tuple[Plan, int]:
    """Plan and execute the runs of a command line; returns the plan, with the states before it, and the exit status.

    several: -m was given.
    """
    if not any(line.startswith(("dry_run=", "sweep.dry_run=", "hydra/launcher=")) for line in overrides):
        warm_up()
    try:
        return _plan_and_start(overrides, config_dir, several)
    finally:
        discard_warm()


def _plan_and_start(overrides: Sequence[str], config_dir: str | Path | None, several: bool) -> tuple[Plan, int]:
    from newllm.sweep.plan_table import show

    request = read(overrides, config_dir=config_dir, several=several)
    launcher: Any = build(convert_options(request.launcher, "hydra.launcher"), object)
    if request.run_dir:
        check_run_folder(request.run_dir, request.runs[0].config)
    elif several and request.name is None:
        check_sweep_folder(request.folder, (run.config for run in request.runs))
    with request.plan(to_start=not request.settings.dry_run) as planned:
        if request.settings.dry_run:
            planned = planned.without(
                build_all(parts(run.config for run in planned.wanted)), request.settings.skip_invalid
            )
            show(planned, whole=True)
            return planned, 0
        require_packable([run.config for run in planned.runs], request.settings.policy.pack)
        if planned.wanted:
            invalid = launcher.check(planned.sweep, [run.config for run in planned.wanted])
            planned = planned.without(invalid, request.settings.skip_invalid)
        show(planned, whole=False)
        runs = planned.freeze(afresh=request.settings.rerun == "all", labels=request.labels)
    if not runs:
        return planned, int(any(run.state in ("failed", "unreadable") for run in planned.runs))
    return planned, int(launcher.start(planned.sweep, runs, request.settings.policy))


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, which is created. If the command is refused, the folders that it created are removed,
    but not files that others have put there."""
    created = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        with choosing(folder):
            yield
    except ConfigError:
        if created:
            shutil.rmtree(folder / ".sweep", ignore_errors=True)
        with suppress(OSError):  # not empty
            for path in created:
                path.rmdir()
        raise


def read(overrides: Sequence[str], *, config_dir: str | Path | None, several: bool) -> Request:
    """Check a command line and compose all its runs. Writes nothing. Raises ConfigError if any run is wrong."""
    catalog = catalog_for(config_dir)
    given = parse(overrides, catalog, sweep=several)
    jobs: list[list[str]] = []
    for lines in _by_experiment(given):
        swept = parse(lines, catalog, sweep=several)
        composed, settings = _without_variation(swept)
        if not several:
            _refuse(_PLANNING, settings, "of sweeps, and this is a single run; add -m, or leave it out")
        if several and composed.run_dir:
            raise ConfigError("hydra.run.dir is the directory of one run; that of a sweep is hydra.sweep.dir=FOLDER.")
        both = [key for grid in settings.grids for key in grid if key in given.keys]
        if both and {"grids", "sweep.grids"} & {*given.keys}:
            raise ConfigError(f"{both[0]} is given in sweep.grids and beside it; give it in one of the two places.")
        if several:
            jobs += combinations(swept, seeds=settings.seeds, grids=settings.grids, zips=settings.zip)
        else:
            jobs.append(list(lines))
    runs = compose_many(jobs, config_dir=config_dir)
    unused_by_all = set(runs[0].unused).intersection(*(run.unused for run in runs)) & {*given.keys}
    if unused_by_all:
        raise unused_axis_error(min(unused_by_all), runs[0].config["choices"], given)
    folder, name, labels = Path(composed.sweep_dir), None, labels_of(composed.tree)
    if not several:
        folder = Path(composed.run_dir).parent if composed.run_dir else Path("outputs/runs")
    elif composed.sweep_dir == catalog.sweeps and "hydra.sweep.dir" not in given.keys:
        if "name" in labels:
            folder /= _named_folder(labels["name"])
        else:
            name = folder_name(given, settings) or slug(runs[0].config)
    launcher = _resolved("hydra.launcher", composed.tree["hydra"]["launcher"], composed.tree)
    return Request(runs, settings, launcher, folder, name, labels, composed.run_dir)


def check_for_other_sweeper(given: Overrides) -> None:
    """Raises ConfigError for a wrong name, and for options that a sweeper of Hydra or another package would ignore."""
    _, settings = _without_variation(given)
    why = "for the plan that newllm makes, and hydra/sweeper=NAME makes its own; give one of the two"
    _refuse(("dry_run", *_PLANNING), settings, why)


def _without_variation(given: Overrides) -> tuple[Composed, Sweep]:
    """The composition of what does not vary, and the options of the sweep."""
    single = parse([o.input_line or "" for o in given.parsed if not o.is_sweep_override()], given.catalog)
    composed = with_values(composed_choices(single), single, {})
    return composed, build(_resolved("sweep", composed.tree["sweep"], composed.tree), Sweep)


def _resolved(name: str, node: Mapping[str, Any], tree: Mapping[str, Any]) -> Mapping[str, Any]:
    """A node of the tree with its references resolved."""
    content: Mapping[str, Any] = resolved({**referenced(tree, node), name: node})[name]
    return content


def _refuse(names: Sequence[str], settings: Sweep, why: str) -> None:
    """Raises ConfigError if one of these options is given."""
    for name in names:
        if getattr(settings, name):
            raise ConfigError(f"{name} is {why}.")


def folder_name(given: Overrides, settings: Sweep | None = None) -> str:
    """The name of a sweep's folder: `name` if given, else its experiment and the keys that it varies, as in
    ``pos_encoding-seed``; "" if there are none."""
    if name := next((override.value() for override in given.parsed if override.key_or_group == "name"), None):
        return _named_folder(str(name))
    keys = [override.key_or_group for override in given.parsed if override.is_sweep_override()]
    experiments = [override for override in given.parsed if override.key_or_group == "experiment"]
    if settings is not None and not experiments:
        keys += [str(key) for grid in (*settings.grids, *settings.zip) for key in grid if key != "zip"]
    if settings is not None and settings.seeds is not None:
        keys.append("seed")
    keys = [key for key in keys if group_of(key.partition(".")[0]).trained]  # evaluators make no other runs
    names = [str(one.value()) for one in experiments if not one.is_sweep_override() and one.value()]
    return safe_name("-".join(dict.fromkeys([*names, *keys]))) if names or keys else ""


def _named_folder(name: str) -> str:
    """The folder's name for ``name=``: another one for each name, also where it cannot stand in a path."""
    safe = safe_name(name)
    return safe if safe == name else f"{safe}-{sha256(name)[:4]}"


def _by_experiment(given: Overrides) -> list[list[str]]:
    """One command line per experiment, since each experiment may define its own grid."""
    lines = [override.input_line or "" for override in given.parsed]
    swept = [o for o in given.parsed if o.key_or_group == "experiment" and o.is_sweep_override()]
    if not swept:
        return [lines]
    names = [line for job in combinations(Overrides((swept[0],), given.catalog)) for line in job]
    return [[name if line == swept[0].input_line else line for line in lines] for name in names]
