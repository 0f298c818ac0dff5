"""The commands: exit statuses, one-line errors, speed of import, sweeps."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
from omegaconf import DictConfig, OmegaConf

from newllm import cli, load_runs
from newllm.config import compose, run_directory
from newllm.errors import ConfigError, RunError, run_command
from newllm.store.run_directory import RunDirectory
from newllm.sweep import command as sweep_command
from newllm.sweep.check import build_all, parts
from newllm.sweep.launches import Policy
from newllm.sweep.local import Local
from newllm.train import __main__ as train

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "transformers", "datasets", "matplotlib", "pandas")


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[DictConfig]:
    """The configurations that reach newllm.run, which does nothing; the working directory is empty."""
    received: list[DictConfig] = []
    fake = ModuleType("newllm.run.execute")

    def run(cfg: DictConfig) -> int:
        received.append(cfg)
        return 0

    fake.run = run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "newllm.run.execute", fake)
    monkeypatch.chdir(tmp_path)
    return received


@pytest.mark.parametrize("typed", ["thta=1", "pos_encoding=alibbi", "slope=0.5", "+data.tokeniser=x", "seed=1,2"])
def test_bad_input_ends_with_status_2_one_line_and_nothing_written(
    typed: str, runs: list[DictConfig], capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert train.main([typed]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("newllm: ")
    assert err.count("\n") == 1
    assert not runs
    assert not any(tmp_path.iterdir())


def test_a_wrong_value_ends_with_status_2(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert train.main(["theta=abc"]) == 2
    out, err = capfd.readouterr()
    assert (out, err) == ("", "newllm: theta=abc: expected a number or null for pos_encoding.theta\n")
    assert not any(tmp_path.iterdir())


def test_a_good_command_line_reaches_the_run(runs: list[DictConfig]) -> None:
    assert train.main(["pos_encoding=alibi", "attention=mla", "kv_dim=32"]) == 0
    assert runs[0].attention.kv_dim == 32
    assert runs[0].choices.pos_encoding == "alibi"


def test_traceback_on_request_only(
    runs: list[DictConfig], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    assert train.main(["thta=1"]) == 2
    assert "Traceback" in capfd.readouterr().err


def test_errors_of_a_run_and_interruption_have_statuses_of_their_own(
    capfd: pytest.CaptureFixture[str],
) -> None:
    def fail(argv: list[str]) -> int:
        raise RunError("loss is nan at step 3.")

    def interrupt(argv: list[str]) -> int:
        raise KeyboardInterrupt

    assert run_command(fail, []) == 1
    assert capfd.readouterr().err == "newllm: loss is nan at step 3\n"
    assert run_command(interrupt, []) == 130


def test_ctrl_c_works_in_a_background_job_of_a_shell_script() -> None:
    def interrupt(argv: list[str]) -> int:
        signal.raise_signal(signal.SIGINT)
        return 0

    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as such a job starts
    try:
        assert run_command(interrupt, []) == 130
    finally:
        signal.signal(signal.SIGINT, before)


def test_cfg_job_prints_what_compose_returns(runs: list[DictConfig], capfd: pytest.CaptureFixture[str]) -> None:
    assert train.main(["pos_encoding=alibi", "--cfg", "job", "seed=3"]) == 0
    shown = OmegaConf.create(capfd.readouterr().out)
    cfg = compose(["pos_encoding=alibi", "seed=3"])
    assert shown == OmegaConf.masked_copy(cfg, [key for key in cfg if key not in ("overrides", "run_dir")])
    assert train.main(["slope=2", "pos_encoding=alibi", "--cfg", "job", "--package", "pos_encoding", "--resolve"]) == 0
    assert OmegaConf.create(capfd.readouterr().out).slope == 2.0
    assert train.main(["--cfg", "job", "--package", "atention"]) == 2
    assert "did you mean attention?" in capfd.readouterr().err
    assert train.main(["--cfg", "hydra", "--package", "hydra.sweep"]) == 0
    assert "outputs/sweeps" in capfd.readouterr().out
    assert not runs


def test_unknown_flags_are_refused(runs: list[DictConfig], capfd: pytest.CaptureFixture[str]) -> None:
    assert train.main(["--cgf", "job"]) == 2
    assert "did you mean --cfg?" in capfd.readouterr().err
    assert train.main(["--config-path", "x"]) == 2
    assert "--config-dir" in capfd.readouterr().err
    assert train.main(["--resolve"]) == 2
    assert "add --cfg job" in capfd.readouterr().err
    assert not runs


def test_help_lists_every_choice_and_axis(capfd: pytest.CaptureFixture[str]) -> None:
    assert train.main(["--help"]) == 0
    page = capfd.readouterr().out
    for group in (path.name for path in (ROOT / "conf").iterdir() if any(path.glob("*.yaml"))):
        assert f"\n  {group}=" in page
        assert all(
            f" {option.stem} " in page or f" {option.stem}\n" in page
            for option in (ROOT / "conf" / group).glob("*.yaml")
        )
    assert "theta=10000.0" in page
    assert "--config-dir" in page


# --- sweeps ---------------------------------------------------------------------------------------------------------


@dataclass
class Launch:
    """The arguments of Local.start."""

    sweep: Path
    runs: list[Path]
    policy: Policy


@pytest.fixture
def launches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Launch]:
    """A local launcher that finishes every run at once, in this process; one with seed 13 fails.

    The working directory is empty.
    """
    monkeypatch.chdir(tmp_path)
    calls: list[Launch] = []

    def start(self: Local, sweep: Path, runs: list[Path], policy: Policy) -> int:
        calls.append(Launch(sweep, list(runs), policy))
        for run in runs:
            failed = RunDirectory(run).config()["seed"] == 13
            RunDirectory(run).write_results({} if failed else {"val/loss": 3.0})
            RunDirectory(run).end_attempt("failed" if failed else "done")
        return int(any(RunDirectory(run).status()["state"] == "failed" for run in runs))

    def check(self: Local, sweep: Path, configs: Iterable[Mapping]) -> dict[int, str]:
        return build_all(parts(configs))

    monkeypatch.setattr(Local, "start", start)
    monkeypatch.setattr(Local, "check", check)
    monkeypatch.setattr(sweep_command, "warm_up", lambda: None)
    return calls


def test_a_sweep_hands_every_distinct_run_to_the_launcher_once(launches: list[Launch], tmp_path: Path) -> None:
    command = [
        "-m",
        "attention=mha,mla",
        "kv_dim=16,32",
        "seed=1,2",
        "hydra.sweep.dir=here",
        "retries=2",
        "canary=true",
    ]
    assert train.main(command) == 0
    (launch,) = launches
    assert (launch.sweep, launch.policy) == (Path("here"), Policy(retries=2, canary=True))
    assert len(launch.runs) == 6
    assert all(run.parent == Path("here") and (run / "config.yaml").exists() for run in launch.runs)
    assert not (tmp_path / "outputs").exists()
    assert train.main(command) == 0
    assert len(launches) == 1, "a second call has nothing to do"


def test_a_failed_run_gives_the_sweep_its_status_and_is_tried_again(launches: list[Launch]) -> None:
    assert train.main(["-m", "seed=1,13"]) == 1
    assert train.main(["-m", "seed=1,13", "rerun=none"]) == 1
    assert train.main(["-m", "seed=1,13"]) == 1
    assert [len(launch.runs) for launch in launches] == [2, 1]


def test_every_sweep_has_a_folder_of_its_own(launches: list[Launch]) -> None:
    def folder(*command: str) -> str:
        assert train.main(["-m", *command]) == 0
        return launches[-1].sweep.as_posix()

    assert folder("pos_encoding=rope,alibi", "seeds=1") == "outputs/sweeps/pos_encoding-seed"
    assert folder("pos_encoding=rope,nope", "seeds=2") == "outputs/sweeps/pos_encoding-seed"
    assert len(launches[-1].runs) == 3, "a sweep that has runs in common continues there"
    assert folder("pos_encoding=rope,nope", "seeds=2", "lr=0.01") == "outputs/sweeps/pos_encoding-seed-2"
    assert folder("pos_encoding=rope,nope", "seeds=3", "lr=0.01") == "outputs/sweeps/pos_encoding-seed-2"
    assert [run.parent for run in launches[-1].runs] == [launches[-1].sweep] * 2
    assert folder("sweep.zip=[{lr: [0.1, 0.2], batch_size: [1, 2]}]") == "outputs/sweeps/lr-batch_size"
    assert folder("seed=1,2", "hydra.sweep.dir=outputs/sweeps") == "outputs/sweeps"
    assert folder("hydra/sweeper=basic", "seed=1,2") == "outputs/sweeps/seed"
    started = len(launches)
    assert folder("eval=[loss],[loss,qk]", "seed=1,2") == "outputs/sweeps/seed"
    assert len(launches) == started, "evaluators make no other runs, and these have been called"
    assert folder("seed=7") == "outputs/sweeps/nano-rope-mha-stdlib-s7"
    started = len(launches)
    assert train.main(["-m", "pos_encoding=rope,alibi", "seeds=1"]) == 0
    assert len(launches) == started, "the same command finds its finished runs"


def test_name_tags_and_notes_are_kept_beside_the_runs_and_change_none(
    launches: list[Launch], capfd: pytest.CaptureFixture[str]
) -> None:
    command = ["-m", "seed=1,2", "name=My first", "tags=draft,long", "notes=lr: (too) high, again?"]
    assert train.main(command) == 0
    folder = Path("outputs/sweeps/My_first-a673")
    assert launches[-1].sweep == folder
    first, second = map(RunDirectory, launches[-1].runs)
    assert first.labels() == {"name": "My first", "tags": ["draft", "long"], "notes": "lr: (too) high, again?"}
    assert first.path.name == run_directory(compose(["seed=1"])).name
    assert "notes" not in first.config_file.read_text()
    assert train.main(["-m", "seed=1,2", "name=My first", "notes=done", "tags=[draft, 3]"]) == 0
    assert len(launches) == 1
    assert second.labels() == {"name": "My first", "tags": ["draft", "3"], "notes": "done"}
    assert train.main(["-m", "hydra/sweeper=basic", "seed=1,2", "name=My first", "notes=a 'b', \"c\""]) == 0
    assert second.labels()["notes"] == "a 'b', \"c\""
    frame = load_runs(folder)
    assert [*frame["tags"]] == ["draft, 3"] * 2
    assert [*frame["name"]] == ["My first"] * 2
    assert train.main(["-m", "seed=1,2", "nmae=x"]) == 2
    assert "did you mean name?" in capfd.readouterr().err
    assert train.main(["-m", "seed=1,2", "name=My/first"]) == 0
    assert launches[-1].sweep != folder, "names that differ only in characters that no folder's name has"


def test_a_dry_run_shows_the_plan_and_writes_nothing(
    launches: list[Launch], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert train.main(["-m", "attention=mha,mla", "kv_dim=16,32", "dry_run=true"]) == 0
    output = capfd.readouterr().out
    assert "4 combinations are 3 distinct runs: 3 new; 3 to do" in output
    assert "1,066,112" in output
    assert not launches
    assert not any(tmp_path.iterdir())


def test_one_run_can_be_launched_too(launches: list[Launch]) -> None:
    assert train.main(["hydra/launcher=local", "hydra.launcher.threads=1", "seed=7"]) == 0
    ((run,),) = (launch.runs for launch in launches)
    assert run == run_directory(compose(["seed=7"]))
    assert train.main(["hydra/launcher=local", "seed=8", "hydra.run.dir=mine/this"]) == 0
    assert launches[-1].runs == [Path("mine/this")]


def test_an_experiment_may_bring_its_grid(launches: list[Launch], tmp_path: Path) -> None:
    folder = tmp_path / "mine" / "experiment"
    folder.mkdir(parents=True)
    (folder / "both.yaml").write_text(
        "# @package _global_\nsweep:\n  seeds: 2\n  grids:\n    - {pos_encoding: [rope, nope]}\n"
        "    - {attention: mla, kv_dim: [16, 32]}\n"
    )
    assert train.main(["-m", "--config-dir", str(tmp_path / "mine"), "experiment=both"]) == 0
    assert len(launches[0].runs) == 2 * (2 + 2)


def test_options_that_a_choice_does_not_have_collapse_as_axes_do(
    launches: list[Launch], capfd: pytest.CaptureFixture[str]
) -> None:
    def runs(*command: str) -> list[list[str]]:
        assert train.main(["-m", *command]) == 0
        return [RunDirectory(run).config()["overrides"] for run in launches[-1].runs]

    grid = ["pos_encoding=rope,alibi,nope", "pos_encoding.theta=1e4,5e5", "pos_encoding.slope=0.1,0.2", "seeds=3"]
    assert len(runs(*grid)) == 15
    assert "36 combinations are 15 distinct runs" in capfd.readouterr().out
    assert runs("attention=mha,mla", "attention.kv_dim=16") == [
        ["attention=mha"],
        ["attention=mla", "attention.kv_dim=16"],
    ]
    for command, message in {
        "pos_encoding=rope,alibi pos_encoding.slop=1,2": "did you mean pos_encoding.slope?",
        "pos_encoding=nope pos_encoding.slope=1,2": "pos_encoding.slope",
        "attention=mha,gqa attention.kv_dim=16": "attention.kv_dim",
    }.items():
        assert train.main(["-m", *command.split()]) == 2
        assert message in capfd.readouterr().err


def test_a_run_that_cannot_be_built_is_named_and_the_others_go_on_without_it(
    launches: list[Launch], capfd: pytest.CaptureFixture[str]
) -> None:
    sweep = ["-m", "pos_encoding=rope,rope_evq,rope_list", "seed=1,2"]
    assert train.main(sweep) == 2
    error = capfd.readouterr().err
    for text in (
        "run 4 of the plan (pos_encoding=rope_list, seed=1) can't be built: ",
        "2 of 6 runs (4, 5)",
        "skip_invalid",
    ):
        assert text in error
    assert train.main([*sweep, "dry_run=true"]) == 2
    assert "(pos_encoding=rope_list, seed=1)" in capfd.readouterr().err
    assert train.main([*sweep, "dry_run=true", "skip_invalid=true"]) == 0
    assert "2 invalid, 4 new; 4 to do" in capfd.readouterr().out
    assert not launches
    assert train.main([*sweep, "only=0"]) == 0
    assert train.main([*sweep, "only=[0,1]"]) == 0
    assert train.main([*sweep, "skip_invalid=true"]) == 0
    assert [len(launch.runs) for launch in launches] == [1, 1, 2]
    assert "Run 5 (pos_encoding=rope_list, seed=2) is left out: " in capfd.readouterr().out
    assert train.main(["-m", "pos_encoding=rope_list", "seed=1,2", "skip_invalid=true"]) == 2


@pytest.mark.parametrize(
    ("argv", "output"),
    [
        (["thta=1,2"], "did you mean theta?"),
        (["slope=1,2", "seed=1,2"], "slope is an axis of pos_encoding=alibi"),
        (["pos_encoding=rope,alibbi"], "did you mean pos_encoding=alibi?"),
        (["theta=1e4,abc"], "theta=abc: expected a number"),
        (["seed=1,2", "retires=2"], "did you mean retries?"),
        (["seed=1,2", "rerun=al"], "expected failed, none or all"),
        (["seed=1,2", "hydra.launcher.slot=2"], "did you mean hydra.launcher.slots?"),
        (["data=text", "data.path=/no/a,/no/b", "dry_run=true"], "data.path=/no/a does not exist"),
        (["seed=1,2", "hydra.launcher.slots=0", "dry_run=true"], "hydra.launcher.slots must be at least 1"),
        (["seed=1,2", "hydra.sweep.dir=/dev/null"], "/dev/null cannot be written (Not a directory)"),
        (["seed=1,2", "hydra/launcher=slrum"], "did you mean hydra/launcher=slurm?"),
        (["seed=1,2", "hydra/launcher=basic"], "expected one of: local, slurm"),
        (["seed=1,2", "hydra.run.dir=x"], "that of a sweep is hydra.sweep.dir=FOLDER"),
        (["seeds=0"], "seeds must be at least 1"),
        (["theta=1e4,-3"], "theta must be greater than 0"),
        (["data=text", "data.path=nowhere", "seed=1,2"], "data.path=nowhere does not exist"),
    ],
)
def test_a_sweep_with_a_mistake_starts_no_run(
    argv: list[str], output: str, launches: list[Launch], capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert train.main(["-m", *argv]) == 2
    assert output in capfd.readouterr().err
    assert not launches
    assert not any(tmp_path.iterdir())


def test_a_refused_sweep_leaves_what_others_have_put_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def refuse(self: Local, sweep: Path, configs: object) -> None:
        other = Path("outputs/runs/another")
        other.mkdir(parents=True)
        raise ConfigError("theta must be greater than 0.")

    monkeypatch.setattr(Local, "check", refuse)
    assert train.main(["-m", "seed=1,2"]) == 2
    assert Path("outputs/runs/another").is_dir()
    assert not Path("outputs/sweeps").exists()


def test_a_third_party_sweeper_gets_the_losses(launches: list[Launch], capfd: pytest.CaptureFixture[str]) -> None:
    assert train.main(["-m", "hydra/sweeper=basic", "seed=1,2", "hydra.sweep.dir=here"]) == 0
    assert [len(launch.runs) for launch in launches] == [2]
    assert train.main(["-m", "hydra/sweeper=basic", "seed=2,13", "hydra.sweep.dir=here"]) == 1
    assert [len(launch.runs) for launch in launches] == [2, 1]


@pytest.mark.parametrize("option", ["dry_run=true", "seeds=2", "zip=[{lr:[1e-3,2e-3]}]", "only=[0]"])
def test_a_third_party_sweeper_refuses_what_only_our_plan_knows(
    launches: list[Launch], capfd: pytest.CaptureFixture[str], option: str
) -> None:
    assert train.main(["-m", "hydra/sweeper=basic", "seed=1,2", option]) == 2
    name = option.partition("=")[0]
    assert f"{name} is for the plan that newllm makes, and hydra/sweeper=NAME makes its own" in capfd.readouterr().err
    assert not launches


@pytest.mark.parametrize(
    "option",
    ["seeds=2", "rerun=all", "sweep.retries=1", "hydra.launcher.slots=1", "hydra/sweeper=basic", "hydra.sweep.dir=x"],
)
def test_options_of_sweeps_need_m(runs: list[DictConfig], capfd: pytest.CaptureFixture[str], option: str) -> None:
    assert train.main([option]) == 2
    assert "and this is a single run; add -m, or leave" in capfd.readouterr().err
    assert not runs


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["seed=range(1,1e9)"], "seed=range(1,1e9) has 999,999,999 runs, and a sweep has at most 100,000"),
        (["seeds=1000000000"], "seeds=1000000000 has 1,000,000,000 runs"),
        (["seed=range(1,1000)", "lr=range(1,1000)"], "this sweep has 998,001 runs"),
        (["seed=range(1,inf)"], "expected finite numbers and a step other than 0"),
        (["lr=range(0,1,0.0)"], "expected finite numbers and a step other than 0"),
        (["seed=1,2", "seed=3,4"], "seed is given twice, as seed=1,2 and as seed=3,4; give all its values once"),
        (["lr=1e-3,2e-3", "lr=5e-3"], "lr is given twice"),
        (
            ["seed=1,2", "hydra.sweeper.params.lr='1,2'"],
            "hydra.sweeper.params.lr is of another sweeper; type hydra/sweeper=NAME too",
        ),
        (["seed=1,2", "hydra.sweep.dirr=x"], "did you mean hydra.sweep.dir?"),
        (["zip={lr:[1,2]}"], "zip={lr:[1,2]}: expected a list"),
        (["zip=[{lr:1}]"], "got {lr:1}"),
        (["lr=1e-2", "sweep.grids=[{lr:[1e-3,2e-3]}]"], "lr is given in sweep.grids and beside it"),
    ],
)
def test_sweeps_that_cannot_be_planned(
    launches: list[Launch], capfd: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert train.main(["-m", *words, "dry_run=true"]) == 2
    assert message in capfd.readouterr().err
    assert not launches


# --- the console script ---------------------------------------------------------------------------------------------


def test_verbs(runs: list[DictConfig], capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "seed=5"]) == 0
    assert runs[0].seed == 5
    assert cli.main(["trian"]) == 2
    assert "did you mean newllm train?" in capfd.readouterr().err
    assert cli.main([]) == 0
    assert "newllm train" in capfd.readouterr().out
    assert cli.main(["--version"]) == 0
    assert re.fullmatch(r"newllm \d+\.\d+\.\d+\n", capfd.readouterr().out)


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_verb_explains_itself(verb: str, capfd: pytest.CaptureFixture[str]) -> None:
    try:
        status = cli.main([verb, "--help"])
    except SystemExit as end:  # by argparse
        status = int(end.code or 0)
    assert status == 0
    assert verb in capfd.readouterr().out


def test_completion_knows_verbs_choices_and_keys(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def completed(line: str) -> list[str]:
        monkeypatch.setenv("COMP_LINE", line)
        monkeypatch.setenv("COMP_POINT", str(len(line)))
        assert cli.main(["-sc", "query=bash"]) == 0
        return capfd.readouterr().out.split()

    assert "train" in completed("newllm tr")
    assert "pos_encoding=alibi" in completed("newllm train pos_encoding=al")
    assert "theta=" in completed("newllm train the")


# --- what stays unloaded --------------------------------------------------------------------------------------------


def _python(code: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=cwd, env=env)


@pytest.mark.parametrize("argv", [["--cfg", "job"], ["--help"], ["thta=1"], ["-sc", "query=bash"]])
def test_composition_and_help_load_nothing_heavy(argv: list[str], tmp_path: Path) -> None:
    loaded = f"print(*(m for m in {HEAVY} if m in sys.modules), file=sys.stderr)"
    done = _python(f"import sys; from newllm.train.__main__ import main; main({argv}); {loaded}", tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1].strip() == ""
    assert not any(tmp_path.iterdir())


def test_importing_the_package_loads_neither_torch_nor_hydra(tmp_path: Path) -> None:
    done = _python(
        f"import sys, newllm; print([m for m in {(*HEAVY, 'hydra', 'omegaconf')} if m in sys.modules])",
        tmp_path,
    )
    assert done.stdout.strip() == "[]", done.stderr
