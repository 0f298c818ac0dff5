"""The formulas, and what the constructors refuse."""

import math

import numpy as np
import pytest
import torch

from newllm.errors import ConfigError
from newllm.position import Alibi, Learned, Rope, Sinusoidal, frequencies
from newllm.position.alibi import geometric_slopes

T, D = 50, 32


def test_geometric_frequencies():
    expected = [10000 ** (-2 * k / 16) for k in range(8)]
    np.testing.assert_allclose(frequencies.geometric(16, 10000), expected, rtol=1e-15)
    assert frequencies.geometric(64, 5e5).dtype == np.float64
    np.testing.assert_allclose(frequencies.geometric(64, 5e5)[[1, 31]], [0.663601, 3.01386e-6], rtol=1e-5)


@pytest.mark.parametrize("layout", ["half", "interleaved"])
@pytest.mark.parametrize("rotary_pct", [0.25, 0.5, 1.0])
def test_rope_turns_pairs_and_passes_the_rest(layout, rotary_pct):
    """Each pair is a complex number times exp(i position inv_freq), computed in double; other dims are untouched."""
    rope = Rope(1000.0, rotary_pct, layout, head_dim=D, num_layers=1)
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
    half, interleaved = (Rope(100.0, 0.5, layout, head_dim=D, num_layers=1) for layout in ("half", "interleaved"))
    x = torch.randn(1, 1, T, D, generator=torch.Generator().manual_seed(0))
    order = [dim for a, b, _ in half.pairs() for dim in (a, b)] + list(range(16, D))
    turned_half, _ = half.rotate(x, x, torch.arange(T))
    turned_interleaved, _ = interleaved.rotate(x[..., order], x[..., order], torch.arange(T))
    torch.testing.assert_close(turned_interleaved, turned_half[..., order])


def test_angles_are_fp32_under_bf16():
    """At position 4000, a table in bf16 would be off by radians."""
    rope = Rope(head_dim=D, num_layers=1)
    x = torch.ones(1, 1, 1, D, dtype=torch.bfloat16)
    position = torch.tensor([3999])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        turned, _ = rope.rotate(x, x, position)
    expected, _ = rope.rotate(x.float(), x.float(), position)
    assert turned.dtype == torch.bfloat16
    torch.testing.assert_close(turned.float(), expected, atol=0.01, rtol=0.01)


def test_alibi_matrix():
    """Future masked elsewhere; the diagonal is 0, then -m, -2m: the table a transposed mask would fail."""
    bias = Alibi(0.0625, heads=4, num_layers=1).bias()
    i = torch.arange(4)
    matrix = bias.matrix(i, i)
    assert matrix.shape == (1, 4, 4)
    assert matrix[0, 3].tolist() == [-0.1875, -0.125, -0.0625, 0.0]
    assert matrix[0, 2, 0] == -0.125


def test_geometric_slopes_as_published():
    assert geometric_slopes(8) == [2.0**-h for h in range(1, 9)]
    assert geometric_slopes(12)[:8] == geometric_slopes(8)
    np.testing.assert_allclose(geometric_slopes(12)[8:], [2**-0.5, 2**-1.5, 2**-2.5, 2**-3.5])
    assert Alibi("geometric", heads=8, num_layers=1).slopes.tolist() == geometric_slopes(8)
    assert Alibi([0.5, 0.25], heads=2, num_layers=1).slopes.tolist() == [0.5, 0.25]


def test_sinusoidal_table():
    x = torch.zeros(1, T, 8)
    out = Sinusoidal(100.0, hidden_size=8, num_layers=1).at_input(x, torch.arange(T)) * math.sqrt(8)
    for p in (0, 3, 49):
        expected = [f(p * 100.0 ** (-2 * k / 8)) for k in range(4) for f in (math.sin, math.cos)]
        np.testing.assert_allclose(out[0, p], expected, atol=1e-5)


def test_chosen_layers(small_model):
    """An encoding acts in its layers alone; elsewhere the layer has none; parts of a sum choose for themselves."""
    model = small_model("rope", "mla", "pos_encoding.layers=[0,2]")
    assert [block.encoding is not None for block in model.blocks] == [True, False, True]
    assert [block.attention.rope_dim for block in model.blocks] == [16, 0, 16]  # no rotary key where nothing rotates
    both = small_model(
        "rope_alibi", "mha", "pos_encoding.parts.rope.layers=[1]", "pos_encoding.parts.alibi.layers=[0,1]"
    )
    assert [None if b.encoding is None else sorted(b.encoding.parts) for b in both.blocks] == [
        ["alibi"],
        ["alibi", "rope"],
        None,
    ]
    none = small_model("rope", "mha", "pos_encoding.layers=[]")
    ids = torch.arange(40)[None]
    assert torch.equal(none(ids), small_model("nope", "mha")(ids))


def test_learned_positions_count_once_and_end(small_model):
    model = small_model("learned", "mha", "pos_encoding.layers=[0,1]", "seq_len=16")
    assert [name for name, _ in model.named_parameters() if "table" in name] == ["position.table"]
    assert isinstance(model.position, Learned)
    with pytest.raises(ConfigError, match="16 positions and 17 were asked for"):
        model(torch.zeros(1, 17, dtype=torch.long))


@pytest.mark.parametrize("rope_dim", [-2, 0, 3])
def test_a_rotary_key_of_odd_or_no_width_is_refused_by_its_own_name(small_model, rope_dim):
    with pytest.raises(ConfigError, match="rope_dim must be even and greater than 0"):
        small_model("rope", "mla", f"rope_dim={rope_dim}")
    small_model("nope", "mla", f"rope_dim={rope_dim}")  # here nothing rotates


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Rope(rotary_pct=1.5, head_dim=64, num_layers=1), "rotary_pct=0.25 does; 1.5 gives 96"),
        (lambda: Rope(rotary_pct=0.0, head_dim=64, num_layers=1), "rotary_pct must lie in"),
        (lambda: Rope(rotary_pct=0.05, head_dim=64, num_layers=1), "even number of rotary dims"),
        (lambda: Rope(theta=0.0, head_dim=64, num_layers=1), "theta must be greater than 0"),
        (lambda: Sinusoidal(theta=-1.0, hidden_size=64, num_layers=1), "theta must be greater than 0"),
        (lambda: Alibi([0.1, 0.2, 0.3], heads=4, num_layers=1), "one number or 4"),
        (lambda: Alibi(-0.1, heads=4, num_layers=1), "0 or greater"),
        (lambda: Alibi(layers=[0, 7], heads=4, num_layers=6), "layers from 0 to 5"),
    ],
)  # fmt: skip
def test_refusals(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
