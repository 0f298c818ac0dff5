"""A bench for small language models: how they know where a token stands, and how little they may remember."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from newllm.config.compose import compose
    from newllm.model import build_model
    from newllm.run.load import load_run
    from newllm.run.reevaluate import evaluate_run

__all__ = ["build_model", "compose", "evaluate_run", "load_run"]

_MODULES = {
    "build_model": "newllm.model",
    "compose": "newllm.config.compose",
    "evaluate_run": "newllm.run.reevaluate",
    "load_run": "newllm.run.load",
}


def __getattr__(name: str) -> Any:
    # Loaded on first use: `import newllm`, --help and --cfg must not pay for torch.
    if name not in _MODULES:
        raise AttributeError(f"module 'newllm' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
