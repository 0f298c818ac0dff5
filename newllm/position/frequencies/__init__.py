"""Inverse frequencies of rotary encodings, as plain float64 functions.

A rotary encoding rotates pair k of coordinates by the angle ``position * inv_freq[k]``; the wavelength of the pair, in
tokens, is ``2 * pi / inv_freq[k]``. `dim` is the number of rotary dims (not the head's width if only part of it
rotates), and each function returns dim / 2 values, K for short. `families` and `evq` define frequencies to train with,
`scaling` stretches a trained model's frequencies to longer inputs, `spectrum` describes them, and `nodes` evaluates the
options `frequencies` and `scaling` of an encoding.
"""

# ruff: noqa: F401

from newllm.position.frequencies.evq import evq_cosh, evq_split, optimal_tau
from newllm.position.frequencies.families import (
    anchored_polynomial,
    geometric,
    highest,
    hybrid,
    listed,
    mix,
    sigmoid,
    whole_turns,
)
from newllm.position.frequencies.scaling import (
    dynamic_ntk,
    dynamic_ntk_transformers,
    llama3,
    longrope,
    longrope_temperature,
    ntk_aware,
    ntk_spread,
    position_interpolation,
    proportional,
    yarn,
    yarn_channels,
    yarn_index_ramp,
    yarn_temperature,
)
from newllm.position.frequencies.spectrum import channels_longer_than, phase_collision, wavelengths
