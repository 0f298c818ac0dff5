"""A bench for small language models: how they know where a token stands, and how little they may remember."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

# These four have the names of the packages that they are in. They are imported here because the first import of a
# submodule binds its name in this module, which would later replace the function.
from newllm.evaluate import evaluate
from newllm.report import report
from newllm.sweep import sweep
from newllm.train import train

if TYPE_CHECKING:
    from newllm.analysis.frame import load_runs
    from newllm.config.compose import compose
    from newllm.errors import ConfigError, NewllmError, RunError
    from newllm.model import build_model
    from newllm.run.load import Run, load_run

    __version__: str

__all__ = [
    "ConfigError", "NewllmError", "Run", "RunError", "__version__", "build_model", "compose", "evaluate", "load_run",
    "load_runs", "report", "sweep", "train",
]  # fmt: skip

_MODULES = {
    "ConfigError": "newllm.errors",
    "NewllmError": "newllm.errors",
    "Run": "newllm.run.load",
    "RunError": "newllm.errors",
    "build_model": "newllm.model",
    "compose": "newllm.config.compose",
    "load_run": "newllm.run.load",
    "load_runs": "newllm.analysis.frame",
}


def __getattr__(name: str) -> Any:
    # Loaded on first use: `import newllm`, --help and --cfg must not pay for torch.
    if name == "__version__":
        from importlib.metadata import version

        return version("newllm")
    if name not in _MODULES:
        raise AttributeError(f"module 'newllm' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
