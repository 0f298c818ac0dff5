"""`newllm frequencies`: spectra without training."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest

from newllm.frequencies import collisions, main, spectra, waves

SHAPE = ["model=llama_50m", "seq_len=2048"]  # heads 64 wide


def table(*words: str, lengths: tuple[int, ...] = ()) -> dict[str, dict]:
    result = spectra([*SHAPE, *words], lengths)
    return {row["configuration"]: row | other for row, other in zip(waves(result), collisions(result), strict=True)}


def test_published_figures_of_several_configurations() -> None:
    """Every combination that exists once: alpha is no axis of rope."""
    result = table("pos_encoding=rope,rope_hybrid", "theta=1e4,1e5", "alpha=0.2")
    assert len(result) == 4
    geometric, hybrid = result["rope · theta 10000"], result["rope_hybrid · theta 100000"]
    assert geometric["> 2048"] == 32 - 21
    assert geometric["total"] == pytest.approx(0.1958, abs=1.5e-4)
    assert geometric["last w"] == pytest.approx(1.33352e-4, rel=1e-5)
    assert hybrid["> 2048"] == 32 - 24
    assert (hybrid["short"], hybrid["mid"]) == pytest.approx((0.5072, 0.2235), abs=1.5e-4)
    assert hybrid["pairs"] == 32
    assert "temperature" not in hybrid


def test_the_rotary_width_is_what_the_model_has() -> None:
    assert table("rotary_pct=0.25", "theta=1e4")["rope · mha"]["pairs"] == 8
    assert table("attention=mla", "rope_dim=32")["rope · mla"]["pairs"] == 16


def test_a_scaling_is_shown_at_the_lengths_asked_for() -> None:
    result = table("pos_encoding.scaling=yarn", lengths=(2048, 8192))
    short, long = (result[f"rope · mha · length {length}"] for length in (2048, 8192))
    assert long["longest"] == pytest.approx(4 * short["longest"])
    assert (short["temperature"], long["temperature"]) == (1.0, pytest.approx(1.1386, rel=1e-3))


def test_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture, numbers = tmp_path / "spectra.png", tmp_path / "spectra.csv"
    words = [*SHAPE, "pos_encoding=rope,rope_evq", "theta=5e5", f"out={picture}", f"out={numbers}"]
    assert main(words) == 0
    output = capsys.readouterr().out
    assert "rope_evq" in output
    assert f"Written to {picture}" in output
    assert picture.read_bytes().startswith(b"\x89PNG")
    lines = list(csv.DictReader(numbers.open()))
    assert len(lines) == 64
    assert lines[31]["channel"] == "31"
    assert float(lines[31]["inv_freq"]) == pytest.approx(3.01386e-6, rel=1e-5)


def test_a_users_own_encoding(tmp_path: Path) -> None:
    (tmp_path / "pos_encoding").mkdir()
    own = "# Own.\n_target_: newllm.position.Rope\nfrequencies: {family: listed, inv_freq: [0.5, 0.25]}\n"
    (tmp_path / "pos_encoding/own.yaml").write_text(own)
    result = spectra(["pos_encoding=own", "attention=mla", "rope_dim=4"], config_dir=str(tmp_path))
    assert [one.inv_freq.tolist() for one in result] == [[0.5, 0.25]]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["pos_encoding=alibi"], "pos_encoding=alibi rotates nothing, so it has no spectrum; try pos_encoding=rope"),
        (["pos_encoding=ropee"], "did you mean pos_encoding=rope?"),
        (["slope=0.5"], "slope is an axis of pos_encoding=alibi"),
        (["theta=0"], "theta must be greater than 0"),
        (["pos_encoding=rope_hybrid", "alpha=2"], "alpha must lie in [0, 1]"),
        (["--lenght=3"], "unrecognized arguments: --lenght=3"),
        (["--config-dir=/no/such"], "no such folder"),
        (["outt=x.png"], "outt is unknown; did you mean out?"),
        (["lenght=9"], "lenght is unknown; did you mean length?"),
        (["length=0"], "length=0: expected whole numbers from 1"),
        (["out=spectra.pdf"], "out=spectra.pdf must be a .png, .svg or .csv file"),
        (["out=/no/such/place/spectra.png"], "in an existing folder"),
    ],
)
def test_bad_input(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert message in capsys.readouterr().err


def test_the_command_is_a_verb_and_helps_without_torch() -> None:
    code = "import sys; from newllm.cli import main; main(['frequencies', '--help']); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "length" in done.stdout
    assert done.stdout.split()[-1] == "False"
