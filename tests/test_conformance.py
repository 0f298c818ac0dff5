"""What every encoding and every attention of conf/ must do. New YAML files are tested here by themselves."""

from pathlib import Path

import pytest
import torch

CONF = Path(__file__).parents[1] / "conf"
VOCABULARY, LENGTH = 128, 48


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Each test runs for every YAML file of the groups it names."""
    for group in ("pos_encoding", "attention"):
        if group in metafunc.fixturenames:
            metafunc.parametrize(group, sorted(path.stem for path in (CONF / group).glob("*.yaml")))


@pytest.fixture(scope="module")
def ids() -> torch.Tensor:
    return torch.randint(VOCABULARY, (2, LENGTH), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_decoding_equals_training_path(small_model, pos_encoding, attention, ids):
    """Expanded (no cache) = with a cache, all tokens at once = a prompt, then token by token = a few at a time."""
    model = small_model(pos_encoding, attention)
    expected = model(ids)
    assert expected.std() > 0.05  # position-dependent differences would be lost in a model that says nothing

    def decode(*pieces: int) -> torch.Tensor:
        cache, start, out = model.new_cache(2, LENGTH), 0, []
        for piece in pieces:
            out.append(model(ids[:, start : start + piece], cache=cache))
            start += piece
        assert cache.length == LENGTH
        return torch.cat(out, dim=1)

    for pieces in ((LENGTH,), (7,) + (1,) * (LENGTH - 7), (5, 20, 1, LENGTH - 26)):
        torch.testing.assert_close(decode(*pieces), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_no_token_changes_an_output_before_it(small_model, pos_encoding, attention, ids):
    model = small_model(pos_encoding, attention)
    expected = model(ids)
    for t in (1, LENGTH // 2, LENGTH - 1):
        changed = ids.clone()
        changed[:, t] = (changed[:, t] + 1) % VOCABULARY
        out = model(changed)
        torch.testing.assert_close(out[:, :t], expected[:, :t], atol=1e-6, rtol=1e-6)
        assert (out[:, t:] - expected[:, t:]).abs().max() > 1e-3


@torch.no_grad()
def test_relative_encodings_do_not_see_a_shift(small_model, pos_encoding, attention, ids):
    """Relative encodings give the same states when all positions move; absolute ones must not."""
    model = small_model(pos_encoding, attention, "seq_len=256")
    here, shifted = model.hidden(ids), model.hidden(ids, start=100)
    if model.position.relative:
        torch.testing.assert_close(shifted, here, atol=2e-5, rtol=2e-5)
    else:
        assert (shifted - here).abs().max() > 1e-2


@torch.no_grad()
def test_word_order_matters(small_model, pos_encoding, attention, ids):
    """Exchanging two early tokens changes the last output: an encoding that reaches no score would pass all the rest.

    NoPE is the exception that proves it: within one layer, its attention is blind to the order of the past.
    """
    model = small_model(pos_encoding, attention, "model.num_layers=1")
    swapped = ids.clone()
    swapped[:, [3, 30]] = ids[:, [30, 3]]
    difference = (model(swapped)[:, -1] - model(ids)[:, -1]).abs().max()
    if pos_encoding == "nope":
        assert difference < 1e-5
    else:
        assert difference > 1e-4


def test_every_parameter_learns(small_model, pos_encoding, attention, ids):
    model = small_model(pos_encoding, attention)
    torch.nn.functional.cross_entropy(model(ids).flatten(0, 1), ids.flatten()).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    assert not without


@torch.no_grad()
def test_bf16_autocast_stays_close(small_model, pos_encoding, attention, ids):
    model = small_model(pos_encoding, attention)
    expected = model(ids)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(ids).float()
    assert (out - expected).pow(2).mean().sqrt() < 0.03 * expected.std()


@torch.no_grad()
def test_same_weights_elsewhere(small_model, pos_encoding, attention):
    """Models that differ in the encoding or the attention alone start equal in all other parameters."""
    reference = dict(small_model("rope", "mha").named_parameters())
    shared = 0
    for name, parameter in small_model(pos_encoding, attention).named_parameters():
        if name in reference and parameter.shape == reference[name].shape:
            assert torch.equal(parameter, reference[name])
            shared += 1
    assert shared >= 10
