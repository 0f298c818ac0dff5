"""The user's own code is used again without a word; a record that somebody else has written is not believed."""

import sys
from pathlib import Path
from typing import Any

import pytest

from newllm import trust
from newllm.errors import ConfigError
from newllm.store.intact import read_json, write_json
from newllm.store.own_code import code_of_run, use_code_of_run
from newllm.store.run_directory import RunDirectory
from newllm.sweep.launches import Policy, launches, recorded, use_code_of_launch
from newllm.trust import named

CONFIG = {"pos_encoding": {"_target_": "waves.Wave", "tau": 0.5}, "overrides": [], "trainer": {"seed": 1}}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDirectory:
    """A run of the user's with a class of the user's, opened in a new process."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/waves.py").write_text("class Wave: ...")
    with monkeypatch.context() as training:
        training.syspath_prepend(tmp_path / "mine")
        directory = RunDirectory(tmp_path / "run")
        directory.freeze(CONFIG)
        directory.write_environment({"threads": 1, **code_of_run(directory.config())})
    monkeypatch.setenv("NEWLLM_TRUST", "")
    return directory


def change(file: Path, **changes: Any) -> None:
    write_json(file, {**(read_json(file) or {}), **changes})


def test_a_run_of_ones_own_names_its_code(run: RunDirectory) -> None:
    assert set(run.environment()["code"]) == {"waves"}
    use_code_of_run(run)
    assert named() == ["waves"]


def test_two_versions_of_one_module_are_not_mixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that evaluates two runs would evaluate both with the code of the first."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(trust, "_homes", {})
    for name, text in (("old", "A = 1"), ("copy", "A = 1"), ("new", "A = 2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "waving.py").write_text("from helping import A")
        (tmp_path / name / "helping.py").write_text(text)
    trust.import_from(tmp_path / "old", ["waving"])
    trust.import_from(tmp_path / "copy", ["waving"])
    with pytest.raises(ConfigError, match=r"old and .*new hold different code called helping"):
        trust.import_from(tmp_path / "new", ["waving"])


@pytest.mark.parametrize("seal", ["0" * 64, None, 3, "ä"])
def test_a_run_of_somebody_else_names_none(run: RunDirectory, seal: Any) -> None:
    change(run.environment_file, seal=seal)
    use_code_of_run(run)
    assert named() == []


def test_a_seal_holds_for_one_configuration_and_one_folder(run: RunDirectory, tmp_path: Path) -> None:
    change(run.environment_file, code={"waves": str(tmp_path)})
    use_code_of_run(run)
    change(run.environment_file, code={"waves": str(tmp_path / "mine")})
    run.freeze(CONFIG | {"attention": {"_target_": "waves.Wave"}})
    use_code_of_run(run)
    assert named() == []


def test_without_a_place_for_the_key_nothing_is_sealed(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", "/dev/null")
    assert code_of_run(CONFIG)["seal"] is None
    use_code_of_run(run)
    assert named() == []


def test_options_for_slurm_that_somebody_else_has_written_are_not_used(tmp_path: Path) -> None:
    with recorded(tmp_path, "slurm", {"setup": ["module load cuda"]}, Policy(), []):
        pass
    (record,) = launches(tmp_path)
    use_code_of_launch(record)
    change(Path(record["file"]), launcher={"setup": ["rm -r ~"]})
    with pytest.raises(ConfigError, match="was not written by a launch of yours"):
        use_code_of_launch(launches(tmp_path)[0])
