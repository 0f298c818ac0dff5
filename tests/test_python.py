"""newllm from Python: what scripts and notebooks call, what they get, and what they see when something is wrong."""

import asyncio
import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra

import newllm
from newllm.console import Console
from newllm.store.run_directory import RunDirectory
from newllm.training.loop import Loop
from tests.support.small_runs import SMALL_RUN

TINY = [*SMALL_RUN, "epochs=1", "model.num_layers=1", "precision=fp32"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> newllm.Run:
    """Trained under a running event loop, as in a notebook."""
    folder = tmp_path_factory.mktemp("python")

    async def cell() -> newllm.Run:
        return newllm.train([*TINY, f"hydra.run.dir={folder}/run"])

    return asyncio.run(cell())


@pytest.mark.parametrize("first", ["import newllm.train, newllm.report.study, newllm.sweep.plan", "import newllm"])
def test_functions_stay_functions_whatever_is_imported(first: str, tmp_path: Path) -> None:
    code = f"""{first}
import newllm
import newllm.train, newllm.evaluate.__main__, newllm.report.options, newllm.sweep.state
print(*(verb.__name__ for verb in (newllm.train, newllm.evaluate, newllm.report, newllm.sweep) if callable(verb)))
try:
    newllm.train(["thta=1"])
except newllm.ConfigError:
    print(newllm.__version__)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stderr == ""
    assert done.stdout.split() == ["train", "evaluate", "report", "sweep", version("newllm")]


def test_a_run_shows_itself_shortly(run: newllm.Run) -> None:
    assert repr(run) == f"Run run (done, val/bits_per_byte {run.results['val/bits_per_byte']:.4g})"
    assert "<tr><th>pos_encoding</th><td>rope</td></tr>" in run._repr_html_()


def test_a_run_has_its_numbers_as_tables(run: newllm.Run) -> None:
    assert run.metrics["val/loss"].dropna().tolist() == [run.results["val/loss"]]
    assert run.tables["position"]["position"].tolist() == [*range(32)]
    assert run.config.model.hidden_size == run.model.embed.weight.shape[1] == 32


def test_a_run_continues_a_text_as_the_command_does(run: newllm.Run, capsys: pytest.CaptureFixture[str]) -> None:
    from newllm.generate import main

    assert main([os.fspath(run), "def main", "--max-new-tokens", "8", "--temperature", "0.8"]) == 0
    assert run.generate("def main", 8, temperature=0.8) == capsys.readouterr().out.removesuffix("\n")
    with pytest.raises(newllm.ConfigError, match=r"top_p must lie in \(0, 1\]; got 2"):
        run.generate("def main", top_p=2)


def test_a_second_call_reads_the_run_and_leaves_hydra_alone(run: newllm.Run) -> None:
    assert not GlobalHydra.instance().is_initialized()
    again = newllm.train([*TINY, f"hydra.run.dir={os.fspath(run)}"])
    assert again.results == run.results


def test_evaluate_and_report_take_the_run_itself(run: newllm.Run, tmp_path: Path) -> None:
    found = newllm.evaluate(run, ["eval=[rank]"])
    assert newllm.load_run(run).results.items() >= found.items() > {}.items()
    report = newllm.report(run, [f"out={tmp_path}", "formats=[csv]", "metrics=[val/loss]"])
    assert report.tables["main"]["val/loss mean"].tolist() == [run.results["val/loss"]]
    assert repr(report) == f"Report {report.files[0]} (tables: main)"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("epochs=1", r"'epochs=1' is a string; expected a list"),
        (["thta=1"], r"did you mean theta\?"),
        (["seed=1,2"], r"\(in Python: newllm\.sweep\)"),
        (["dry_run=true"], r"dry_run is an option of sweeps; pass it to newllm\.sweep"),
    ],
)
def test_wrong_input_is_an_exception(overrides: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(newllm.ConfigError, match=message):
        newllm.train(overrides)


def test_ctrl_c_saves_the_run_and_is_a_keyboard_interrupt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step: Callable[..., None] = Loop._step

    def interrupted(loop: Loop, *arguments: object) -> None:
        if loop.progress.step == 3:
            signal.raise_signal(signal.SIGINT)
        step(loop, *arguments)

    words = [*TINY, f"hydra.run.dir={tmp_path}/run"]
    with monkeypatch.context() as patch:
        patch.setattr(Loop, "_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            newllm.train(words)
    stopped = RunDirectory(tmp_path / "run")
    assert stopped.observed() == "interrupted"
    assert stopped.last_checkpoint.exists()
    assert newllm.train(words).state == "done"


def test_a_sweep_returns_the_runs_of_its_plan(tmp_path: Path) -> None:
    """The same as the command's; a run that fails is named, and the others are there."""
    words = [*TINY, "theta=1e4,1e3", f"hydra.sweep.dir={tmp_path}/sweep"]
    runs = newllm.sweep(words)
    assert [run.config.theta for run in runs] == [1e4, 1e3]
    assert newllm.load_runs(runs)["val/loss"].tolist() == [run.results["val/loss"] for run in runs]
    runs[1].files.update_status(state="failed", error="the loss is nan")
    with pytest.raises(newllm.RunError, match=r"1 of 2 runs are not complete: .* failed \(the loss is nan\)"):
        newllm.sweep([*words, "rerun=none"])


def test_an_edited_class_is_imported_again(tmp_path: Path) -> None:
    """As between two cells of a notebook, one of which writes the file."""
    (tmp_path / "pos_encoding").mkdir()
    (tmp_path / "pos_encoding" / "redrawn.yaml").write_text("_target_: redrawn.Redrawn\n")
    overrides = [*TINY, "pos_encoding=redrawn"]
    names = []
    for name in ("first", "second one"):
        (tmp_path / "redrawn.py").write_text(
            f"from newllm.position import NoPE\n\n\nclass Redrawn(NoPE):\n    name = {name!r}\n"
        )
        model = newllm.build_model(newllm.compose(overrides, config_dir=tmp_path), 512)
        names += {module.name for module in model.modules() if type(module).__name__ == "Redrawn"}
    assert names == ["first", "second one"]


def test_a_notebook_shows_how_far_a_run_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """In one line, which the next text overwrites."""
    notebook = type("OutStream", (io.StringIO,), {"__module__": "ipykernel.iostream"})()
    monkeypatch.setattr(sys, "stdout", notebook)
    console = Console()
    with console.progress(20, 0) as bar:
        bar(10, 2.5, 1000.0)
        console.line("the epoch")
    progress = "10/20  loss 2.500  1,000 tokens/s"
    assert notebook.getvalue().endswith(f"\r{progress}\r{' ' * len(progress)}\rthe epoch\n")
