"""Prints the plan of a sweep with the cost of each run: parameters counted on the meta device, time estimated from
finished runs."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.text import Text

from newllm.config.groups import groups, parts_of, stages
from newllm.config.identity import relevant_nodes, value_at
from newllm.console import Screen
from newllm.errors import ConfigError
from newllm.store.run_directory import RunDirectory
from newllm.store.run_names import numbered
from newllm.sweep.check import PARTS, count_parameters, seedless
from newllm.sweep.display import aligned, clock, in_words, plural
from newllm.sweep.plan import Plan, PlannedRun

_STAGES = tuple(group for stage in stages() for group in (stage, *parts_of(stage)))
_SIMILAR = (  # groups in which a finished run must equal a planned one, strictest first; the first match gives the time
    tuple(group.name for group in groups().values() if group.numbers),
    (*PARTS, *_STAGES, "eval"),
    (*PARTS, *_STAGES),
    ("model", *_STAGES),
)


def show(plan: Plan, whole: bool) -> None:
    """Print one line about the plan; with `whole`, also every run with its estimated cost, and the totals.

    The line: ``36 combinations are 15 distinct runs: 3 done, 12 new; 12 to do. Folder: outputs/sweeps/theta-seed``
    """
    console = Screen(highlight=False)
    if whole:
        _show_runs(plan, console)
    runs = plural(len(plan.runs), "run")
    if plan.combinations != len(plan.runs):
        runs = f"{plan.combinations:,} combinations are {plural(len(plan.runs), 'distinct run')}"
    states = in_words(Counter(sorted(run.state for run in plan.runs)))
    attended = sum(run.known.attended for run in plan.runs)
    elsewhere = f" {attended:,} of them belong to a launcher that is already running." if attended else ""
    lines = [f"{runs}: {states}; {len(plan.wanted):,} to do.{elsewhere} Folder: {plan.sweep}"]
    lines += [f"{run.path.name} is skipped: {run.known.error}" for run in plan.runs if run.state == "unreadable"]
    skipped = [number for number, run in enumerate(plan.runs) if run.state == "invalid"]
    lines += [
        f"Run {number} ({plan.choices_of(number)}) is left out: {plan.runs[number].known.error}." for number in skipped
    ]
    for line in lines:
        console.print(Text(line), soft_wrap=True)


def _show_runs(plan: Plan, console: Screen) -> None:
    estimates = Estimates([plan.sweep, *Path("outputs/sweeps").glob("[!.]*"), Path("outputs/runs")])
    seconds = [estimates.seconds(run.config) for run in plan.runs]
    columns = _columns(plan.runs)
    numbers = {}
    with suppress(ConfigError):  # no run has begun
        numbers = {path: str(number) for number, path in enumerate(numbered(plan.sweep))}
    rows = []
    for number, run in enumerate(plan.runs):
        parameters = None
        with suppress(ConfigError):  # it cannot be built
            parameters = estimates.parameters(run.config)
        cost = {
            "parameters": f"{parameters:,}" if parameters else "?",
            "time": "?" if seconds[number] is None else clock(seconds[number]),
        }
        values = {column: _value(run.config, column) for column in columns}
        rows.append({"plan": str(number), "#": numbers.get(run.path, ""), **values, "state": run.state, **cost})
    heading, *lines = aligned(rows, {*columns, "state"})
    console.out(heading, style="bold", highlight=False)
    console.out("\n".join(lines), highlight=False)
    if numbers:
        console.print("only= takes the numbers under plan; all other commands take those under #.", soft_wrap=True)
    wanted = [time for run, time in zip(plan.runs, seconds, strict=True) if run.wanted and not run.missing]
    known = [time for time in wanted if time is not None]
    if known:
        unknown = f", and {len(wanted) - len(known)} of unknown time" if len(known) < len(wanted) else ""
        console.print(f"One after another: {clock(sum(known))} by the speed of finished runs{unknown}.")
    if len(plan.runs) > 1:
        console.print(_what_it_can_show(plan, estimates), soft_wrap=True)


def _what_it_can_show(plan: Plan, estimates: "Estimates") -> str:
    from newllm.analysis.frame import load_runs  # pandas is needed for this alone
    from newllm.analysis.planning import what_it_can_show

    configs = [run.config for run in plan.runs]
    return what_it_can_show(configs, load_runs(estimates.same_text_and_model(configs)))


class Estimates:
    """Estimates the cost of runs from the finished runs in these folders."""

    def __init__(self, folders: Iterable[Path]) -> None:
        self._rates: dict[tuple[str, ...], list[float]] = defaultdict(list)  # wall seconds per token
        self._parameters: dict[tuple[str, ...], int] = {}
        self._folders: dict[tuple[str, ...], list[Path]] = defaultdict(list)
        for file in (file for folder in dict.fromkeys(folders) for file in folder.glob("*/results.json")):
            with suppress(ConfigError, KeyError, TypeError):  # a run from another version
                config, results = RunDirectory(file.parent).config(), RunDirectory(file.parent).results()
                rate = results["speed/wall_seconds"] / _tokens(config)
                self._folders[_nodes(relevant_nodes(config), ("data", "model"))].append(file.parent)
                self._parameters.setdefault(_nodes(config, PARTS), int(results["params/total"]))
                for names in _SIMILAR:
                    self._rates[_nodes(config, names)].append(rate)

    def same_text_and_model(self, configs: Iterable[Mapping[str, Any]]) -> list[Path]:
        """The folders of finished runs that have the text and the model of any of these configurations."""
        kinds = dict.fromkeys(_nodes(relevant_nodes(config), ("data", "model")) for config in configs)
        return [folder for kind in kinds for folder in self._folders.get(kind, ())]

    def parameters(self, config: Mapping[str, Any]) -> int | None:
        """Number of parameters; None if the vocabulary size is known only once the tokenizer is read."""
        data, key = config["data"], _nodes(config, PARTS)
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
        rates = next(filter(None, (self._rates.get(_nodes(config, names)) for names in _SIMILAR)), None)
        return fmean(rates) * _tokens(config) if rates else None


def _nodes(config: Mapping[str, Any], names: Iterable[str]) -> tuple[str, ...]:
    """The nodes of these groups as texts, equal for runs that differ only in seeds."""
    return tuple(json.dumps(seedless(config.get(name)), sort_keys=True) for name in names)


def _tokens(config: Mapping[str, Any]) -> float:
    """A number proportional to the training tokens."""
    trainer, data = config["trainer"], config["data"]
    rows = data.get("samples") or data.get("documents") or 1
    return float(trainer.get("tokens") or rows * data["seq_len"] * (trainer.get("epochs") or 1))


def _columns(runs: tuple[PlannedRun, ...]) -> list[str]:
    """Model, encoding and attention; other choices and overridden keys that differ; the seed."""

    def differs(key: str) -> bool:
        return len({_value(run.config, key) for run in runs}) > 1

    chosen = dict.fromkeys(group for run in runs for group in run.config["choices"])
    keys = dict.fromkeys(str(line).partition("=")[0] for run in runs for line in run.config["overrides"])
    choices = [*PARTS, *(group for group in chosen if group not in PARTS and differs(group))]
    options = [key for key in keys if key not in chosen and key != "seed" and differs(key)]
    return [*choices, *options, *(["seed"] if runs and "seed" in runs[0].config else [])]


def _value(config: Mapping[str, Any], key: str) -> str:
    """The choice of a group, or the value at a dotted key, as text."""
    if key in config["choices"]:
        choice = config["choices"][key]
        return "+".join(map(str, choice)) if isinstance(choice, list) else str(choice or "")
    value = value_at(config, key)
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
