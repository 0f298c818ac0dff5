"""Builds and checks the parts of a run from its configuration, before anything is written."""

import glob
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf

from newllm.build import build
from newllm.config import effective, groups, run_directory, signature
from newllm.config.identity import changed, changed_content
from newllm.data import Dataset
from newllm.data import prepare as prepare_data
from newllm.errors import ConfigError
from newllm.evaluation import Evaluator, Subject
from newllm.evaluation.limits import free_bytes
from newllm.loggers import Loggers
from newllm.model import LanguageModel, build_model
from newllm.precision import allow_tf32, autocast, resolve
from newllm.run.stage import build_stages
from newllm.runtime import Place, Runtime
from newllm.store.environment import numeric_settings
from newllm.store.run_directory import RunDirectory
from newllm.training.distributed import device_of
from newllm.training.optimizer import AdamW
from newllm.training.run_context import Run
from newllm.training.trainer import Trainer


def frozen_config(directory: RunDirectory) -> DictConfig:
    """The configuration with which the run in `directory` is executed. Raises ConfigError if there is none."""
    return OmegaConf.create({**directory.existing_config(), "run_dir": str(directory.path)})


def parameters(model: LanguageModel) -> dict[str, float]:
    """Numbers of parameters: all, the trainable ones, and those of each of the model's `reported_parts`."""
    counts: dict[str, float] = {
        "params/total": sum(p.numel() for p in model.parameters()),
        "params/trainable": sum(p.numel() for p in model.parameters() if p.requires_grad),
    }
    for name in model.reported_parts:
        counts[f"params/{name}"] = sum(p.numel() for p in model.get_submodule(name).parameters())
    return counts


