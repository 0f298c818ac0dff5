"""One fixed-point iteration against its protocol, written out for a few tokens."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from newllm.seeding import stream
from newllm.two_phase.context_token import ContextToken
from newllm.two_phase.fixed_point import FixedPoint, Iteration
from newllm.two_phase.stored_contexts import Text, parallel_contexts, previous_contexts, true_contexts

TOKENS = np.random.default_rng(0).integers(0, 40, 11).astype(np.uint16)
WIDTH, BATCH, SEED = 8, 4, 7


def tiny_model() -> ContextToken:
    return ContextToken(2, WIDTH, 2, 6, tokens=40, seq_len=4, seed=1)


def iteration_of(model: ContextToken, folder: Path, **options: Any) -> Iteration:
    options = {"lr": 0.02, "batch_tokens": BATCH, "clip": 0.05, "threshold": 0.5, **options}
    objective = {"_target_": "newllm.two_phase.objectives.mcdl", "weight": 0.8}
    text = Text(model, TOKENS, torch.device("cpu"))
    phase = FixedPoint(**options, objective=objective, seed=SEED)
    return Iteration(phase, model.recurrence, text, "fp32", folder)


def normal(count: int, *name: object) -> torch.Tensor:
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(stream(SEED, "phase1", *name)))


class Adam:
    """Kingma & Ba 2015, algorithm 1, on clipped gradients, which it uses up."""

    def __init__(self, parameters: list[torch.Tensor], lr: float) -> None:
        self.parameters, self.lr, self.t = parameters, lr, 0
        self.moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in parameters]

    @torch.no_grad()
    def step(self, clip: float) -> None:
        self.t += 1
        norm = sum(p.grad.square().sum() for p in self.parameters) ** 0.5
        for p, (m, v) in zip(self.parameters, self.moments, strict=True):
            grad = p.grad * min(1.0, clip / norm)
            m.mul_(0.9).add_(0.1 * grad)
            v.mul_(0.999).add_(0.001 * grad**2)
            p -= self.lr * (m / (1 - 0.9**self.t)) / ((v / (1 - 0.999**self.t)).sqrt() + 1e-8)
            p.grad = None


@pytest.mark.parametrize("steps", ["pass", "batch"])
@pytest.mark.parametrize("wrap", [True, False])
def test_iterations_follow_the_protocol(tmp_path: Path, steps: str, wrap: bool) -> None:
    model = tiny_model()
    iteration = iteration_of(model, tmp_path, steps=steps, wrap=wrap)
    iteration.draw_start()
    found = [iteration.run(number, lambda batch, loss: None) for number in (2, 3, 4)]

    other = tiny_model()
    block = other.recurrence.requires_grad_(True)
    adam = Adam(list(block.parameters()), 0.02 if steps == "pass" else 0.02 / 3)  # a rate of the whole iteration
    windows = other.recurrent_inputs(torch.from_numpy(TOKENS.astype(np.int64))).detach()
    previous = torch.cat([0.01 * normal(n, "start", batch) for batch, n in enumerate((4, 4, 3))])
    for number, numbers in zip((2, 3, 4), found, strict=True):
        first = previous[-1:] if wrap else torch.zeros(1, WIDTH)
        noise = torch.cat([normal(n, "noise", number, batch) for batch, n in enumerate((4, 4, 3))])
        context = torch.cat([first, previous[:-1]]) + 0.1 * noise
        outs, total, bound = [], 0.0, 0.0
        for start in range(0, 11, BATCH):
            span = slice(start, min(start + BATCH, 11))
            out = block(context[span], windows[span])[:, -1]
            spread = (out - out.mean(dim=0)).norm() / len(out)
            loss = 0.2 * F.mse_loss(out, previous[span]) - 0.8 * spread
            (loss / 3 if steps == "pass" else loss).backward()
            if steps == "batch":
                adam.step(clip=0.05)
            outs.append(out.detach())
            total += loss.item() * len(out) / 11
            bound -= 0.8 * (WIDTH / len(out)) ** 0.5 * len(out) / 11
        if steps == "pass":
            adam.step(clip=0.05)
        out = torch.cat(outs)
        stayed = ((out - previous).square().mean(dim=1) < 0.5).float().mean().item()
        previous = out
        assert numbers["loss"] == pytest.approx(total, abs=1e-5)
        assert numbers["bound"] == pytest.approx(bound)
        assert numbers["converged"] == pytest.approx(stayed)
    assert iteration.steps == (1 if steps == "pass" else 3)
    torch.testing.assert_close(torch.from_numpy(np.array(iteration.contexts(4))), previous)
    for one, two in zip(model.recurrence.parameters(), block.parameters(), strict=True):
        torch.testing.assert_close(one, two, atol=1e-4, rtol=1e-3)


def test_without_steps_contexts_are_computed_and_nothing_is_trained(tmp_path: Path) -> None:
    model = tiny_model()
    iteration = iteration_of(model, tmp_path, steps="none", noise=0.0)
    iteration.draw_start()
    iteration.run(2, lambda batch, loss: None)
    assert iteration.steps == 0
    assert all(torch.equal(p, tiny_model().get_parameter(name)) for name, p in model.named_parameters())
    previous = torch.from_numpy(np.array(iteration.contexts(1)))
    windows = model.recurrent_inputs(torch.from_numpy(TOKENS.astype(np.int64)))
    expected = model.recurrence(torch.cat([previous[-1:], previous[:-1]]), windows)[:, -1]
    torch.testing.assert_close(torch.from_numpy(np.array(iteration.contexts(2))), expected.detach())


def test_untrained_norms_keep_the_length_of_contexts(tmp_path: Path) -> None:
    model = tiny_model()
    iteration = iteration_of(model, tmp_path, train_norms=False, lr=0.2)
    iteration.draw_start()
    for number in (2, 3):
        iteration.run(number, lambda batch, loss: None)
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, tiny_model().get_parameter(name))}
    assert len(moved) == 2 * 3  # weights and biases of two layers
    assert not any("norm" in name for name in moved)
    lengths = np.linalg.norm(iteration.contexts(3), axis=1)
    assert lengths == pytest.approx(WIDTH**0.5, rel=1e-3)


def test_a_pass_with_true_contexts_gives_the_true_contexts() -> None:
    model = tiny_model()
    text = Text(model, np.tile(TOKENS, 9), torch.device("cpu"))
    true = torch.empty(len(text), 2, WIDTH)
    for (start, stop), piece in true_contexts(model.recurrence, text, "fp32"):
        true[start:stop] = piece
    context = torch.zeros(1, WIDTH)
    for t in range(len(text)):  # one token after another
        states = model.recurrence(context, text(t, t + 1))
        torch.testing.assert_close(true[t : t + 1], states.detach(), atol=1e-5, rtol=1e-5)
        context = states[:, -1].detach()
    pieces = list(parallel_contexts(model.recurrence, text, true[:, -1].numpy(), 10, "fp32"))
    assert [span for span, _ in pieces[:2]] == [(0, 10), (10, 20)]
    torch.testing.assert_close(torch.cat([piece for _, piece in pieces]), true, atol=1e-5, rtol=1e-5)


def test_inputs_of_a_part_equal_those_of_the_whole_text() -> None:
    model = ContextToken(1, WIDTH, 3, 6, tokens=40, seq_len=4, seed=1)
    text = Text(model, TOKENS, torch.device("cpu"))
    whole = text(0, 11)
    assert whole.shape == (11, 18)
    assert not whole[0, :12].any()  # nothing before the start
    for start, stop in [(0, 1), (1, 3), (2, 11), (5, 6)]:
        torch.testing.assert_close(text(start, stop), whole[start:stop])


def test_contexts_are_shifted_by_one_token() -> None:
    previous = np.arange(10, dtype=np.float32).reshape(5, 2)
    first = np.array([8, 9], np.float32)
    assert previous_contexts(previous, 0, 3, first).tolist() == [[8, 9], [0, 1], [2, 3]]
    assert previous_contexts(previous, 3, 5, first).tolist() == [[4, 5], [6, 7]]
