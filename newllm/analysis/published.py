"""Published results, and how far runs are from those with their conditions.

references/runs.csv, curves.csv (perplexity by epoch), qk_layers.csv and qk_dims.csv (queries and keys by layer; by pair
of neighbouring dims) hold the tables of github.com/rato-tokyo/new-llm, one seed (42), one NVIDIA L4 each.
`val/best_ppl` is the best epoch's; everything else in these is the last epoch's, as published.

references/context_token.csv holds that repository's runs of the context/token model, with the best epoch's numbers;
context_token_*.csv the courses of some of them in both phases, scaling.csv its scaling laws.

references/rope_frequencies.csv holds those of github.com/misaya-yang/hybrid-rope: a line per run, of which several are
repeats or other seeds of one configuration, on several machines. references/evq.csv holds that repository's later
tables, of models that are not ours.

Of the references in TABLES, a line is a run: its conditions, then results under our metric names. A condition is a
column named after a group (its choice) or a setting (``pos_encoding.theta``); an empty cell asks for nothing. Lines of
one `run` are one configuration. `status` says whether a number stands in a log or only in a document.
"""

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from math import isfinite
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from newllm.analysis.statistics import sample_std
from newllm.config.groups import groups, stages

if TYPE_CHECKING:  # training compares itself with published runs too, and does without pandas
    from newllm.analysis.run_groups import Group

TABLES = ("runs", "rope_frequencies", "context_token")


@dataclass(frozen=True)
class Published:
    """A published configuration. numbers: metric -> what each of its runs has, in the order of the table.

    experiment: the experiment of newllm with its conditions, "" for none. weighting: of `val/ppl`, "" for any.
    weights: its numbers were measured on those of the "last" or the "best" epoch.
    """

    run: str
    source: str
    status: str
    experiment: str
    conditions: Mapping[str, str]
    weighting: str
    weights: str
    numbers: Mapping[str, list[float]]

    @property
    def runs(self) -> int:
        return max(map(len, self.numbers.values()), default=0)


@cache
def published() -> list[Published]:
    """The configurations in the references of TABLES."""
    found: dict[str, Published] = {}
    for line in (line for name in TABLES for line in reference_table(name)):
        named = [name for name in line if "." in name or (name in groups() and name != "experiment")]
        conditions = {name: line[name] for name in named if line[name] and "/" not in name}
        first = found.setdefault(
            line["run"],
            Published(line["run"], line["source"], line["status"], line["experiment"], conditions,
                      line.get("weighting", ""), line.get("weights") or "last", {}),
        )  # fmt: skip
        assert first.conditions == conditions, f"{line['run']} names two configurations"
        for name, cell in line.items():
            if "/" in name and cell:
                first.numbers.setdefault(name, []).append(float(cell))  # type: ignore[attr-defined]
    return list(found.values())


def reference_table(name: str) -> list[dict[str, str]]:
    """The lines of references/<name>.csv."""
    text = files("newllm.analysis").joinpath("references", f"{name}.csv").read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))


def distance(config: Mapping[str, Any] | DictConfig, results: Mapping[str, float]) -> list[dict[str, Any]]:
    """Lines {run, metric, ours, published, std, runs, difference} for the published configurations that are the run's.

    `config` is composed or effective, with its choices. `published` is the mean of `runs` published runs, `std` their
    sample standard deviation (None for one); `difference` is ours / published - 1. A metric is compared only where it
    was computed as published (weighting, weights, form of the reversal sentences); an evaluation under other settings
    than those of training is compared with nothing.
    """
    known = config if isinstance(config, DictConfig) else OmegaConf.create(dict(config))
    if OmegaConf.select(known, "choices.evaluated"):
        return []
    return [
        {"run": one.run, "metric": metric, "ours": ours, "published": fmean(numbers), "std": _std(numbers),
         "runs": len(numbers), "difference": ours / fmean(numbers) - 1}
        for one in published()
        if all(_equal(cell, OmegaConf.select(known, _path(name))) for name, cell in one.conditions.items())
        for metric, numbers in one.numbers.items()
        if (ours := results.get(metric)) is not None and _computed_as_published(metric, one, known)
    ]  # fmt: skip


