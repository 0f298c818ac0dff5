"""Fixtures for all tests: a cache of the session's own, one thread per process, composition."""

import os
import sys
from collections.abc import Callable, Iterator

import pytest

from newllm import trust


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tokenizers and stores of the tests, shared by all worker processes, never the user's."""
    base = tmp_path_factory.getbasetemp()
    if os.environ.get("PYTEST_XDIST_WORKER"):
        base = base.parent
    os.environ.setdefault("NEWLLM_CACHE", str(base / "newllm-cache"))
    os.environ["XDG_CONFIG_HOME"] = str(base / "config")


@pytest.fixture(scope="session", autouse=True)
def trusted() -> None:
    """Configurations of the tests may name the tests' own classes."""
    os.environ["NEWLLM_TRUST"] = "tests"


@pytest.fixture(autouse=True)
def own_config_dir(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test's --config-dir has made importable and named is not there in the next."""
    monkeypatch.setenv("NEWLLM_TRUST", os.environ["NEWLLM_TRUST"])
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    trust.import_folders.clear()
    trust._config_dirs.clear()


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Two workers of pytest share two cores: neither they nor the processes that they start take more than one."""
    import torch

    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(scope="session")
def small_model() -> Callable:
    """small_model(pos_encoding, attention, *overrides): the model of newllm.conformance, trained on rows of 64."""
    from newllm import conformance

    def build(pos_encoding: str, attention: str, *overrides: str):
        sizes = [] if any(one.startswith("seq_len=") for one in overrides) else ["seq_len=64"]
        return conformance.small_model([f"pos_encoding={pos_encoding}", f"attention={attention}", *sizes, *overrides])

    return build
