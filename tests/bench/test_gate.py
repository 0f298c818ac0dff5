"""The regression gate: ratios against bounds."""

from importlib import import_module
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


def measuring(monkeypatch: pytest.MonkeyPatch, **ratios: float) -> None:
    """Have every bench measure these ratios."""
    result = Result({f"ratio/{name}": value for name, value in ratios.items()})
    monkeypatch.setattr(gate, "measure", lambda bench, words: result)


def test_the_gate_passes_if_no_ratio_is_below_its_bound(
    bounds: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    measuring(monkeypatch, peer=1.3, other=2.0)
    assert main(["gate", str(bounds)]) == 0
    assert "ratio/peer" in capsys.readouterr().out


def test_a_check_may_be_for_processors_with_or_without_native_bf16(
    bounds: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    bounds.write_text(f"{FILE}  native_bf16: true\n")
    measuring(monkeypatch, peer=1.0, other=2.0)
    monkeypatch.setattr(gate, "machine", lambda: {"native_bf16": False})
    assert main(["gate", str(bounds)]) == 0
    monkeypatch.setattr(gate, "machine", lambda: {"native_bf16": True})
    assert main(["gate", str(bounds)]) == 1
    assert "ratio/peer is 1.00" in capsys.readouterr().err


def test_the_gate_fails_with_the_reason_of_a_bound_that_is_not_reached(
    bounds: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    measuring(monkeypatch, peer=1.29, other=0.7)
    assert main(["gate", str(bounds)]) == 1
    shown = capsys.readouterr()
    assert "ratio/peer is 1.29, and the bound is 1.30 (the fused loss)" in shown.err
    assert "ratio/other is" not in shown.err
    assert [line.split()[-2] for line in shown.out.splitlines() if "ratio/" in line] == ["NO", "yes"]


def test_a_bound_on_a_ratio_that_was_not_measured_is_an_error(bounds: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measuring(monkeypatch, peer=2.0)
    with pytest.raises(ConfigError, match="ratio/other"):
        gate.main([str(bounds)])


@pytest.mark.parametrize("text", ["ratio/peer: 1.3", "- bench: train\n  words: []", "[", "- {bench: a, words: b}"])
def test_a_file_that_is_not_a_list_of_checks_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "gate.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"gate\.yaml is not a list of checks"):
        gate.read(tmp_path / "gate.yaml")
    with pytest.raises(ConfigError, match=r"none\.yaml"):
        gate.read(tmp_path / "none.yaml")


def test_the_shipped_gate_names_existing_benches_and_options() -> None:
    for check in gate.read(DOCS / "speed" / "gate.yaml"):
        bench = import_module(f"newllm.bench.{BENCHES[check.bench][0]}")
        parse(check.words, bench.measure, bench.DEFAULTS)
        assert check.bounds
