"""What a survey says of runs, from their directories, their locks and SLURM's words."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from newllm.errors import ConfigError
from newllm.store.run_directory import RunDirectory
from newllm.sweep.launches import Policy, recorded
from newllm.sweep.run_names import choose, short_names
from newllm.sweep.survey import Line, counts, survey, sweeps_in
from tests.support.sweep_folders import make_run

BEGAN = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
HOLD = """
import sys, time; from newllm.store.run_directory import RunDirectory
with RunDirectory(sys.argv[1]).locked():
    print(flush=True); time.sleep(60)
"""


def only(sweep: Path, **options) -> Line:
    (line,) = survey(sweep, **options)
    return line


@contextmanager
def held(run: RunDirectory) -> Iterator[subprocess.Popen]:
    """Another process holds the run's directory."""
    with subprocess.Popen([sys.executable, "-c", HOLD, str(run.path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        try:
            yield process
        finally:
            process.kill()


def test_a_finished_run_tells_its_perplexity_and_time(tmp_path: Path) -> None:
    times = {"started": BEGAN.isoformat(), "finished": (BEGAN + timedelta(minutes=2)).isoformat()}
    make_run(tmp_path, "a-s1", "done", attempt=1, **times)
    line = only(tmp_path)
    assert (line.name, line.state, line.val_ppl, line.seconds, line.attended) == ("a-s1", "done", 98.76, 120.0, False)


def test_a_failed_run_tells_its_error(tmp_path: Path) -> None:
    make_run(tmp_path, "a-s1", "failed", error="The loss is nan.")
    assert (only(tmp_path).state, only(tmp_path).error) == ("failed", "The loss is nan.")


def test_a_run_is_running_while_its_process_lives_and_cut_off_when_that_is_killed(tmp_path: Path) -> None:
    progress = {"step": 25, "steps": 100, "epoch": 1, "loss": 4.5, "tokens_per_second": 100.0}
    run = make_run(tmp_path, "a-s1", "running", started=BEGAN.isoformat(), progress=progress)
    with held(run) as process:
        line = only(tmp_path, now=BEGAN + timedelta(seconds=10))
        assert (line.state, line.attended, line.step, line.steps, line.loss) == ("running", True, 25, 100, 4.5)
        assert line.seconds == 10
        assert line.seconds_left == 75 * 8 * 32 / 100
        process.send_signal(signal.SIGKILL)
        process.wait()
        line = only(tmp_path)
        assert (line.state, line.attended) == ("interrupted", False)
        assert "its process is gone" in (line.error or "")


def test_a_queued_run_is_attended_while_its_launcher_lives(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, name).path for name in ("a-s1", "a-s2")]
    with recorded(tmp_path, "local", {}, Policy(), runs[:1]):
        assert [(line.state, line.attended) for line in survey(tmp_path)] == [("queued", True), ("queued", False)]
    assert [(line.state, line.attended) for line in survey(tmp_path)] == [("queued", False)] * 2


@pytest.mark.parametrize("content", ['{"state": "run', "[1]", '"done"', '{"state": "finished"}', b"\xff\xfe"])
def test_a_broken_status_is_listed_as_unreadable_and_hides_no_other(tmp_path: Path, content: str | bytes) -> None:
    run = make_run(tmp_path, "a-s1")
    run.status_file.write_bytes(content if isinstance(content, bytes) else content.encode())
    make_run(tmp_path, "a-s2", "failed")
    broken, other = survey(tmp_path)
    assert (broken.state, other.state) == ("unreadable", "failed")
    assert str(run.status_file) in (broken.error or "")


@pytest.mark.parametrize("results", ["", "{", "[]", "{}", None])
def test_a_finished_run_without_results_is_unreadable(tmp_path: Path, results: str | None) -> None:
    run = make_run(tmp_path, "a-s1", "done")
    run.results_file.unlink()
    if results is not None:
        run.results_file.write_text(results)
    assert only(tmp_path).state == "unreadable"
    assert str(run.path) in (only(tmp_path).error or "")


def test_a_run_of_another_version_is_listed_with_what_can_be_known(tmp_path: Path) -> None:
    run = make_run(tmp_path, "old-s1", "interrupted", attempt="2", progress=[1, 2], started="yesterday", slurm=None)
    run.config_file.write_text("model: [no, longer, like, this]\nunknown: {nodes: 1}\n")
    line = only(tmp_path)
    assert (line.state, line.attempt, line.step, line.seconds) == ("interrupted", 0, None, None)
    with held(run):
        run.update_status(state="running", progress={"step": 1, "steps": 2, "tokens_per_second": 10.0})
        assert (only(tmp_path).state, only(tmp_path).seconds_left) == ("running", None)


@pytest.mark.parametrize(
    ("claimed", "word", "state", "attended"),
    [
        ("queued", "PENDING (Priority)", "queued", True),
        ("queued", "RUNNING", "queued", True),
        ("running", "RUNNING", "running", True),
        ("running", "PENDING (BeginTime)", "queued", True),  # requeued
        ("interrupted", "PENDING (BeginTime)", "queued", True),
        ("interrupted", "COMPLETING", "interrupted", True),  # about to be requeued
        ("queued", "CANCELLED by 0", "interrupted", False),
        ("running", "TIMEOUT (TimeLimit)", "interrupted", False),
        ("running", "OUT_OF_MEMORY (OutOfMemory)", "failed", False),
        ("running", None, "interrupted", False),  # a job that SLURM has forgotten
        ("failed", "FAILED (NonZeroExitCode)", "failed", False),
        ("done", "FAILED (NonZeroExitCode)", "done", False),  # another run of the same job has failed
    ],
)
def test_a_run_under_slurm_is_what_slurm_says(
    tmp_path: Path, claimed: str, word: str | None, state: str, attended: bool
) -> None:
    make_run(tmp_path, "a-s1", claimed, slurm="12_3", host="node7").write_results({"val/ppl": 9.0})
    asked: list[list[str]] = []

    def ask(ids: list[str]) -> dict[str, str]:
        asked.append(ids)
        return {"12_3": word} if word else {}

    line = only(tmp_path, ask=ask)
    assert (line.state, line.attended, line.slurm) == (state, attended, "12_3")
    assert asked == ([["12_3"]] if claimed != "done" else [])
    if state in ("interrupted", "failed") and claimed in ("queued", "running"):
        assert (line.error or "").startswith("SLURM ended job 12_3")


def test_slurm_is_asked_once_for_all_and_without_it_the_status_counts(tmp_path: Path) -> None:
    for seed in range(5):
        make_run(tmp_path, f"a-s{seed}", "running", slurm=f"12_{seed // 2}", host="node7")
    asked: list[list[str]] = []
    lines = survey(tmp_path, ask=asked.append)  # returns None: nobody to ask
    assert asked == [["12_0", "12_1", "12_2"]]
    assert counts(lines) == {"running": 5}


def test_a_run_that_ended_while_slurm_was_asked_is_not_called_interrupted(tmp_path: Path) -> None:
    run = make_run(tmp_path, "a-s1", "running", slurm="12")

    def ask(ids: list[str]) -> dict[str, str]:
        run.write_results({"val/ppl": 9.0})
        run.end_attempt("done")
        return {"12": "COMPLETED"}

    assert only(tmp_path, ask=ask).state == "done"


def test_runs_are_found_in_a_run_a_sweep_and_a_folder_of_sweeps(tmp_path: Path) -> None:
    one, two = make_run(tmp_path / "x", "a-s1").path, make_run(tmp_path / "y", "a-s2").path
    (tmp_path / "y" / ".sweep" / "code").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    assert sweeps_in(one) == {tmp_path / "x": [one]}
    assert sweeps_in(tmp_path / "y") == {tmp_path / "y": [two]}
    assert sweeps_in(tmp_path) == {tmp_path / "x": [one], tmp_path / "y": [two]}
    for wrong in (tmp_path / "empty", tmp_path / "nowhere"):
        with pytest.raises(ConfigError, match=str(wrong)):
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
    twins = [Path("x/tiny-s1-0000000a"), Path("y/tiny-s1-0000000a")]
    assert choose(["s1"], twins) == twins
    assert choose(["y/tiny-s1-0000000a"], twins) == twins[1:]
