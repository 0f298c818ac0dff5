"""One frozen run from its directory: what a process of any launcher does, and what it leaves when it fails.

`python -P -m newllm.sweep.worker RUN_DIRECTORY` does the run by hand.
"""

import os
import sys
import traceback
from contextlib import suppress

from newllm.errors import ConfigError, NewllmError
from newllm.results.run_directory import RunDirectory


def work(path: str | os.PathLike[str]) -> int:
    """Do the run that is frozen in the directory `path`; returns the exit status.

    0: done, also when it was done before. 1: failed. 2: refused, as for a bad configuration. 128 + n: interrupted by
    signal n. A failure leaves its sentence in status.json, and the traceback too unless it was foreseen. A directory
    that another process holds is left as it is.
    """
    directory = RunDirectory(path)
    try:
        if directory.status().get("state") == "done" and directory.results_file.exists():
            return 0
        return _run(directory)
    except NewllmError as error:
        _note(directory, str(error), None)
        return error.exit_status
    except (Exception, SystemExit) as error:
        _note(directory, sentence(error), traceback.format_exc())
        return 1


def sentence(error: BaseException) -> str:
    """An unexpected exception in one line: its kind, the first line of what it says, and for memory what helps."""
    first = next(iter(str(error).strip().splitlines()), "")
    text = f"{type(error).__name__}: {first}" if first else type(error).__name__
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "not enough memory" in first:
        text += "; a smaller batch_size, trainer.accumulate=2 or fewer runs at once (hydra.launcher.slots=1) need less"
    return text


def _run(directory: RunDirectory) -> int:
    from omegaconf import OmegaConf

    from newllm.run import run

    config = directory.config()
    if not config:
        raise ConfigError(f"{directory.path} holds no frozen run, since it has no config.yaml; plan the sweep again")
    return run(OmegaConf.create({**config, "run_dir": str(directory.path)}))


def _note(directory: RunDirectory, error: str, trace: str | None) -> None:
    with suppress(NewllmError, OSError), directory.locked():
        directory.update_status(traceback=trace)
        directory.end_attempt("failed", error=error)


if __name__ == "__main__":
    raise SystemExit(work(sys.argv[1]))
