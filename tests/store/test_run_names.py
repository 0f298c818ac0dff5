"""Which runs a folder and a word mean, and the short names of runs."""

from pathlib import Path

import pytest

from newllm.errors import ConfigError
from newllm.store import run_names
from newllm.store.run_directory import RunDirectory
from newllm.store.run_names import choose, find_runs, located, numbered, short_names
from tests.support.sweep_folders import make_run


def test_runs_are_numbered_by_age_in_a_run_a_sweep_and_a_folder_of_sweeps(tmp_path: Path) -> None:
    made = [make_run(tmp_path / "x", "b-s1").path, make_run(tmp_path / "y", "a-s10").path]
    made += [make_run(tmp_path / "x", "a-s2").path]
    (tmp_path / "y" / ".sweep" / "code").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    assert numbered(tmp_path) == made
    RunDirectory(made[0]).begin_attempt()
    RunDirectory(made[0]).clear()
    RunDirectory(made[0]).freeze({})
    assert numbered(tmp_path) == made, "a run that is trained afresh keeps its number"
    assert numbered(tmp_path / "x") == [made[0], made[2]]
    assert numbered(made[1]) == [made[1]]
    for run in made:
        RunDirectory(run).status_file.unlink()
    assert [run.name for run in numbered(tmp_path)] == ["a-s2", "b-s1", "a-s10"]
    for wrong in (tmp_path / "empty", tmp_path / "nowhere"):
        with pytest.raises(ConfigError, match=wrong.name):
            numbered(wrong)


def test_every_command_finds_a_run_by_its_folder_and_number_or_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert located("3") == Path("3"), "outputs/ does not exist"
    Path("outputs").mkdir()
    assert located("3") == Path("3"), "outputs/ holds no runs"
    names = ("rope-s1-0000000a", "alibi-s1-0000000b", "rope-s2-0099000c")
    one, two, three = (make_run(Path("outputs/sweeps/seed"), name).path for name in names)
    other = make_run(Path("outputs/runs"), names[0]).path
    for typed, meant in {
        "outputs/sweeps/seed:2": three, "outputs/sweeps/seed:alibi": two, "outputs/sweeps/seed:s2": three, "3": other,
        "0": one, "outputs:1": two, "0000000b": two, str(two): two, "outputs/sweeps": Path("outputs/sweeps"),
        "outputs/swps": Path("outputs/swps"), "x" * 300: None, "7": None, "outputs:99": None,
        "s1": None, "rope-s1": None,
    }.items():  # fmt: skip
        if meant is not None:
            assert located(typed) == meant, typed
        else:
            with pytest.raises(ConfigError, match=r"in outputs;|names of 2 runs|fits 2 runs"):
                located(typed)
    Path("7").mkdir()
    assert located("7") == Path("7"), "a folder comes first"


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
        assert choose([word], runs, Path("sweep")) == [runs[number]], word
    with pytest.raises(ConfigError, match="rope_alibi-mha-s1-"):
        choose(["alibi"], runs, Path("sweep"))
    with pytest.raises(ConfigError, match="rope-mha-s1x"):
        choose(["rope-mha-s1x"], runs, Path("sweep"))
    same_names = [Path("x/tiny-s1-0000000a"), Path("y/tiny-s1-0000000a")]
    assert choose(["s1"], same_names, Path(".")) == same_names
    assert choose(["y/tiny-s1-0000000a"], same_names, Path(".")) == same_names[1:]


def test_a_folder_of_many_others_is_no_folder_of_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_names, "_MOST_FOLDERS", 3)
    for number in range(3):
        (tmp_path / str(number)).mkdir()
    with pytest.raises(ConfigError, match="more than 3 folders"):
        find_runs(tmp_path)
    for number in range(3):
        (tmp_path / str(number) / "config.yaml").touch()
    assert len(find_runs(tmp_path)) == 3


def test_a_link_to_a_run_is_that_run_once(tmp_path: Path) -> None:
    for run in ("runs/a", "elsewhere/b", "elsewhere/b/evaluations/c"):
        (tmp_path / run).mkdir(parents=True)
        (tmp_path / run / "config.yaml").touch()
    (tmp_path / "runs/again").symlink_to("a")
    (tmp_path / "runs/linked").symlink_to(tmp_path / "elsewhere/b")
    (tmp_path / "runs/round").symlink_to(tmp_path)
    found = [run.relative_to(tmp_path / "runs").as_posix() for run in find_runs(tmp_path / "runs")]
    assert found == ["a", "linked", "linked/evaluations/c"]
