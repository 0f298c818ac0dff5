"""`newllm bench`: its list, its options, what it prints and writes."""

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from newllm.bench import BENCHES, main, measure, options_of, parse
from newllm.bench.harness import Result
from newllm.errors import ConfigError


def bench(
    overrides: list[str],
    *,
    rounds: int = 7,
    compiled: bool = True,
    lengths: tuple[int, ...] = (512, 1024),
    corpus: str | None = None,
) -> Result:
    return Result({})


def test_the_list_comes_without_torch() -> None:
    code = "import sys\nfrom newllm.bench import main\nassert main(['--help']) == 0\nassert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for name, (_, purpose) in BENCHES.items():
        assert f"{name} " in done.stdout
        assert purpose in done.stdout


def test_every_bench_says_what_it_does_and_has_defaults_for_its_options() -> None:
    for name, _ in BENCHES.values():
        module = import_module(f"newllm.bench.{name}")
        assert module.__doc__
        options, overrides = parse([], module.measure, module.DEFAULTS)
        assert options == options_of(module.measure)
        assert overrides == module.DEFAULTS
        assert "out" not in options, "out=FILE is every bench's"
        assert {type(value) for value in options.values()} <= {bool, int, tuple, str, type(None)}


def test_a_name_that_is_no_bench(capsys: pytest.CaptureFixture) -> None:
    assert main(["trian"]) == 2
    assert "'trian' is no bench; did you mean newllm bench train?" in capsys.readouterr().err


def test_help_of_a_bench_shows_its_options(capsys: pytest.CaptureFixture) -> None:
    assert main(["attention", "--help"]) == 0
    assert "lengths=512,1024,2048,4096" in capsys.readouterr().out


def test_words_are_options_or_overrides_which_replace_defaults() -> None:
    words = ["rounds=3", "compiled=false", "lengths=[64,128]", "corpus=a=b.txt", "seq_len=64", "lr=1"]
    options, overrides = parse(words, bench, ["model=tiny", "seq_len=128"])
    assert options == {"rounds": 3, "compiled": False, "lengths": (64, 128), "corpus": "a=b.txt"}
    assert overrides == ["model=tiny", "seq_len=64", "lr=1"]
    assert parse(["lengths=64", "corpus=null"], bench, [])[0]["lengths"] == (64,)


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
def test_bad_options_are_refused(word: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse([word], bench, [])


def test_out_is_refused_before_anything_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for out in (tmp_path / "missing" / "train.json", tmp_path / "train.txt"):
        assert main(["train", f"out={out}"]) == 2
        assert "in a folder that exists; type out=train.json or train.md" in capsys.readouterr().err


def test_figures_are_kept_with_their_machine_and_tables_as_markdown(tmp_path: Path) -> None:
    table = ("A step", ["contestant", "ms"], [["newllm | ours", "1.5"], ["other", "12.5"]])
    result = Result({"ratio/peer": 2.0, "seconds/newllm": [0.1]}, [table], ["Medians."])
    result.write(tmp_path / "train.json", "train")
    found = json.loads((tmp_path / "train.json").read_text())
    assert (found["bench"], found["ratio/peer"], found["seconds/newllm"]) == ("train", 2.0, [0.1])
    wanted = {"cpu", "cores", "threads", "memory_gib", "native_bf16", "python", "packages", "commit", "date"}
    assert wanted <= found["machine"].keys()
    assert {"torch", "transformers"} <= found["machine"]["packages"].keys()

    result.write(tmp_path / "train.md", "train")
    lines = (tmp_path / "train.md").read_text().splitlines()
    assert lines[:6] == [
        "A step",
        "",
        "| contestant     |   ms |",
        "| -------------- | ---: |",
        "| newllm \\| ours |  1.5 |",
        "| other          | 12.5 |",
    ]
    assert "Medians." in lines
    assert found["machine"]["cpu"] in lines[-1]
    assert f"torch {found['machine']['packages']['torch']}" in lines[-1]


def test_the_attention_bench_compares_kernels_and_their_memory(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "attention.json"
    words = ["lengths=32,256", "rounds=2", "batch=1", "heads=2", "width=16", "rotary=8"]
    assert main(["attention", *words, f"out={out}"]) == 0
    found = json.loads(out.read_text())
    seconds, plain = found["seconds/alibi/fp32/32"], found["seconds/causal/fp32/32"]
    ratios = [b / a for a, b in zip(seconds, plain, strict=True)]
    assert found["ratio/causal/alibi/fp32/32"] == pytest.approx(sum(ratios) / 2)
    memory = {name: found[f"temporary_bytes/{name}/fp32/256"] for name in ("causal", "alibi", "alibi_heads", "mask")}
    assert memory["alibi"] < 1.25 * memory["causal"]
    assert memory["alibi_heads"] < 1.25 * memory["causal"]
    assert memory["mask"] > 2 * 256 * 256 * 4
    printed = capsys.readouterr().out.splitlines()
    assert any("newllm, ALiBi, slope per head" in line for line in printed)
    assert max(map(len, printed)) <= 100 or "Written" in max(printed, key=len)


def test_a_bench_without_a_run_takes_no_keys_of_one() -> None:
    with pytest.raises(ConfigError, match="this bench has no option 'seq_len'"):
        measure("attention", ["seq_len=64"])
