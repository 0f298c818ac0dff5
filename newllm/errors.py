"""Errors a user can mend. Each message is one sentence: what was wrong, what was expected, what to type instead."""


class NewllmError(Exception):
    """Base of the errors shown without a traceback (HYDRA_FULL_ERROR=1 shows it)."""

    exit_status = 1


class ConfigError(NewllmError):
    """The input is at fault: a configuration, a data file, a run directory. Nothing has been written."""

    exit_status = 2


class RunError(NewllmError):
    """The run itself failed: a non-finite loss, a full disk, a model that sees the future."""
