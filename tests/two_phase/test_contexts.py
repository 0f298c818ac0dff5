"""Contexts on disk: whole or not at all, and read as they were written."""

from pathlib import Path

import pytest
import torch

from newllm.two_phase.contexts import open_contexts, write_contexts

SHAPE = (50, 2, 3)


def written(path: Path, precision: str) -> torch.Tensor:
    values = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    # Any order, and the last of what comes twice.
    pieces = [((20, 50), values[20:]), ((0, 20), values[:20] + 1), ((0, 20), values[:20])]
    write_contexts(path, SHAPE, pieces, precision)
    return values


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_what_is_opened_is_what_was_written(tmp_path: Path, precision: str, dtype: torch.dtype) -> None:
    values = written(tmp_path / "one", precision).to(dtype)
    found = open_contexts(tmp_path / "one", SHAPE, precision)
    assert found is not None
    assert found.dtype is dtype
    assert torch.equal(found, values)
    assert (tmp_path / "one").stat().st_size == values.nbytes


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
