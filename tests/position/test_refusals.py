"""What encodings, families of frequencies and scalings refuse: one sentence each, which names the key and a way out."""

import numpy as np
import pytest

from newllm.errors import ConfigError
from newllm.position import T5, Alibi, Cope, Fire, Fope, KerpleLog, KerplePower, Rope, Rope3D, RopeEvq, Sinusoidal, XPos
from newllm.position import frequencies as f
from newllm.position.frequencies.nodes import scale
from tests.support import schedules

HEADS = {"heads": 4, "num_layers": 1}
SIZES = {"head_dim": 32, "num_layers": 2, "seq_len": 128}
WIDE = {"head_dim": 64, "num_layers": 1, "seq_len": 2048}
SPECTRUM = f.sigmoid(64, 1e4)


def family(name: str, **options) -> Rope:
    return Rope(1e4, {"family": name, **options}, **WIDE)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        # encodings
        (lambda: Sinusoidal(theta=-1.0, hidden_size=64, num_layers=1), "theta must be greater than 0"),
        (lambda: Alibi([0.1, 0.2, 0.3], heads=4, num_layers=1), "one number or 4"),
        (lambda: Alibi(-0.1, heads=4, num_layers=1), "0 or greater"),
        (lambda: Alibi(layers=[0, 7], heads=4, num_layers=6), "layers from 0 to 5"),
        (lambda: T5(1, **HEADS), "num_buckets must be even and at least 2"),
        (lambda: T5(7, **HEADS), "num_buckets must be even"),
        (lambda: T5(32, 16, **HEADS), "max_distance must be above 16"),
        (lambda: KerplePower(p=0.0, **HEADS), "p must be from 0.01 to 2, as in pos_encoding.p=1; got 0"),
        (lambda: KerplePower(p=2.5, **HEADS), "p must be from 0.01 to 2"),
        (lambda: KerpleLog(p=-1.0, **HEADS), "p must be 0.01 or greater"),
        (lambda: KerpleLog(a=0.0, **HEADS), "a must be 0.01 or greater"),
        (lambda: KerplePower(a=[0.1, 0.2], **HEADS), "one number or 4"),
        (lambda: Fire(width=0, **HEADS), "width must lie in [1, "),
        (lambda: Fire(c=-0.1, **HEADS), "c must be greater than 0"),
        (lambda: Fire(threshold=0.0, **HEADS), "threshold must be greater than 0"),
        (lambda: Cope(1, query_dim=8, seq_len=8, num_layers=2), "npos_max must be at least 2"),
        (lambda: XPos(scale_base=0.0, **SIZES), "scale_base must be greater than 0, as in scale_base=512; got 0"),
        (lambda: XPos(gamma=-0.4, **SIZES), "gamma must be greater than 0"),
        (lambda: Fope(gain=-1.0, heads=4, **SIZES), "gain must be 0 or greater"),
        (lambda: Fope(heads=4, **{**SIZES, "seq_len": 6}), "no wave fits into seq_len=6; use seq_len=7 or more"),
        (lambda: family("highest", fraction=1.5), "fraction must lie in [0, 1]"),
        (lambda: family("highest", fraction=0.015), "none of the 32 pairs a frequency; type fraction=0.03125 or more"),
        (lambda: Rope3D(axis=[0.0, 0.0, 0.0], head_dim=32, num_layers=1), "three numbers that are not all 0"),
        (lambda: Rope3D(axis=[1.0, 2.0], head_dim=32, num_layers=1), "axis must be three numbers"),
        (lambda: Rope3D(rotary_pct=0.05, head_dim=32, num_layers=1), "give 3 or more rotary dims of the 32"),
        (lambda: Rope3D(head_dim=2, num_layers=1), "rotates 3 dims at a time, and there are 2; try rope_dim=16"),
        (lambda: Rope3D(theta=0.0, head_dim=32, num_layers=1), "theta must be greater than 0"),
        (lambda: Rope(rotary_pct=1.5, **WIDE), "rotary_pct=0.25 does; 1.5 gives 96"),
        (lambda: Rope(rotary_pct=0.0, **WIDE), "rotary_pct must lie in"),
        (lambda: Rope(rotary_pct=0.05, **WIDE), "even number of rotary dims"),
        (lambda: Rope(theta=0.0, **WIDE), "theta must be greater than 0"),
        (lambda: Rope(scaling="ntk", **WIDE), "scaling=ntk: there is no such kind; did you mean ntk_aware"),
        (lambda: Rope(scaling={"kind": "yarn", "factor": 0.5}, **WIDE), "factor must be 1 or greater"),
        (lambda: Rope(None, **WIDE), "theta=null: expected a number"),
        (lambda: family("sigmoid", omf=0.0), "omf must be greater than 0"),
        (lambda: family("anchored_polynomial", p=0.0), "p must be greater than 0"),
        (lambda: family("hybrid", alpha=1.5), "alpha must lie in"),
        (lambda: family("hybrid"), "frequencies: family hybrid needs the option alpha, a number"),
        (lambda: family("mix", a="geometric", b={"family": "sigmod"}), "=sigmod: there is no such family; did you"),
        (lambda: family("mix", a="geometric", b={"theta": 1e4}), "frequencies needs a family, as in"),
        (lambda: family("mix", a={"family": "geometric", "p": 2}, b="sigmoid"), "frequencies.p is not an option"),
        (lambda: family("newllm.suggest.nearest"), "a family is a function whose first parameter is dim"),
        (lambda: family("newllm.no.family"), "there is no such family"),
        (lambda: family("sigmoid", steepnes=3), "did you mean steepness"),
        (lambda: family("evq_cosh", tau=-0.5), "tau must lie in"),
        (lambda: RopeEvq(frequencies={"family": "evq_cosh", "tau": 0.0}, learn=True, **WIDE),
         "a learned tau must be greater than 0"),
        (lambda: RopeEvq(tau_rate=0.0, **WIDE), "tau_rate must be greater than 0"),
        (lambda: RopeEvq(frequencies="geometric", **WIDE), "type pos_encoding=rope for family geometric"),
        (lambda: family("evq_split", kept=33), "kept must lie in"),
        (lambda: family("listed", inv_freq=[1.0] * 8), "must hold 32 numbers, one for each pair of 64 rotary dims"),
        # families and scalings
        (lambda: f.geometric(64, 0), "theta must be greater than 0, as in theta=10000; got 0"),
        (lambda: f.geometric(7), "rotary dims must be even and greater than 0, as in dim=64; got 7"),
        (lambda: f.sigmoid(64, omf=0), "omf must be greater than 0"),
        (lambda: f.sigmoid(64, steepness=-1), "steepness must be greater than 0"),
        (lambda: f.anchored_polynomial(64, omf=-0.3), "omf must be greater than 0, as in omf=0.3; got -0.3"),
        (lambda: f.anchored_polynomial(64, p=0), "p must be greater than 0"),
        (lambda: f.hybrid(64, 1e4, 1.1), "alpha must lie in [0, 1], as in alpha=0.2; got 1.1"),
        (lambda: f.mix(f.geometric(64, 1e4), SPECTRUM, -0.1), "alpha must lie in [0, 1]"),
        (lambda: f.mix(f.geometric(64, 1e4), SPECTRUM[1:], 0.5), "have one length; got 32 and 31"),
        (lambda: f.evq_cosh(64, 5e5, -1), "tau must lie in"),
        (lambda: f.evq_cosh(64, 5e5, float("nan")), "tau must lie in"),
        (lambda: f.evq_split(64, 5e5, 1.5, 33), "kept must lie in [0, 32], as in kept=16; got 33"),
        (lambda: f.listed(8, [1.0, 0.5]), "must hold 4 numbers, one for each pair of 8 rotary dims; got 2"),
        (lambda: f.listed(4, [1.0, 0.0]), "greater than 0, as in 0.001; entry 1 is 0"),
        (lambda: schedules.anchored_sigmoid(64, anchor=0.5), "anchor must be 1 or greater"),
        (lambda: schedules.anchored_hybrid(64, scale=0.5), "scale must be 1 or greater"),
        (lambda: f.position_interpolation(SPECTRUM, 0.5), "factor must be 1 or greater, as in factor=8; got 0.5"),
        (lambda: f.ntk_aware(64, 1e4, 0.5), "factor must be 1 or greater"),
        (lambda: f.ntk_aware(2, 1e4, 2), "NTK-aware scaling needs 4 or more rotary dims"),
        (lambda: f.yarn(SPECTRUM, 0.5, 2048), "factor must be 1 or greater"),
        (lambda: f.yarn(SPECTRUM, 4, 2048, 1, 32), "beta_fast must be greater than 32"),
        (lambda: f.yarn_channels(np.ones(8), 4, 2048), "fall from channel to channel; try yarn"),
        (lambda: f.yarn_index_ramp(SPECTRUM, 0.5), "factor must be 1 or greater"),
        (lambda: f.llama3(SPECTRUM, 0.5, 2048), "factor must be 1 or greater"),
        (lambda: f.longrope(SPECTRUM, [1.0]), "longrope needs 32 factors, one for each pair of rotary dims; got 1"),
        (lambda: f.longrope(SPECTRUM[:2], [1.0, 0.0]), "factor 1 must be greater than 0"),
        (lambda: f.proportional(SPECTRUM, 1.5), "fraction must lie in [0, 1]"),
        (lambda: scale(SPECTRUM, "yran", length=1, seq_len=8), "there is no such kind; did you mean yarn"),
        (lambda: scale(SPECTRUM, {"factor": 8}, length=1, seq_len=8), "scaling needs a kind, as in 'scaling={kind:"),
        (
            lambda: scale(SPECTRUM, {"kind": "yarn", "faktor": 8}, length=1, seq_len=8),
            "scaling.faktor is not an option of kind yarn; did you mean factor",
        ),
        (
            lambda: scale(SPECTRUM, {"kind": "yarn", "factor": "eight"}, length=1, seq_len=8),
            "scaling.factor=eight: expected a number",
        ),
        (lambda: scale(SPECTRUM, "longrope", length=1, seq_len=8), "kind longrope needs the option long, a list"),
        (lambda: scale(SPECTRUM, {"kind": "yarn", "factor": 0.5}, length=1, seq_len=8), "factor must be 1 or greater"),
    ],
)  # fmt: skip
def test_refusals(make, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        make()
    assert message in str(error.value)
    assert "\n" not in str(error.value)
