"""scored/METRIC in results.json: equal exactly where a metric scored the same tokens in the same way."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from newllm.evaluation.subject import Evaluator, Findings, Subject, evaluate
from tests.support.evaluation_subject import make_subject

CONF = Path(__file__).parents[2] / "conf" / "eval"
SMALL: dict[str, dict[str, Any]] = {  # options that suit the test's model and text, instead of the shipped ones
    "distance": {"length": 256, "distances": [64, 128], "trials": 2},
    "extrapolation": {"lengths": [32, 64], "sliding": [32], "tail": 8},
    "passkey": {"lengths": [64, 128], "depths": [0.5], "trials": 2},
    "qk": {"batches": 2},
    "ruler": {"lengths": [192], "tasks": ["needle", "one_hop"], "trials": 2},
}
SAME = ()
ALL = ("",)
# Another value of every option, and the beginnings of the names of the metrics that it changes.
OTHER: dict[str, tuple[Any, tuple[str, ...]]] = {
    "distance.length": (192, ALL),
    "distance.distances": ([64], SAME),  # the trials of a distance do not depend on the others
    "distance.trials": (3, ALL),
    "distance.digits": (3, ALL),
    "distance.filler": ("prefix", ALL),
    "distance.seed": (1, ALL),
    "extrapolation.lengths": ([32, 128], ALL),  # windows end with the longest ones and read as many tokens
    "extrapolation.chunks": (3, ALL),
    "extrapolation.windows": ("first", ALL),
    "extrapolation.slices": (False, SAME),
    "extrapolation.tail": (4, ("extrapolation/tail",)),
    "extrapolation.positions": (False, SAME),
    "extrapolation.sliding": ([32, 64], ("extrapolation/sliding",)),  # the text begins after the longest window
    "extrapolation.stride": (8, ("extrapolation/sliding",)),
    "loss.weighting": ("batch_mean", ("val/loss", "val/ppl")),
    "loss.batch_size": (4, SAME),  # unused with weighting=token
    "passkey.lengths": ([64], SAME),
    "passkey.depths": ([0.5, 0.75], ALL),
    "passkey.trials": (3, ALL),
    "passkey.digits": (3, ALL),
    "passkey.filler": ("prefix", ALL),
    "passkey.seed": (1, ALL),
    "position.edges": ([0, 16, 24], ("val/ppl_by_position/16-",)),
    "qk.batches": (1, ALL),
    "qk.batch_size": (4, ALL),
    "qk.factor": (2.0, ALL),
    "rank.positions": (64, ALL),
    "rank.center": (True, ALL),
    "reversal.scoring": ("sentence", ALL),
    "reversal.backward": ("literal", ("reversal/backward", "reversal/ratio", "reversal/gap")),
    "ruler.lengths": ([192, 256], SAME),
    "ruler.tasks": (["needle"], SAME),
    "ruler.trials": (3, ALL),
    "ruler.keys": (3, ("ruler/one_hop",)),
    "ruler.seed": (1, ALL),
    "trigram.max_tokens": (500, ALL),
}
SCORES_NO_TEXT = ["kv_cache"]
OF_OTHER_MODELS = ["effective_rank", "reconstruction"]  # these say nothing of their own: all their options count


def node_of(name: str, **options: Any) -> dict[str, Any]:
    return {**yaml.safe_load((CONF / f"{name}.yaml").read_text()), **SMALL.get(name, {}), **options}


def fingerprints(subject: Subject, name: str, node: dict[str, Any]) -> dict[str, str]:
    """Metric -> fingerprint of the tokens that it scored."""
    (findings,) = evaluate({name: node}, subject)
    assert findings.scored is not None
    return {
        metric: next(print_ for key, print_ in findings.scored.items() if f"{metric}/".startswith(f"{key}/"))
        for metric in findings.metrics
    }


@pytest.fixture(scope="module")
def subject() -> Subject:
    return make_subject()


@pytest.fixture(scope="module")
def shipped(subject: Subject) -> dict[str, dict[str, str]]:
    names = {option.partition(".")[0] for option in OTHER} | {"accuracy"}
    return {name: fingerprints(subject, name, node_of(name)) for name in sorted(names)}


def test_every_option_of_every_evaluator_is_in_the_table():
    options = {f"{file.stem}.{key}" for file in CONF.glob("*.yaml") for key in yaml.safe_load(file.read_text())}
    names = [*SCORES_NO_TEXT, *OF_OTHER_MODELS]
    assert {*OTHER} == {o for o in options if not o.endswith("_target_") and o.partition(".")[0] not in names}


@pytest.mark.parametrize("option", OTHER)
def test_an_option_changes_the_fingerprints_of_what_it_changes(option: str, subject: Subject, shipped: dict) -> None:
    name, _, key = option.partition(".")
    value, changed = OTHER[option]
    before, after = shipped[name], fingerprints(subject, name, node_of(name, **{key: value}))
    both = before.keys() & after.keys()
    assert both
    different = {metric for metric in both if before[metric] != after[metric]}
    assert different == {metric for metric in both if metric.startswith(changed)}


def test_another_model_or_batch_size_has_the_same_fingerprints_and_another_text_has_not(shipped: dict) -> None:
    other_model, other_text = make_subject("alibi", "mla", batch_size=300), make_subject()
    other_text.data.val.labels = other_text.data.val.labels[:, ::-1].copy()
    other_text.data.val_tokens = other_text.data.val_tokens[::-1]  # type: ignore[misc]
    for name, before in shipped.items():
        assert fingerprints(other_model, name, node_of(name)).items() >= before.items() or name == "qk"
        after = fingerprints(other_text, name, node_of(name))
        unchanged = {metric for metric in before if before[metric] == after[metric]}
        assert unchanged == ({*before} if name == "reversal" else set()), name


class Stranger(Evaluator):
    """An evaluator that says nothing of what it scores."""

    def __init__(self, rows: int = 3):
        self.rows = rows

    def __call__(self, subject: Subject) -> Findings:
        return Findings("Stranger", {"stranger/x": 1.0, "stranger/y@64": 2.0})


def test_an_evaluator_that_does_not_say_what_it_scores_compares_only_with_the_same_options(subject: Subject) -> None:
    target = f"{__name__}.Stranger"
    results = [next(evaluate({"stranger": {"_target_": target, "rows": rows}}, subject)).results for rows in (3, 3, 4)]
    assert [*results[0]] == ["stranger/x", "stranger/y@64", "scored/stranger"]
    assert results[0] == results[1] != results[2]
