"""Rotary encodings: what they turn, by which frequencies, and what a scaling makes of them."""

import copy
import math

import numpy as np
import pytest
import torch

import newllm
from newllm.errors import ConfigError
from newllm.model.decoder import generate
from newllm.position import Rope, RopeEvq, frequencies
from newllm.position.rope import turn
from newllm.training.optimizer import AdamW

T, D = 50, 32
SIZES = {"head_dim": D, "num_layers": 1, "seq_len": 64}
WIDE = {"head_dim": 64, "num_layers": 1, "seq_len": 2048}


@pytest.mark.parametrize("layout", ["half", "interleaved"])
@pytest.mark.parametrize("rotary_pct", [0.25, 0.5, 1.0])
def test_rope_turns_pairs_and_passes_the_rest(layout, rotary_pct):
    """Each pair is a complex number times exp(i position inv_freq), computed in double; other dims are untouched."""
    rope = Rope(1000.0, "geometric", rotary_pct, layout, **SIZES)
    q = torch.randn(2, 3, T, D, generator=torch.Generator().manual_seed(0))
    k = q[:, :1] * 2
    positions = torch.arange(100, 100 + T)
    turned_q, turned_k = rope.rotate(q, k, positions)
    width = int(D * rotary_pct)
    assert torch.equal(turned_q[..., width:], q[..., width:])
    assert len(rope.pairs()) == width // 2
    for index, (a, b, frequency) in enumerate(rope.pairs()):
        assert frequency == pytest.approx(1000.0 ** (-2 * index / width), rel=1e-6)
        z = torch.complex(q[..., a].double(), q[..., b].double())
        angle = positions.double() * 1000.0 ** (-2 * index / width)
        expected = z * torch.exp(1j * angle)
        torch.testing.assert_close(turned_q[..., a].double(), expected.real, atol=2e-5, rtol=0)
        torch.testing.assert_close(turned_q[..., b].double(), expected.imag, atol=2e-5, rtol=0)
    torch.testing.assert_close(turned_k, turned_q[:, :1] * 2)


def test_layouts_are_permutations_of_each_other():
    half, interleaved = (Rope(100.0, "geometric", 0.5, layout, **SIZES) for layout in ("half", "interleaved"))
    x = torch.randn(1, 1, T, D, generator=torch.Generator().manual_seed(0))
    order = [dim for a, b, _ in half.pairs() for dim in (a, b)] + list(range(16, D))
    turned_half, _ = half.rotate(x, x, torch.arange(T))
    turned_interleaved, _ = interleaved.rotate(x[..., order], x[..., order], torch.arange(T))
    torch.testing.assert_close(turned_interleaved, turned_half[..., order])


def test_angles_are_fp32_under_bf16():
    """At position 4000, a table in bf16 would be off by radians."""
    rope = Rope(**SIZES)
    x = torch.ones(1, 1, 1, D, dtype=torch.bfloat16)
    position = torch.tensor([3999])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        turned, _ = rope.rotate(x, x, position)
    expected, _ = rope.rotate(x.float(), x.float(), position)
    assert turned.dtype == torch.bfloat16
    torch.testing.assert_close(turned.float(), expected, atol=0.01, rtol=0.01)


def test_each_family_turns_by_its_function():
    published = {"a": {"family": "geometric", "theta": 5e5}, "b": {"family": "sigmoid", "theta": 1e4}}
    published_mix = 0.5 * (frequencies.geometric(64, 5e5) + frequencies.sigmoid(64, 1e4, 8, 0.5, 0.3))
    np.testing.assert_allclose(published_mix[[0, 31]], [0.916743, 2.55059e-5], rtol=1e-5)

    def rope(theta: float | None, family: str, **options) -> Rope:
        return Rope(theta, {"family": family, **options}, **WIDE)

    pairs = [
        (Rope(1e5, **WIDE), frequencies.geometric(64, 1e5)),
        (Rope(1e5, rotary_pct=0.25, **WIDE), frequencies.geometric(16, 1e5)),
        (Rope(None, {"family": "geometric", "theta": 1e5}, **WIDE), frequencies.geometric(64, 1e5)),
        (rope(1e4, "sigmoid", steepness=7, midpoint=0.6, omf=0.4), frequencies.sigmoid(64, 1e4, 7, 0.6, 0.4)),
        (rope(5e5, "anchored_polynomial", p=3.0, omf=0.5), frequencies.anchored_polynomial(64, 5e5, 3.0, 0.5)),
        (rope(1e5, "hybrid", alpha=0.3, p=3.0, omf=0.5), frequencies.hybrid(64, 1e5, 0.3, 3.0, 0.5)),
        (rope(None, "mix", alpha=0.5, **published), published_mix),
        (rope(5e5, "mix", a="geometric", b=published["b"]), published_mix),
        (rope(5e5, "evq_cosh", tau=1.0, grid="closed"), frequencies.evq_cosh(64, 5e5, 1.0, "closed")),
        (RopeEvq(5e5, **WIDE), frequencies.evq_cosh(64, 5e5, math.sqrt(2))),  # 64 / sqrt(2048)
        (rope(5e5, "evq_split", tau=1.5, kept=8), frequencies.evq_split(64, 5e5, 1.5, 8)),
        (rope(5e5, "evq_split"), frequencies.evq_split(64, 5e5, math.sqrt(2), 16)),
        (rope(1e4, "highest", fraction=0.5), np.where(np.arange(32) < 16, frequencies.geometric(64, 1e4), 0)),
        (Rope(None, {"family": "listed", "inv_freq": [1.0, 0.1]}, **WIDE | {"head_dim": 4}), np.array([1.0, 0.1])),
    ]
    for encoding, expected in pairs:
        np.testing.assert_allclose([one for _, _, one in encoding.pairs()], expected, rtol=1e-7)
        assert encoding.inv_freq.dtype == torch.float32


