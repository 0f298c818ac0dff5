"""Prints the plan of a sweep with the cost of each run: parameters counted on the meta device, time estimated from
finished runs."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.text import Text

from newllm.config.groups import groups, parts_of, stages
from newllm.errors import ConfigError
from newllm.store.run_directory import RunDirectory
from newllm.sweep.check import PARTS, count_parameters, seedless
from newllm.sweep.plan import Plan, PlannedRun
from newllm.sweep.table import aligned, duration, plural

_STAGES = tuple(group for stage in stages() for group in (stage, *parts_of(stage)))
_SIMILAR = (  # groups in which a finished run must equal a planned one, strictest first; the first match gives the time
    tuple(group.name for group in groups().values() if group.numbers),
    (*PARTS, *_STAGES, "eval"),
    (*PARTS, *_STAGES),
    ("model", *_STAGES),
)


def show(plan: Plan, whole: bool, console: Console | None = None) -> None:
    """Print one line about the plan; with `whole`, also every run with its estimated cost, and the totals."""
    console = console or Console(highlight=False)
    if whole:
        _show_runs(plan, console)
    console.print(Text(summary(plan)), soft_wrap=True)
    for run in plan.runs:
        if run.state == "unreadable" and run.known is not None:
            console.print(Text(f"{run.path.name} is skipped: {run.known.error}"), soft_wrap=True)


def summary(plan: Plan) -> str:
    """``36 combinations are 15 distinct runs: 3 done, 12 new; 12 to do. Folder: outputs/sweeps``"""
    number = len(plan.runs)
    first = plural(number, "run")
    if plan.asked != number:
        first = f"{plan.asked:,} combinations are {plural(number, 'distinct run')}"
    counts = Counter(run.state for run in plan.runs)
    states = ", ".join(f"{count:,} {state}" for state, count in sorted(counts.items()))
    others = sum(run.known is not None and run.known.attended for run in plan.runs)
    elsewhere = f" {others:,} of them belong to a launcher that is already running." if others else ""
    return f"{first}: {states}; {len(plan.wanted):,} to do.{elsewhere} Folder: {plan.sweep}"


class Estimates:
    """Estimates the cost of runs from similar finished runs.

    Args:
        folders: where to look for finished runs.
    """

    def __init__(self, folders: Iterable[Path]) -> None:
        self._rates: dict[tuple[str, ...], list[float]] = defaultdict(list)  # wall seconds per unit of work
        self._parameters: dict[tuple[str, ...], int] = {}
        for folder in dict.fromkeys(folders):
            for path in folder.glob("*/results.json"):
                try:
                    self._learn(RunDirectory(path.parent))
                except (ConfigError, KeyError, TypeError):  # a run from another version
                    continue

    def parameters(self, config: Mapping[str, Any]) -> int | None:
        """Number of parameters; None if the vocabulary size is known only once the tokenizer is read."""
        data, key = config["data"], _key(config, PARTS)
        vocabulary = config["model"].get("vocab_size")
        if not vocabulary and data.get("tokenizer") in (None, "auto"):
            vocabulary = data.get("vocab_size")
        if vocabulary:
            key = (*key, str(data["seq_len"]), str(vocabulary))
            if key not in self._parameters:
                self._parameters[key] = count_parameters(config, int(vocabulary))
        return self._parameters.get(key)

    def seconds(self, config: Mapping[str, Any]) -> float | None:
        """Wall time of similar finished runs, scaled by training tokens; None if there are none.

        Prefers runs that differ only in the seed, then runs with the same model, encoding and attention, then runs
        with the same model.
        """
        if not self._rates:
            return None
        rates = next(filter(None, (self._rates.get(_key(config, groups)) for groups in _SIMILAR)), None)
        return fmean(rates) * _work(config) if rates else None

    def _learn(self, directory: RunDirectory) -> None:
        config, results = directory.config(), directory.results()
        rate = results["speed/wall_seconds"] / _work(config)
        self._parameters.setdefault(_key(config, PARTS), int(results["params/total"]))
        for names in _SIMILAR:
            self._rates[_key(config, names)].append(rate)


def _show_runs(plan: Plan, console: Console) -> None:
    estimates = Estimates([plan.sweep, Path("outputs/runs")])
    times = [estimates.seconds(run.config) for run in plan.runs]
    columns = _columns(plan.runs)
    rows = [["run", *columns, "state", "parameters", "time"]]
    for number, (run, seconds) in enumerate(zip(plan.runs, times, strict=True)):
        parameters = estimates.parameters(run.config)
        cells = [_value(run.config, column) for column in columns]
        rows.append([str(number), *cells, run.state, f"{parameters:,}" if parameters else "?", duration(seconds)])
    heading, *lines = aligned(rows, {*columns, "state"})
    console.out(heading, style="bold", highlight=False)
    console.out("\n".join(lines), highlight=False)
    todo = [seconds for run, seconds in zip(plan.runs, times, strict=True) if run.wanted]
    known = [seconds for seconds in todo if seconds is not None]
    if known:
        missing = f", and {len(todo) - len(known)} of unknown time" if len(known) < len(todo) else ""
        console.print(f"One after another: {duration(sum(known))} by the speed of finished runs{missing}.")


def _columns(runs: tuple[PlannedRun, ...]) -> list[str]:
    """Model, encoding and attention; other choices and overridden keys that differ; the seed."""
    names = dict.fromkeys(group for run in runs for group in run.config["choices"])
    choices = [*PARTS, *(name for name in names if name not in PARTS and _differs(runs, name))]
    keys = dict.fromkeys(str(line).partition("=")[0] for run in runs for line in run.config["overrides"])
    given = [key for key in keys if key not in names and key != "seed" and _differs(runs, key)]
    return [*choices, *given, *(["seed"] if runs and "seed" in runs[0].config else [])]


def _differs(runs: tuple[PlannedRun, ...], key: str) -> bool:
    return len({_value(run.config, key) for run in runs}) > 1


def _value(config: Mapping[str, Any], key: str) -> str:
    if key in config["choices"]:
        chosen = config["choices"][key]
        return "+".join(map(str, chosen)) if isinstance(chosen, list) else str(chosen or "")
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _key(config: Mapping[str, Any], names: Iterable[str]) -> tuple[str, ...]:
    """The nodes of these groups as texts, equal for runs that differ only in seeds."""
    return tuple(json.dumps(seedless(config.get(name)), sort_keys=True) for name in names)


def _work(config: Mapping[str, Any]) -> float:
    """A number proportional to the training tokens."""
    trainer, data = config["trainer"], config["data"]
    rows = data.get("samples") or data.get("documents") or 1
    return float(trainer.get("tokens") or rows * data["seq_len"] * (trainer.get("epochs") or 1))
