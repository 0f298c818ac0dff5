"""V-DProj, old and new: sizes, decoding from codes, the loss of the reconstruction and its weights."""

import copy

import pytest
import torch
import torch.nn.functional as F

import newllm
from newllm.errors import ConfigError
from newllm.evaluation.kv_cache import decode
from newllm.training.step import BatchLoss

CPU = torch.device("cpu")
WIDTH, LAYERS, LENGTH = 64, 3, 48


@pytest.fixture(scope="module")
def ids() -> torch.Tensor:
    return torch.randint(128, (2, LENGTH), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def compressing(small_model):
    """A model whose biases are not all 0, in training."""
    model = small_model("rope", "vdproj", "model.bias=true").train()
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    return model


@pytest.mark.parametrize(("attention", "parameters"), [("vdproj", 72_391_552), ("vdproj_narrow", 69_239_680)])
def test_published_sizes(attention: str, parameters: int) -> None:
    with torch.device("meta"):
        model = newllm.build_model(newllm.compose(["model=pythia_70m", f"attention={attention}"]))
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert model.blocks[0].attention.value_dim == 320


@torch.no_grad()
@pytest.mark.parametrize("attention", ["vdproj", "vdproj_narrow"])
@pytest.mark.parametrize("value_dim", [None, 32])
def test_the_cache_holds_keys_and_narrow_values(small_model, ids, attention: str, value_dim: int | None) -> None:
    chosen = [] if value_dim is None else [f"attention.value_dim={value_dim}"]
    cache, _ = decode(small_model("rope", attention, *chosen), ids[:1])
    assert cache.bytes_per_token == LAYERS * (WIDTH + (value_dim or WIDTH * 5 // 8)) * 4  # fp32


@torch.no_grad()
def test_steps_of_decoding_restore_nothing_and_long_pieces_do(compressing, ids, monkeypatch) -> None:
    model = copy.deepcopy(compressing).double()
    expected, cache, restored = model(ids), model.new_cache(2, LENGTH), []
    for block in model.blocks:
        block.attention.restore.register_forward_hook(lambda *_: restored.append(cache.length))
    out, start = [], 0
    for piece in (5, 1, 4, 30, 8):  # a prompt, one, few, more than `absorbs` allows, few
        restored.clear()
        out.append(model(ids[:, start : start + piece], cache=cache))
        start += piece
        assert len(restored) == (LAYERS if piece in (5, 30) else 0)
    torch.testing.assert_close(torch.cat(out, dim=1), expected, atol=1e-9, rtol=1e-9)


@torch.no_grad()
@pytest.mark.parametrize("attention", ["vdproj", "vdproj_narrow"])
def test_decoding_in_bf16_stays_within_the_noise_of_its_products(small_model, ids, attention: str) -> None:
    model = small_model("alibi", attention)
    expected = model(ids[:1])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cache, logits = decode(model, ids[:1])
    assert cache.bytes_per_token == LAYERS * (WIDTH + 40) * 2
    assert (logits - expected).pow(2).mean().sqrt() < 0.03 * expected.std()


def plainly(model, inputs: torch.Tensor, labels: torch.Tensor, total: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy summed over the scored labels / total, and the mean over the layers of MSE(V restored, V)."""
    values, hooks = [], []
    for block in model.blocks:
        hooks.append(
            block.attention.compress.register_forward_hook(lambda _, received, out: values.append(received[0]))
        )
        hooks.append(block.attention.restore.register_forward_hook(lambda _, received, out: values.append(out)))
    logits = model(inputs)
    for hook in hooks:
        hook.remove()
    errors = [F.mse_loss(restored, value) for value, restored in zip(values[::2], values[1::2], strict=True)]
    nats = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum")
    return nats / total, torch.stack(errors).mean()


def gradients(model) -> dict[str, torch.Tensor]:
    actual = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad()
    return actual


@pytest.mark.parametrize("fused", [True, False])
def test_the_gradient_has_a_tenth_of_the_reconstruction_and_the_loss_has_none(compressing, ids, fused: bool) -> None:
    """In two pieces with few and many scored labels; a piece's error counts by its share of these."""
    labels = ids.roll(-1, 1)
    labels[0, 10:] = -100
    total = int((labels != -100).sum())
    expected = 0.0
    for row in (0, 1):
        nats, error = plainly(compressing, ids[row : row + 1], labels[row : row + 1], total)
        share = int((labels[row] != -100).sum()) / total
        (nats + 0.1 * share * error).backward()
        expected += nats.item()
    compressing.auxiliary()  # of `plainly`
    reference = gradients(compressing)

    loss_of, actual = BatchLoss(compressing, CPU, "fp32", fused), 0.0
    for row in (0, 1):
        loss = loss_of(ids[row : row + 1], labels[row : row + 1], total)
        loss.backward()
        actual += loss.item()
    assert actual == pytest.approx(expected, rel=1e-6)
    for name, gradient in gradients(compressing).items():
        torch.testing.assert_close(gradient, reference[name], atol=1e-6, rtol=1e-4, msg=name)


def test_only_training_reconstructs_and_a_weight_of_0_not_even_that(compressing, small_model, ids) -> None:
    compressing(ids)
    error = compressing.auxiliary()
    assert error.shape == (2,)  # one for each row
    assert (error > 0).all()
    assert compressing.auxiliary() is None  # handed out once
    compressing(ids)
    copy.deepcopy(compressing)  # which a tensor with a history would not allow
    compressing.eval()(ids)
    assert compressing.auxiliary() is None
    off = small_model("rope", "vdproj", "attention.reconstruction_weight=0").train()
    off(ids)
    assert off.auxiliary() is None


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["vdproj", "attention.value_dim=0"], "attention.value_dim must be from 1 to the width of the values, 64"),
        (["vdproj", "attention.value_dim=65"], "attention.value_dim=40; got 65"),
        (["vdproj", "attention.reconstruction_weight=-1"], "reconstruction_weight must be 0 or greater"),
        (["vdproj_narrow", "attention.value_dim=42"], "multiple of the 4 heads, as in attention.value_dim=40; got 42"),
        (["vdproj_narrow", "attention.value_dim=1"], "attention.value_dim=4; got 1"),
    ],
)
def test_widths_that_cannot_be_are_refused(small_model, overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        small_model("rope", *overrides)
