"""Muon: which parameters it takes, what it does to them, clipping. test_trunk.py resumes runs that use it."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from newllm.errors import ConfigError
from newllm.model import LanguageModel
from newllm.precision import Precision
from newllm.training.muon import Muon, _MuonAndAdamW
from newllm.training.optimizer import AdamW
from newllm.training.step import Step

LR, DECAY = 0.02, 0.1
TEXT = b"The rows of a batch are divided among the processes; the step is the same up to rounding. " * 2


def muon(**options) -> Muon:
    return Muon(**{"lr": LR, "betas": [0.9, 0.99], "weight_decay": DECAY} | options)


def by_hand(weight: Tensor, gradients: list[Tensor]) -> Tensor:
    """One matrix after these gradients, in float64: the formulas of Jordan's and Liu et al.'s texts."""
    weight, mean = weight.double(), torch.zeros_like(weight, dtype=torch.float64)
    for gradient in gradients:
        mean = 0.95 * mean + 0.05 * gradient.double()
        x = 0.05 * gradient.double() + 0.95 * mean
        x = x / x.norm()
        for _ in range(5):
            x = 3.4445 * x - 4.7750 * (x @ x.T) @ x + 2.0315 * (x @ x.T) @ (x @ x.T) @ x
        weight = weight * (1 - LR * DECAY) - LR * 0.2 * max(weight.shape) ** 0.5 * x
    return weight


def rows_of(name: str, model: LanguageModel) -> list[list[int]]:
    """The rows of each matrix in a layer's weight, written out from the layers' docstrings."""
    attention = model.blocks[0].attention
    heads, width = attention.heads, attention.head_dim
    if name == "attention.qkv":
        return [list(range(start * width, stop * width)) for start, stop in ((0, 4), (4, 6), (6, 8))]
    if name == "attention.kv_up":
        key = [head * 2 * width + row for head in range(heads) for row in range(width)]
        return [key, [row + width for row in key]]
    return [list(range(model.blocks[0].get_submodule(name).out_features))]


@pytest.mark.parametrize(
    ("attention", "name"), [("gqa", "attention.qkv"), ("mla", "attention.kv_up"), ("mla", "mlp.down")]
)
def test_updates_are_those_of_each_matrix_alone(small_model: Callable, attention: str, name: str) -> None:
    model = small_model("rope", attention)
    weight = model.blocks[0].get_submodule(name).weight
    before = weight.detach().clone()
    optimizer = muon().optimizer(model)
    generator = torch.Generator().manual_seed(1)
    gradients = [torch.randn(weight.shape, generator=generator) for _ in range(2)]
    for gradient in gradients:
        weight.grad = gradient.clone()
        optimizer.step()
    moved = weight.detach() - before
    expected = torch.zeros_like(moved, dtype=torch.float64)
    for rows in rows_of(name, model):
        expected[rows] = by_hand(before[rows], [gradient[rows] for gradient in gradients]) - before[rows]

    def distance(other: Tensor) -> float:
        return ((moved - other).norm() / other.norm()).item()

    assert distance(expected) < 1e-4
    if name != "mlp.down":
        assert distance(by_hand(before, gradients) - before) > 0.05  # the layer as one matrix


def test_a_plain_matrix_in_bf16_moves_as_with_torchs_muon() -> None:
    generator = torch.Generator().manual_seed(1)
    ours, theirs = (nn.Parameter(torch.ones(24, 40) / 8) for _ in range(2))
    layer = nn.Linear(40, 24, bias=False)
    groups = [{"params": [ours], "weight_decay": DECAY}]
    optimizers = [
        _MuonAndAdamW(groups, {ours: layer}, 0.95, torch.bfloat16, lr=LR),
        torch.optim.Muon([theirs], lr=LR, weight_decay=DECAY, adjust_lr_fn="match_rms_adamw"),
    ]
    for _ in range(3):
        ours.grad = torch.randn(24, 40, generator=generator)
        theirs.grad = ours.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("attention", ["mha", "mla", "vdproj"])  # mla without the rotary part: matrices of no rows
def test_every_parameter_is_in_one_group_and_hidden_matrices_are_muons(small_model: Callable, attention: str) -> None:
    model = small_model("learned", attention)
    for options in (muon(), AdamW(lr=LR, betas=[0.9, 0.99])):
        optimizer = options.optimizer(model)
        grouped = [id(p) for group in optimizer.param_groups for p in group["params"]]
        assert sorted(grouped) == sorted(id(p) for p in model.parameters())
    optimizer = muon().optimizer(model)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        assert parameter.isfinite().all()
        hidden = name.startswith("blocks.") and parameter.dim() == 2
        assert optimizer.state[parameter].keys() == (
            {"momentum_buffer"} if hidden else {"step", "exp_avg", "exp_avg_sq"}
        )


@pytest.mark.parametrize("fused", [True, False])
def test_clipping_reaches_the_mean_gradient(small_model: Callable, fused: bool) -> None:
    model = small_model("rope", "mha")
    precision: Precision = "fp32"
    step = Step(model, muon(clip=0.01), torch.device("cpu"), precision, fused)
    ids = torch.tensor(list(TEXT[:128])).view(2, 64) % model.vocab_size
    _, norm, _ = step([(ids, ids)], LR)
    assert norm > 0.1
    states = step.optimizer.state.values()
    means = [s["momentum_buffer"] / 0.05 for s in states if "momentum_buffer" in s]
    means += [s["exp_avg"] / 0.1 for s in states if "exp_avg" in s]
    total = torch.stack([mean.norm() for mean in means]).norm()
    assert total.item() == pytest.approx(0.01, rel=1e-4)


def test_a_rate_on_the_device_is_not_read_back(small_model: Callable) -> None:
    """As a CUDA graph needs it: a tensor of the meta device has no value to read."""
    model = small_model("rope", "mla").to("meta")
    optimizer = muon().optimizer(model)
    for group in optimizer.param_groups:
        group["lr"] = torch.zeros((), device="meta")
    for layer in model.hidden_layers():
        layer.weight.grad = torch.zeros_like(layer.weight)
    optimizer.step()
    assert all(optimizer.state[layer.weight]["momentum_buffer"].is_meta for layer in model.hidden_layers())


def test_a_model_without_blocks_is_left_to_adamw() -> None:
    model = nn.Linear(3, 2)
    model.weight.grad = torch.ones(2, 3)
    optimizer = muon().optimizer(model)
    optimizer.step()
    assert "exp_avg" in optimizer.state[model.weight]


def test_an_impossible_momentum_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"optim\.momentum must lie in"):
        muon(momentum=1.0)
