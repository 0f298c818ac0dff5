import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from newllm.training.cross_entropy import linear_cross_entropy, token_losses

N, D, V = 37, 16, 211


@pytest.fixture
def batch() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(N, D, generator=generator).requires_grad_()
    weight = torch.randn(V, D, generator=generator).requires_grad_()
    labels = torch.randint(0, V, (N,), generator=generator)
    labels[[3, 8, 36]] = -100
    return hidden, weight, labels


def gradients(loss: Tensor, *of: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, of))


@pytest.mark.parametrize("chunk", [5, 16, 1000])
@pytest.mark.parametrize("scale", [1.0, 0.37])
def test_loss_and_gradients_equal_cross_entropy(batch, chunk: int, scale: float) -> None:
    hidden, weight, labels = batch
    expected = F.cross_entropy(hidden @ weight.T, labels)
    ours = linear_cross_entropy(hidden, weight, labels, chunk=chunk)
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-6)
    expected_gradients = gradients(expected * scale, hidden, weight)
    for mine, theirs in zip(gradients(ours * scale, hidden, weight), expected_gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


def test_pieces_divided_by_the_total_of_the_batch_add_up_to_it(batch) -> None:
    hidden, weight, labels = batch
    whole = gradients(linear_cross_entropy(hidden, weight, labels), weight)[0]
    scored = int((labels != -100).sum())
    parts = [slice(0, 10), slice(10, N)]
    pieces = [linear_cross_entropy(hidden[part], weight, labels[part], total=scored) for part in parts]
    torch.testing.assert_close(sum(pieces), F.cross_entropy(hidden @ weight.T, labels), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradients(sum(pieces), weight)[0], whole, rtol=1e-5, atol=1e-7)


def test_frozen_head_and_frozen_states_each_get_the_others_gradient(batch) -> None:
    hidden, weight, labels = batch
    d_hidden, d_weight = gradients(linear_cross_entropy(hidden, weight, labels), hidden, weight)
    torch.testing.assert_close(gradients(linear_cross_entropy(hidden, weight.detach(), labels), hidden)[0], d_hidden)
    torch.testing.assert_close(gradients(linear_cross_entropy(hidden.detach(), weight, labels), weight)[0], d_weight)


def test_token_losses_without_gradients(batch) -> None:
    hidden, weight, labels = batch
    expected = F.cross_entropy(hidden @ weight.T, labels, reduction="none")
    ours = token_losses(hidden, weight, labels, chunk=7)
    assert not ours.requires_grad
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-6)
    assert (ours[labels == -100] == 0).all()
    with torch.no_grad():
        torch.testing.assert_close(
            linear_cross_entropy(hidden, weight, labels), F.cross_entropy(hidden @ weight.T, labels)
        )


def test_without_scored_rows_loss_and_gradients_are_zero(batch) -> None:
    hidden, weight, labels = batch
    loss = linear_cross_entropy(hidden, weight, torch.full_like(labels, -100))
    assert loss.item() == 0
    assert all((g == 0).all() for g in gradients(loss, hidden, weight))


def test_bf16_products_keep_an_fp32_loss(batch) -> None:
    hidden, weight, labels = batch
    exact = F.cross_entropy(hidden @ weight.T, labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = linear_cross_entropy(hidden, weight, labels)
    assert ours.dtype == torch.float32
    assert ours.item() != ours.bfloat16().float().item()
    torch.testing.assert_close(ours, exact, rtol=1e-2, atol=1e-2)
    d_hidden, d_weight = gradients(ours, hidden, weight)
    assert d_hidden.dtype == d_weight.dtype == torch.float32
    reference = gradients(exact, weight)[0]
    assert F.cosine_similarity(d_weight.flatten(), reference.flatten(), dim=0) > 0.999


def test_a_certain_prediction_has_a_loss_near_zero_and_an_impossible_one_a_finite_loss() -> None:
    hidden = torch.tensor([[200.0], [200.0]]).requires_grad_()
    weight = torch.tensor([[1.0], [-1.0]]).requires_grad_()
    right = linear_cross_entropy(hidden, weight, torch.tensor([0, 0]))
    wrong = linear_cross_entropy(hidden, weight, torch.tensor([1, 1]))
    assert right.item() == pytest.approx(0, abs=1e-6)
    assert wrong.item() == pytest.approx(400)
