"""What evaluators refuse: the error names the option, and one table has the sentences."""

from collections.abc import Callable
from typing import Any

import pytest

from newllm.errors import ConfigError
from newllm.evaluation.distance import Distance
from newllm.evaluation.extrapolation import Extrapolation
from newllm.evaluation.kv_cache import KVCache
from newllm.evaluation.loss import Loss
from newllm.evaluation.passkey import Passkey
from newllm.evaluation.position import Position
from newllm.evaluation.qk import QueryKey
from newllm.evaluation.rank import EffectiveRank
from newllm.evaluation.reconstruction import Reconstruction
from newllm.evaluation.ruler import Ruler
from newllm.evaluation.trigram import Trigram


@pytest.mark.parametrize(
    ("evaluator", "options", "key"),
    [
        (Distance, {"distances": []}, "distance.distances"),
        (Distance, {"trials": 0}, "distance.trials"),
        (Distance, {"digits": 0}, "distance.digits"),
        (Distance, {"length": "far"}, "distance.length"),
        (EffectiveRank, {"positions": 0}, "rank.positions"),
        (Extrapolation, {"lengths": []}, "extrapolation.lengths"),
        (Extrapolation, {"lengths": ["2k"]}, "extrapolation.lengths"),
        (Extrapolation, {"sliding": ["x"]}, "extrapolation.sliding"),
        (Extrapolation, {"chunks": 0}, "extrapolation.chunks"),
        (Extrapolation, {"tail": 0}, "extrapolation.tail"),
        (Extrapolation, {"stride": -1}, "extrapolation.stride"),
        (Extrapolation, {"slices": False, "tail": None, "positions": False, "sliding": []}, "extrapolation.slices"),
        (KVCache, {"tokens": 0}, "kv_cache.tokens"),
        (Loss, {"batch_size": 0}, "loss.batch_size"),
        (Passkey, {"lengths": []}, "passkey"),
        (Passkey, {"lengths": ["2"]}, "passkey.lengths"),
        (Passkey, {"depths": []}, "passkey"),
        (Passkey, {"depths": [1.5]}, "passkey.depths"),
        (Passkey, {"trials": 0}, "passkey.trials"),
        (Passkey, {"digits": 0}, "passkey.digits"),
        (Position, {"edges": []}, "position.edges"),
        (Position, {"edges": [1, 5]}, "position.edges"),
        (Position, {"edges": [0, 8, 8]}, "position.edges"),
        (Position, {"edges": [0, 9, 3]}, "position.edges"),
        (QueryKey, {"batches": 0}, "qk.batches"),
        (QueryKey, {"factor": 0.0}, "qk.factor"),
        (Reconstruction, {"batch_size": 0}, "reconstruction.batch_size"),
        (Ruler, {"lengths": []}, "ruler"),
        (Ruler, {"tasks": []}, "ruler"),
        (Ruler, {"tasks": ["two_hop"]}, "ruler.tasks"),
        (Ruler, {"keys": 1}, "ruler.keys"),
        (Ruler, {"keys": 9}, "ruler.keys"),
        (Ruler, {"trials": 0}, "ruler.trials"),
        (Trigram, {"max_tokens": 0}, "trigram.max_tokens"),
    ],
)
def test_the_error_names_the_option(evaluator: Callable[..., Any], options: dict, key: str) -> None:
    with pytest.raises(ConfigError) as error:
        evaluator(**options)
    assert f"eval.{key}" in str(error.value)


ROOM = "or give more text (samples, data.val_fraction)."
SENTENCES = [
    (
        lambda: Extrapolation(lengths=["1x", 4000, 64]),
        "eval.extrapolation.lengths asks for rows of 4,000 tokens, and the validation text has room for 3,002: the "
        f"longest that fits has 3,002; type 'eval.extrapolation.lengths=[32,64]', {ROOM}",
    ),
    (
        lambda: Extrapolation(sliding=[2500]),
        "eval.extrapolation.sliding asks for rows of 2,500 tokens, and the validation text has room for 2,001: the "
        f"longest that fits has 2,001; type 'eval.extrapolation.sliding=[2001]', {ROOM}",
    ),
    (
        lambda: Extrapolation(stride=32),
        "eval.extrapolation.stride must be smaller than the window of 32 tokens that moves by it, as in "
        "eval.extrapolation.stride=16; got 32.",
    ),
    (
        lambda: Passkey(lengths=["2x", 35]),
        "eval.passkey.lengths asks for rows of 35 tokens, and a key of 5 digits, twice, and a token of text takes 36 "
        "with this tokenizer: leave out what is shorter than 36.",
    ),
    (
        lambda: Distance(length="4x"),
        "eval.distance.distances goes to 256 tokens, and rows have 128; type eval.distance.length=256, or leave the "
        "longer distances out.",
    ),
    (
        lambda: Distance(distances=[17]),
        "eval.distance.distances has 17 tokens, and the marker itself takes 18 with this tokenizer; take distances "
        "from 18 on.",
    ),
    (
        lambda: Distance(length=4000, distances=["1x"]),
        "eval.distance.length asks for rows of 4,000 tokens, and the validation text has room for 3,002: the longest "
        f"that fits has 3,002; type eval.distance.length=3002, {ROOM}",
    ),
    (
        lambda: Ruler(lengths=["2x", "4x"]),
        "eval.ruler.lengths asks for rows of 64 tokens, and one_hop takes 70 with this tokenizer: leave out what is "
        "shorter than 70.",
    ),
    (
        lambda: Reconstruction(),
        "eval.reconstruction compares restored values with the values, and no attention of this model restores any; "
        "type attention=vdproj, or leave reconstruction out of 'eval=[…]'.",
    ),
]


@pytest.mark.parametrize(("evaluator", "sentence"), SENTENCES)
def test_sentences_of_check(subject: Any, evaluator: Callable[[], Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as error:
        evaluator().check(subject.data, subject.model)
    assert str(error.value) == sentence
