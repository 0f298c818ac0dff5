"""Errors that a user can fix, and the exit status of each.

A message is one sentence: what was wrong, what was expected, what to type instead.
"""

import argparse
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NoReturn

from newllm.suggest import did_you_mean


class NewllmError(Exception):
    """Base class of errors that are shown without a traceback, unless HYDRA_FULL_ERROR=1."""

    exit_status = 1


class ConfigError(NewllmError):
    """The input is wrong: a configuration, a data file or a run directory. Nothing has been written."""

    exit_status = 2


class RunError(NewllmError):
    """The run itself failed: a non-finite loss, a full disk, a model that sees the future."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are ConfigErrors; its `prog` is the command as the user types it."""

    def error(self, message: str) -> NoReturn:
        flags = [flag for flag in self._option_string_actions if flag.startswith("--")]
        words = re.split(r"[\s=/:]+", message)
        unknown = next((word for word in words if word.startswith("--") and word not in flags), None)
        advice = did_you_mean(unknown, flags) if unknown else f"{self.prog} --help shows the usage"
        raise ConfigError(f"{message}; {advice}.")


def run_command(command: Callable[[list[str]], int], argv: Sequence[str] | None, usage: str | None = None) -> int:
    """Run `command` and return its exit status; a NewllmError becomes one line on stderr and sets the status.

    argv: the arguments (default: those of this process). usage: the text of --help. HYDRA_FULL_ERROR=1 also shows the
    traceback. The status is 130 after Ctrl-C, which also works in a background job of a shell script, and 141 if the
    output's reader has gone.
    """
    words = [*(sys.argv[1:] if argv is None else argv)]
    if sys.stdout is None:  # closed, as by `newllm train >&-`
        sys.stdout = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
        os.set_inheritable(sys.stdout.fileno(), True)  # child processes print too
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as in `newllm train … &` in a shell script
        with suppress(ValueError):  # not in the main thread
            signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        if usage is not None and not {"-h", "--help"}.isdisjoint(words):
            print(usage.replace("`", ""))
            return 0
        return command(words)
    except NewllmError as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            traceback.print_exc()
        print(f"newllm: {str(error).removesuffix('.')}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # as in `newllm train --cfg job | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
