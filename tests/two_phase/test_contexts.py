"""Contexts on disk: whole or not at all, gathered as they were written."""

from pathlib import Path

import numpy as np
import pytest
import torch

from newllm.two_phase.contexts import as_fp32, gather, open_contexts, write_contexts

SHAPE = (50, 2, 3)


def written(path: Path, precision: str) -> torch.Tensor:
    values = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    # Any order, and the last of what comes twice.
    pieces = [((20, 50), values[20:]), ((0, 20), values[:20] + 1), ((0, 20), values[:20])]
    write_contexts(path, SHAPE, pieces, precision)
    return values


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_what_is_gathered_is_what_was_written(tmp_path: Path, precision: str, dtype: torch.dtype) -> None:
    values = written(tmp_path / "one", precision).to(dtype)
    raw = open_contexts(tmp_path / "one", SHAPE, precision)
    contexts = as_fp32(raw)
    for wanted in (
        torch.arange(10, 30),
        torch.arange(12).reshape(3, 4),
        torch.cat([torch.arange(40, 50), torch.arange(3, 12), torch.full((3,), 49)]),
        torch.tensor([[7, 3], [3, 49]]),
        torch.empty(0, dtype=torch.int64),
    ):
        found = gather(raw, wanted.numpy())
        assert found.dtype is dtype
        assert torch.equal(found, values[wanted])
    assert contexts.shape == SHAPE
    assert len(contexts) == 50
    rows = np.array([3, 1, 4])
    assert np.array_equal(contexts[rows, -1], values[rows, -1].float().numpy())
    assert np.array_equal(np.asarray(contexts), values.float().numpy())


def test_a_file_that_is_not_whole_is_none(tmp_path: Path) -> None:
    path = tmp_path / "one"
    assert open_contexts(path, SHAPE, "fp32") is None
    written(path, "fp32")
    assert open_contexts(path, (49, 2, 3), "fp32") is None
    assert open_contexts(path, SHAPE, "bf16") is None

    def breaking():
        yield (0, 20), torch.zeros(20, 2, 3)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_contexts(tmp_path / "two", SHAPE, breaking(), "fp32")
    assert [one.name for one in tmp_path.iterdir()] == ["one"]
