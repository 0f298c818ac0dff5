"""The formulas, and what the constructors refuse."""

import math

import numpy as np
import pytest
import torch

from newllm.errors import ConfigError
from newllm.position import Alibi, Learned, Sinusoidal
from newllm.position.alibi import geometric_slopes

T = 50


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
    with pytest.raises(ConfigError, match="16 positions and 17 are needed"):
        model(torch.zeros(1, 17, dtype=torch.long))


@pytest.mark.parametrize("rope_dim", [-2, 0, 3])
def test_a_rotary_key_of_odd_or_no_width_is_refused_by_its_own_name(small_model, rope_dim):
    with pytest.raises(ConfigError, match="rope_dim must be even and greater than 0"):
        small_model("rope", "mla", f"rope_dim={rope_dim}")
    small_model("nope", "mla", f"rope_dim={rope_dim}")  # here nothing rotates
