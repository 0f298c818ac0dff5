"""Fixtures for all tests: a cache of the session's own, one thread per process, composition."""

import os
from collections.abc import Callable

import pytest


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tokenizers and stores of the tests, shared by all worker processes, never the user's."""
    base = tmp_path_factory.getbasetemp()
    if os.environ.get("PYTEST_XDIST_WORKER"):
        base = base.parent
    os.environ.setdefault("NEWLLM_CACHE", str(base / "newllm-cache"))


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def small_model() -> Callable:
    """small_model(pos_encoding, attention, *overrides): a small model of that choice, with weights that matter.

    That is, what an encoding learns from 0 on is drawn at random.
    """
    import torch

    import newllm

    def build(pos_encoding: str, attention: str, *overrides: str):
        cfg = newllm.compose([
            f"pos_encoding={pos_encoding}", f"attention={attention}", "model=tiny", "model.hidden_size=64",
            "model.num_layers=3", "model.heads=4", "model.mlp_size=96", "model.vocab_size=128", "model.init_std=0.15",
            "seq_len=64", *overrides,
        ])  # fmt: skip
        model = newllm.build_model(cfg).eval()
        generator = torch.Generator().manual_seed(0)
        for parameter in model.position.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=cfg.model.init_std, generator=generator)
        return model

    return build
