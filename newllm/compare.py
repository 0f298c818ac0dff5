"""`newllm compare RUN RUN`: what differs in the configuration of two runs, and their metrics side by side."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import isfinite, nan
from pathlib import Path
from typing import Any

import pandas as pd

from newllm.analysis.baselines import counterparts
from newllm.analysis.comparison import Comparison, family_in_words, judge, make_rule, measure
from newllm.analysis.frame import known_metrics, load_runs, require_metric, states_in_words
from newllm.analysis.labels import value_text
from newllm.analysis.run_groups import Group, groups
from newllm.analysis.scored import fingerprint
from newllm.analysis.settings import canonical, choices_of, differing, flatten
from newllm.analysis.statistics import sample_std
from newllm.config.catalog import report_defaults
from newllm.config.identity import ABSENT, changed
from newllm.console import Console
from newllm.errors import ConfigError, Parser, run_command
from newllm.report.tables import difference_text, difference_texts, spread, verdict_cell
from newllm.store.run_directory import RunDirectory
from newllm.suggest import listed

_USAGE = """\
What differs in the configuration of two runs, and their metrics side by side.

  newllm compare A B [metrics=NAME,NAME]      (or python -m newllm.compare …)

A and B are run directories, evaluations (RUN/evaluations/NAME), or folders of runs. Of folders, the runs of each
configuration are compared with those of its counterpart in the other folder: the same configuration, or else the one
that is equal in everything in which the folders do not differ as a whole. Seeds are paired.

A number that scored other tokens in B than in A is shown, but not compared.

  metrics=val/ppl,val/accuracy   only these, each with a verdict; otherwise all of a pair, or the main ones of several

Examples
  newllm compare outputs/runs/nano-rope-… outputs/runs/nano-alibi-…
  newllm compare outputs/runs/nano-rope-… outputs/runs/nano-rope-…/evaluations/scaling-yarn-…
  newllm compare here/outputs/sweeps there/outputs/sweeps metrics=val/ppl

