"""What a run prints before training and after evaluation: its settings, and a summary of its results."""

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig

from newllm.config.groups import parts_of, stages
from newllm.console import Console, number
from newllm.evaluation import judge
from newllm.model import LanguageModel
from newllm.run.prepare import parameters
from newllm.training.run_context import Run

# Rows of the summary table; those that were not measured are left out.
SUMMARY = [
    "val/ppl", "val/accuracy", "val/bits_per_byte", "baseline/trigram_bits_per_byte",
    "baseline/unigram_bits_per_byte", "val/loss", "val/best_epoch",
    "train/ppl", *(f"{stage}/iterations" for stage in stages()), "context/rank_share@val",
    "reversal/forward_ppl", "reversal/backward_ppl", "reversal/ratio",
    "kv_cache/bytes_per_token", "kv_cache/reduction", "params/total", "memory/peak_bytes",
    "speed/train_tokens_per_second", "speed/wall_seconds",
]  # fmt: skip


def header(run: Run) -> None:
    """Print the main settings, the sizes of model and data, and the number of steps."""
    cfg, data, trainer, console, threads = run.cfg, run.data, run.trainer, run.console, run.runtime.threads
    counts, choices = data.counts, cfg.choices
    rows = f"{counts['data/train_rows']:,.0f} rows of {cfg.data.seq_len} for training"
    if counts.get("data/fact_rows"):
        rows += f" ({counts['data/fact_rows']:,.0f} of them facts)"
    if counts.get("data/passkey_rows"):
        rows += f" ({counts['data/passkey_rows']:,.0f} with passkeys)"
    rows += f", {counts['data/val_rows']:,.0f} for validation, from {counts['data/documents']:,.0f} documents"
    tokens = f"{counts['data/train_tokens']:,.0f} scored in an epoch, {counts['data/val_tokens']:,.0f} in validation"
    budget = f"{trainer.epochs} epochs" if trainer.epochs else f"{trainer.tokens:,} tokens"
    steps = trainer.steps(len(data.train), data.train.seq_len)[1]
    machine = str(run.device) if trainer.devices == 1 else f"{trainer.devices} processes on {run.device.type}"
    pairs = {
        "experiment": str(choices.get("experiment") or ""),
        "model": f"{choices.model}, {_parameters(run.model)}  {_options(cfg.model)}",
        "pos_encoding": _chosen(cfg, "pos_encoding"),
        "attention": _chosen(cfg, "attention"),
        "data": f"{choices.data}, {rows}",
        "tokens": f"{tokens}; tokenizer {cfg.data.tokenizer} with {data.tokenizer.vocab_size:,} ids"
        + "".join(f"; it {note}" for note in data.tokenizer_notes),
        "facts": f"{choices.facts}  {_options(cfg.facts)}",
        **{group: _chosen(cfg, group) for stage in stages(cfg) for group in (stage, *parts_of(stage, cfg))},
        "optim": f"{choices.optim}  {_options(cfg.optim)}",
        "training": f"{budget} in {steps:,} steps of {trainer.batch_size} rows, seed {trainer.seed}",
        "machine": f"{machine}, {run.precision}, {threads} thread{'s' if threads != 1 else ''}",
        "run directory": str(run.directory.path),
    }
    console.title("newllm")
    console.settings({name: value for name, value in pairs.items() if value})
    for note in data.notes:
        console.line(f"Note: {note}", style="yellow")


def summary(console: Console, results: Mapping[str, float], directory: str) -> None:
    """Print the main results, a judgement of them, the directory of all results and the next command."""
    rows = []
    for name in SUMMARY:
        if results.get(name) is not None:
            rows.append({"metric": name, "value": number(results[name])})
    console.section("Summary", [rows, *filter(None, [judge(results)])])
    console.line(f"{len(results)} results and all tables are in {directory}")
    console.line(f'Next: python -m newllm.generate {directory} "def "')


def _parameters(model: LanguageModel) -> str:
    """The number of parameters, split up if they are not all trained together."""
    counts = parameters(model)
    total, trained = counts["params/total"], counts["params/trainable"]
    parts = [f"{trained:,.0f} trained"] if trained != total else []
    components = (name for name in counts if name not in ("params/total", "params/trainable"))
    parts += [f"{name.removeprefix('params/')} {counts[name]:,.0f}" for name in components]
    return f"{total:,.0f} parameters" + (f" ({', '.join(parts)})" if parts else "")


def _chosen(cfg: DictConfig, group: str) -> str:
    """A group's choice and its options; empty if the group is not in the configuration."""
    return f"{cfg.choices.get(group)}  {_options(cfg[group])}" if cfg.get(group) else ""


def _options(node: Mapping[Any, Any] | None) -> str:
    """`name=value` of the node's options, including those of nested nodes."""
    words: list[str] = []
    for key, value in (node or {}).items():
        if isinstance(value, Mapping):
            words += filter(None, [_options(value)])
        elif key != "_target_" and value is not None:
            words.append(f"{key}={str(value).replace(' ', '')}")
    return " ".join(words)
