"""The one table of what is known about each group."""

from pathlib import Path

import pytest

from newllm.config import compose, effective, signature, slug
from newllm.config.catalog import shipped
from newllm.config.compose import catalog_for
from newllm.config.groups import group_of, groups, parts_of, stages
from newllm.errors import ConfigError


def test_the_table_has_every_shipped_group() -> None:
    assert set(groups()) == set(catalog_for().groups)
    assert parts_of("model") == ["pos_encoding", "attention"]
    assert set(stages()) < set(groups())


@pytest.fixture
def user_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a group of the user's, of which one option says only where something is kept."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "warming.py").write_text("class Warmup:\n    def __init__(self, steps: int, folder: str | None): ...\n")
    (tmp_path / "warmup").mkdir()
    (tmp_path / "warmup" / "short.yaml").write_text("# A stage.\n_target_: warming.Warmup\nsteps: 3\nfolder: null\n")
    (tmp_path / "groups.yaml").write_text("warmup:\n  stage: true\n  idle: [folder]\n  label: first\n")
    return tmp_path


def test_a_run_carries_the_entries_of_a_users_groups(user_folder: Path) -> None:
    run, elsewhere, other = (
        effective(compose(["warmup=short", *more], config_dir=user_folder))
        for more in ([], ["warmup.folder=there"], ["warmup.steps=4"])
    )
    assert stages(run) == [*stages(), "warmup"]
    assert group_of("warmup", run).idle == ("folder",)
    assert signature(run) == signature(elsewhere) != signature(other)
    assert slug(run).startswith("nano-rope-mha-stdlib-short-")
    assert "groups" not in effective(compose())


def test_a_misspelt_column_is_refused(user_folder: Path) -> None:
    (user_folder / "groups.yaml").write_text("warmup:\n  stag: true\n")
    with pytest.raises(ConfigError, match=r"warmup\.stag: did you mean stage"):
        compose(config_dir=user_folder)
    assert "groups.yaml" in {file.name for file in shipped().iterdir()}