def own_family(dim: int, theta: float, power: float = 1.0, *, seq_len: int) -> np.ndarray:
    return frequencies.geometric(dim, theta) ** power / seq_len


def test_a_family_of_the_users_own():
    """A function by its dotted path; theta and sizes are handed over where it has parameters for them."""
    node = {"family": f"{__name__}.own_family", "power": 2}
    expected = frequencies.geometric(64, 1e3) ** 2 / 2048
    np.testing.assert_allclose([one for _, _, one in Rope(1e3, node, **WIDE).pairs()], expected, rtol=1e-6)


@pytest.mark.parametrize("halves", [True, False])
def test_turning_is_differentiable_in_what_is_turned_and_in_the_angles(halves):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 2, 3, 7, dtype=torch.float64, generator=generator, requires_grad=True)
    angles = torch.randn(3, 2, dtype=torch.float64, generator=generator, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, a: turn(x, a.cos(), a.sin(), halves), (x, angles))
    fixed = angles.detach()
    assert torch.autograd.gradcheck(lambda x: turn(x, fixed.cos(), fixed.sin(), halves), (x,))
    assert torch.equal(turn(x, fixed.cos(), fixed.sin(), halves), turn(x, angles.cos(), angles.sin(), halves))


# --- scaling --------------------------------------------------------------------------------------------------------


def test_a_scaled_encoding_adapts_in_place_and_comes_back():
    """Copies of a model share the buffers, so they must stay the same tensors."""
    rope = Rope(scaling="yarn", **WIDE)
    plain = Rope(**WIDE)
    buffer, before = rope.inv_freq, rope.inv_freq.clone()
    assert torch.equal(before, plain.inv_freq)
    rope.adapt(8192)
    plain.adapt(8192)
    assert rope.inv_freq is buffer
    assert torch.equal(plain.inv_freq, before)
    explicit = Rope(scaling={"kind": "yarn", "factor": 4}, **WIDE)
    assert torch.equal(rope.inv_freq, explicit.inv_freq)
    assert rope.temperature.item() == explicit.temperature.item() == pytest.approx(0.1 * math.log(4) + 1)
    x, positions = torch.ones(1, 1, 3, 64), torch.tensor([0, 1, 9000])
    assert torch.equal(rope.rotate(x, x, positions)[0], explicit.rotate(x, x, positions)[0])
    rope.adapt(2048)
    assert torch.equal(rope.inv_freq, before)
    assert rope.temperature.item() == 1


def test_the_temperature_multiplies_what_turns_and_nothing_else():
    hot = Rope(rotary_pct=0.5, scaling={"kind": "longrope", "long": [1.0] * 8, "factor": 4}, **SIZES)
    cool = Rope(rotary_pct=0.5, **SIZES)
    temperature = math.sqrt(1 + math.log(4) / math.log(64))
    x = torch.randn(1, 2, T, D, generator=torch.Generator().manual_seed(0))
    ours, theirs = (encoding.rotate(x, x, torch.arange(T))[0] for encoding in (hot, cool))
    torch.testing.assert_close(ours[..., :16], theirs[..., :16] * temperature)
    assert torch.equal(ours[..., 16:], x[..., 16:])


def test_parts_of_a_sum_adapt(small_model):
    model = small_model("rope_alibi", "mha", "pos_encoding.parts.rope.scaling=position_interpolation")
    part = model.position.parts["rope"]
    before = part.inv_freq.clone()
    model.position.adapt(128)
    assert torch.equal(part.inv_freq, before / 2)


@pytest.mark.parametrize("attention", ["mha", "mla"])
@torch.no_grad()
def test_a_scaled_model_decodes_as_it_trains(small_model, attention):
    """Beyond the training length: with adapt = with the factor given = from the cache, token by token."""
    model = small_model("rope", attention, "pos_encoding.scaling=yarn")
    explicit = small_model("rope", attention, "pos_encoding.scaling={kind:yarn,factor:2}")
    ids = torch.randint(128, (1, 128), generator=torch.Generator().manual_seed(0))
    unscaled = model(ids)
    model.position.adapt(128)
    expected = model(ids)
    assert torch.equal(expected, explicit(ids))
    assert (expected - unscaled).abs().max() > 1e-3
    cache, out = model.new_cache(1, 128), []
    for start, stop in ((0, 100), (100, 101), (101, 128)):
        out.append(model(ids[:, start:stop], cache=cache))
    torch.testing.assert_close(torch.cat(out, dim=1), expected, atol=1e-5, rtol=1e-5)