def prepare(cfg: DictConfig, *, trained_length: int | None = None) -> Run:
    """Build model and data of a configuration. What can be checked without reading text is checked before it is read.

    trained_length: of a finished run, tokens of the rows that its model was trained on; its stages before training are
    not built. None: the run is to be trained, on rows of data.seq_len.
    """
    started = time.monotonic()
    directory = RunDirectory(run_directory(cfg))
    resuming = trained_length is None and directory.last_checkpoint.exists()
    earlier = numeric_settings(directory.environment_file) if resuming else None
    if earlier:
        directory.require_same_run(directory.environment_file, earlier.signature, signature(cfg))
    runtime, trainer, optim = build(cfg.runtime, Runtime), build(cfg.trainer, Trainer), build(cfg.optim, AdamW)
    evaluators = [build(node, Evaluator) for node in cfg.eval.values()]
    notes = []
    if earlier and earlier.threads != runtime.threads and cfg.runtime.threads == "auto":
        notes.append(
            f"this run goes on with {earlier.threads} threads, as it began: runtime.threads=auto is {runtime.threads} "
            "now, and another number of threads can change the last bits"
        )
        runtime.threads, runtime.load_note = earlier.threads, None
    elif runtime.load_note and not earlier:
        notes.append(runtime.load_note)
    if trained_length is None and not directory.path.exists():
        notes += _other_content(cfg, directory.path)
    place = Place.of_run(trainer.devices)
    device = device_of(runtime.device(), place)
    precision = resolve(trainer.precision, device)
    if precision == "fp16" or (trainer.precision == "fp16" and trained_length is None):
        _require_scale(cfg, optim, runtime, device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        allow_tf32(precision == "tf32")
    runtime.apply(place.local_size)
    stages = build_stages(cfg) if trained_length is None else {}
    with torch.device("meta"):
        shape = build_model(cfg, tokens=cfg.model.vocab_size or 64, seq_len=trained_length)
    shape.check_config(cfg, trained=trained_length is not None)
    if trainer.recompute and trained_length is None:
        shape.recompute_layers()  # raises if the model cannot
    _require_memory(shape, device, trained=trained_length is not None)
    loggers = Loggers(cfg.logger, directory.path)
    for key, path in changed_content(effective(cfg)):
        if trained_length is None:
            raise ConfigError(
                f"{key}={path} has changed since this run was planned; restore it, or type the training command again, "
                "which makes another run of it."
            )
        raise ConfigError(
            f"{key}={path} has changed since the run was trained, so its numbers would not compare; restore it, or "
            "evaluate on another text with data.path=… or data=NAME."
        )

    data = shape.arrange_rows(prepare_data(cfg.data, cfg.get("facts"), seed=trainer.seed, runtime=runtime))
    model = build_model(cfg, data.tokenizer.vocab_size, trained_length).to(device)
    if trainer.recompute and trained_length is None:
        model.recompute_layers()
    for stage in stages.values():
        stage.check(cfg, model, data)
    for evaluator in evaluators:
        evaluator.check(data, model)
    data.notes += notes
    if trainer.precision not in ("auto", precision):
        data.notes.append(f"{device} has no native {trainer.precision}, so this run computes in {precision}")
    elif trainer.precision == "auto" and device.type == "cuda" and precision == "fp32":
        data.notes.append(f"{device} has no native bf16, so this run computes in fp32; precision=fp16 may be faster")
    parts = (runtime, trainer, optim, device, precision, data, model)
    return Run(cfg, directory, *parts, stages, place, earlier, started, loggers)


def _other_content(cfg: DictConfig, path: Path) -> list[str]:
    """A note for each run beside `path` that differs only in the content of what it reads: a text has been edited."""
    stem, _, mark = path.name.rpartition("-")
    notes = []
    for other in sorted(path.parent.glob(f"{glob.escape(stem)}-*")) if mark == signature(cfg) else []:
        with suppress(ConfigError):  # a damaged run
            keys = changed(RunDirectory(other).config(), cfg).keys()
            if keys and keys <= cfg.get("content", {}).keys():
                read = " and ".join(f"{key}={OmegaConf.select(cfg, key)}" for key in keys)
                notes.append(f"{other} has read other content of {read}, so this is another run")
    return notes


def _require_scale(cfg: DictConfig, optim: AdamW, runtime: Runtime, device: torch.device) -> None:
    """Raises ConfigError if the scaled losses of precision=fp16 do not work in this run."""
    if device.type != "cuda":
        raise ConfigError(
            f"precision=fp16 needs a CUDA GPU, and this run is on {device}; precision=auto takes bf16 where the "
            "processor has it, else fp32."
        )
    if type(optim) is not AdamW or not runtime.fused:  # another step might not be skipped
        raise ConfigError(
            "precision=fp16 needs torch's fused AdamW, which can skip a step; type optim=adamw, and leave "
            "runtime.fused=false out."
        )
    if chosen := [group for group in groups.stages(cfg) if cfg.get(group)]:
        raise ConfigError(
            f"precision=fp16 is not for runs with {chosen[0]}, which trains or computes without a scaled loss; type "
            "precision=bf16 or precision=fp32."
        )


def _require_memory(shape: LanguageModel, device: torch.device, trained: bool) -> None:
    """Raises ConfigError if the device cannot hold the model: four bytes for each number, in training four numbers for
    each parameter (weight, gradient and two moments)."""
    count = sum(parameter.numel() for parameter in shape.parameters())
    needed, free = count * (4 if trained else 16), free_bytes(device)
    if free is not None and needed > free:
        raise ConfigError(
            f"the model has {count:,} parameters, which take {needed / 1e9:,.1f} GB, and {device} has "
            f"{free / 1e9:,.1f} GB free; give smaller sizes, as of model.hidden_size and model.num_layers."
        )


def subject(run: Run, read: Dataset | None = None) -> Subject:
    """The model and its data, as evaluators see them. read: the data that a stage before training has left."""
    compute = partial(autocast, run.device, run.precision)
    return Subject(run.model, run.data, run.device, compute, run.trainer.batch_size, run.cfg, read)


def counts(run: Run) -> dict[str, float]:
    """The metrics that are known without training: sizes of model and data."""
    return {**parameters(run.model), **run.data.counts}
