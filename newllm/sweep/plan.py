"""The distinct runs of a sweep, the state of each, and which of them are still to do."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from newllm.config.groups import groups
from newllm.config.identity import path_fingerprint, signature, slug
from newllm.errors import ConfigError
from newllm.store.run_directory import RunDirectory
from newllm.sweep.run_names import signature_in
from newllm.sweep.state import RunState, read_states

Rerun = Literal["failed", "none", "all"]


@dataclass(frozen=True)
class PlannedRun:
    """One distinct run of a sweep. known: the state of its directory; `new` if there is none."""

    config: Mapping[str, Any]  # effective
    signature: str
    path: Path
    known: RunState
    wanted: bool

    @property
    def state(self) -> str:
        return self.known.state


@dataclass(frozen=True)
class Plan:
    """The distinct runs of a sweep. combinations: how many there were before duplicates were removed."""

    sweep: Path
    combinations: int
    runs: tuple[PlannedRun, ...]

    @property
    def wanted(self) -> list[PlannedRun]:
        return [run for run in self.runs if run.wanted]

    def freeze(self, afresh: bool = False) -> list[Path]:
        """Queue the wanted runs on disk; returns their directories. afresh: delete their earlier results first."""
        for run in self.wanted:
            directory = RunDirectory(run.path)
            if afresh:
                directory.clear()
            directory.freeze(_with_absolute_paths(run.config))
        return [run.path for run in self.wanted]


def plan(
    configs: Sequence[Mapping[str, Any]],
    sweep: Path,
    rerun: Rerun = "failed",
    only: Sequence[int] | None = None,
    run_dir: str | None = None,
) -> Plan:
    """The distinct runs in the order given, matched by signature to the directories in the folder `sweep`.

    Runs that another process works on, or that wait for another launcher, are not wanted.

    Args:
        configs: effective configurations.
        only: numbers of the wanted runs; None: all.
        run_dir: the directory of a single run, if the user named it.
    """
    fingerprint = cache(path_fingerprint)  # read once for all runs
    distinct: dict[str, Mapping[str, Any]] = {}
    for config in configs:
        distinct.setdefault(signature(config, fingerprint), config)
    wrong = [number for number in only or [] if not 0 <= number < len(distinct)]
    if wrong:
        raise ConfigError(
            f"only={list(only or [])}: there is no run {wrong[0]}; the plan numbers them 0 to {len(distinct) - 1}."
        )
    folders = sorted(sweep.iterdir(), reverse=True) if sweep.is_dir() else []
    existing = {signature_in(folder.name): folder for folder in folders}
    paths = {
        mark: Path(run_dir) if run_dir else existing.get(mark, sweep / f"{slug(config)}-{mark}")
        for mark, config in distinct.items()
    }
    begun = [path for path in paths.values() if (path / "status.json").exists()]
    states = {Path(run.path): run for run in read_states(sweep, begun)}
    runs = []
    for number, (mark, config) in enumerate(distinct.items()):
        path = paths[mark]
        known = states.get(path) or RunState(path.name, str(path), "new")
        ended = known.state in ("done", "unreadable") or (known.state == "failed" and rerun == "none")
        wanted = not known.attended and (rerun == "all" or not ended) and (only is None or number in only)
        runs.append(PlannedRun(config, mark, path, known, wanted))
    return Plan(sweep, len(configs), tuple(runs))


def _with_absolute_paths(config: Mapping[str, Any]) -> dict[str, Any]:
    """Make paths absolute, since a run may be resumed from another folder."""
    content = dict(config)
    for group in groups(config).values():
        node = dict(content.get(group.name) or {})
        for key in group.paths:
            if isinstance(node.get(key), str) and Path(node[key]).expanduser().exists():
                node[key] = str(Path(node[key]).expanduser().resolve())
        content |= {group.name: node} if node else {}
    return content
