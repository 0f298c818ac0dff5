"""Run directories and what is read out of them."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from newllm.results.frame import load_runs
    from newllm.results.load import load_run
    from newllm.results.run_directory import RunDirectory

__all__ = ["RunDirectory", "load_run", "load_runs"]

_HOMES = {
    "load_run": "newllm.results.load",
    "load_runs": "newllm.results.frame",
    "RunDirectory": "newllm.results.run_directory",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
