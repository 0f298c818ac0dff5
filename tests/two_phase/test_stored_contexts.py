"""Contexts in files, equal to what was written, and texts as rows that read them."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from newllm.data.dataset import Rows
from newllm.errors import ConfigError
from newllm.two_phase.stored_contexts import ContextRows, StreamRows, open_contexts, write_contexts

SHAPE = (50, 2, 3)
TOKENS = np.arange(100, 111, dtype=np.uint16)  # 11 tokens, 10 labels


def write_random(path: Path, precision: str) -> torch.Tensor:
    values = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    # Pieces in any order; the later of two pieces for the same tokens counts.
    pieces = [((20, 50), values[20:]), ((0, 20), values[:20] + 1), ((0, 20), values[:20])]
    write_contexts(path, SHAPE, pieces, precision)
    return values


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_opened_contexts_equal_written_ones(tmp_path: Path, precision: str, dtype: torch.dtype) -> None:
    values = write_random(tmp_path / "contexts", precision).to(dtype)
    opened = open_contexts(tmp_path / "contexts", SHAPE, precision)
    assert opened.dtype is dtype
    assert torch.equal(opened, values)
    assert (tmp_path / "contexts").stat().st_size == values.nbytes


def test_files_of_another_size_are_not_opened(tmp_path: Path) -> None:
    path = tmp_path / "contexts"
    write_random(path, "fp32")
    for shape, precision in (((49, 2, 3), "fp32"), (SHAPE, "bf16")):
        with pytest.raises(ConfigError, match="does not hold"):
            open_contexts(path, shape, precision)

    def interrupted_pieces() -> Iterator[tuple[tuple[int, int], torch.Tensor]]:
        yield (0, 20), torch.zeros(20, 2, 3)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_contexts(tmp_path / "interrupted", SHAPE, interrupted_pieces(), "fp32")
    assert [file.name for file in tmp_path.iterdir()] == ["contexts"]


@pytest.mark.parametrize(("seq_len", "rows"), [(4, 3), (5, 2), (10, 1), (16, 1), (1, 10)])
def test_every_label_is_scored_once_and_in_order(seq_len: int, rows: int) -> None:
    stream_rows = StreamRows(TOKENS, seq_len)
    inputs, labels = stream_rows.arrays(np.arange(len(stream_rows)))
    scored = labels != -100
    assert len(stream_rows) == rows
    assert stream_rows.scored == scored.sum() == 10
    assert labels[scored].tolist() == TOKENS[1:].tolist()
    assert inputs[scored].tolist() == TOKENS[:-1].tolist()
    assert inputs.min() >= 100  # the padding is a token, too


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_batches_hold_windows_and_contexts(dtype: torch.dtype) -> None:
    contexts = torch.arange(11.0).to(dtype)[:, None, None].expand(11, 1, 3).contiguous()
    rows, indices = ContextRows(TOKENS, 4, contexts, window=3), np.array([2, 0])
    tokens, labels = StreamRows(TOKENS, 4).batch(indices)
    inputs, same_labels = rows.batch(indices)
    ids = inputs[..., :12].contiguous().view(torch.int32)
    assert torch.equal(same_labels, labels)
    assert torch.equal(ids[..., -1], tokens.int())
    assert ids[1].tolist() == [[-1, -1, 100], [-1, 100, 101], [100, 101, 102], [101, 102, 103]]
    assert ids[0].tolist() == [[106, 107, 108], [107, 108, 109], *[[108, 109, 110]] * 2]
    read = inputs[..., 12:].view(dtype)
    assert torch.equal(read, (tokens - 100).to(dtype)[..., None].expand(2, 4, 3))


def test_joined_rows_are_one_row() -> None:
    joined = StreamRows(TOKENS, 4).joined()
    inputs, labels = joined.arrays(np.arange(len(joined)))
    assert (inputs.tolist(), labels.tolist()) == ([TOKENS[:-1].tolist()], [TOKENS[1:].tolist()])
    assert StreamRows(TOKENS, 4).joined(max_labels=3).arrays(np.arange(1))[1].tolist() == [[101, 102, 103]]
    rows = Rows(TOKENS, np.arange(2) * 5, 5)
    assert rows.joined() is rows
