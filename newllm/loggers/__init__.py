"""Trackers: where a run's metrics and results are shown besides its own files. One per file; none imports its package
before a run begins with it."""

from newllm.loggers.logger import Logger, Tracked, require
from newllm.loggers.loggers import Loggers

__all__ = ["Logger", "Loggers", "Tracked", "require"]
