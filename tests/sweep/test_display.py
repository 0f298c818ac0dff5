"""What a launcher shows of its runs, on a terminal and elsewhere."""

import io
import sys
from pathlib import Path

import pytest

from newllm.store.run_directory import RunDirectory
from newllm.sweep.display import Display
from newllm.sweep.state import RunState


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"tiny-{encoding}-mha-s1-0000000{i}" for i, encoding in enumerate(("rope", "alibi", "nope"))]
    for path in paths:
        RunDirectory(path).freeze({})
    return paths


def test_without_a_terminal_each_start_and_end_is_a_line_and_a_summary_follows(
    runs: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    display = Display(runs[0].parent, runs)
    with display.shown(2):
        for run in runs:
            display.started(run)
        RunDirectory(runs[0]).write_results({"val/ppl": 123.4})
        RunDirectory(runs[0]).end_attempt("done")
        display.ended(runs[0], "done", None, again=False)
        display.ended(runs[1], "failed", "the loss is nan", again=True)
        display.ended(runs[1], "failed", "the loss is nan", again=False)
        display.ended(runs[2], "interrupted", None, again=False)
    lines = capsys.readouterr().out.splitlines()
    folder = runs[0].parent
    assert lines == [
        f"3 runs, 2 at once, in {folder}",
        "start  rope",
        "start  alibi",
        "start  nope",
        "done   rope after 00:00, val/ppl 123.4",
        "again  alibi, which failed: the loss is nan",
        "failed alibi after 00:00: the loss is nan",
        "interrupted nope after 00:00",
        "3 runs in 00:00: 1 done, 1 failed, 1 interrupted.",
        f"  failed: alibi: the loss is nan ({runs[1]})",
        "The same command continues from here.",
        f"Next: newllm status {folder}",
        f"      newllm report {folder}",
    ]


def test_a_terminal_shows_how_far_each_run_is(runs: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(sys.modules["newllm.sweep.display"], "REFRESH_SECONDS", 0.0)
    display = Display(runs[0].parent, runs)
    with display.shown(2):
        display.tick()  # nothing is running yet
        display.started(runs[0])
        progress = {"step": 1250, "steps": 5000, "epoch": 0, "loss": 4.5678, "tokens_per_second": 34567.8}
        RunDirectory(runs[0]).update_status(state="running", progress=progress)
        display.tick()
    shown = terminal.getvalue()
    for text in ("rope", "running", "1,250/5,000", "4.568", "34,568", "0 done, 1 running, 2 queued"):
        assert text in shown


def test_the_live_table_keeps_what_has_ended_best_first_and_trusts_what_runs_say_of_their_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [tmp_path / f"tiny-{name}-s1-0000000{i}" for i, name in enumerate(("one", "two", "three", "four"))]
    for path in paths:
        RunDirectory(path).freeze({})
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("LINES", "30")
    monkeypatch.setattr(sys.modules["newllm.sweep.display"], "REFRESH_SECONDS", 0.0)
    display = Display(tmp_path, paths)
    with display.shown(1):
        for path, ppl in zip(paths, (30.5, 20.25), strict=False):
            display.started(path)
            RunDirectory(path).write_results({"val/ppl": ppl})
            RunDirectory(path).end_attempt("done")
            display.ended(path, "done", None, again=False)
        display.started(paths[2])
        display.ended(paths[2], "failed", "the loss is nan", again=False)
        display.started(paths[3])
        RunDirectory(paths[3]).update_status(state="running", progress={"step": 1, "steps": 9, "seconds_left": 21600.0})
        terminal.truncate(0)
        display.tick()
        shown = terminal.getvalue()
    places = [shown.index(text) for text in ("four", "three", "20.25", "30.50", "2 done, 1 failed, 1 running")]
    assert places == sorted(places)
    assert "about 6:00:00 left" in shown


def test_ten_thousand_queued_runs_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [tmp_path / f"tiny-rope-s{i}-{i:08x}" for i in range(10_000)]  # none of them exists
    monkeypatch.setattr(sys, "stdout", Terminal())
    read: list[Path] = []

    def record(run: RunDirectory) -> RunState:
        read.append(run.path)
        return RunState(run.path.name, str(run.path), "running")

    monkeypatch.setattr(sys.modules["newllm.sweep.display"], "read_state", record)
    display = Display(tmp_path, paths)
    with display.shown(2):
        display.started(paths[0])
        display.tick()
    assert set(read) == {paths[0]}


def test_a_closed_terminal_does_not_end_the_sweep(runs: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed(Terminal):
        def write(self, text: str) -> int:
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(sys, "stdout", Closed())
    display = Display(runs[0].parent, runs)
    with display.shown(2):
        display.started(runs[0])
        display.tick()
        display.ended(runs[0], "failed", "the loss is nan", again=False)
        display.note("SIGHUP")
        display.tick()
