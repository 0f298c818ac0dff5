"""The distinct runs of a sweep, the state of each, and which of them are still to do."""

import glob
import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

from newllm.config.content import content_hash
from newllm.config.groups import groups
from newllm.config.identity import signature, slug, varied_parts, with_content
from newllm.errors import ConfigError
from newllm.run.evaluation_plan import missing_evaluators
from newllm.store.run_directory import RunDirectory
from newllm.store.run_names import runs_in, signature_in
from newllm.suggest import listed
from newllm.sweep.state import RunState, read_states

Rerun = Literal["failed", "none", "all"]


@dataclass(frozen=True)
class PlannedRun:
    """One distinct run of a sweep. known: the state of its directory; `new` if there is none.

    missing: evaluators, with their options, that a finished run is still to be given.
    """

    config: Mapping[str, Any]  # effective
    signature: str
    path: Path
    known: RunState
    wanted: bool
    missing: Mapping[str, Any] = field(default_factory=dict)

    @property
    def state(self) -> str:
        return "to evaluate" if self.missing and self.wanted else self.known.state


@dataclass(frozen=True)
class Plan:
    """The distinct runs of a sweep. combinations: how many there were before duplicates were removed."""

    sweep: Path
    combinations: int
    runs: tuple[PlannedRun, ...]

    @property
    def wanted(self) -> list[PlannedRun]:
        return [run for run in self.runs if run.wanted]

    def without(self, invalid: Mapping[int, str], skip: bool) -> "Plan":
        """The plan in which runs that cannot be built have the state ``invalid`` and are not wanted.

        invalid: place among the wanted runs -> why. Raises ConfigError, with the choices of the first one, unless
        `skip` and others are left.
        """
        numbers = [number for number, run in enumerate(self.runs) if run.wanted]
        reasons = {numbers[place]: reason.removesuffix(".") for place, reason in invalid.items()}
        if not reasons:
            return self
        if not skip or len(reasons) == len(self.runs):
            number, reason = next(iter(reasons.items()))
            raise ConfigError(reason if len(self.runs) == 1 else self._refusal(number, reason, [*reasons]))
        runs = list(self.runs)
        for number, reason in reasons.items():
            state = replace(runs[number].known, state="invalid", error=reason)
            runs[number] = replace(runs[number], known=state, wanted=False)
        return replace(self, runs=tuple(runs))

    def _refusal(self, number: int, reason: str, invalid: Sequence[int]) -> str:
        """``run 4 (pos_encoding=rope_list, seed=1) can't be built: …``"""
        numbers = listed([*map(str, invalid)], 8)
        count = f"run {number}" if len(invalid) == 1 else f"{len(invalid)} of {len(self.runs)} runs ({numbers})"
        return (
            f"run {number} of the plan ({self.choices_of(number)}) can't be built: {reason}; skip_invalid=true or "
            f"only=… starts the sweep without {count}"
        )

    def choices_of(self, number: int) -> str:
        """The overrides of a run that not all runs have: ``pos_encoding=rope_list, seed=1``."""
        uses = Counter(line for run in self.runs for line in run.config["overrides"])
        own = [line for line in self.runs[number].config["overrides"] if uses[line] < len(self.runs)]
        return ", ".join(own) or self.runs[number].path.name

    def freeze(self, afresh: bool = False, labels: Mapping[str, Any] | None = None) -> list[Path]:
        """Queue the wanted runs on disk; returns their directories.

        afresh: delete their earlier results first. labels: of all runs, also of those that are done.
        """
        for run in self.wanted:
            directory = RunDirectory(run.path)
            if afresh:
                directory.clear()
            if run.missing:
                directory.write_config(_relocated(directory.config(), _with_absolute_paths(run.config)))
                directory.ask(run.missing)
            else:
                directory.freeze(_with_absolute_paths(run.config), labels)
        for run in self.runs if labels else ():
            if run.known.state == "done" and (run.missing or not run.wanted):
                RunDirectory(run.path).label(labels or {})
        for run in self.runs:
            failed = run.known.state == "done" and run.known.error and not run.known.attended
            if failed and not missing_evaluators(RunDirectory(run.path), run.config["eval"]):
                RunDirectory(run.path).ask({})  # not any more for the evaluators that failed
                RunDirectory(run.path).update_status(error=None, traceback=None)
        return [run.path for run in self.wanted]