def test_a_text_longer_than_in_training_is_scaled_as_a_whole(small_model):
    """Trained at 64: a prompt of 60 tokens and 68 more make a factor of 2, from the first token on."""
    model = small_model("rope", "mha", "pos_encoding.scaling=yarn")
    explicit = small_model("rope", "mha", "pos_encoding.scaling={kind:yarn,factor:2}")
    before, prompt = model.position.inv_freq.clone(), list(range(60))
    assert list(generate(model, prompt, 68)) == list(generate(explicit, prompt, 68))
    assert torch.equal(model.position.inv_freq, before)


# --- learned tau ----------------------------------------------------------------------------------------------------


def learned(**options):
    return RopeEvq(5e5, {"family": "evq_cosh", "tau": 1.5}, learn=True, **options, **WIDE)


def test_a_learned_tau_starts_where_the_fixed_one_stands():
    ours, fixed = learned(), RopeEvq(5e5, {"family": "evq_cosh", "tau": 1.5}, **WIDE)
    torch.testing.assert_close(ours.current_inv_freq(), fixed.current_inv_freq(), rtol=1e-6, atol=0)
    assert [name for name, _ in ours.named_parameters()] == ["psi"]
    assert not list(fixed.parameters())
    with torch.no_grad():
        ours.psi.fill_(math.log(math.expm1(0.5)))
    np.testing.assert_allclose([one for _, _, one in ours.pairs()], frequencies.evq_cosh(64, 5e5, 0.5), rtol=1e-6)


def test_the_gradient_of_tau_is_the_derivative_of_the_frequencies():
    def gradient(psi: float) -> float:
        encoding = learned()
        with torch.no_grad():
            encoding.psi.fill_(psi)
        encoding.current_inv_freq().log().sum().backward()
        return encoding.psi.grad.item()

    def value(psi: float) -> float:
        return np.log(frequencies.evq_cosh(64, 5e5, math.log1p(math.exp(psi)))).sum()

    for psi in (1.0, -2.0, -6.0):
        assert gradient(psi) == pytest.approx((value(psi + 1e-4) - value(psi - 1e-4)) / 2e-4, rel=1e-4)
    assert gradient(-15.0) == pytest.approx(0, abs=1e-10)  # the series: its slope goes with tau squared
    assert math.isfinite(gradient(-200.0))


def test_a_scaling_follows_a_learned_tau():
    ours = learned(scaling="yarn")
    with torch.no_grad():
        ours.psi.fill_(math.log(math.expm1(0.5)))
    ours.adapt(8192)
    shared = copy.deepcopy(ours, {id(one): one for one in (*ours.parameters(), *ours.buffers())})
    for encoding in (ours, shared):
        expected = frequencies.yarn(frequencies.evq_cosh(64, 5e5, 0.5), 4, 2048)
        np.testing.assert_allclose(encoding.current_inv_freq().detach(), expected, rtol=1e-6)


def test_tau_learns_at_a_rate_of_its_own_without_decay(small_model):
    model = small_model("rope_evq", "mha", "pos_encoding.learn=true", "pos_encoding.tau_rate=7", "tau=1.0").train()
    optimizer = AdamW(lr=1e-3, betas=[0.9, 0.95], weight_decay=0.5, decay="all").optimizer(model)
    groups = {group["rate_factor"]: group for group in optimizer.param_groups}
    assert set(groups) == {1.0, 7.0}
    assert groups[7.0]["params"] == [model.position.psi]
    assert groups[7.0]["weight_decay"] == 0
    count = sum(len(group["params"]) for group in optimizer.param_groups)
    assert count == len(list(model.parameters()))

    from newllm.training.step import Step

    step = Step(model, AdamW(lr=1e-3, betas=[0.9, 0.95], clip=None), torch.device("cpu"), "fp32")
    ids = torch.randint(128, (2, 40), generator=torch.Generator().manual_seed(0))
    before = {name: one.detach().clone() for name, one in model.named_parameters()}
    step([(ids, ids)], 1e-3)
    moved = {name: (one.detach() - before[name]).abs().max().item() for name, one in model.named_parameters()}
    assert moved["position.psi"] == pytest.approx(7e-3, rel=1e-3)  # Adam's first step is the rate
    assert moved["embed.weight"] == pytest.approx(1e-3, rel=0.05)


def test_a_configuration_says_the_same_before_anything_runs():
    cfg = newllm.compose(
        ["pos_encoding=rope_list", "pos_encoding.frequencies.inv_freq=[1,0.5]", "model.vocab_size=128"]
    )
    with pytest.raises(ConfigError, match="inv_freq must hold 16 numbers"):
        newllm.build_model(cfg)
