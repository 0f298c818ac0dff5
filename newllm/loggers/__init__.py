"""Trackers show the metrics and results of a run outside its directory. There is one per file, and its package is
imported only when a run starts with it."""

from newllm.loggers.logger import Logger, Tracked, require
from newllm.loggers.loggers import Loggers

__all__ = ["Logger", "Loggers", "Tracked", "require"]