Exit status: 0; 2 for bad input, as a run that is not done.
"""
_ENVIRONMENT = ("git", "device", "cpu", "threads", "precision", "host")
CONFIDENCE = 0.95

Pair = tuple[Group, Group]  # of A and of B


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    return run_command(_run, argv, _USAGE)


def _run(argv: list[str]) -> int:
    parser = Parser(prog="newllm compare", allow_abbrev=False)
    parser.add_argument("words", nargs="*")
    words = parser.parse_intermixed_args(argv).words
    options = [word for word in words if "=" in word and not Path(word).exists()]
    folders = [word for word in words if word not in options]
    if len(folders) != 2:
        raise ConfigError(f"expected two runs or folders of runs, not {len(folders)}; type newllm compare RUN RUN.")
    wanted: list[str] = []
    for option in options:
        name, _, text = option.partition("=")
        if name != "metrics" or not text.strip("[] "):
            raise ConfigError(f"{option}: expected metrics=NAME,NAME, the only option.")
        wanted = [metric.strip() for metric in text.strip("[] ").split(",") if metric.strip()]
    # Repeats count only within a side: a run that failed in one folder may have finished in the other.
    runs = [_runs(folder).assign(side=side) for side, folder in zip("AB", folders, strict=True)]
    frame = pd.concat([one.assign(signature=one["side"] + one["signature"]) for one in runs], ignore_index=True)
    for name in wanted:
        require_metric(frame, name)
    sides = _groups_of_sides(frame)
    pairs = _pairs(*sides, folders)
    console = Console(bar=False)
    console.settings(dict(zip("AB", folders, strict=True)))
    rows = _differing_settings(pairs)
    console.section("Configuration", [rows] if rows else ["No setting that may change a number differs."])
    unfinished = frame[frame["state"] != "done"].groupby("side")["state"].value_counts()
    paired = {group for pair in pairs for group in pair}
    alone = [[group.label for group in some if group not in paired] for some in sides]
    lines = [f"Only in {side}: {', '.join(labels)}." for side, labels in zip("AB", alone, strict=True) if labels]
    lines += [f"Without results in {side}: {count} {state}." for (side, state), count in unfinished.items()]
    console.section("Metrics", [*_metrics(pairs, wanted, known_metrics(frame)), *lines])
    return 0


def _runs(folder: str) -> pd.DataFrame:
    """The runs of a side. Raises ConfigError without a finished one."""
    frame = load_runs(folder)
    if frame.empty:
        raise ConfigError(f"{folder} has no runs; runs are in outputs/runs and sweeps in outputs/sweeps.")
    if not (frame["state"] == "done").any():
        first = frame.iloc[0]
        why = f": {first['error']}" if first["error"] else ""
        raise ConfigError(f"{folder} has no finished run ({states_in_words(frame)}){why}")
    return frame


def _groups_of_sides(frame: pd.DataFrame) -> tuple[list[Group], list[Group]]:
    """The groups of A and of B, with labels that tell all of them apart."""
    side = frame["side"].to_numpy()
    sides: tuple[list[Group], list[Group]] = ([], [])
    for group in groups(frame):
        for some, name in zip(sides, "AB", strict=True):
            own, lost = (rows[side[rows] == name] for rows in (group.positions, group.lost))
            if len(own) or len(lost):
                some.append(replace(group, positions=own, lost=lost))
    return sides


def _pairs(ours: list[Group], theirs: list[Group], folders: Sequence[str]) -> list[Pair]:
    """Groups of A with their counterparts in B. Raises ConfigError if there is none."""
    by_label = {group.label: group for group in theirs}
    if same := [(group, by_label[group.label]) for group in ours if group.label in by_label]:
        return same
    if len(ours) == len(theirs) == 1:
        return [(ours[0], theirs[0])]
    here, there = (
        {key: {canonical(group.settings.get(key)) for group in some} for key in some[0].settings}
        for some in (ours, theirs)
    )
    between = [key for key in here if here[key].isdisjoint(there.get(key, set()))]
    found = [(group, other) for group in ours for other in counterparts(group, theirs, between)]
    if not found:
        raise ConfigError(
            f"no configuration in {folders[0]} is equal to one in {folders[1]} in anything but "
            f"{', '.join(between) or 'what differs in each folder'}; name two runs."
        )
    if any(len(found) > len({*side}) for side in zip(*found, strict=True)):
        raise ConfigError(
            f"configurations in {folders[0]} have several counterparts in {folders[1]}, since these differ in "
            f"{', '.join(between)} in several ways; name folders of fewer runs."
        )
    return found


def _differing_settings(pairs: Sequence[Pair]) -> list[dict[str, str]]:
    """A row for each choice, setting and part of the environment in which A and B differ."""
    values: dict[str, list[tuple[str, str]]] = {}
    for pair in pairs:
        for key, texts in (_changes(*pair) | _environments(*pair)).items():
            values.setdefault(key, []).append(texts)
    sides = {key: [[*dict.fromkeys(side)] for side in zip(*texts, strict=True)] for key, texts in values.items()}
    return [{"setting": key, "A": listed(here), "B": listed(there)} for key, (here, there) in sides.items()]


def _changes(ours: Group, theirs: Group) -> dict[str, tuple[str, str]]:
    """Choices, evaluators, seeds and settings in which two configurations differ.

    Of a choice that differs and of an evaluator that only one has, only the options that both have.
    """

    def outline(group: Group) -> dict[str, str]:
        return {
            **choices_of(group.config),
            "evaluated": str(group.config["choices"].get("evaluated", "as trained")),
            "eval": ", ".join(sorted(group.config["eval"])),
            "seed": ", ".join(map(str, sorted({*group.runs["seed"]}))),
        }

    here, there = outline(ours), outline(theirs)
    names = [name for name in dict.fromkeys([*here, *there]) if here.get(name) != there.get(name)]
    rows = {name: (here.get(name, ABSENT), there.get(name, ABSENT)) for name in names}
    options = [flatten(group.config["eval"], "eval") for group in (ours, theirs)]
    different = {key: (options[0][key], options[1][key]) for key in differing(options)}
    for key, values in {**changed(ours.config, theirs.config), **different}.items():
        follows = key.partition(".")[0] in names and (key.endswith("_target_") or ABSENT in values)
        if key.rpartition(".")[2] != "seed" and not follows:
            rows[key] = (value_text(values[0]), value_text(values[1]))
    return rows


def _environments(ours: Group, theirs: Group) -> dict[str, tuple[str, str]]:
    """What differs in the code, the machine and the packages of the first runs."""

    def read(group: Group) -> dict[str, str]:
        environment = RunDirectory(group.path).trained.environment()
        packages = environment.get("packages") or {}
        found = {**{name: environment.get(name) for name in _ENVIRONMENT}, "torch": packages.get("torch")}
        unknown = "unknown" if environment else "environment.json is missing"
        return {name: unknown if value is None else str(value) for name, value in found.items()}

    here, there = read(ours), read(theirs)
    return {name: (value, there[name]) for name, value in here.items() if value != there[name]}


def _metrics(
    pairs: Sequence[Pair], wanted: Sequence[str], known: Sequence[str]
) -> list[str | Sequence[Mapping[str, Any]]]:
    """A row per metric (and pair, of several), and the sentences below."""
    main, rule = report_defaults(), make_rule()
    shown = wanted or (known if len(pairs) == 1 else [name for name in main["metrics"] if name in known])
    tested = wanted or [name for name in main["compare"] if name in known]
    places = [(metric, ours, theirs) for metric in shown for ours, theirs in pairs]
    found = {place: measure(place[2], place[1], place[0]) for place in places if _same_tokens(*place)}
    judged: dict[Any, Comparison] = {}
    if any(len(group.positions) + len(group.lost) > 1 for pair in pairs for group in pair):
        kept = {place: one for place, one in found.items() if one and place[0] in tested}
        judged = dict(zip(kept, judge([*kept.values()], rule, CONFIDENCE), strict=True))
    rows = []
    for place in places:
        metric, ours, theirs = place
        row: dict[str, Any] = {"group in A": ours.label} if len(pairs) > 1 else {}
        row |= {"metric": metric, "A": _mean(ours, metric), "B": _mean(theirs, metric)}
        one = judged.get(place)
        row["difference"] = _difference(one or found[place], ours, theirs) if place in found else "other tokens"
        if judged:
            interval, verdict = (difference_texts(one)[1], verdict_cell(one).text) if one else ("", "")
            row |= {"interval": interval, "verdict": verdict}
        rows.append(row)
    lines = [
        "Differences are B / A - 1 in percent, or B - A in the unit of the metric; pairs have equal seeds, and seeds "
        "that only one of the two has are left out."
    ]
    if others := dict.fromkeys(place[0] for place in places if place not in found):
        lines.append(f"Not compared, since B scored other tokens than A: {', '.join(others)}.")
    if any(one.family for one in judged.values()):
        lines += [rule.words, family_in_words([*judged.values()], rule, CONFIDENCE, "comparisons of this table")]
    return [rows, *lines]


def _same_tokens(metric: str, *pair: Group) -> bool:
    """Are all numbers of the metric of the same tokens?"""
    marks = {
        fingerprint(scored, metric)
        for group in pair
        for scored, value in zip(group.runs["scored"], group.values(metric), strict=True)
        if isfinite(value)
    }
    return len(marks) <= 1


def _mean(group: Group, metric: str) -> str:
    std = sample_std([*group.by_seed(metric).values()])
    return spread(group.mean(metric), std or nan)  # ± 0 would say nothing of a count


def _difference(one: Comparison | None, ours: Group, theirs: Group) -> str:
    """Over the seeds that both have; of the means where there is none."""
    if one is None:
        return ""
    difference = one.difference
    if not one.n:
        here, there = ours.mean(one.metric), theirs.mean(one.metric)
        ratio = there / here - 1 if here else nan
        difference = ratio if one.scale == "log" else there - here
    return "equal" if difference == 0 else difference_text(difference, one.scale)


if __name__ == "__main__":
    raise SystemExit(main())
