from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.small_runs import small_config


@pytest.fixture
def do_run() -> Callable[..., int]:
    """do_run(directory, *overrides): the small run, in this process; returns the exit status."""
    from newllm.run.execute import run

    def do(directory: Path, *overrides: str) -> int:
        return run(small_config(directory, *overrides))

    return do
