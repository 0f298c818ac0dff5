"""Frozen runs from their directories: what a process of any launcher does, and what it leaves when one fails.

`python -P -m newllm.sweep.worker RUN_DIRECTORY` does the run by hand; several directories make a packed one.
"""

import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from newllm.errors import ConfigError, NewllmError
from newllm.store.run_directory import RunDirectory

if TYPE_CHECKING:
    from omegaconf import DictConfig

_END = ".end"  # a file in the run directory


def work(*paths: str | os.PathLike[str]) -> int:
    """Do the runs that are frozen in these directories, several as one batched model; returns the exit status.

    0: all are done, also when they were done before. 1: some have failed. Else that of the first that is not done;
    2: refused, as for a bad configuration; 128 + n: interrupted by signal n. A failure leaves its sentence in
    status.json, and the traceback too unless it was foreseen. A directory that another process holds is left as it is.
    A run of several that fails, or that `ask_to_end` has named, leaves the others to go on.
    """
    directories = [RunDirectory(path) for path in paths]
    ends: Sequence[int | BaseException]
    try:
        directories = [directory for directory in directories if not directory.is_done()]
        configs = [_frozen(directory) for directory in directories]
        if len(directories) > 1:
            ends = _work_packed(directories, configs)
        else:
            from newllm.run.execute import run

            ends = [run(cfg) for cfg in configs]
    except (Exception, SystemExit) as error:
        ends = [error] * len(directories)
    statuses = [
        end if isinstance(end, int) else _failed(directory, end)
        for directory, end in zip(directories, ends, strict=True)
    ]
    return 1 if 1 in statuses else next(filter(None, statuses), 0)


def ask_to_end(directory: RunDirectory) -> None:
    """Have a run that shares its process with others save and end; a signal would end them all."""
    (directory.path / _END).touch()


def sentence(error: BaseException) -> str:
    """An unexpected exception in one line: its kind, the first line of what it says, and for memory what helps."""
    first = next(iter(str(error).strip().splitlines()), "")
    text = f"{type(error).__name__}: {first}" if first else type(error).__name__
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "not enough memory" in first:
        text += "; a smaller batch_size, trainer.accumulate=2 or fewer runs at once (hydra.launcher.slots=1) need less"
    return text


def _work_packed(directories: Sequence[RunDirectory], configs: Sequence["DictConfig"]) -> Sequence[int | BaseException]:
    from newllm.pack.compatibility import require_compatible
    from newllm.pack.meeting import run_packed

    def asked_to_end(number: int) -> bool:
        try:
            (directories[number].path / _END).unlink()
        except OSError:
            return False
        return True

    require_compatible([directory.config() for directory in directories], len(directories))
    numbers = range(len(directories))
    for number in numbers:  # in an earlier attempt
        asked_to_end(number)
    ends = run_packed(configs, asked_to_end)
    for number in numbers:  # too late
        asked_to_end(number)
    return ends


def _frozen(directory: RunDirectory) -> "DictConfig":
    from omegaconf import OmegaConf

    config = directory.config()
    if not config:
        raise ConfigError(f"{directory.path} holds no frozen run, since it has no config.yaml; plan the sweep again")
    return OmegaConf.create({**config, "run_dir": str(directory.path)})


def _failed(directory: RunDirectory, error: BaseException) -> int:
    """Note why a run has failed, and the traceback too unless it was foreseen; returns the exit status."""
    foreseen = isinstance(error, NewllmError)
    with suppress(NewllmError, OSError), directory.locked():
        directory.update_status(traceback=None if foreseen else "".join(traceback.format_exception(error)))
        directory.end_attempt("failed", error=str(error) if foreseen else sentence(error))
    return error.exit_status if isinstance(error, NewllmError) else 1


if __name__ == "__main__":
    raise SystemExit(work(*sys.argv[1:]))
