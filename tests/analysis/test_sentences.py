"""What a wrong name gets to read: the sentences of groups, scaling laws and rules, in one table."""

from collections.abc import Callable
from typing import Any

import pytest

from newllm.analysis.baselines import choose_baseline
from newllm.analysis.comparison import make_rule
from newllm.analysis.run_groups import groups
from newllm.analysis.scaling_laws import laws
from newllm.errors import ConfigError
from tests.support.run_folders import table

RUNS = [["theta=1e4"], ["theta=5e5"], ["pos_encoding=alibi"], ["pos_encoding=alibi", "attention=mla"]]


def frame() -> Any:
    measured = {"val/ppl": 100.0, "data/train_tokens": 1000}
    return table((overrides, seed, measured) for overrides in RUNS for seed in (1, 2))


def baseline(wanted: str) -> Callable[[], object]:
    return lambda: choose_baseline(groups(frame()), wanted)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            lambda: groups(frame(), by=["atention"]),
            "by=atention is not a choice, axis or setting of these runs",
        ),
        (lambda: groups(frame(), by=["optim.clp"]), "did you mean optim.clip"),
        (baseline("model=nano"), "baseline=model=nano fits 4 groups (alibi · mha, alibi · mla, "),
        (baseline("alibi · mal"), "baseline=alibi · mal is not a group; did you mean alibi · mla"),
        (baseline("pos_encoding=nope"), "baseline=pos_encoding=nope is not a group; expected one of: "),
        (
            lambda: laws(frame(), "data/train_token"),
            "size=data/train_token is not a metric of these runs; did you",
        ),
        (lambda: laws(frame(), "width"), "size=width is not a metric, axis or setting of these runs"),
        (lambda: laws(frame(), metric="val/pl"), "val/pl is not a metric of these runs; did you mean val/ppl"),
        (lambda: make_rule("intervall"), "verdict=intervall is not a rule; did you mean verdict=interval"),
        (
            lambda: make_rule("interval", least_seed=4),
            "verdict.least_seed is not an option of interval; did you mean",
        ),
        (lambda: make_rule("published", share="low"), "verdict.share=low: expected a number"),
        (lambda: make_rule("published", share=0), "share must be above 0"),
        (lambda: make_rule("published", spread=0), "spread must be greater than 0"),
        (lambda: make_rule("published", least_seeds=1), "least_seeds must be 2 or greater"),
    ],
)
def test_a_wrong_name_gets_a_sentence(wrong: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        wrong()
    assert message in str(error.value)
