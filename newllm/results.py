"""Finished runs as a table: `from newllm.results import load_runs`."""

from newllm.analysis.frame import load_runs

__all__ = ["load_runs"]
