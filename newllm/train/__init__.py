"""Trains one model: `newllm.train(…)` in Python; `newllm train …` and `python -m newllm.train …` are in __main__.py."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from newllm.run.load import Run


def train(overrides: Sequence[str] = (), *, config_dir: str | Path | None = None) -> "Run":
    """Train a model in this process, evaluate it, and return the run; the same as ``newllm train OVERRIDES``.

    ::

        run = newllm.train(["pos_encoding=alibi", "epochs=1"])
        run.results["val/bits_per_byte"]

    An interrupted run is resumed, and a finished one is only read. Ctrl-C ("interrupt the kernel" in a notebook) saves
    a checkpoint and raises KeyboardInterrupt; any other stopping signal takes its usual effect once the run has saved.

    Args:
        overrides: choices, axes and options as on the command line, one per item.
        config_dir: a folder of YAML files and classes of your own, laid out like conf/.

    Raises:
        ConfigError: the input is wrong; nothing has been written.
        RunError: the run has failed.
    """
    from newllm.config.compose import catalog_for, compose
    from newllm.config.identity import run_directory
    from newllm.config.overrides import parse
    from newllm.errors import ConfigError, Interrupted
    from newllm.runtime import Place

    if Place.from_environment().launched:
        raise ConfigError(
            "torchrun and srun start the command python -m newllm.train; leave them out, and give trainer.devices=N."
        )
    for key in parse(overrides, catalog_for(config_dir)).keys:
        if key.startswith(("sweep.", "hydra/", "hydra.launcher.", "hydra.sweep")):
            raise ConfigError(f"{key.removeprefix('sweep.')} is an option of sweeps; pass it to newllm.sweep.")
    cfg = compose(overrides, config_dir=config_dir)
    from newllm.run.execute import run
    from newllm.run.load import load_run
    from newllm.training.signals import redelivered

    with redelivered():
        if status := run(cfg):
            raise Interrupted(status - 128)
    return load_run(run_directory(cfg))
