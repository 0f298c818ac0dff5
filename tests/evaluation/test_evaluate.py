from pathlib import Path

import pytest

import newllm
from newllm.build import build
from newllm.errors import ConfigError, RunError
from newllm.evaluation import Evaluator, Findings, evaluate
from tests.support.evaluation_subject import make_subject

FOR_OTHER_MODELS = ["effective_rank", "reconstruction"]  # not for a plain transformer
SHIPPED = sorted(path.stem for path in (Path(__file__).parents[2] / "conf" / "eval").glob("*.yaml"))


class ConstantEvaluator(Evaluator):
    def __init__(self, metric: str = "a/b"):
        self.metric = metric

    def __call__(self, subject):
        assert not subject.model.training
        return Findings(self.metric, {self.metric: 42.0})


def test_evaluators_run_in_order_and_the_mode_of_the_model_is_restored(subject):
    subject.model.train()
    nodes = {name: {"_target_": f"{__name__}.ConstantEvaluator", "metric": f"{name}/x"} for name in ("z", "a", "m")}
    assert [findings.title for findings in evaluate(nodes, subject)] == ["z/x", "a/x", "m/x"]
    assert subject.model.training
    assert [*evaluate({}, subject), *evaluate(None, subject)] == []


def test_two_evaluators_cannot_report_the_same_metric(subject):
    nodes = {name: {"_target_": f"{__name__}.ConstantEvaluator"} for name in ("one", "two")}
    with pytest.raises(RunError, match=r"eval\.two reports a/b, which eval.one has reported"):
        list(evaluate(nodes, subject))


@pytest.mark.parametrize("attention", ["mha", "mla"])
def test_every_shipped_evaluator_reports_finite_numbers(attention):
    subject = make_subject("rope", attention, batch_size=8)
    subject.model.seq_len = 128
    nodes = dict(newllm.compose([f"eval=[{','.join(SHIPPED)}]"]).eval)
    for name in FOR_OTHER_MODELS:
        with pytest.raises(ConfigError):
            build(nodes.pop(name), Evaluator).check(subject.data, subject.model)
    for node in nodes.values():
        if "trials" in node:
            node.trials = 2
    all_findings = list(evaluate(nodes, subject))
    assert len(all_findings) == len(nodes)
    assert sorted([*nodes, *FOR_OTHER_MODELS]) == SHIPPED
    for findings in all_findings:
        assert findings.title
        assert findings.body
        assert findings.metrics
        for name, value in findings.metrics.items():
            assert type(value) is float, name
            assert abs(value) < 1e12, name


@pytest.mark.parametrize("name", SHIPPED)
def test_the_constructor_has_the_values_of_its_yaml(name):
    node = newllm.compose([f"eval=[{name}]"]).eval[name]
    assert vars(build(node, Evaluator)) == vars(build({"_target_": node["_target_"]}, Evaluator))
