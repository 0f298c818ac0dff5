"""What every encoding and every attention of conf/ must do. New YAML files are tested here by themselves."""

import copy
import functools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from newllm.errors import ConfigError
from newllm.model import Transformer

CONF = Path(__file__).parents[1] / "conf"
VOCABULARY, LENGTH = 128, 48
ENCODINGS, ATTENTIONS = (
    sorted(p.stem for p in (CONF / group).glob("*.yaml") if p.stem != "none") for group in ("pos_encoding", "attention")
)

Build = Callable[[tuple[str, str]], Transformer | ConfigError]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test of `pair` runs for every pair of YAML files; the tests of one pair share its models, in one process."""
    if "pair" in metafunc.fixturenames:
        pairs = {f"{encoding}-{attention}": (encoding, attention) for encoding in ENCODINGS for attention in ATTENTIONS}
        metafunc.parametrize(
            "pair", [pytest.param(pair, id=name, marks=pytest.mark.xdist_group(name)) for name, pair in pairs.items()]
        )


@pytest.fixture(scope="session")
def build(small_model) -> Build:
    """build(pair): its model, or its refusal; made once."""

    @functools.cache
    def made(pair: tuple[str, str]) -> Transformer | ConfigError:
        try:
            return small_model(*pair, "seq_len=256")
        except ConfigError as refusal:
            return refusal

    return made


@pytest.fixture
def model(build: Build, pair: tuple[str, str]) -> Transformer:
    """The pair's model. A pair that is refused has nothing to prove but that it is refused well."""
    made = build(pair)
    if isinstance(made, ConfigError):
        pytest.skip(str(made))
    return made


@pytest.fixture(scope="module")
def ids() -> torch.Tensor:
    return torch.randint(VOCABULARY, (2, LENGTH), generator=torch.Generator().manual_seed(0))


def test_what_does_not_go_together_is_refused_with_the_way_out(build: Build, pair: tuple[str, str]) -> None:
    """Encoding and attention make a model, or a sentence that names the attention and another one that would do."""
    encoding, attention = pair
    refusal = build(pair)
    if isinstance(refusal, ConfigError):
        working = [other for other in ATTENTIONS if isinstance(build((encoding, other)), Transformer)]
        assert f"attention={attention}" in str(refusal)
        assert any(f"attention={other}" in str(refusal) for other in working)


@torch.no_grad()
def test_decoding_equals_training_path(model, ids):
    """Expanded (no cache) = with a cache, all tokens at once = a prompt, then token by token = a few at a time.

    In fp64, where what is left of differences is no rounding of the arithmetic; in fp32 they are about 1e-5.
    """
    model = copy.deepcopy(model).double()
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
        torch.testing.assert_close(decode(*pieces), expected, atol=1e-7, rtol=1e-7)


@torch.no_grad()
def test_no_token_changes_an_output_before_it(model, ids):
    expected = model(ids)
    for t in (1, LENGTH // 2, LENGTH - 1):
        changed = ids.clone()
        changed[:, t] = (changed[:, t] + 1) % VOCABULARY
        out = model(changed)
        torch.testing.assert_close(out[:, :t], expected[:, :t], atol=1e-6, rtol=1e-6)
        assert (out[:, t:] - expected[:, t:]).abs().max() > 1e-3


@torch.no_grad()
def test_relative_encodings_do_not_see_a_shift(model, ids):
    """Relative encodings give the same states when all positions move; absolute ones must not."""
    here, shifted = model.hidden(ids), model.hidden(ids, start=8)  # near: fp32 angles are exact to 1e-7 of themselves
    if model.position.relative:
        torch.testing.assert_close(shifted, here, atol=2e-5, rtol=2e-5)
    else:
        assert (shifted - here).abs().max() > 1e-2


@torch.no_grad()
def test_word_order_matters(pair, model, ids):
    """Exchanging two early tokens changes the last output: an encoding that reaches no score would pass all the rest.

    NoPE is the exception that proves it: within one layer, its attention is blind to the order of the past.
    """
    shallow = copy.copy(model)
    shallow._modules = {**model._modules, "blocks": model.blocks[:1]}
    swapped = ids.clone()
    swapped[:, [3, 30]] = ids[:, [30, 3]]
    difference = (shallow(swapped)[:, -1] - shallow(ids)[:, -1]).abs().max()
    if pair[0] == "nope":
        assert difference < 1e-5
    else:
        assert difference > 1e-4


def test_every_parameter_learns(model, ids):
    model.zero_grad()
    torch.nn.functional.cross_entropy(model(ids).flatten(0, 1), ids.flatten()).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    assert not without


@torch.no_grad()
def test_bf16_autocast_stays_close(model, ids):
    expected = model(ids)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(ids).float()
    assert (out - expected).pow(2).mean().sqrt() < 0.03 * expected.std()


@torch.no_grad()
def test_same_weights_elsewhere(build, model):
    """Models that differ in the encoding or the attention alone start equal in all other parameters."""
    reference = dict(build(("rope", "mha")).named_parameters())
    shared = 0
    for name, parameter in model.named_parameters():
        if name in reference and parameter.shape == reference[name].shape:
            assert torch.equal(parameter, reference[name])
            shared += 1
    assert shared >= 10
