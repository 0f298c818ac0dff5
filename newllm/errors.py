"""Errors that a user can fix, and the exit statuses that they end a command with.

A message is one sentence: what was wrong, what was expected, what to type instead.
"""

import argparse
import os
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn


class NewllmError(Exception):
    """Base of the errors shown without a traceback (HYDRA_FULL_ERROR=1 shows it)."""

    exit_status = 1


class ConfigError(NewllmError):
    """The input is at fault: a configuration, a data file, a run directory. Nothing has been written."""

    exit_status = 2


class RunError(NewllmError):
    """The run itself failed: a non-finite loss, a full disk, a model that sees the future."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are ConfigErrors; its `prog` is the command as one types it."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; {self.prog} --help shows the usage.")


def run_command(command: Callable[[list[str]], int], argv: list[str]) -> int:
    """Run `command` and return its exit status; a NewllmError becomes one line on stderr and a status of its own.

    HYDRA_FULL_ERROR=1 shows the traceback as well. Ctrl-C: 130; the reader of the output has gone: 141.
    """
    try:
        return command(argv)
    except NewllmError as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            traceback.print_exc()
        print(f"newllm: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # as in `newllm train --cfg job | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
