"""Every encoding of conf/ with every attention of conf/. New YAML files are found and tested without further work.

The checks are those of `newllm conformance`, which users run on their own encodings.
"""

import functools
from collections.abc import Callable

import pytest
import torch

from newllm import conformance
from newllm.errors import ConfigError
from newllm.model.transformer import Transformer
from tests.support.pairs import ATTENTIONS, PAIRS, model_config, node

SIZES = {"hidden_size": 64, "num_layers": 3, "heads": 4, "mlp_size": 96, "vocab_size": 128, "init_std": 0.15}
MODEL = node("model", "tiny") | SIZES  # as in conformance.SIZES
Build = Callable[[tuple[str, str]], Transformer | ConfigError]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test of `pair` runs for every pair of YAML files; the tests of one pair share its models, in one process."""
    if "pair" in metafunc.fixturenames:
        pairs = {"-".join(pair): pair for pair in PAIRS}
        metafunc.parametrize(
            "pair", [pytest.param(pair, id=name, marks=pytest.mark.xdist_group(name)) for name, pair in pairs.items()]
        )


@pytest.fixture(scope="session")
def build() -> Build:
    """build(pair): the pair's model, or the ConfigError that refuses it; cached."""

    @functools.cache
    def model_of(pair: tuple[str, str]) -> Transformer | ConfigError:
        try:
            return conformance.model_of(model_config(*pair, MODEL, 256))
        except ConfigError as refusal:
            return refusal

    return model_of


@pytest.fixture
def model(build: Build, pair: tuple[str, str]) -> Transformer:
    """The pair's model; skips pairs that are refused."""
    model_or_refusal = build(pair)
    if isinstance(model_or_refusal, ConfigError):
        pytest.skip(str(model_or_refusal))
    return model_or_refusal


def test_the_refusal_of_a_pair_names_an_attention_that_works(build: Build, pair: tuple[str, str]) -> None:
    encoding, attention = pair
    refusal = build(pair)
    if isinstance(refusal, ConfigError):
        working = [other for other in ATTENTIONS if isinstance(build((encoding, other)), Transformer)]
        assert f"attention={attention}" in str(refusal)
        assert any(f"attention={other}" in str(refusal) for other in working)


@torch.no_grad()
@pytest.mark.parametrize("check", conformance.CHECKS, ids=lambda check: check.__name__)
def test_conformance(check, model):
    check(model, conformance.token_ids())


@torch.no_grad()
def test_same_weights_elsewhere(build, model):
    """Models that differ only in encoding or attention start with equal weights everywhere else."""
    reference = dict(build(("rope", "mha")).named_parameters())
    shared = 0
    for name, parameter in model.named_parameters():
        if name in reference and parameter.shape == reference[name].shape:
            assert torch.equal(parameter, reference[name])
            shared += 1
    assert shared >= 10


# --- the command ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_the_command_checks_the_same_models(build: Build) -> None:
    composed, model = conformance.small_model(["pos_encoding=fire", "attention=mla"]), build(("fire", "mla"))
    assert isinstance(model, Transformer)
    assert torch.equal(composed(conformance.token_ids()), model(conformance.token_ids()))


def test_the_command_prints_a_line_per_check(capsys: pytest.CaptureFixture[str]) -> None:
    assert conformance.main(["pos_encoding=rope_hybrid", "attention=mla", "alpha=0.3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[:-1]] == [["ok", check.__name__] for check in conformance.CHECKS]
    assert lines[-1] == "6 of 6 checks pass"


@pytest.mark.parametrize(
    ("broken", "check"),
    [
        (lambda model: setattr(model.position, "relative", False), "shift"),
        (lambda model: setattr(model.position, "rotate", lambda q, k, positions: (q, k)), "order"),
        (
            lambda model: setattr(model.position, "rotate", lambda q, k, positions: (q + k.mean(2, True), k)),
            "causality",
        ),
        (lambda model: setattr(model.position, "rotate", lambda q, k, p: (q * torch.exp(-p[:, None] / 9), k)), "shift"),
        (lambda model: model.register_parameter("idle", torch.nn.Parameter(torch.ones(1))), "gradients"),
    ],
)
def test_each_check_finds_a_broken_model(
    broken, check: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = conformance.small_model(["pos_encoding=rope"])
    broken(model)
    monkeypatch.setattr(conformance, "small_model", lambda *_: model)
    assert conformance.main([]) == 1
    failed = [line.split()[1] for line in capsys.readouterr().out.splitlines() if line.startswith("FAIL")]
    assert check in failed


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["pos_encoding=rop"], "did you mean pos_encoding=rope?"),
        (["--confg-dir=x"], "did you mean --config-dir?"),
        (["pos_encoding=rope,alibi"], "give one value at a time"),
        (["theta=0"], "theta must be greater than 0"),
        (["--config-dir=a", "--config-dir", "b"], "--config-dir is given twice"),
    ],
)
def test_bad_input(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert conformance.main(words) == 2
    assert message in capsys.readouterr().err