def for_console(lines: Iterable[Mapping[str, Any]]) -> list[str | list[dict[str, Any]]]:
    """The lines of `distance` as a section of the console: for each published run a sentence and a table."""
    known = {one.run: one for one in published()}
    by_run: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        shown = {"metric": line["metric"], "ours": line["ours"], "published": line["published"]}
        if known[line["run"]].runs > 1:
            shown["±"] = "" if line["std"] is None else f"{line['std']:.3g}"
        by_run.setdefault(line["run"], []).append({**shown, "difference": f"{line['difference']:+.1%}"})
    body: list[str | list[dict[str, Any]]] = []
    for run, table in by_run.items():
        one = known[run]
        seeds = f"mean ± standard deviation of up to {one.runs} runs" if one.runs > 1 else "one seed"
        body += [f"{run}, {one.source} ({one.status}), {seeds}", table]
    return body


def beside_published(among: Iterable["Group"]) -> list[dict[str, Any]]:
    """The groups with the conditions of a published run: a line {group, run, metric, n, ours, std, published,
    published_std, published_n, difference, source, status} for each metric.

    ours: mean over `n` seeds; std: their sample standard deviation. published, published_std: over `published_n` runs.
    difference: ours / published - 1. status: whether a log proves the number.
    """
    known = {one.run: one for one in published()}
    corpora = {one.conditions.get("data", "") for one in known.values()}
    found = []
    for group in among:
        if group.config["choices"].get("data") not in corpora and "" not in corpora:
            continue
        metrics = {str(name) for name in group.frame if "/" in str(name)}
        values = {name: [*by_seed.values()] for name in metrics if (by_seed := group.by_seed(name))}
        for line in distance(group.config, {name: float(np.mean(some)) for name, some in values.items()}):
            some, one = values[line["metric"]], known[line["run"]]
            found.append({
                "group": group.label, **line, "n": len(some), "std": sample_std(some),
                "published_std": float("nan") if line["std"] is None else line["std"], "published_n": line["runs"],
                "source": one.source, "status": one.status,
            })  # fmt: skip
    return found


def _path(condition: str) -> str:
    return condition if "." in condition else f"choices.{condition}"


def _std(numbers: list[float]) -> float | None:
    std = sample_std(numbers)
    return std if isfinite(std) else None


def _equal(cell: str, value: Any) -> bool:
    if OmegaConf.is_config(value):
        value = OmegaConf.to_container(value, resolve=True)
    if isinstance(value, Mapping):
        return cell == ",".join(f"{key}={_plain(value[key])}" for key in sorted(value))
    if isinstance(value, bool):
        return cell == str(value).lower()
    try:
        return float(cell) == float(value)
    except (TypeError, ValueError):
        return cell == ("none" if value is None else str(value))


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def _computed_as_published(metric: str, line: Published, config: DictConfig) -> bool:
    """Was the published number measured with the same weights and formula?"""
    if metric.startswith(("params/", "data/", *(f"{stage}/" for stage in stages()), "val/best")):
        return True
    if metric.startswith("context/rank"):  # of frozen contexts, so the epoch does not matter
        node = OmegaConf.select(config, "eval.effective_rank") or {}
        return node.get("samples") == 10_000 and not node.get("centred") and not node.get("squared")
    if OmegaConf.select(config, "trainer.eval_weights") != line.weights:
        return False
    if metric == "val/ppl":
        return line.weighting in ("", OmegaConf.select(config, "eval.loss.weighting"))
    if metric.startswith("reversal/"):
        scoring, form = (OmegaConf.select(config, f"eval.reversal.{name}") for name in ("scoring", "backward"))
        form = OmegaConf.select(config, "facts.backward") if form == "facts" else form
        return (scoring, form) == ("sentence", "literal")
    return True
