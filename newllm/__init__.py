"""A bench for small language models: how they know where a token stands, and how little they may remember."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from newllm.again import evaluate_run
    from newllm.config.compose import compose
    from newllm.model import build_model
    from newllm.results import load_run

__all__ = ["build_model", "compose", "evaluate_run", "load_run"]

_HOMES = {
    "build_model": "newllm.model",
    "compose": "newllm.config",
    "evaluate_run": "newllm.again",
    "load_run": "newllm.results",
}


def __getattr__(name: str) -> Any:
    # Loaded when asked for: `import newllm`, --help and --cfg must not pay for torch.
    if name not in _HOMES:
        raise AttributeError(f"module 'newllm' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
