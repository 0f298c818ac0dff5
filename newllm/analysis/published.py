"""Published results, and how far runs are from those with their conditions.

references/runs.csv, curves.csv (perplexity by epoch), qk_layers.csv and qk_dims.csv (queries and keys by layer; by pair
of neighbouring dims) hold the tables of github.com/rato-tokyo/new-llm, one seed (42), one NVIDIA L4 each.
`val/best_ppl` is the best epoch's; everything else in these is the last epoch's, as published.

references/context_token.csv holds that repository's runs of the context/token model, with the best epoch's numbers;
context_token_*.csv the course of some of them in both phases, scaling.csv its scaling laws.

references/rope_frequencies.csv holds those of github.com/misaya-yang/hybrid-rope: a line per run, several of them
repeats or other seeds of one configuration, on several machines. references/evq.csv holds that repository's later
tables, of models that newllm does not have.

In the references in TABLES a line is a run: its conditions, then results under our metric names. A condition is a
column named after a group (its choice) or a setting (``pos_encoding.theta``); an empty cell sets no condition. Lines
with the same `run` are one configuration. `status` says whether a number is in a log or only in a document.
"""

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import groupby
from math import isfinite
from statistics import fmean
from typing import Any

from omegaconf import DictConfig, OmegaConf

from newllm.analysis.statistics import sample_std
from newllm.config.groups import groups, stages

TABLES = ("runs", "rope_frequencies", "context_token")
_DDOF = {"rope_frequencies": 0}  # of the published standard deviations


@dataclass(frozen=True)
class PublishedRun:
    """A published configuration. numbers: metric -> the value of each of its runs, in the order of the table.

    experiment: the experiment of newllm with its conditions, "" for none. weighting: of `val/ppl`, "" for any.
    weights: its numbers were measured on the weights of the "last" or the "best" epoch.
    ddof: of the standard deviations in its table, 0 (population) or 1 (sample).
    """

    run: str
    source: str
    status: str
    experiment: str
    conditions: Mapping[str, str]
    weighting: str
    weights: str
    numbers: dict[str, list[float]]
    ddof: int = 1

    def std(self, values: Sequence[float]) -> float:
        """The standard deviation of numbers as in the published table; NaN for one."""
        return sample_std(values, self.ddof)

    @property
    def runs(self) -> int:
        return max(map(len, self.numbers.values()), default=0)


@cache
def published_runs() -> list[PublishedRun]:
    """The configurations in the references of TABLES."""
    runs: dict[str, PublishedRun] = {}
    lines = [(table, line) for table in TABLES for line in reference_table(table)]
    for table, line in lines:
        keys = [key for key in line if ("." in key or key in groups()) and "/" not in key and key != "experiment"]
        conditions = {key: line[key] for key in keys if line[key]}
        texts = (line["run"], line["source"], line["status"], line["experiment"])
        weights, ddof = line.get("weights") or "last", _DDOF.get(table, 1)
        new = PublishedRun(*texts, conditions, line.get("weighting", ""), weights, {}, ddof)
        run = runs.setdefault(line["run"], new)
        assert run.conditions == conditions, f"{line['run']} names two configurations"
        for metric, cell in line.items():
            if "/" in metric and cell:
                run.numbers.setdefault(metric, []).append(float(cell))
    return list(runs.values())


def reference_table(name: str) -> list[dict[str, str]]:
    """The lines of references/<name>.csv."""
    text = files("newllm.analysis").joinpath("references", f"{name}.csv").read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))


@dataclass(frozen=True)
class Distance:
    """A metric of a run, or its mean over the seeds of a group, beside that of a published configuration."""

    run: PublishedRun
    metric: str
    ours: float

    @property
    def numbers(self) -> list[float]:
        """Those of the published runs; `published` is their mean, `std` their standard deviation (NaN of one)."""
        return self.run.numbers[self.metric]

    @property
    def published(self) -> float:
        return fmean(self.numbers)

    @property
    def std(self) -> float:
        return self.run.std(self.numbers)

    @property
    def difference(self) -> float:
        return self.ours / self.published - 1

    @property
    def row(self) -> dict[str, Any]:
        """As a line of tables/reference.csv."""
        numbers = {"ours": self.ours, "published": self.published, "std": self.std, "runs": len(self.numbers)}
        return {"run": self.run.run, "metric": self.metric, **numbers, "difference": self.difference}


def distance(config: Mapping[str, Any] | DictConfig, results: Mapping[str, float]) -> list[Distance]:
    """The metrics of each published configuration that is equal to the run's, where they were computed as published
    (weighting, weights, form of the reversal sentences). None for an evaluation under other settings than training's.

    config: composed or effective, with its choices.
    """
    node = config if isinstance(config, DictConfig) else OmegaConf.create(dict(config))
    if OmegaConf.select(node, "choices.evaluated"):
        return []
    found = []
    for run in published_runs():
        paths = {key if "." in key else f"choices.{key}": cell for key, cell in run.conditions.items()}
        if all(_equal(cell, OmegaConf.select(node, path)) for path, cell in paths.items()):
            metrics = [name for name in run.numbers if results.get(name) is not None]
            found += [Distance(run, one, results[one]) for one in metrics if _computed_as_published(one, run, node)]
    return found


def for_console(distances: Iterable[Distance]) -> list[str | list[dict[str, Any]]]:
    """A section of the console: for each published run a sentence and a table."""
    body: list[str | list[dict[str, Any]]] = []
    for run, some in groupby(distances, lambda one: one.run):
        rows = []
        for one in some:
            row: dict[str, Any] = {"metric": one.metric, "ours": one.ours, "published": one.published}
            if run.runs > 1:
                row["±"] = f"{one.std:.3g}" if isfinite(one.std) else ""
            rows.append({**row, "difference": f"{one.difference:+.1%}"})
        seeds = f"mean ± standard deviation of up to {run.runs} runs" if run.runs > 1 else "one seed"
        body += [f"{run.run}, {run.source} ({run.status}), {seeds}", rows]
    return body


def _equal(cell: str, value: Any) -> bool:
    """Is it the value in the cell of a reference? Mappings are written as key=value,key=value."""
    if OmegaConf.is_config(value):
        value = OmegaConf.to_container(value, resolve=True)
    if isinstance(value, Mapping):
        items = {key: f"{item:g}" if isinstance(item, int | float) else str(item) for key, item in value.items()}
        return cell == ",".join(f"{key}={items[key]}" for key in sorted(items))
    if isinstance(value, bool):
        return cell == str(value).lower()
    try:
        return float(cell) == float(value)
    except (TypeError, ValueError):
        return cell == ("none" if value is None else str(value))


def _computed_as_published(metric: str, run: PublishedRun, config: DictConfig) -> bool:
    """Was the published number measured with the same weights and formula?"""
    if metric.startswith(("params/", "data/", *(f"{stage}/" for stage in stages()), "val/best")):
        return True
    if metric.startswith("context/rank"):  # of frozen contexts, so the epoch does not matter
        node = OmegaConf.select(config, "eval.effective_rank") or {}
        return node.get("samples") == 10_000 and not node.get("centred") and not node.get("squared")
    if OmegaConf.select(config, "trainer.eval_weights") != run.weights:
        return False
    if metric == "val/ppl":
        return run.weighting in ("", OmegaConf.select(config, "eval.loss.weighting"))
    if metric.startswith("reversal/"):
        scoring, form = (OmegaConf.select(config, f"eval.reversal.{name}") for name in ("scoring", "backward"))
        form = OmegaConf.select(config, "facts.backward") if form == "facts" else form
        return (scoring, form) == ("sentence", "literal")
    return True
