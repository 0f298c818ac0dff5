"""Whose code runs: a run directory that someone else has written executes nothing but newllm's own classes."""

import os
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from newllm import generate, trust
from newllm.config import compose, effective
from newllm.data.tokenizer import train_bpe
from newllm.errors import ConfigError
from newllm.evaluate import evaluate
from newllm.model import build_model
from newllm.run.evaluation_plan import plan_evaluation
from newllm.run.load import load_run
from newllm.store.run_directory import RunDirectory

EVIL = "from pathlib import Path\nPath({mark!r}).touch()\ndef f(dim): ...\nclass Model: ...\n"
OWN_WAVES = """\
from newllm.position.encoding import PositionEncoding
class Wave: ...
def wave(): ...
class Odd(PositionEncoding):
    def __init__(self): raise ValueError("odd")
"""
SHELL = {"_target_": "subprocess.getoutput", "cmd": "touch MARK"}


@pytest.fixture
def mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that appears when the modules of a stranger, which are importable, are executed."""
    mark = tmp_path / "MARK"
    (tmp_path / "evil").mkdir()
    for file in ("evil/__init__.py", "evil/inner.py", "sitting_here.py"):
        (tmp_path / file).write_text(EVIL.format(mark=str(mark)))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv("NEWLLM_TRUST", raising=False)
    monkeypatch.chdir(tmp_path)
    return mark


@cache
def configuration() -> dict[str, Any]:
    return effective(compose(["model=tiny", "eval=[loss]"]))


def run_of_a_stranger(folder: Path, **nodes: Any) -> Path:
    directory = RunDirectory(folder)
    directory.freeze(configuration() | nodes)
    directory.update_status(state="done")
    directory.write_results({"val/ppl": 50.0})
    (folder / "tokenizer").mkdir()
    train_bpe(["Four score and seven years ago"], 300).save(folder / "tokenizer")
    return folder


@pytest.mark.parametrize(
    "target",
    [
        "subprocess.getoutput", "evil.Model", "evil.inner.Model", "sitting_here.Model", "os.system", "builtins.exec",
        "newllm.store.environment.subprocess.getoutput", "newllm.config.values.import_module", "newllm.cli.main",
        "newllm.store.atomic.write_text", "newllm.errors", "newllm.evaluation.loss.Loss", "newllm.model.language_model",
        "newllm.model.LanguageModel.load_state_dict", "torch.load", "evil", "", "newllm..position",
        "tests.support.small_runs.SlowLogger", "hydra.utils.instantiate", "NEWLLM.x", "${oc.env:HOME}",
    ],
)  # fmt: skip
def test_only_models_of_newllm_are_imported_for_a_model(mark: Path, target: str) -> None:
    imported = {*sys.modules}
    run = run_of_a_stranger(mark.parent / "run", model={"_target_": target, "cmd": f"touch {mark}"})
    for read in (lambda: load_run(run).model, lambda: evaluate(run)):
        with pytest.raises(ConfigError):
            read()
    assert generate.main([str(run), "hi"]) == 2
    assert not mark.exists()
    assert not {name for name in {*sys.modules} - imported if name.startswith(("evil", "sitting_here", "tests"))}


@pytest.mark.parametrize(
    "nodes",
    [
        {"pos_encoding": {"_target_": "newllm.position.Sum", "parts": {"a": SHELL}}},
        {"pos_encoding": {"_target_": "newllm.position.Sum", "parts": {"a": {"_target_": "evil.Model"}}}},
        {"pos_encoding": {"_target_": "newllm.position.Rope", "frequencies": "evil.f"}},
        {"pos_encoding": {"_target_": "newllm.position.Rope", "frequencies": {"family": "evil.inner.f"}}},
        {"pos_encoding": {"_target_": "newllm.position.Rope", "_partial_": True, "_args_": [SHELL]}},
        {"attention": {"_target_": "evil.inner.Model"}},
        {"attention": SHELL},
        {"data": {"_target_": "evil.Model", "seq_len": 128, "tokenizer": "auto"}},
        {"eval": {"loss": SHELL}},
        {"eval": {"loss": {"_target_": "newllm.position.NoPE"}}},
        {"optim": {"_target_": "evil.Model"}},
        {"trainer": {"_target_": "evil.Model", "seed": 1, "precision": "fp32", "eval_weights": "best"}},
        {"runtime": {"_target_": "evil.Model", "threads": 1}},
        {"model": {"_target_": ["evil.Model"]}},
        {"model": {"cmd": "no target"}},
        {"trainer": {"seed": 1}},
        {"data": None},
        {"eval": "loss"},
        {"choices": "subprocess"},
        {"choices": {"eval": SHELL}},
        {"overrides": 3},
        {"groups": {"model": {"paths": 3}}},
        {"content": {"data.tokens": "ab"}},
    ],
)
def test_no_part_of_a_stranger_s_run_is_imported(mark: Path, nodes: dict[str, Any]) -> None:
    run = run_of_a_stranger(mark.parent / "run", **nodes)
    with pytest.raises(ConfigError):
        evaluate(run)
    assert not mark.exists()
    assert "evil" not in sys.modules


def test_a_run_s_configuration_reads_no_environment_variable(mark: Path) -> None:
    run = run_of_a_stranger(mark.parent / "run", data={"path": "${oc.env:HOME}"})
    with pytest.raises(ConfigError, match=r"has a reference, \$\{oc.env:HOME\}, for a value"):
        load_run(run)


def test_the_choices_of_a_run_add_no_folder_of_yaml_files(mark: Path) -> None:
    (mark.parent / "conf/eval").mkdir(parents=True)
    (mark.parent / "conf/eval/loss.yaml").write_text("_target_: evil.Model\n")
    run = run_of_a_stranger(mark.parent / "run")
    config = RunDirectory(run).config()
    config["choices"]["hydra.searchpath"] = [f"file://{mark.parent}/conf"]
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    plan_evaluation(run, ["eval=[loss,accuracy]", "theta=500"])
    assert not mark.exists()
    assert "evil" not in trust.named()


def test_the_message_advises_nobody_to_trust_python_s_own_modules(mark: Path) -> None:
    run = run_of_a_stranger(mark.parent / "run", pos_encoding=SHELL)
    with pytest.raises(ConfigError, match=r"subprocess is a module of Python, and no config.*; do not use this conf"):
        evaluate(run)


def test_the_message_says_what_to_set(mark: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of_a_stranger(mark.parent / "run", pos_encoding={"_target_": "evil.inner.Model"})
    with pytest.raises(ConfigError, match=r"set NEWLLM_TRUST=evil or type --config-dir FOLDER\.$"):
        evaluate(run)
    monkeypatch.setenv("NEWLLM_TRUST", "other, evil")
    with pytest.raises(ConfigError, match="expected a PositionEncoding"):
        _ = load_run(run).model
    assert mark.exists(), "a package that the user names is imported"
    for name in [name for name in sys.modules if name.partition(".")[0] == "evil"]:
        del sys.modules[name]


def test_whoever_types_a_target_trusts_its_package_and_so_do_processes_started_then(
    mark: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEWLLM_TRUST", "")
    compose(["pos_encoding.frequencies=evil.f"])
    assert os.environ["NEWLLM_TRUST"] == "evil"
    assert not mark.exists(), "nothing is imported before it is needed"


@pytest.mark.parametrize(
    ("yaml_text", "message"),
    [
        ("_target_: own_waves.Wave\n\tau: 1\n", r"own\.yaml, line 2: this is not valid YAML \(found character"),
        ("_target_: own_waves.Wave\ntau: 1\ntau: 2\n", r"own\.yaml, line 3: this is not valid YAML \(found duplicate"),
        ("", r"own\.yaml has no _target_; it must name the class of pos_encoding=own"),
        ("_target_: own_wave.Wave\n", r"no module own_wave in .*/it's \[mine\], ok \(--config-dir\) or among the inst"),
        ("_target_: own_waves.Wav\n", "there is no Wav in own_waves; did you mean Wave"),
        (
            "_target_: own_waves.Odd\n",
            r"own_waves.Odd can't be made with these options: ValueError: odd \(.*py, line 5\)",
        ),
        ("_target_: own_waves.wave\n", "own_waves.wave is not a class that can be used here; expected a PositionEnc"),
    ],
)
def test_a_mistake_in_a_folder_of_one_s_own_is_found_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, yaml_text: str, message: str
) -> None:
    monkeypatch.setenv("NEWLLM_TRUST", "")
    monkeypatch.setattr(sys, "path", [*sys.path])
    sys.modules.pop("own_waves", None)
    folder = tmp_path / "it's [mine], ok"
    (folder / "pos_encoding").mkdir(parents=True)
    (folder / "own_waves.py").write_text(OWN_WAVES)
    (folder / "pos_encoding/own.yaml").write_text(yaml_text)
    with pytest.raises(ConfigError, match=message):
        build_model(compose(["pos_encoding=own"], config_dir=folder), tokens=300)
    with pytest.raises(ConfigError, match="slope is an axis of"):  # a broken file does not hide another mistake
        compose(["slope=3"], config_dir=folder)
    assert trust.code_folder() == folder
    compose()
    assert trust.code_folder() is None, "a later call without config_dir uses no earlier one"


@pytest.mark.parametrize("name", ["random", "datasets", "newllm"])
def test_a_module_of_one_s_own_hides_no_other(tmp_path: Path, name: str) -> None:
    (tmp_path / f"{name}.py").touch()
    with pytest.raises(ConfigError, match=f"{name} is the name of another module; rename this one"):
        compose([], config_dir=tmp_path)


def test_a_package_whose_modules_lie_deeper_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEWLLM_TRUST", "")
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(trust, "_config_dirs", [])
    for folder in ("deep_waves/inner", "pos_encoding"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "deep_waves/inner/wave.py").write_text("class Wave:\n    def __init__(self, tau: int = 2): ...\n")
    (tmp_path / "pos_encoding/deep.yaml").write_text("_target_: deep_waves.inner.wave.Wave\ntau: 2\n")
    assert compose(["pos_encoding=deep"], config_dir=tmp_path).pos_encoding.tau == 2


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["pos_encoding/rope.yaml"], "rope.yaml is not read, since newllm has a file of that name; rename yours"),
        (["train.yaml"], "train.yaml is not read"),
        (["pos_encodings/own.yaml"], r"there is no such pos_encoding, nor .*/pos_encoding/own.yaml; expected one of"),
    ],
)
def test_a_file_of_one_s_own_that_nothing_reads_is_named(tmp_path: Path, files: list[str], message: str) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("_target_: newllm.position.Alibi\nslope: 1.0\n")
    with pytest.raises(ConfigError, match=message):
        compose(["pos_encoding=own"], config_dir=tmp_path)
