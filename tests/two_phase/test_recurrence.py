"""A recurrence run token by token, and the fast pass over one stream, which must give the same states."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from newllm.model.init import init_weights
from newllm.two_phase import recurrence as module
from newllm.two_phase.context_token import ContextBlock
from newllm.two_phase.recurrence import Recurrence, scan, sequential

COUNT = 1500


class Turning(Recurrence):
    """c -> Q c + u with an orthogonal Q: it never forgets its start."""

    layers, width, inputs = 1, 8, 8

    def __init__(self) -> None:
        super().__init__()
        self.turn = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(3)))[0]

    def project(self, inputs: Tensor) -> Tensor:
        return inputs[..., None, :]

    def step(self, context: Tensor, share: Tensor) -> Tensor:
        return context[:, None] @ self.turn + share


class LateTurning(Turning):
    """Forgets everywhere but in the second eighth of the stream, where forgetting is not measured."""

    def step(self, context: Tensor, share: Tensor) -> Tensor:
        kept = torch.where(share[:, :, :1] > 100, 1.0, 0.1)
        return kept * (context[:, None] @ self.turn) + share


def random_block() -> ContextBlock:
    block = ContextBlock(layers=3, width=64, inputs=128).requires_grad_(False)
    init_weights(block, seed=1, std=0.3, bias_std=0.01)
    return block


def noise(count: int, width: int) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(0))


def run_sequential(recurrence: Recurrence, inputs: Tensor, start: Tensor) -> tuple[Tensor, list[int]]:
    """All states [N, L, C] by `sequential`, and the number of spans that ran side by side each time."""
    runs: list[int] = []
    inner = module._run_spans

    def counted(recurrence: Recurrence, inputs: Callable, spans: list, contexts: Tensor):
        runs.append(len(spans))
        yield from inner(recurrence, inputs, spans, contexts)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_run_spans", counted)
        out = inputs.new_full((len(inputs), recurrence.layers, recurrence.width), torch.nan)
        for (begin, end), states in sequential(recurrence, lambda a, b: inputs[a:b], len(inputs), start):
            out[begin:end] = states
    return out, runs


def test_parallel_pass_with_true_contexts_is_the_recurrence():
    block, inputs, start = random_block(), noise(50, 128), noise(1, 64)
    states = scan(block, inputs[None], start)[0]  # [T, L, C]
    before = torch.cat((start, states[:-1, -1]))
    torch.testing.assert_close(block(before, inputs), states, atol=2e-6, rtol=0)


def test_rows_are_independent_and_nothing_sees_the_future():
    block, inputs = random_block(), noise(60, 128).view(2, 30, 128)
    states = scan(block, inputs, noise(2, 64))
    changed = inputs.clone()
    changed[1, 20] += 1
    other = scan(block, changed, noise(2, 64))
    assert torch.equal(other[0], states[0])
    assert torch.equal(other[1, :20], states[1, :20])
    assert not torch.isclose(other[1, 20:], states[1, 20:]).all(dim=(1, 2)).any()


def test_gradients_go_through_time():
    """Gradients of weights and inputs equal those of a loop over single tokens."""
    block = random_block().requires_grad_()
    inputs = noise(8, 128).view(1, 8, 128).requires_grad_()

    def gradients(last: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(last.square().sum(), [inputs, *block.parameters()], allow_unused=True))

    context = torch.zeros(1, 64)
    for t in range(8):
        context = block(context, inputs[:, t])[:, -1]
    expected = gradients(context * noise(1, 64))
    found = gradients(scan(block, inputs, torch.zeros(1, 64))[:, -1, -1] * noise(1, 64))
    assert expected[0][0, 0].abs().max() > 1e-6
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("count", [1, 7, 100, COUNT])
def test_sequential_equals_scan(count):
    block, inputs, start = random_block(), noise(count, 128), noise(1, 64)[0]
    found, runs = run_sequential(block, inputs, start)
    torch.testing.assert_close(found, scan(block, inputs[None], start[None])[0], atol=1e-5, rtol=0)
    assert (max(runs) > 8) == (count == COUNT)  # only a long stream is cut into segments
    again, _ = run_sequential(block, inputs, start)
    assert torch.equal(found, again)


def test_sequential_under_autocast_differs_by_rounding_only():
    block, inputs, start = random_block(), noise(COUNT, 128), torch.zeros(64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, runs = run_sequential(block, inputs, start)
        expected = scan(block, inputs[None], start[None])[0]
    assert max(runs) > 8
    assert (found - expected).square().mean().sqrt() < 0.02


def test_a_recurrence_that_does_not_forget_runs_token_by_token():
    found, runs = run_sequential(Turning(), noise(COUNT, 8), noise(1, 8)[0])
    expected = scan(Turning(), noise(COUNT, 8)[None], noise(1, 8))[0]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert runs == [1]


def test_wrong_starts_are_corrected():
    """Segments that begin where nothing is forgotten start wrong, and so do later ones."""
    inputs = noise(COUNT, 8) / 10
    inputs[COUNT // 8 : COUNT // 4, 0] += 200
    found, runs = run_sequential(LateTurning(), inputs, noise(1, 8)[0])
    expected = scan(LateTurning(), inputs[None], noise(1, 8))[0]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert len(runs) > 2


def test_inputs_are_read_in_bounded_pieces(monkeypatch):
    monkeypatch.setattr(module, "_BLOCK", 64)
    sizes: list[int] = []

    def inputs(begin: int, end: int) -> Tensor:
        sizes.append(end - begin)
        return stream[begin:end]

    block, stream = random_block(), noise(COUNT, 128)
    pieces = [len(states) for _, states in sequential(block, inputs, COUNT, torch.zeros(64))]
    assert max(sizes) <= 64
    assert max(pieces) <= 64
