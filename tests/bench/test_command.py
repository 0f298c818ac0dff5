"""`newllm bench`: its list, its options, what it prints and writes."""

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from newllm.bench import benches, main, measure
from newllm.bench.options import parse
from newllm.bench.result import Result
from newllm.errors import ConfigError

OPTIONS = {"rounds": 7, "share": 0.5, "compiled": True, "lengths": [512, 1024], "corpus": None}


def test_the_list_comes_without_torch() -> None:
    code = "import sys\nfrom newllm.bench import main\nassert main(['--help']) == 0\nassert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for name, purpose in benches().items():
        assert f"{name} " in done.stdout
        assert purpose in done.stdout


def test_every_module_with_a_purpose_is_a_bench() -> None:
    assert {"train", "attention"} <= benches().keys()
    for name, purpose in benches().items():
        bench = import_module(f"newllm.bench.{name}")
        assert purpose == bench.PURPOSE
        assert "out" not in bench.OPTIONS, "out=FILE.json is every bench's"
        options, _ = parse([], bench.OPTIONS, bench.DEFAULTS)
        assert options == bench.OPTIONS
        assert callable(bench.measure)


def test_a_name_that_is_no_bench(capsys: pytest.CaptureFixture) -> None:
    assert main(["trian"]) == 2
    assert "'trian' is no bench; did you mean newllm bench train?" in capsys.readouterr().err


def test_help_of_a_bench_shows_its_options(capsys: pytest.CaptureFixture) -> None:
    assert main(["attention", "--help"]) == 0
    assert "lengths=512,1024,2048,4096" in capsys.readouterr().out


def test_words_are_options_or_overrides_which_replace_defaults() -> None:
    words = ["rounds=3", "share=1e-2", "compiled=false", "lengths=[64,128]", "corpus=a=b.txt", "seq_len=64", "lr=1"]
    options, overrides = parse(words, OPTIONS, ["model=tiny", "seq_len=128"])
    assert options == {"rounds": 3, "share": 0.01, "compiled": False, "lengths": [64, 128], "corpus": "a=b.txt"}
    assert overrides == ["model=tiny", "seq_len=64", "lr=1"]
    assert parse(["lengths=64", "corpus=null"], OPTIONS, [])[0]["lengths"] == [64]


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("rounds=0", "rounds must be a whole number above 0, as in rounds=7; got 0"),
        ("rounds=many", "rounds must be a whole number above 0"),
        ("rounds", "rounds has no value; type rounds=7"),
        ("share=nan", "share must be a number, as in share=0.5; got nan"),
        ("compiled=yes", "compiled must be true or false"),
        ("lengths=64,x", "lengths must be whole numbers above 0, as in lengths=512,1024; got 64,x"),
        ("round=3", "this bench has no option 'round'; did you mean rounds?"),
    ],
)
def test_bad_options_are_refused(word: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse([word], OPTIONS, [])


def test_out_is_refused_before_anything_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for out in (tmp_path / "missing" / "train.json", tmp_path / "train.txt"):
        assert main(["train", f"out={out}"]) == 2
        assert "is no JSON file in a folder that exists; type out=train.json" in capsys.readouterr().err


def test_a_file_holds_metrics_machine_and_tables(tmp_path: Path) -> None:
    result = Result({"ratio/peer": 2.0, "seconds/newllm": [0.1]}, [("Title", ["a", "b"], [["x", "1"]])], ["A note."])
    result.write(tmp_path / "train.json", "train")
    found = json.loads((tmp_path / "train.json").read_text())
    assert found["ratio/peer"] == 2.0
    assert found["seconds/newllm"] == [0.1]
    assert found["tables"] == [{"title": "Title", "columns": ["a", "b"], "rows": [["x", "1"]]}]
    assert found["notes"] == ["A note."]
    wanted = {"cpu", "cores", "threads", "memory_gib", "native_bf16", "python", "packages", "commit", "date"}
    assert wanted <= found["machine"].keys()
    assert {"torch", "transformers"} <= found["machine"]["packages"].keys()


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
