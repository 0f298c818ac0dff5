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
from newllm.sweep.outcome import asked_to_end

if TYPE_CHECKING:
    from omegaconf import DictConfig


def work(path: str | os.PathLike[str]) -> int:
    """Do the run that is frozen in the directory `path`; returns the exit status.

    0: done, also when it was done before. 1: failed. 2: refused, as for a bad configuration. 128 + n: interrupted by
    signal n. A failure leaves its sentence in status.json, and the traceback too unless it was foreseen. A directory
    that another process holds is left as it is.
    """
    directory = RunDirectory(path)
    try:
        if _is_done(directory):
            return 0
        from newllm.run.execute import run

        return run(_frozen(directory))
    except (Exception, SystemExit) as error:
        return _failed(directory, error)


def work_packed(paths: Sequence[str | os.PathLike[str]]) -> int:
    """Do the runs that are frozen in these directories as one batched model; returns the exit status.

    0: all are done. 1: some have failed. Else that of the first that is not done, as `work` has it. A run that fails,
    or is asked to end (`asked_to_end`), leaves the others to go on.
    """
    directories = [directory for directory in map(RunDirectory, paths) if not _is_done(directory)]
    if len(directories) < 2:
        return work(paths[0] if not directories else directories[0].path)
    from newllm.pack.compatibility import require_alike
    from newllm.pack.runs import run_packed

    try:
        configs = [_frozen(directory) for directory in directories]
        require_alike([directory.config() for directory in directories], len(directories))
    except NewllmError as error:
        for directory in directories:
            _failed(directory, error)
        return error.exit_status
    for directory in directories:  # of an earlier attempt
        asked_to_end(directory)
    ends = run_packed(configs, lambda number: asked_to_end(directories[number]))
    for directory in directories:  # too late for it
        asked_to_end(directory)
    statuses = [
        end if isinstance(end, int) else _failed(directory, end)
        for directory, end in zip(directories, ends, strict=True)
    ]
    return 1 if 1 in statuses else next((status for status in statuses if status), 0)


def sentence(error: BaseException) -> str:
    """An unexpected exception in one line: its kind, the first line of what it says, and for memory what helps."""
    first = next(iter(str(error).strip().splitlines()), "")
    text = f"{type(error).__name__}: {first}" if first else type(error).__name__
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "not enough memory" in first:
        text += "; a smaller batch_size, trainer.accumulate=2 or fewer runs at once (hydra.launcher.slots=1) need less"
    return text


def _is_done(directory: RunDirectory) -> bool:
    return directory.status().get("state") == "done" and directory.results_file.exists()


def _frozen(directory: RunDirectory) -> "DictConfig":
    from omegaconf import OmegaConf

    config = directory.config()
    if not config:
        raise ConfigError(f"{directory.path} holds no frozen run, since it has no config.yaml; plan the sweep again")
    return OmegaConf.create({**config, "run_dir": str(directory.path)})


def _failed(directory: RunDirectory, error: BaseException) -> int:
    """Note why a run has failed, and the traceback too unless it was foreseen; returns the exit status."""
    if isinstance(error, NewllmError):
        _note(directory, str(error), None)
        return error.exit_status
    trace = "".join(traceback.format_exception(error))
    _note(directory, sentence(error), trace)
    return 1


def _note(directory: RunDirectory, error: str, trace: str | None) -> None:
    with suppress(NewllmError, OSError), directory.locked():
        directory.update_status(traceback=trace)
        directory.end_attempt("failed", error=error)


if __name__ == "__main__":
    raise SystemExit(work_packed(sys.argv[1:]))
