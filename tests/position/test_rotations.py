"""Encodings that turn, stretch or multiply q and k: xPos, FoPE, p-RoPE, RNoPE, 3D rotations, the key matrix."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import newllm
from newllm.errors import ConfigError
from newllm.model.init import init_weights
from newllm.position import Fope, KeyMatrix, Rope, Rope3D, XPos
from newllm.position.key_matrix import _powers, _scaled
from newllm.training.checkpoint import load_weights, save_weights

SIZES = {"head_dim": 32, "num_layers": 2, "seq_len": 128}
D = SIZES["head_dim"]


def values(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def fope(seed: int = 1, heads: int = 4, **options) -> Fope:
    encoding = Fope(heads=heads, **{**SIZES, **options})
    init_weights(encoding, seed, 0.02)
    return encoding


def p_rope(fraction: float, theta: float = 10000.0) -> Rope:
    return Rope(theta, {"family": "highest", "fraction": fraction}, **SIZES)


def key_matrix(width: int = 16) -> KeyMatrix:
    """With a matrix that is no rotation, and a norm that has learned something."""
    encoding = KeyMatrix(head_dim=width, num_layers=2)
    init_weights(encoding, 1, 0.02)
    with torch.no_grad():
        encoding.matrix += 0.01 * values(width, width)
        encoding.norm.weight += 0.1 * values(width, seed=1)
        encoding.norm.bias += 0.1 * values(width, seed=2)
    return encoding


@pytest.mark.parametrize("encoding", [XPos, fope, Rope3D], ids=lambda e: e.__name__)
def test_dims_beyond_the_rotary_part_pass(encoding):
    sizes = {name: SIZES[name] for name in ("head_dim", "num_layers")} if encoding is Rope3D else SIZES
    width = 6 if encoding is Rope3D else 8  # 6: groups of three in int(32 * 0.25)
    q, k = values(2, 4, 9, D), values(2, 2, 9, D, seed=1)
    for before, after in zip(
        (q, k), encoding(rotary_pct=0.25, **sizes).rotate(q, k, torch.arange(50, 59)), strict=True
    ):
        assert torch.equal(after[..., width:], before[..., width:])
        assert (after[..., :width] - before[..., :width]).abs().amin(dim=(0, 1, 2)).max() > 1e-3


@pytest.mark.parametrize("separate", [True, False])
def test_fope_has_coefficients_for_both_waves_or_for_each(separate):
    encoding, positions = fope(separate_basis=separate), torch.arange(5, 9)
    angles = positions[:, None].double() * torch.tensor(encoding.trained, dtype=torch.float64)
    sin_mix = encoding.sin_mix if separate else encoding.cos_mix
    cos, sin = (wave @ mix.double() for wave, mix in ((angles.cos(), encoding.cos_mix), (angles.sin(), sin_mix)))
    ones = torch.ones(1, 4, 4, D)
    turned, _ = encoding.rotate(ones, ones, positions)
    torch.testing.assert_close(turned[0, ..., : D // 2], (cos - sin).float(), atol=1e-5, rtol=0)
    torch.testing.assert_close(turned[0, ..., D // 2 :], (cos + sin).float(), atol=1e-5, rtol=0)


# --- xPos -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["half", "interleaved"])
def test_xpos_turns_and_decays_pairs_with_the_distance(layout):
    """The score of a pair is Re(q conj(k) e^{i w (n - m)}) z^((n - m) / B), in double, wherever n and m are."""
    encoding = XPos(100.0, "geometric", 0.5, 8.0, 0.5, layout, **SIZES)
    q, k = values(1, 1, 40, D), values(1, 1, 40, D, seed=1)
    turned_q, turned_k = encoding.rotate(q, k, torch.arange(300, 340))
    scores = (turned_q.double() @ turned_k.double().mT)[0, 0]
    half = D // 4
    distance = torch.arange(40.0, dtype=torch.float64)[:, None] - torch.arange(40.0, dtype=torch.float64)
    expected = q[0, 0, :, 2 * half :].double() @ k[0, 0, :, 2 * half :].double().T
    assert len(encoding.pairs()) == half
    for i, (a, b, frequency) in enumerate(encoding.pairs()):
        assert frequency == pytest.approx(100.0 ** (-i / half), rel=1e-6)
        complex_q, complex_k = (torch.complex(x[0, 0, :, a].double(), x[0, 0, :, b].double()) for x in (q, k))
        turned = complex_q[:, None] * complex_k.conj() * torch.exp(1j * distance * 100.0 ** (-i / half))
        expected = expected + turned.real * ((i / half + 0.5) / 1.5) ** (distance / 8)
    past = torch.ones(40, 40).tril().bool()
    torch.testing.assert_close(scores[past], expected[past], atol=2e-4, rtol=2e-4)


def test_xpos_without_decay_is_rope():
    q, k = values(2, 4, 20, D), values(2, 2, 20, D, seed=1)
    plain = Rope(theta=500.0, rotary_pct=0.5, **SIZES).rotate(q, k, torch.arange(20))
    without = XPos(theta=500.0, rotary_pct=0.5, scale_base=None, **SIZES)
    assert all(map(torch.equal, without.rotate(q, k, torch.arange(20)), plain))
    assert without.limit is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_xpos_is_good_at_16k(dtype):
    """All scores are finite, the masked ones too, and those of near keys are what they were at the start."""
    encoding = XPos(**SIZES)
    q, k = values(1, 1, 16, D).to(dtype), values(1, 1, 16, D, seed=1).to(dtype)

    def scores(start: int) -> torch.Tensor:
        turned_q, turned_k = encoding.rotate(q, k, torch.arange(start, start + 16))
        return turned_q.float() @ turned_k.float().mT

    torch.testing.assert_close(scores(16368), scores(0), atol=0.1 if dtype is torch.bfloat16 else 0.02, rtol=0.02)
    turned_q, turned_k = encoding.rotate(q, k, torch.linspace(0, 16383, 16).long())
    assert (turned_q @ turned_k.mT).isfinite().all()
    last = torch.full((16,), encoding.limit - 1)
    assert all(x.isfinite().all() for x in encoding.rotate(q, k, last))
    assert encoding.limit > 16384


def test_xpos_refuses_positions_whose_numbers_do_not_exist(small_model):
    model = small_model("xpos", "mha", "seq_len=16", "pos_encoding.scale_base=1")
    limit = 8 + int(70 / math.log(1.4 / 0.4))
    assert model(torch.zeros(1, limit, dtype=torch.long)).isfinite().all()
    with pytest.raises(ConfigError, match=f"values for {limit} positions and {limit + 1} are needed"):
        model(torch.zeros(1, limit + 1, dtype=torch.long))


# --- FoPE -----------------------------------------------------------------------------------------------------------


def test_fope_without_series_is_rope_with_clipped_frequencies():
    q, k, positions = values(2, 4, 20, D), values(2, 2, 20, D, seed=1), torch.arange(100, 120)
    rope = Rope(**SIZES)
    rope.inv_freq[rope.inv_freq < 2 * math.pi / SIZES["seq_len"]] = 0
    assert 0 < (rope.inv_freq == 0).sum() < D // 2
    encoding = fope(gain=0.0)
    assert encoding.relative
    assert encoding.pairs() == rope.pairs()
    for ours, theirs in zip(encoding.rotate(q, k, positions), rope.rotate(q, k, positions), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


def test_fope_is_the_series_of_its_coefficients():
    """Computed in double, wave by wave; query heads have the coefficients of the key head they read."""
    encoding = fope(gain=3.0)
    assert not encoding.relative
    q, k, positions = values(1, 4, 7, D), values(1, 2, 7, D, seed=1), torch.arange(60, 67)
    turned_q, turned_k = encoding.rotate(q, k, positions)
    pairs, trained = encoding.pairs(), [f for _, _, f in encoding.pairs() if f]
    a, b = (mix.double() - torch.eye(D // 2) for mix in (encoding.cos_mix, encoding.sin_mix))
    for turned, x, group in ((turned_q, q, 2), (turned_k, k, 1)):
        for head in range(x.shape[1]):
            for pair, (one, other, frequency) in enumerate(pairs):
                angle = positions.double()
                c, s = (angle * frequency).cos(), (angle * frequency).sin()
                for j, wave in enumerate(trained if frequency else []):
                    c = c + a[head // group, j, pair] * (angle * wave).cos()
                    s = s + b[head // group, j, pair] * (angle * wave).sin()
                z = torch.complex(x[0, head, :, one].double(), x[0, head, :, other].double()) * torch.complex(c, s)
                torch.testing.assert_close(turned[0, head, :, one].double(), z.real, atol=1e-4, rtol=0)
                torch.testing.assert_close(turned[0, head, :, other].double(), z.imag, atol=1e-4, rtol=0)


def test_fope_coefficients_have_the_published_size_and_follow_the_seed():
    encoding, same, other = (fope(seed, heads=8, head_dim=64, seq_len=512) for seed in (1, 1, 2))
    waves = encoding.waves
    assert waves == 16  # 10000^(-k/32) >= 2 pi / 512
    noise = (encoding.cos_mix - torch.eye(32))[:, :waves, :waves]
    like_theirs = torch.nn.init.xavier_normal_(torch.empty(8, waves, waves), gain=0.3)
    assert float(noise.std()) == pytest.approx(float(like_theirs.std()), rel=0.1)
    assert torch.equal(encoding.cos_mix[:, waves:], torch.eye(32)[waves:].expand(8, -1, -1))
    assert torch.equal(encoding.cos_mix, same.cos_mix)
    for different in (other.cos_mix, encoding.sin_mix):
        assert (encoding.cos_mix - different).abs().max() > 0.02


def test_fope_coefficients_are_saved_with_the_weights(small_model, tmp_path):
    ids = torch.arange(40)[None]
    model, other = small_model("fope", "mha"), small_model("fope", "mha", "seed=7")
    assert not any("position" in name for name, _ in model.named_parameters())
    save_weights(tmp_path / "w.safetensors", model, {})
    with torch.no_grad():
        load_weights(tmp_path / "w.safetensors", other)
        assert torch.equal(other(ids), model(ids))


@pytest.mark.parametrize("make", [lambda: XPos(scale_base=4.0, **SIZES), lambda: fope(gain=2.0)], ids=["xpos", "fope"])
def test_the_gradient_of_what_is_no_rotation(make):
    encoding = make()
    q, k = (values(1, heads, 3, D, seed=heads).double().requires_grad_() for heads in (2, 1))
    positions = torch.arange(70, 73)
    assert torch.autograd.gradcheck(lambda *x: encoding.rotate(*x, positions), (q, k), eps=1e-4, atol=1e-6)


# --- p-RoPE and RNoPE -----------------------------------------------------------------------------------------------


def test_p_rope_reaches_from_rope_to_nope(small_model):
    ids = torch.arange(40)[None]
    for fraction, choice in ((1, "rope"), (0, "nope")):
        ours = small_model("p_rope", "mha", f"pos_encoding.frequencies.fraction={fraction}")
        assert torch.equal(ours(ids), small_model(choice, "mha")(ids))


def test_p_rope_cuts_the_slow_end_and_rotary_pct_does_not():
    cut = [frequency for _, _, frequency in p_rope(0.5, 100.0).pairs()]
    np.testing.assert_allclose(cut, [100.0 ** (-k / 16) if k < 8 else 0 for k in range(16)], rtol=1e-6)
    narrow = [frequency for _, _, frequency in Rope(100.0, rotary_pct=0.5, **SIZES).pairs()]
    np.testing.assert_allclose(narrow, [100.0 ** (-k / 8) for k in range(8)], rtol=1e-6)


@pytest.mark.parametrize(
    ("layers", "acting"),
    [
        ("every 4th", [3, 7]), ("all but every 4th", [0, 1, 2, 4, 5, 6]), ("every 2nd", [1, 3, 5, 7]),
        ("every 1st", list(range(8))), ("all but every 9th", list(range(8))), ([0, 5], [0, 5]),
    ],
)  # fmt: skip
def test_patterns_of_layers(layers, acting):
    assert sorted(Rope(layers=layers, head_dim=D, num_layers=8, seq_len=16).layers) == acting


@pytest.mark.parametrize("layers", ["every 0th", "every fourth", "all but 3", "every -1st", [8]])
def test_patterns_that_are_none(layers):
    with pytest.raises(ConfigError, match="a pattern such as 'all but every 4th', or a list of layers from 0 to 7"):
        Rope(layers=layers, head_dim=D, num_layers=8, seq_len=16)


def test_rnope_leaves_every_fourth_layer_without(small_model):
    model = small_model("rnope", "mla", "model.num_layers=5")
    assert [block.encoding is not None for block in model.blocks] == [True, True, True, False, True]
    assert [block.attention.rope_dim for block in model.blocks] == [16, 16, 16, 0, 16]


# --- 3D rotations ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [[1.0, 1.0, 1.0], [1.0, 2.0, 3.0]])
def test_rope_3d_turns_groups_about_the_axis(axis):
    """As the matrix exponential of angle times the cross product has it, in double."""
    encoding = Rope3D(10000.0, 0.5, axis, head_dim=D, num_layers=1)
    q, positions = values(1, 2, 30, D), torch.arange(70, 100)
    turned = encoding.rotate(q, q, positions)[0]
    unit = torch.tensor(axis, dtype=torch.float64) / math.sqrt(sum(x * x for x in axis))
    cross = torch.linalg.cross(torch.eye(3, dtype=torch.float64), unit.expand(3, 3))  # rows: e_i x u
    for group in range(5):  # int(32 * 0.5) // 3
        angles = positions.double() * 10000.0 ** (-group / 5)
        rotations = torch.matrix_exp(angles[:, None, None] * cross)
        dims = slice(3 * group, 3 * group + 3)
        expected = (rotations @ q[0, ..., dims].double()[..., None])[..., 0]
        torch.testing.assert_close(turned[0, ..., dims].double(), expected, atol=2e-5, rtol=0)
        torch.testing.assert_close(turned[..., dims].double() @ unit, q[..., dims].double() @ unit, atol=1e-5, rtol=0)
    assert torch.equal(turned[..., 15:], q[..., 15:])


def test_rope_3d_scores_depend_on_the_distance_alone():
    encoding = Rope3D(axis=[1.0, 2.0, 3.0], head_dim=D, num_layers=1)
    q, k = values(1, 1, 30, D), values(1, 1, 30, D, seed=1)
    turned = [encoding.rotate(q, k, torch.arange(start, start + 30)) for start in (0, 1000)]
    here, there = (turned_q @ turned_k.mT for turned_q, turned_k in turned)
    torch.testing.assert_close(there, here, atol=2e-3, rtol=0)
    assert (here - q @ k.mT).abs().max() > 1


# --- the key matrix -------------------------------------------------------------------------------------------------


def test_key_matrix_starts_as_rotations_of_planes():
    encoding = KeyMatrix(head_dim=64, num_layers=6)
    init_weights(encoding, 3, 0.02)
    expected = np.zeros((64, 64))
    for i in range(0, 64, 2):
        c, s = math.cos(0.1 * 10 ** (-i / 64)), math.sin(0.1 * 10 ** (-i / 64))
        expected[i : i + 2, i : i + 2] = [[c, -s], [s, c]]
    np.testing.assert_allclose(encoding.matrix.detach(), expected, atol=1e-7)


@pytest.mark.parametrize("start", [0, 37])
def test_key_matrix_is_the_loop_over_positions(start):
    """Values and gradients against LayerNorm(GELU(k M^p)) in double, one position after another."""
    encoding = key_matrix()
    q, k = values(2, 3, 23, 16), values(2, 2, 23, 16, seed=1)
    same_q, moved = encoding.rotate(q, k, torch.arange(start, start + 23))
    assert same_q is q
    weights = values(2, 2, 23, 16, seed=4)
    (moved * weights).sum().backward()

    exact = key_matrix().double()
    rows = []
    for i in range(23):
        key = k[..., i, :].double()
        for _ in range(start + i):
            key = key @ exact.matrix
        rows.append(key if start + i == 0 else exact.norm(F.gelu(key)))
    looped = torch.stack(rows, dim=-2)
    (looped * weights).sum().backward()
    torch.testing.assert_close(moved.double(), looped, atol=1e-5, rtol=1e-5)
    for ours, theirs in zip(encoding.parameters(), exact.parameters(), strict=True):
        assert (ours.grad - theirs.grad).abs().max() < 1e-5 * theirs.grad.abs().max()


@pytest.mark.parametrize("first", [0, 5, 37])
def test_key_matrix_powers_of_a_position_that_is_not_read(first):
    """As on a GPU, where the first position stays on the device; values and gradients are the same numbers."""
    found = []
    for position in (first, torch.tensor(first)):
        matrix = key_matrix().matrix
        powers, logs = _powers(_scaled(matrix[None], torch.zeros(1)), 3, position)
        (powers * values(3, 16, 16)).sum().backward()
        found.append((powers, logs, matrix.grad))
    for read, kept in zip(*found, strict=True):
        assert torch.equal(read, kept)


@pytest.mark.parametrize("growth", [0.9, 1.1])
def test_key_matrix_far_out(growth):
    """At 16000, 1.1^p has 660 digits: the norm takes the size out of it, so the key is that of the rotation alone."""
    encoding = KeyMatrix(head_dim=16, num_layers=1)
    init_weights(encoding, 1, 0.02)
    rotation = encoding.matrix.detach().double().clone()
    with torch.no_grad():
        encoding.matrix *= growth
    k = values(1, 1, 4, 16)
    positions = torch.arange(16000, 16004)
    moved = encoding.rotate(k, k, positions)[1]
    moved.square().sum().backward()
    assert moved.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in encoding.parameters())
    if growth > 1:
        keys = torch.stack([k[0, 0, i].double() @ torch.linalg.matrix_power(rotation, 16000 + i) for i in range(4)])
        torch.testing.assert_close(moved[0, 0].double(), F.layer_norm(F.relu(keys), (16,), eps=0), atol=2e-2, rtol=0)


# --- sizes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("choice", "parameters"), [("rope_3d", 70_420_480), ("xpos", 70_420_480), ("key_matrix", 70_424_704)]
)
def test_published_parameter_counts(choice, parameters):
    with torch.device("meta"):
        model = newllm.build_model(newllm.compose(["model=pythia_70m", f"pos_encoding={choice}"]), tokens=50257)
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_pairs_are_given_where_there_are_some():
    assert len(p_rope(0.75).pairs()) == len(fope().pairs()) == len(XPos(**SIZES).pairs()) == D // 2
    assert Rope3D(head_dim=D, num_layers=1).pairs() == key_matrix().pairs() == []
