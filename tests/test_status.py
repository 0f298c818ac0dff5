"""`newllm status`: its table, logs, JSON and errors."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from newllm.status import main
from newllm.store.run_directory import RunDirectory
from newllm.sweep.launches import Policy, recorded
from tests.support.sweep_folders import make_run


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """A run in each state."""
    folder = tmp_path / "sweep"
    make_run(folder, "tiny-rope-s1-0000000a", "done")
    make_run(folder, "tiny-rope-s2-0000000b", "failed", error="Training diverged at step 7.").log_file.write_text(
        "step 7\n"
    )
    make_run(folder, "tiny-alibi-s1-0000000c", "running", progress={"step": 1234, "steps": 5000})
    make_run(folder, "tiny-alibi-s2-0000000d")
    return folder


def test_the_table_shows_every_run_and_what_to_type_next(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(sweep)]) == 1
    out = capsys.readouterr().out
    rows = [line.split() for line in out.splitlines()]
    assert rows[:5] == [
        ["#", "run", "state", "step", "val", "ppl"],
        ["1", "rope-s2", "failed"],
        ["2", "alibi-s1", "interrupted", "1,234/5,000"],
        ["3", "alibi-s2", "queued"],
        ["0", "rope-s1", "done", "98.76"],
    ]
    assert "4 runs: 1 failed, 1 interrupted, 1 queued, 1 done" in out
    assert "rope-s2: Training diverged at step 7." in out
    assert "The launcher is gone. 1 interrupted run and 1 queued run have no process; continue with" in out
    assert f"newllm status {sweep} --retry all" in out


def test_an_evaluation_that_failed_after_the_training_is_said_and_the_run_stays_done(
    sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = "eval.qk: the disk is full."
    RunDirectory(sweep / "tiny-rope-s1-0000000a").update_status(error=error)
    assert main([str(sweep), "rope-s1"]) == 0
    out = capsys.readouterr().out
    assert "1 run: 1 done" in out
    assert f"s1-0000000a: done, but an evaluation after the training failed: {error}" in out


def test_the_exit_status_says_whether_one_of_the_runs_shown_failed(sweep: Path) -> None:
    assert main([str(sweep), "rope-s1", "alibi-s1"]) == 0
    assert main([str(sweep), "0000000b", "--json"]) == 1
    assert main([str(sweep / "tiny-rope-s1-0000000a")]) == 0
    assert main([str(sweep.parent), "--watch", "0.1"]) == 1  # ends at once, since no run is attended


def test_without_a_folder_it_shows_outputs_and_labels_find_runs(
    sweep: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def shown(*words: str) -> list[str]:
        """The numbers of the runs in the table."""
        main(list(words))
        table, _, _ = capsys.readouterr().out.partition("\n\n")
        return [line.split()[0] for line in table.splitlines()[1:]]

    monkeypatch.chdir(sweep.parent)
    assert main([]) == 2
    assert "outputs: no such folder" in capsys.readouterr().err
    assert main(["nowhere"]) == 2
    assert "nowhere: no such folder" in capsys.readouterr().err
    sweep.rename("outputs")
    assert sorted(shown()) == ["0", "1", "2", "3"]
    assert shown("2") == shown("alibi-s1") == ["2"]
    RunDirectory("outputs/tiny-rope-s2-0000000b").label({"name": "First try", "tags": ["long", "draft"]})
    RunDirectory("outputs/tiny-alibi-s2-0000000d").label({"notes": "lr too high, again", "tags": ["draft"]})
    assert shown("tags=draft") == shown("outputs", "tags=[draft]") == ["1", "3"]
    assert shown("tags=draft,long") == shown("name=first") == shown("tags=draft", "1") == ["1"]
    assert shown("notes=too high, a") == ["3"]
    main(["tags=draft"])
    assert "lr too high, again" in capsys.readouterr().out


def test_json_is_one_object_with_runs_counts_and_launches(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with recorded(sweep, "local", {"slots": 2}, Policy(retries=1), [sweep / "tiny-alibi-s2-0000000d"]):
        main([str(sweep), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["counts"] == {"failed": 1, "interrupted": 1, "queued": 1, "done": 1}
    runs = {run["name"]: run for run in found["runs"]}
    assert runs["tiny-rope-s1-0000000a"]["val_ppl"] == 98.76
    assert runs["tiny-alibi-s2-0000000d"]["attended"] is True
    assert runs["tiny-alibi-s1-0000000c"] | {"state": "interrupted", "step": 1234} == runs["tiny-alibi-s1-0000000c"]
    (launch,) = found["launches"]
    assert (launch["alive"], launch["launcher"], launch["pid"]) == (True, {"slots": 2}, os.getpid())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{sweep}/nowhere"], "no such folder"),
        (["{sweep}/.sweep"], "holds no runs"),
        (["{sweep}/tiny-rope-s1-0000000a/config.yaml"], "is a file; expected a run directory"),
        (["{sweep}", "s1"], "part of the names of 2 runs"),
        (["{sweep}", "rope-s3"], "did you mean rope-s"),
        (["{sweep}", "--logs"], "--logs shows one run's log"),
        (["{sweep}", "--logs", "alibi-s2"], "has no log yet"),
        (["{sweep}", "-f"], "--logs RUN -f"),
        (["{sweep}", "--watch", "0"], "between 0.1 and 86400"),
        (["{sweep}", "--json", "--cancel"], "--help shows the usage"),
        (["{sweep}", "7"], "its runs have the numbers 0 to 3"),
        (["{sweep}:s1"], "part of the names of 2 runs"),
        (["{sweep}", "tags=draft", "name=x"], "has tags=draft and name=x"),
    ],
)
def test_bad_input_is_one_sentence_and_status_2(
    sweep: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    (sweep / ".sweep").mkdir()
    assert main([word.format(sweep=sweep) for word in arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.count("\n") == 1


def test_logs_prints_the_log_and_stderr_of_a_failed_run(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(sweep), "--logs", "rope-s2"]) == 0
    assert capsys.readouterr().out == "step 7\n"
    (sweep / "tiny-rope-s2-0000000b" / "stderr.log").write_text("Fatal Python error: Segmentation fault\n")
    assert main([str(sweep), "rope-s2", "--logs"]) == 0
    assert capsys.readouterr().out.endswith("stderr.log\nFatal Python error: Segmentation fault\n")


def test_logs_follows_a_run_to_its_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path, "tiny-s1", "running")
    run.log_file.write_text("first\n")

    def write_log() -> None:
        with run.locked():
            begun.set()
            time.sleep(0.5)
            with run.log_file.open("a") as log:
                log.write("sécond\n")
            time.sleep(0.5)
            with run.log_file.open("a") as log:
                log.write("last\n")
            run.write_results({"val/ppl": 9.0})
            run.end_attempt("done")

    begun = threading.Event()
    writer = threading.Thread(target=write_log)
    writer.start()
    begun.wait()
    assert main([str(run.path), "--logs", "-f"]) == 0
    writer.join()
    assert capsys.readouterr().out == "first\nsécond\nlast\n"


def test_watch_ends_with_the_last_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path, "tiny-s1", "running")
    with run.locked():
        timer = threading.Timer(0.5, run.end_attempt, ("failed", "Broke."))
        timer.start()
        assert main([str(tmp_path), "--watch", "0.1"]) == 1
    assert "tiny-s1: Broke." in capsys.readouterr().out


def test_a_closed_stdout_is_no_error(sweep: Path) -> None:
    command = [sys.executable, "-m", "newllm.status", str(sweep), "rope-s1"]
    done = subprocess.run(["sh", "-c", '"$@" >&-', "sh", *command], stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_it_imports_nothing_heavy(sweep: Path) -> None:
    code = (
        "import sys; from newllm.status import main; main(sys.argv[1:])\n"
        "heavy = {'torch', 'transformers', 'datasets', 'pandas', 'submitit', 'omegaconf'}\n"
        "print(heavy & {*sys.modules}, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(sweep), "--json"], capture_output=True, text=True)
    assert done.stderr == "set()\n"
