"""The regression gate: ratios against bounds."""

from pathlib import Path

import pytest

from newllm.bench import BENCHES, gate, main, parse
from newllm.bench.harness import Result
from newllm.errors import ConfigError

DOCS = Path(__file__).parents[2] / "docs"
FILE = """
- bench: train
  words: [rounds=3]
  bounds:
    ratio/peer: {at_least: 1.3, why: the fused loss}
    ratio/other: {at_least: 0.7, why: rows instead of masks}
"""


@pytest.fixture
def bounds(tmp_path: Path) -> Path:
    file = tmp_path / "gate.yaml"
    file.write_text(FILE)
    return file


def found(peer: float, other: float):
    return lambda bench, words: Result({"ratio/peer": peer, "ratio/other": other})


def test_the_gate_holds_while_all_ratios_do(bounds: Path, capsys: pytest.CaptureFixture) -> None:
    assert gate.run(gate.read(bounds), found(1.3, 2.0)) == []
    assert "ratio/peer" in capsys.readouterr().out


def test_a_ratio_below_its_bound_fails_and_says_why(
    bounds: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(gate, "measure", found(1.29, 0.7))
    assert main(["gate", str(bounds)]) == 1
    shown = capsys.readouterr()
    assert "ratio/peer is 1.29, and the bound is 1.30 (the fused loss)" in shown.err
    assert "ratio/other is" not in shown.err
    assert [line.split()[-2] for line in shown.out.splitlines() if "ratio/" in line] == ["NO", "yes"]


def test_a_bound_on_what_was_not_measured_is_no_pass(bounds: Path) -> None:
    with pytest.raises(ConfigError, match="has measured no ratio/other on this machine"):
        gate.run(gate.read(bounds), lambda bench, words: Result({"ratio/peer": 2.0}))


@pytest.mark.parametrize("text", ["ratio/peer: 1.3", "- bench: train\n  words: []", "[", "- {bench: a, words: b}"])
def test_a_file_that_is_no_list_of_checks_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "gate.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"gate\.yaml is no list of checks"):
        gate.read(tmp_path / "gate.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        gate.read(tmp_path / "none.yaml")


def test_the_shipped_gate_names_benches_and_options_that_there_are() -> None:
    from importlib import import_module

    for check in gate.read(DOCS / "speed" / "gate.yaml"):
        bench = import_module(f"newllm.bench.{BENCHES[check.bench][0]}")
        parse(check.words, bench.measure, bench.DEFAULTS)
        assert check.bounds
