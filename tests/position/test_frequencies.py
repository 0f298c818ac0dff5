"""Families, scalings and spectra against published values and against transformers."""

import math
import subprocess
import sys

import numpy as np
import pytest

from newllm.position import frequencies as f
from newllm.position.frequencies.nodes import SCALINGS, scale
from tests.support import schedules

GEO = {theta: f.geometric(64, theta) for theta in (1e4, 1e5, 5e5)}
SIG8 = f.sigmoid(64, 1e4, 8, 0.5, 0.3)

# First three and last three frequencies of 32 (hybrid-rope: unified_search.py, schedules.py, eval_pe_baselines.py).
PUBLISHED = {
    "geo_10k": (GEO[1e4], [1, 0.749894, 0.562341, 2.37137e-4, 1.77828e-4, 1.33352e-4]),
    "geo_100k": (GEO[1e5], [1, 0.697831, 0.486968, 2.94273e-5, 2.05353e-5, 1.43301e-5]),
    "geo_500k": (GEO[5e5], [1, 0.663601, 0.440367, 6.84398e-6, 4.54167e-6, 3.01386e-6]),
    "sig_s7_m0.5_omf0.3_t10k": (
        f.sigmoid(64, 1e4, 7, 0.5, 0.3),
        [0.743170, 0.691229, 0.632168, 6.32832e-5, 5.78761e-5, 5.38311e-5],
    ),
    "sig_s8_m0.5_omf0.3_t10k": (SIG8, [0.833487, 0.790950, 0.739698, 5.40837e-5, 5.05792e-5, 4.79979e-5]),
    "sig_s8_m0.6_omf0.3_t10k": (
        f.sigmoid(64, 1e4, 8, 0.6, 0.3),
        [0.920666, 0.898761, 0.871328, 7.64338e-5, 6.64567e-5, 5.94795e-5],
    ),
    "anchpoly_p3.9_omf0.3_t500k": (
        f.anchored_polynomial(64, 5e5, 3.9, 0.3),
        [1, 0.999979, 0.999683, 2.18978e-5, 4.80556e-6, 9.04157e-7],
    ),
    "hybrid_a0.2_t100k": (
        f.hybrid(64, 1e5, 0.2),
        [1, 0.758261, 0.589518, 3.81125e-5, 2.02180e-5, 1.23239e-5],
    ),
    "mix_sig8t10k_geo500k_a0.5": (
        f.mix(GEO[5e5], SIG8, 0.5),
        [0.916743, 0.727276, 0.590033, 3.04638e-5, 2.75605e-5, 2.55059e-5],
    ),
    "evq midpoint": (
        f.evq_cosh(64, 5e5, math.sqrt(2)),
        [0.878446, 0.674553, 0.514485, 8.08991e-6, 4.63508e-6, 2.64761e-6],
    ),
    "evq endpoint": (
        f.evq_cosh(64, 5e5, math.sqrt(2), "endpoint"),
        [1, 0.770416, 0.589617, 1.06692e-5, 6.12658e-6, 3.50401e-6],
    ),
    "evq closed": (
        f.evq_cosh(64, 5e5, math.sqrt(2), "closed"),
        [1, 0.763878, 0.579395, 6.35071e-6, 3.56789e-6, 2.00000e-6],
    ),
    "evq split at 16": (
        f.evq_split(64, 5e5, 1.5, 16),
        [0.814617, 0.540581, 0.358730, 7.74697e-6, 4.38572e-6, 2.45514e-6],
    ),
    "normalised sigmoid": (
        schedules.normalised_sigmoid(64, 5e5),
        [1, 0.918364, 0.824470, 2.33562e-6, 2.14145e-6, 2e-6],
    ),
    "anchored sigmoid of 5": (
        schedules.anchored_sigmoid(64, 5e5, 5),
        [0.917451, 0.595219, 0.384119, 1.40163e-6, 9.25315e-7, 6.11550e-7],
    ),
    "anchored hybrid at twice the context": (
        schedules.anchored_hybrid(64, 5e5, 2),
        [1, 0.663601, 0.440367, 6.08191e-6, 4.01672e-6, 2.65753e-6],
    ),
    "interpolation by 8": (
        f.position_interpolation(GEO[5e5], 8),
        [0.125, 0.0829502, 0.0550458, 8.55497e-7, 5.67709e-7, 3.76732e-7],
    ),
    "ntk by 8": (f.ntk_aware(64, 5e5, 8), [1, 0.620548, 0.385080, 9.78323e-7, 6.07096e-7, 3.76732e-7]),
    "index ramp by 4": (
        f.yarn_index_ramp(GEO[5e5], 4),
        [1, 0.663601, 0.440367, 1.60249e-6, 1.06342e-6, 7.05684e-7],
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_values(name: str) -> None:
    ours, published = PUBLISHED[name]
    assert ours.dtype == np.float64
    assert ours.shape == (32,)
    np.testing.assert_allclose(ours[[0, 1, 2, 29, 30, 31]], published, rtol=1e-5)


def test_channels_that_go_full_circle_in_training() -> None:
    """Published counts of wavelengths up to 2048."""
    published = {
        "geo_10k": 21, "geo_100k": 17, "geo_500k": 15, "hybrid_a0.2_t100k": 24, "anchpoly_p3.9_omf0.3_t500k": 25,
        "sig_s8_m0.6_omf0.3_t10k": 20, "mix_sig8t10k_geo500k_a0.5": 16, "evq midpoint": 18,
    }  # fmt: skip
    for name, count in published.items():
        assert 32 - f.channels_longer_than(PUBLISHED[name][0], 2048) == count, name
    assert 32 - f.channels_longer_than(f.hybrid(64, 5e5, 0.2), 2048) == 23


@pytest.mark.parametrize(
    ("inv_freq", "scores"),
    [
        (GEO[1e4], (0.6814, 0.1162, 0.0493, 0.1958)),
        (GEO[1e5], (0.7332, 0.2890, -0.0473, 0.2097)),
        (GEO[5e5], (0.7583, 0.4255, 0.2129, 0.3857)),
        (f.evq_cosh(64, 5e5, 0.0), (0.7618, 0.3928, 0.1611, 0.3508)),
        (f.hybrid(64, 1e5, 0.2), (0.5072, 0.2235, 0.1078, 0.2224)),
        (f.anchored_polynomial(64, 5e5), (0.3884, 0.1607, 0.0509, 0.1514)),
        (f.sigmoid(64, 1e4, 8, 0.6), (0.5093, 0.2012, 0.0136, 0.1690)),
    ],
)
def test_phase_collision_as_published(inv_freq: np.ndarray, scores: tuple[float, ...]) -> None:
    """To three of the four digits given: the fourth is off by one here and there."""
    score = f.phase_collision(inv_freq)
    assert list(score) == ["short", "mid", "long", "total"]
    np.testing.assert_allclose(list(score.values()), scores, atol=1.5e-4)


@pytest.mark.parametrize(("tau", "total"), [(1.0, 0.4278), (1.5, 0.2588), (2.0, 0.1858)])
def test_phase_collision_of_evq_as_published(tau: float, total: float) -> None:
    assert f.phase_collision(f.evq_cosh(64, 5e5, tau))["total"] == pytest.approx(total, abs=1.5e-4)


def test_evq_at_zero_is_geometric_on_its_grid() -> None:
    np.testing.assert_allclose(f.evq_cosh(64, 5e5, 0.0, "endpoint"), GEO[5e5], rtol=1e-12)
    np.testing.assert_allclose(f.evq_split(64, 5e5, 0.0, 16), f.evq_cosh(64, 5e5, 0.0), rtol=1e-12)
    np.testing.assert_allclose(f.evq_split(64, 5e5, 1.5, 32), f.evq_cosh(64, 5e5, 0.0), rtol=1e-12)
    # Both sides of where the series takes over.
    np.testing.assert_allclose(f.evq_cosh(64, 5e5, 0.99e-4), f.evq_cosh(64, 5e5, 1.01e-4), rtol=1e-8)
    assert (np.diff(f.evq_split(64, 5e5, 1.5, 0)) < 0).all()


def test_rule_for_tau() -> None:
    rule = {128: 5.66, 256: 4.00, 512: 2.83, 1024: 2.00, 2048: 1.414, 4096: 1.00, 8192: 0.707}
    for length, tau in rule.items():
        assert f.optimal_tau(64, length) == pytest.approx(tau, rel=1e-3)
    for length, q in {256: 0.03145, 512: 0.03192, 1024: 0.03159, 2048: 0.03051}.items():
        refined = f.optimal_tau(64, length, theta=5e5)
        assert refined == pytest.approx(f.optimal_tau(64, length) * math.sqrt(45 * q), rel=3e-4)


# --- scalings -------------------------------------------------------------------------------------------------------


def options(kind: str, factor: float | None, pairs: int) -> dict:
    """What `scaling` needs for this kind; dynamic kinds have no such factor, or one that means another thing."""
    needed = {"longrope": {"long": [1 + k / 4 for k in range(pairs)]}, "proportional": {"fraction": 1.0}}
    fixed = {} if factor is None or kind in ("dynamic_ntk", "proportional") else {"factor": factor}
    if kind == "dynamic_ntk_transformers":
        fixed = {"factor": 4.0}
    return {"kind": kind, **needed.get(kind, {}), **fixed}


@pytest.mark.parametrize("kind", SCALINGS)
@pytest.mark.parametrize("family", ["geo_500k", "sig_s8_m0.6_omf0.3_t10k", "evq midpoint"])
def test_a_scaling_without_factor_follows_the_length(kind: str, family: str) -> None:
    """Up to the training length nothing changes, to the last bit; beyond it the factor is length / training length."""
    inv_freq = PUBLISHED[family][0]
    for length in (1, 1000, 2048):
        same, temperature = scale(inv_freq, options(kind, None, 32), length=length, seq_len=2048)
        assert np.array_equal(same, inv_freq)
        assert temperature == 1
    by_length = scale(inv_freq, options(kind, None, 32), length=8192, seq_len=2048)
    explicit = scale(inv_freq, options(kind, 4.0, 32), length=8192, seq_len=2048)
    assert np.array_equal(by_length[0], explicit[0])
    assert by_length[1] == explicit[1]
    assert np.array_equal(by_length[0], inv_freq) == (kind == "proportional")
    assert (explicit[1] > 1) == (kind in ("yarn", "yarn_channels", "longrope"))


def test_a_scaling_may_be_its_name_alone_and_keeps_the_length_it_is_given() -> None:
    by_name = scale(GEO[1e4], "yarn", length=8192, seq_len=2048)
    in_full = {"kind": "yarn", "factor": 4, "original_length": 2048, "beta_fast": 32, "beta_slow": 1}
    as_mapping = scale(GEO[1e4], in_full, length=1, seq_len=64)
    assert np.array_equal(by_name[0], as_mapping[0])
    assert by_name[1] == as_mapping[1] == 0.1 * math.log(4) + 1
    assert scale(GEO[1e4], {"kind": "yarn", "factor": 4, "attention_factor": 1.0}, length=1, seq_len=64)[1] == 1


def test_ntk_of_any_family_is_the_change_of_base_of_the_geometric_one() -> None:
    np.testing.assert_allclose(f.ntk_spread(GEO[5e5], 8), f.geometric(64, 5e5 * 8 ** (64 / 62)), rtol=1e-12)
    sigmoid = f.ntk_spread(SIG8, 8)
    assert sigmoid[0] == SIG8[0]
    assert sigmoid[-1] == pytest.approx(SIG8[-1] / 8)


def test_two_dynamic_kinds() -> None:
    """By the ratio of lengths, and as transformers has it: the same for a factor of 1 only."""
    ratio = f.dynamic_ntk(GEO[1e4], 8192, 2048)
    np.testing.assert_allclose(ratio, f.ntk_aware(64, 1e4, 4), rtol=1e-12)
    np.testing.assert_allclose(f.dynamic_ntk_transformers(GEO[1e4], 1, 8192, 2048), ratio, rtol=1e-12)
    np.testing.assert_allclose(f.dynamic_ntk_transformers(GEO[1e4], 2, 8192, 2048), f.ntk_aware(64, 1e4, 7), rtol=1e-12)
    assert np.array_equal(f.dynamic_ntk(GEO[1e4], 100, 2048), GEO[1e4])


def test_yarn_of_the_paper() -> None:
    """Definition 2: channels of 32 turns and more stay, of one turn and less are divided, between them by rotations."""
    inv_freq = 2 * np.pi / 1024 * np.array([64, 32, 16.5, 1, 0.5])
    np.testing.assert_allclose(f.yarn(inv_freq, 4, 1024) / inv_freq, [1, 1, 0.5 + 0.5 / 4, 0.25, 0.25], rtol=1e-12)


def test_channels_that_do_not_turn_do_not_disturb_the_ramp_over_channels() -> None:
    cut = f.proportional(GEO[1e4], 0.75)
    scaled = f.yarn_channels(cut, 4, 2048)
    assert (scaled[24:] == 0).all()
    np.testing.assert_allclose(scaled[:24], f.yarn_channels(GEO[1e4], 4, 2048)[:24], rtol=1e-12)


SHAPES = [  # head_dim, partial rotary factor, theta, original length, factor
    (64, 1.0, 1e4, 2048, 8.0),
    (64, 0.25, 1e4, 2048, 4.0),
    (128, 1.0, 5e5, 8192, 8.0),
    (32, 0.5, 1e6, 512, 2.5),
]
KINDS = [
    ("linear", "position_interpolation", {}),
    ("dynamic", "dynamic_ntk_transformers", {}),
    ("yarn", "yarn_channels", {}),
    ("yarn", "yarn_channels", {"beta_fast": 16.0, "beta_slow": 2.0, "truncate": False}),
    ("yarn", "yarn_channels", {"attention_factor": 1.25}),
    ("llama3", "llama3", {"low_freq_factor": 1.0, "high_freq_factor": 4.0}),
    ("longrope", "longrope", {}),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("theirs", "kind", "extra"), KINDS)
def test_equal_to_transformers(theirs: str, kind: str, extra: dict, shape: tuple) -> None:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    head_dim, partial, theta, original, factor = shape
    pairs = int(head_dim * partial) // 2
    rope = {
        "rope_type": theirs, "rope_theta": theta, "factor": factor, "partial_rotary_factor": partial,
        "original_max_position_embeddings": original, **extra,
    }  # fmt: skip
    if kind == "longrope":
        factors = {"short": [1 + k / 100 for k in range(pairs)], "long": [1.0 + k for k in range(pairs)]}
        rope |= {f"{name}_factor": values for name, values in factors.items()}
        extra = extra | factors
    config = LlamaConfig(
        hidden_size=4 * head_dim, num_attention_heads=4, head_dim=head_dim, max_position_embeddings=original,
        rope_parameters=rope,
    )  # fmt: skip
    for length in (original // 2, original, 2 * original, 5 * original):
        expected, attention_factor = ROPE_INIT_FUNCTIONS[theirs](config, "cpu", seq_len=length)
        ours, temperature = scale(
            f.geometric(2 * pairs, theta), {"kind": kind, "factor": factor, **extra}, length=length, seq_len=original
        )
        np.testing.assert_allclose(ours, expected.double().numpy(), rtol=1e-6)
        assert temperature == pytest.approx(attention_factor, rel=1e-6)


@pytest.mark.parametrize("fraction", [0.25, 0.5, 1.0])
def test_proportional_equals_transformers(fraction: float) -> None:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = {"rope_type": "proportional", "rope_theta": 1e6, "partial_rotary_factor": fraction, "factor": 2.0}
    config = LlamaConfig(hidden_size=256, num_attention_heads=4, head_dim=64, rope_parameters=rope)
    expected, _ = ROPE_INIT_FUNCTIONS["proportional"](config, "cpu")
    ours, _ = scale(
        f.geometric(64, 1e6), {"kind": "proportional", "fraction": fraction, "factor": 2}, length=1, seq_len=64
    )
    np.testing.assert_allclose(ours, expected.double().numpy(), rtol=1e-6)
    assert (ours > 0).sum() == 32 * fraction


def test_frequencies_need_no_torch() -> None:
    code = "import sys; from newllm.position.frequencies import geometric; print(geometric(4), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["[1.", "0.01]", "False"]
