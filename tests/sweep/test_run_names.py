"""Which runs a folder and a word mean, and the short names of runs."""

from pathlib import Path

import pytest

from newllm.errors import ConfigError
from newllm.sweep.run_names import choose, short_names, sweeps_in
from tests.support.sweep_folders import make_run


def test_runs_are_found_in_a_run_a_sweep_and_a_folder_of_sweeps(tmp_path: Path) -> None:
    first, second = make_run(tmp_path / "x", "a-s1").path, make_run(tmp_path / "y", "a-s2").path
    (tmp_path / "y" / ".sweep" / "code").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    assert sweeps_in(first) == {tmp_path / "x": [first]}
    assert sweeps_in(tmp_path / "y") == {tmp_path / "y": [second]}
    assert sweeps_in(tmp_path) == {tmp_path / "x": [first], tmp_path / "y": [second]}
    for wrong in (tmp_path / "empty", tmp_path / "nowhere"):
        with pytest.raises(ConfigError, match=wrong.name):
            sweeps_in(wrong)


def test_short_names_say_what_differs() -> None:
    names = ["tiny-rope-mha-lr1e-05-s1-0000000a", "tiny-alibi-mla-mha-lr1e-04-s10-0000000b"]
    assert list(short_names(names).values()) == ["rope-lr1e-05-s1", "alibi-mla-lr1e-04-s10"]
    same = ["tiny-rope-s1-0000000a", "tiny-rope-s1-0000000b", "tiny-rope-s2-0000000c", "mine"]
    assert list(short_names(same).values()) == [
        "tiny-rope-s1-0000000a", "tiny-rope-s1-0000000b", "tiny-rope-s2", "mine",
    ]  # fmt: skip
    assert short_names(["tiny-rope-s1-0000000a"]) == {"tiny-rope-s1-0000000a": "tiny-rope-s1-0000000a"}


def test_a_word_means_the_one_run_that_it_fits() -> None:
    names = [f"tiny-{pe}-{att}-s{seed}-{i:08x}" for i, (pe, att, seed) in enumerate(
        (pe, att, seed) for pe in ("rope", "rope_alibi") for att in ("mha", "mla") for seed in (1, 10)
    )]  # fmt: skip
    runs = [Path("sweep") / name for name in names]
    for word, number in {
        "rope-mha-s1": 0, "rope-s10-00000001": 1, "00000002": 2, "sweep/" + names[3]: 3, names[4] + "/": 4,
        "rope_alibi-mha-s10": 5, "alibi-mla-s1-": 6, "00007": 7,
    }.items():  # fmt: skip
        assert choose([word], runs) == [runs[number]], word
    with pytest.raises(ConfigError, match="rope_alibi-mha-s1-"):
        choose(["alibi"], runs)
    with pytest.raises(ConfigError, match="rope-mha-s1x"):
        choose(["rope-mha-s1x"], runs)
    same_names = [Path("x/tiny-s1-0000000a"), Path("y/tiny-s1-0000000a")]
    assert choose(["s1"], same_names) == same_names
    assert choose(["y/tiny-s1-0000000a"], same_names) == same_names[1:]
