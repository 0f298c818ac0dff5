"""Results are written into folders of their own."""

from collections.abc import Callable
from pathlib import Path

import pytest

import newllm
from newllm.config import effective
from newllm.errors import ConfigError
from newllm.store.output_folder import check_run_folder, check_sweep_folder
from tests.support.run_folders import config, folder

ROOT = Path(newllm.__file__).parents[1]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("text")
    return tmp_path / "text"


def test_new_folders_and_those_of_runs_are_taken(tmp_path: Path, text: Path) -> None:
    (tmp_path / "empty").mkdir()
    begun = tmp_path / "begun"
    begun.mkdir()
    (begun / ".lock").touch()
    run = folder(tmp_path / "outputs" / "sweep", config(), {})
    (run.parent / "notes.md").write_text("what this sweep is about")
    cfg = effective(newllm.compose(["data=text", f"data.path={text}"]))
    for path in (tmp_path / "new", tmp_path / "empty", begun, run, text / "run"):
        check_run_folder(path, cfg)
    for path in (tmp_path / "new", tmp_path / "empty", run.parent, tmp_path / "outputs"):
        check_sweep_folder(path, [cfg])


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (lambda text: text, "is what data.path reads"),
        (lambda text: text / ".." / "text", "is what data.path reads"),
        (lambda text: text.parent, r"holds files of something else \(text\)"),
        (lambda text: ROOT, "contains newllm itself"),
        (lambda text: ROOT / "newllm", "contains newllm itself"),
        (lambda text: "/", "contains newllm itself"),
        (lambda text: ROOT / "conf", "holds files of something else .*and [0-9]+ more"),
        (lambda text: "nul\0byte", "cannot be used"),
    ],
)
def test_other_folders_are_refused(text: Path, place: Callable[[Path], Path], message: str) -> None:
    cfg = effective(newllm.compose(["data=text", f"data.path={text}"]))
    with pytest.raises(ConfigError, match=f"^hydra.run.dir=.*{message}"):
        check_run_folder(place(text), cfg)
    with pytest.raises(ConfigError, match=f"^hydra.sweep.dir=.*{message}"):
        check_sweep_folder(place(text), [cfg])
