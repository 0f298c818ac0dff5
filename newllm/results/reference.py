"""Published results, and how far a run is from those with its conditions.

references/ holds the tables of github.com/rato-tokyo/new-llm, one seed (42), one NVIDIA L4 each: runs.csv (a run per
line: conditions, then results under our metric names), curves.csv (perplexity by epoch), qk_layers.csv and qk_dims.csv
(queries and keys by layer; by pair of neighbouring dims). `status` says whether a number stands in a log or only in a
document. `val/best_ppl` is the best epoch's; everything else is the last epoch's, as published.
"""

import csv
from collections.abc import Mapping
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

if TYPE_CHECKING:  # it brings torch, which a report has no use for
    from newllm.evaluation.subject import Findings, Table

# What must be equal, and where the effective configuration has it. An empty cell asks for nothing.
CONDITIONS = {
    "data": "choices.data",
    "tokenizer": "data.tokenizer",
    "model": "choices.model",
    "pos_encoding": "choices.pos_encoding",
    "rotary_pct": "pos_encoding.rotary_pct",
    "theta": "pos_encoding.theta",
    "slope": "pos_encoding.slope",
    "attention": "choices.attention",
    "kv_dim": "attention.kv_dim",
    "seq_len": "data.seq_len",
    "samples": "data.samples",
    "split": "data.split",
    "facts": "facts.layout",  # none: nothing trained
}


def published() -> list[dict[str, str]]:
    """The lines of references/runs.csv."""
    text = files("newllm.results").joinpath("references", "runs.csv").read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))


def distance(config: Mapping[str, Any] | DictConfig, results: Mapping[str, float]) -> "Table":
    """Lines {run, metric, ours, published, difference} for the published runs with the run's conditions.

    `config` is composed or effective, with its choices; `difference` is ours / published - 1. A metric is compared
    only where it was computed as published (weighting, weights, form of the reversal sentences).
    """
    known = config if isinstance(config, DictConfig) else OmegaConf.create(dict(config))
    return [
        {"run": line["run"], "metric": metric, "ours": ours, "published": number, "difference": ours / number - 1}
        for line in published()
        if all(_equal(line[name], OmegaConf.select(known, path)) for name, path in CONDITIONS.items())
        for metric, number in _numbers(line).items()
        if (ours := results.get(metric)) is not None and _computed_as_published(metric, line, known)
    ]


def findings(config: Mapping[str, Any] | DictConfig, results: Mapping[str, float]) -> "Findings | None":
    """The console section on the distance, None where no published run has these conditions."""
    from newllm.evaluation.subject import Findings

    lines = distance(config, results)
    if not lines:
        return None
    sources = {line["run"]: f"{line['source']} ({line['status']})" for line in published()}
    body: list = []
    for run in dict.fromkeys(line["run"] for line in lines):
        shown = [
            {**{k: line[k] for k in ("metric", "ours", "published")}, "difference": f"{line['difference']:+.1%}"}
            for line in lines
            if line["run"] == run
        ]
        body += [f"{run}, {sources[run]}, one seed", shown]
    return Findings("Distance to the published run", tables={"reference": lines}, body=body)


def _numbers(line: Mapping[str, str]) -> dict[str, float]:
    return {name: float(cell) for name, cell in line.items() if "/" in name and cell}


def _equal(cell: str, value: Any) -> bool:
    if cell == "":
        return True
    try:
        return float(cell) == float(value)
    except (TypeError, ValueError):
        return cell == ("none" if value is None else str(value))


def _computed_as_published(metric: str, line: Mapping[str, str], config: DictConfig) -> bool:
    """Are weights and formula of this metric those of the published table?"""
    if metric == "params/total" or metric.startswith("val/best"):
        return True
    if OmegaConf.select(config, "trainer.eval_weights") != "last":
        return False
    if metric == "val/ppl":
        return line["weighting"] in ("", OmegaConf.select(config, "eval.loss.weighting"))
    if metric.startswith("reversal/"):
        scoring, form = (OmegaConf.select(config, f"eval.reversal.{name}") for name in ("scoring", "backward"))
        form = OmegaConf.select(config, "facts.backward") if form == "facts" else form
        return (scoring, form) == ("sentence", "literal")
    return True
