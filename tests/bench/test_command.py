"""`newllm bench`: its list of benches and their options."""

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from newllm.bench import BENCHES, main, measure, options_of, parse
from newllm.bench.harness import Result
from newllm.errors import ConfigError


def measure_something(
    overrides: list[str],
    *,
    rounds: int = 7,
    compiled: bool = True,
    lengths: tuple[int, ...] = (512, 1024),
    corpus: str | None = None,
) -> Result:
    return Result({})


def test_the_list_of_benches_does_not_import_torch() -> None:
    code = "import sys\nfrom newllm.bench import main\nassert main(['--help']) == 0\nassert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for name, (_, purpose) in BENCHES.items():
        assert f"{name} " in done.stdout
        assert purpose in done.stdout


def test_every_bench_has_a_docstring_and_defaults_for_its_options() -> None:
    for name, _ in BENCHES.values():
        module = import_module(f"newllm.bench.{name}")
        assert module.__doc__
        options, overrides = parse([], module.measure, module.DEFAULTS)
        assert options == options_of(module.measure)
        assert overrides == module.DEFAULTS
        assert "out" not in options, "every bench has out=FILE"
        assert {type(value) for value in options.values()} <= {bool, int, tuple, str, type(None)}


def test_an_unknown_bench_is_refused_with_the_nearest_name(capsys: pytest.CaptureFixture) -> None:
    assert main(["trian"]) == 2
    assert "did you mean newllm bench train?" in capsys.readouterr().err


def test_help_of_a_bench_shows_its_options(capsys: pytest.CaptureFixture) -> None:
    assert main(["attention", "--help"]) == 0
    assert "lengths=512,1024,2048,4096" in capsys.readouterr().out


def test_words_are_options_or_overrides_which_replace_defaults() -> None:
    words = ["rounds=3", "compiled=false", "lengths=[64,128]", "corpus=a=b.txt", "seq_len=64", "lr=1"]
    options, overrides = parse(words, measure_something, ["model=tiny", "seq_len=128"])
    assert options == {"rounds": 3, "compiled": False, "lengths": (64, 128), "corpus": "a=b.txt"}
    assert overrides == ["model=tiny", "seq_len=64", "lr=1"]
    assert parse(["lengths=64", "corpus=null"], measure_something, [])[0]["lengths"] == (64,)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("rounds=0", "rounds=0: expected more than 0, as in rounds=7"),
        ("rounds=many", "rounds=many: expected a whole number, as in rounds=7"),
        ("rounds", "rounds=: expected a whole number, as in rounds=7"),
        ("compiled=maybe", "compiled=maybe: expected true or false, as in compiled=true"),
        ("lengths=64,x", "lengths=64,x: expected a whole number, as in lengths=512,1024"),
        ("lengths=64,0", "lengths=64,0: expected more than 0"),
        ("round=3", "this bench has no option 'round'; did you mean rounds?"),
    ],
)
def test_wrong_options_are_refused_with_an_example(word: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse([word], measure_something, [])


def test_out_is_refused_before_anything_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for out in (tmp_path / "missing" / "train.json", tmp_path / "train.txt"):
        assert main(["train", f"out={out}"]) == 2
        assert "type out=train.json or train.md" in capsys.readouterr().err


def test_a_bench_that_measures_no_run_takes_no_overrides() -> None:
    with pytest.raises(ConfigError, match="seq_len"):
        measure("attention", ["seq_len=64"])
