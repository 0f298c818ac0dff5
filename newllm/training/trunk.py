"""Runs of several budgets with one trunk: before its cool-down, a run of schedule=wsd does not depend on its length.

Each such run keeps the checkpoint with which its cool-down begins. Another run in the same folder, which differs only
in its budget and its cool-down, begins with it, and ends with the same bytes as if it had been trained alone.
"""

import shutil
from dataclasses import dataclass
from typing import Any

from newllm.config.identity import changed
from newllm.store.atomic import replacing
from newllm.store.environment import NumericSettings, numeric_settings
from newllm.store.intact import Damaged, read_bytes, sha256
from newllm.store.run_directory import RunDirectory
from newllm.training.checkpoint import read_header
from newllm.training.run_context import Run

MAY_DIFFER = {"trainer.epochs", "trainer.tokens", "optim.cooldown", "optim.cooldown_shape", "optim.final"}


@dataclass
class Trunk:
    """The run with the trunk, the header of its checkpoint, its lines of metrics.jsonl until then, its settings."""

    directory: RunDirectory
    header: dict[str, Any]
    metrics: bytes
    settings: NumericSettings


def shares_trunks(run: Run) -> bool:
    """Whether the run keeps a checkpoint for others and looks for one."""
    alone = run.packed is None and run.trainer.devices == 1 and not run.stages
    return run.optim.schedule == "wsd" and run.runtime.trunk and alone


def keep_best(directory: RunDirectory) -> None:
    """Keep the best weights so far, if there are any, beside the checkpoint with which the cool-down begins."""
    if directory.best_checkpoint.exists():
        with replacing(directory.stable_best_checkpoint) as temporary:
            shutil.copyfile(directory.best_checkpoint, temporary)


def find(run: Run, header: dict[str, Any], stable: int) -> Trunk | None:
    """The trunk with the most steps, at most `stable`, in the folder of this run.

    header: of this run's checkpoints; but for the signature, the trunk's has the same values.
    """
    trunks = []
    for file in sorted(run.directory.path.parent.glob("*/checkpoints/stable.safetensors")):
        directory = RunDirectory(file.parents[1])
        if directory.path == run.directory.path or not _fits(directory, run):
            continue
        try:
            found, settings = read_header(file), numeric_settings(directory.environment_file)
            progress = found["progress"]
            if progress["best_epoch"] is not None:
                read_header(directory.stable_best_checkpoint)
            metrics = (read_bytes(directory.metrics_file) or b"")[: progress["metrics_bytes"]]
        except Damaged:  # it is of no use to this run
            continue
        if settings and settings.signature not in (None, found["signature"]):
            continue
        same = all(found.get(key) == value for key, value in header.items() if key != "signature")
        usable = progress["step"] <= stable and sha256(metrics) == progress["metrics_sha256"]
        if same and usable and settings is not None and settings.threads == run.runtime.threads:
            trunks.append(Trunk(directory, found, metrics, settings))
    return max(trunks, key=lambda trunk: int(trunk.header["progress"]["step"]), default=None)


def _fits(directory: RunDirectory, run: Run) -> bool:
    try:
        config = directory.config()
    except Damaged:
        return False
    return bool(config) and changed(config, run.cfg).keys() <= MAY_DIFFER