def by_signature(configs: Iterable[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Signature -> effective configuration, in the order given; of equal runs the first, with the evaluators of all."""
    hash_of = cache(content_hash)  # reads each file once for all runs
    distinct: dict[str, Mapping[str, Any]] = {}
    for config in configs:
        complete = with_content(config, hash_of)
        mark = signature(complete)
        distinct[mark] = _with_evaluators(distinct[mark], complete) if mark in distinct else complete
    return distinct


def own_folder(root: Path, name: str, planned: Collection[str]) -> Path:
    """The folder for a sweep of this name and these signatures: ``root/name``, ``root/name-2``, …

    It is the one that holds most of the planned runs, so that the same command, or one with more seeds, continues
    there; a sweep that shares no run with any of them gets a new folder.
    """
    numbered = re.compile(rf"{re.escape(name)}(-\d+)?")
    folders = [folder for folder in root.glob(f"{glob.escape(name)}*") if numbered.fullmatch(folder.name)]
    taken: set[int] = set()
    best, most = None, 0
    for folder in sorted(folders, key=lambda folder: (len(folder.name), folder.name)):
        held = {signature_in(run.name) for run in runs_in(folder)}
        if (common := len(held.intersection(planned))) > most:
            best, most = folder, common
        if held or not folder.is_dir():
            taken.add(int(folder.name[len(name) + 1 :] or 1))
    number = next(number for number in range(1, len(taken) + 2) if number not in taken)
    return best or root / (name if number == 1 else f"{name}-{number}")


def plan(
    distinct: Mapping[str, Mapping[str, Any]],
    sweep: Path,
    rerun: Rerun = "failed",
    only: Sequence[int] | None = None,
    run_dir: str | None = None,
    combinations: int | None = None,
) -> Plan:
    """These runs, matched by signature to the directories in the folder `sweep`.

    Runs that another process works on, or that wait for another launcher, are not wanted.

    Args:
        distinct: signature -> effective configuration.
        only: numbers of the wanted runs; None: all.
        run_dir: the directory of a single run, if the user named it.
        combinations: number of combinations typed, if some of them are the same run.
    """
    wrong = [number for number in only or [] if not 0 <= number < len(distinct)]
    if wrong:
        raise ConfigError(
            f"only={list(only or [])}: there is no run {wrong[0]}; the plan numbers them 0 to {len(distinct) - 1}."
        )
    folders = sorted(sweep.iterdir(), reverse=True) if sweep.is_dir() else []
    existing = {signature_in(folder.name): folder for folder in folders}
    parts: Sequence[Mapping[str, str] | None] = varied_parts([*distinct.values()]) if len(distinct) > 1 else [None]
    paths = {
        mark: Path(run_dir) if run_dir else existing.get(mark, sweep / f"{slug(config, varied)}-{mark}")
        for (mark, config), varied in zip(distinct.items(), parts, strict=False)
    }
    begun = [path for path in paths.values() if (path / "status.json").exists()]
    states = {Path(run.path): run for run in read_states(sweep, begun)}
    runs = []
    for number, (mark, config) in enumerate(distinct.items()):
        path = paths[mark]
        known = states.get(path) or RunState(path.name, str(path), "new")
        missing: dict[str, Any] = {}
        if known.state == "done" and rerun == "failed":
            missing = missing_evaluators(RunDirectory(path), config["eval"])
        ended = known.state in ("done", "unreadable") or (known.state == "failed" and rerun == "none")
        to_do = rerun == "all" or not ended or bool(missing)
        wanted = not known.attended and to_do and (only is None or number in only)
        runs.append(PlannedRun(config, mark, path, known, wanted, missing if wanted else {}))
    return Plan(sweep, combinations or len(distinct), tuple(runs))


def _with_evaluators(one: Mapping[str, Any], other: Mapping[str, Any]) -> Mapping[str, Any]:
    """The configuration `one` of a training with the evaluators of `other`, too.

    Raises ConfigError if they differ in the options of an evaluator.
    """
    if one["eval"] == other["eval"]:
        return one
    for name in one["eval"].keys() & other["eval"].keys():
        options, others = one["eval"][name], other["eval"][name]
        for key in options.keys() | others.keys():
            if options.get(key) != others.get(key):
                raise ConfigError(
                    f"eval.{name}.{key} has several values ({options.get(key)}, {others.get(key)}) for one training, "
                    "and evaluators make no further run; give it one value, and the finished runs others with newllm "
                    f"evaluate FOLDER 'eval=[{name}]' eval.{name}.{key}=…."
                )
    evaluators = {**one["eval"], **other["eval"]}
    names = list(dict.fromkeys([*one["choices"]["eval"], *other["choices"]["eval"]]))
    return {**one, "eval": evaluators, "choices": {**one["choices"], "eval": names}}


def _relocated(stored: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a finished run with the paths of `config`, where the same content is now."""
    moved = dict(stored)
    for key in stored.get("content") or {}:
        group, _, option = key.partition(".")
        moved[group] = {**moved[group], option: config[group][option]}
    return moved


def _with_absolute_paths(config: Mapping[str, Any]) -> dict[str, Any]:
    """Make paths absolute, since a run may be resumed from another folder."""
    content = dict(config)
    for group in groups(config).values():
        node = dict(content.get(group.name) or {})
        for key in group.paths:
            if isinstance(node.get(key), str) and os.path.exists(os.path.expanduser(node[key])):
                node[key] = str(Path(node[key]).expanduser().resolve())
        content |= {group.name: node} if node else {}
    return content
