"""What every encoding and every attention of conf/ must do. New YAML files are tested here by themselves.

The checks are those of `newllm conformance`, which users call for encodings of their own.
"""

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from newllm import conformance
from newllm.errors import ConfigError
from newllm.model.transformer import Transformer

CONF = Path(__file__).parents[1] / "conf"
ENCODINGS, ATTENTIONS = (
    sorted(p.stem for p in (CONF / group).glob("*.yaml") if p.stem != "none") for group in ("pos_encoding", "attention")
)

Build = Callable[[tuple[str, str]], Transformer | ConfigError]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test of `pair` runs for every pair of YAML files; the tests of one pair share its models, in one process."""
    if "pair" in metafunc.fixturenames:
        pairs = {f"{encoding}-{attention}": (encoding, attention) for encoding in ENCODINGS for attention in ATTENTIONS}
        metafunc.parametrize(
            "pair", [pytest.param(pair, id=name, marks=pytest.mark.xdist_group(name)) for name, pair in pairs.items()]
        )


@pytest.fixture(scope="session")
def build() -> Build:
    """build(pair): its model, or its refusal; made once."""

    @functools.cache
    def model_of(pair: tuple[str, str]) -> Transformer | ConfigError:
        try:
            return conformance.small_model([f"pos_encoding={pair[0]}", f"attention={pair[1]}"])
        except ConfigError as refusal:
            return refusal

    return model_of


@pytest.fixture
def model(build: Build, pair: tuple[str, str]) -> Transformer:
    """The pair's model. A pair that is refused has nothing to prove but that it is refused well."""
    found = build(pair)
    if isinstance(found, ConfigError):
        pytest.skip(str(found))
    return found


def test_what_does_not_go_together_is_refused_with_the_way_out(build: Build, pair: tuple[str, str]) -> None:
    """Encoding and attention make a model, or a sentence that names the attention and another one that would do."""
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
    """Models that differ in the encoding or the attention alone start equal in all other parameters."""
    reference = dict(build(("rope", "mha")).named_parameters())
    shared = 0
    for name, parameter in model.named_parameters():
        if name in reference and parameter.shape == reference[name].shape:
            assert torch.equal(parameter, reference[name])
            shared += 1
    assert shared >= 10


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_says_a_line_per_check(capsys: pytest.CaptureFixture[str]) -> None:
    assert conformance.main(["pos_encoding=rope_hybrid", "attention=mla", "alpha=0.3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[:-1]] == [["ok", check.__name__] for check in conformance.CHECKS]
    assert lines[-1] == "6 of 6 checks hold"


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
def test_what_is_broken_is_found(
    broken, check: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = conformance.small_model(["pos_encoding=rope"])
    broken(model)
    monkeypatch.setattr(conformance, "small_model", lambda *_: model)
    assert conformance.main([]) == 1
    failed = [line.split()[1] for line in capsys.readouterr().out.splitlines() if line.startswith("FAIL")]
    assert check in failed


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["pos_encoding=rop"], "did you mean pos_encoding=rope?"),
        (["--confg-dir=x"], "newllm conformance --help"),
        (["theta=0"], "theta must be greater than 0"),
    ],
)
def test_bad_input(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert conformance.main(words) == 2
    assert said in capsys.readouterr().err
