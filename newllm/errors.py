"""Errors that a user can fix, and the exit status of each.

A message is one sentence: what was wrong, what was expected, what to type instead.
"""

import argparse
import errno
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NoReturn

from newllm.streams import open_outputs, visible
from newllm.suggest import did_you_mean

# Signals that let a run save and stop. SLURM sends SIGUSR1 and SIGUSR2 before the time limit (submitit uses SIGUSR2), a
# terminal that closes SIGHUP. One that is ignored, as SIGHUP under nohup, stays so.
_NAMES = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2")
STOPPING = tuple(signal.Signals[name] for name in _NAMES if hasattr(signal, name))
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_MEMORY = ("not enough memory", "can't allocate memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
LESS_MEMORY = "a smaller batch_size, trainer.accumulate=2 or fewer runs at once (hydra.launcher.slots=1) need less"


class NewllmError(Exception):
    """Base class of errors that are shown without a traceback, unless HYDRA_FULL_ERROR=1."""

    exit_status = 1


class ConfigError(NewllmError):
    """The input is wrong: a configuration, a data file or a run directory. Nothing has been written."""

    exit_status = 2


class RunError(NewllmError):
    """The run itself failed: a non-finite loss, a full disk, a model that sees the future."""


class Interrupted(BaseException):
    """A signal has stopped the command. A BaseException, so that no `except Exception` swallows it."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"Stopped by {signal_name(signum)}")
        self.signum = signum
        self.exit_status = 128 + signum


def signal_name(signum: int) -> str:
    """How users know a signal: Ctrl-C, SIGTERM, …"""
    names = {known.value: known.name for known in signal.Signals} | {signal.SIGINT: "Ctrl-C"}
    return names.get(signum, f"signal {signum}")


def with_place(error: Exception) -> str:
    """The first line of an error in a user's class, with the file and line that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    place = next((frame for frame in reversed(frames) if "-packages" not in frame.filename), frames[-1])
    message = str(error).partition("\n")[0]
    return f"{type(error).__name__}: {message} ({place.filename}, line {place.lineno})"


class _Once(argparse.Action):
    """Keeps the value of a flag that cannot be given twice."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, flag: str | None = None) -> None:
        if getattr(namespace, self.dest) is not None:
            raise ConfigError(f"{flag} is given twice, and one folder is read; put the files of both into one.")
        setattr(namespace, self.dest, values)


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are ConfigErrors; its `prog` is the command as the user types it."""

    def add_config_dir(self) -> None:
        """The flag --config-dir."""
        self.add_argument(
            "--config-dir", "-cd", action=_Once, metavar="FOLDER", help="YAML files and classes of your own"
        )

    def error(self, message: str) -> NoReturn:
        flags = [flag for flag in self._option_string_actions if flag.startswith("--")]
        words = re.split(r"[\s=/:]+", message)
        unknown = next((word for word in words if word.startswith("--") and word not in flags), None)
        advice = did_you_mean(unknown, flags) if unknown else f"{self.prog} --help shows the usage"
        raise ConfigError(f"{message}; {advice}.")


def run_command(command: Callable[[list[str]], int], argv: Sequence[str] | None, usage: str | None = None) -> int:
    """Run `command` and return its exit status; whatever a user, a disk or a signal does is one line on stderr.

    argv: the arguments (default: those of this process, which ends with the command). usage: the text of --help.
    HYDRA_FULL_ERROR=1 also shows the traceback. The status is that of a NewllmError, 2 for a file that cannot be used,
    130 after Ctrl-C, which also works in a background job of a shell script, and 141 if the output's reader has gone.
    """
    words = [*(sys.argv[1:] if argv is None else argv)]
    open_outputs()
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as in `newllm train … &` in a shell script
        with suppress(ValueError):  # not in the main thread
            signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        for word in words:
            _require_text(word)
        if usage is not None and not {"-h", "--help"}.isdisjoint(words):
            print(usage.replace("`", ""))
            status = 0
        else:
            status = command(words)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # as in `newllm train --cfg job | head`
        return 141
    except Exception as error:
        if as_newllm_error(error) is None:
            raise
        return print_error(error)
    except Interrupted as stop:
        return stop.exit_status
    except KeyboardInterrupt:
        return 130
    finally:
        if argv is None:
            _ignore_signals()  # the interpreter ends, which takes a moment; the status stays that of the command


def print_error(error: Exception, of: str = "") -> int:
    """Print an error of `of`, a run or a file, as a line on stderr; returns its exit status.

    One that is a fault of the program is shown with its traceback.
    """
    expected = as_newllm_error(error)
    if expected is None or os.environ.get("HYDRA_FULL_ERROR") == "1":
        traceback.print_exception(error)
    message = type(error).__name__ if expected is None else str(expected).removesuffix(".")
    print(visible(f"newllm: {of}{': ' if of else ''}{message}"), file=sys.stderr)
    return 1 if expected is None else expected.exit_status


def as_newllm_error(error: BaseException) -> NewllmError | None:
    """An error that a user or a machine causes, as a sentence; None for a fault of the program."""
    if isinstance(error, NewllmError):
        return error
    if ran_out_of_memory(error):
        first = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
        return RunError(f"the memory is not enough ({first[:200]}); {LESS_MEMORY}.")
    where = f"{os.fsdecode(name)}: " if isinstance(name := getattr(error, "filename", None), str | bytes) else ""
    if disk_is_full(error):
        return RunError(f"{where}the disk is full; make room and type the same command again.")
    if isinstance(error, RuntimeError) and "home directory" in str(error):  # of Path.expanduser
        return ConfigError(
            "this user has no home folder, in which the cache is by default; type runtime.cache_dir=FOLDER, or set "
            "NEWLLM_CACHE."
        )
    if isinstance(error, OSError) and error.errno is not None:
        reason = (error.strerror or str(error)).lower()
        return ConfigError(f"{where}{reason} ({errno.errorcode.get(error.errno)}); name another file or folder.")
    return None


def disk_is_full(error: BaseException) -> bool:
    """Whether there was no room for what was written; libraries in Rust raise errors of their own then."""
    if isinstance(error, OSError):
        return error.errno in _FULL
    return any(f"(os error {number})" in str(error) for number in _FULL)


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether memory of this machine or of a GPU was refused."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return any(words in str(error) for words in _NO_MEMORY)


def _require_text(word: str) -> None:
    """Raises ConfigError for an argument that this locale cannot decode, since it cannot be stored or shown."""
    if any("\ud800" <= character <= "\udfff" for character in word):
        shown = word.encode(errors="backslashreplace").decode()
        raise ConfigError(
            f"the argument '{shown}' is not valid {sys.getfilesystemencoding()} text; type it in that encoding, or "
            "rename the file."
        )


def _ignore_signals() -> None:
    with suppress(ValueError):  # not in the main thread
        for signum in STOPPING:
            signal.signal(signum, signal.SIG_IGN)
