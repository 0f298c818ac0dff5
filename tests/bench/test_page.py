"""docs/speed.md from JSON files."""

import json
from pathlib import Path

import pytest

from newllm.bench import main
from newllm.bench.page import read, render
from newllm.bench.plot import series
from newllm.bench.result import Result
from newllm.errors import ConfigError

DOCS = Path(__file__).parents[2] / "docs"
PAGE = """# Speed

<!-- speed:machine -->
<!-- /speed -->

Prose before.

<!-- speed:train -->
what a former command wrote
<!-- /speed -->

<!-- speed:decode -->
<!-- /speed -->

<!-- speed:sweep -->
<!-- /speed -->
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "speed"
    folder.mkdir()
    (tmp_path / "speed.md").write_text(PAGE)
    table = ("A step", ["contestant", "ms"], [["newllm | ours", "1.5"]])
    Result({"ratio/transformers_eager": 1.7}, [table], ["Medians."]).write(folder / "train.json", "train")
    speeds = {f"decode/tokens_per_second/{who}/{n}": 1e5 / n for who in ("mha", "mla") for n in (1024, 512)}
    Result(speeds).write(folder / "decode.json", "decode")
    return folder


def test_the_page_is_written_from_its_files_and_keeps_its_prose(folder: Path) -> None:
    page = folder.with_suffix(".md")
    assert main(["page", str(folder)]) == 0
    text = page.read_text()
    assert "| contestant | ms |\n| --- | ---: |\n| newllm \\| ours | 1.5 |" in text
    assert "Medians." in text
    assert "Prose before." in text
    assert "what a former command wrote" not in text
    machine = json.loads((folder / "train.json").read_text())["machine"]
    assert machine["cpu"] in text
    assert f"torch {machine['packages']['torch']}" in text
    assert "Not measured yet: `newllm bench sweep out=docs/speed/sweep.json`" in text
    assert "](speed/decode.png)" in text
    picture = (folder / "decode.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert main(["page", str(folder)]) == 0
    assert page.read_text() == text
    assert (folder / "decode.png").read_bytes() == picture


def test_figures_of_two_machines_are_not_taken_for_one(folder: Path) -> None:
    results = read(folder)
    results["train"]["machine"]["cpu"] = "Another CPU"
    text = render(PAGE, results, "speed")
    assert "**Another CPU**" in text
    assert "(train)" in text
    assert "(decode)" in text


def test_the_figure_shows_each_contestant_by_context(folder: Path) -> None:
    found = series(read(folder)["decode"])
    assert found["mla"] == [(512, 1e5 / 512), (1024, 1e5 / 1024)]
    assert found.keys() == {"mha", "mla"}


def test_a_result_without_a_place_and_a_file_that_is_none_are_refused(folder: Path) -> None:
    Result({}).write(folder / "pack.json", "pack")
    with pytest.raises(ConfigError, match=r"no place for pack\.json: write <!-- speed:pack -->"):
        render(PAGE, read(folder), "speed")
    (folder / "pack.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"pack\.json is no result of a bench"):
        read(folder)


def test_the_page_in_docs_says_what_its_files_say() -> None:
    page = (DOCS / "speed.md").read_text(encoding="utf-8")
    assert render(page, read(DOCS / "speed"), "speed") == page, "type: newllm bench page docs/speed"
