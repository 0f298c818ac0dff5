"""Shell completion: what it offers, in every shell, and that it imports nothing heavy."""

import os
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from newllm import completion
from newllm.cli import MODULES, VERBS
from newllm.completion import FLAGS, complete
from newllm.errors import Parser


@pytest.mark.parametrize(
    ("line", "offered", "not_offered"),
    [
        ("tr", ["train"], ["status"]),
        ("train pos_en", ["pos_encoding=", "pos_encoding."], ["theta="]),
        ("train pos_encoding=ali", ["pos_encoding=alibi", "pos_encoding=alibi_per_head"], ["pos_encoding=rope"]),
        ("train pos_encoding=rope,al", ["pos_encoding=rope,alibi"], ["pos_encoding=rope,rope", "alibi"]),
        ("train -m pos_encoding=rope,", ["pos_encoding=rope,nope"], ["pos_encoding=rope,rope"]),
        ("train eval=", ["eval=[loss", "eval=[extrapolation"], ["eval=loss"]),
        ("train eval=[lo", ["eval=[loss"], ["eval=[rank"]),
        ("train eval=[loss,po", ["eval=[loss,position"], ["eval=[loss,loss"]),
        (
            "train pos_encoding=alibi pos_encoding.",
            ["pos_encoding.slope="],
            ["pos_encoding.theta=", "pos_encoding._target_="],
        ),
        ("train pos_encoding=rope,alibi pos_encoding.", ["pos_encoding.slope=", "pos_encoding.theta="], []),
        ("train model.hid", ["model.hidden_size="], ["model._target_="]),
        ("train eval.", ["eval.loss."], ["eval.extrapolation."]),
        ("train eval=[extrapolation] eval.extrapolation.le", ["eval.extrapolation.lengths="], []),
        ("train pos_encoding=rope_list pos_encoding.frequencies.", ["pos_encoding.frequencies.family="], []),
        ("train see", ["seed=", "seeds="], ["seq_len="]),
        ("train dry_run=", ["dry_run=true", "dry_run=false"], []),
        ("train rerun=", ["rerun=failed", "rerun=none"], ["rerun=true"]),
        ("train runtime.progress=f", ["runtime.progress=false"], ["runtime.progress=true"]),
        ("train hydra/launcher=", ["hydra/launcher=local", "hydra/launcher=slurm"], ["hydra/launcher=basic"]),
        ("train hydra/launcher=slurm hydra.launcher.par", ["hydra.launcher.partition="], ["hydra.launcher.slots="]),
        ("train hyd", ["hydra/launcher=", "hydra.sweep.dir=", "hydra.launcher."], ["hydra/sweeper=", "hydra/help="]),
        ("train --c", ["--cfg", "--config-dir"], ["--resolve"]),
        ("train --cfg ", ["job", "hydra", "all"], ["train"]),
        ("train --config-dir ", ["outputs/"], ["notes.txt"]),
        ("train --config-dir outputs pos_encoding=m", ["pos_encoding=mine"], []),
        ("train data.path=", ["data.path=outputs/", "data.path=notes.txt"], []),
        ("train na", ["name="], []),
        ("evaluate outputs/", ["outputs/sweeps/"], ["outputs/notes.txt"]),
        ("evaluate outputs/ ", ["outputs/", "eval=", "trainer.precision=", "data.", "rerun="], ["seed=", "model="]),
        ("evaluate outputs data.", ["data.path="], ["data.tokenizer=", "data.vocab_size="]),
        ("evaluate outputs eval=[ext", ["eval=[extrapolation"], []),
        ("evaluate outputs eval=[extrapolation] eval.extrapolation.", ["eval.extrapolation.lengths="], []),
        ("evaluate outputs --c", ["--config-dir"], ["--cfg"]),
        ("status ", ["outputs/", "name=", "tags="], ["train"]),
        ("status outputs --retry ", ["failed", "interrupted", "all"], []),
        ("status outputs --", ["--watch", "--logs", "--cancel", "--retry", "--json"], ["--cfg"]),
        ("report outputs base", ["baseline="], ["outputs/"]),
        ("report outputs verdict=", ["verdict=interval", "verdict=published"], []),
        ("generate out", ["outputs/"], ["optim="]),
        ("generate outputs --m", ["--max-new-tokens"], []),
        ("frequencies ou", ["out="], ["outputs/"]),
        ("conformance pos_encoding=no", ["pos_encoding=nope"], []),
        ("bench de", ["decode"], []),
        ("nonsense a", [], []),
    ],
)
def test_what_is_offered(
    line: str, offered: list[str], not_offered: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs" / "sweeps").mkdir(parents=True)
    (tmp_path / "outputs" / "pos_encoding").mkdir()
    (tmp_path / "outputs" / "pos_encoding" / "mine.yaml").write_text("_target_: mine.Mine\n")
    for file in (tmp_path / "notes.txt", tmp_path / "outputs" / "notes.txt"):
        file.touch()
    found = complete(line.split(" "), tmp_path, VERBS)
    assert {*offered} <= {*found}
    assert not {*not_offered} & {*found}
    assert not [word for word in found if "_target_" in word]


def test_runs_of_a_folder_are_offered_by_name_and_number(tmp_path: Path) -> None:
    for name in ("tiny-rope-s1-0123abcd", "tiny-alibi-s1-4567abcd"):
        (tmp_path / "outputs" / name).mkdir(parents=True)
        (tmp_path / "outputs" / name / "config.yaml").touch()
    assert sorted(complete(["generate", "outputs:"], tmp_path, VERBS)) == ["outputs:alibi", "outputs:rope"]
    assert complete(["status", "outputs:r"], tmp_path, VERBS) == ["outputs:rope"]
    assert complete(["compare", "outputs:1"], tmp_path, VERBS) == ["outputs:1"]
    assert complete(["evaluate", ":al"], tmp_path, VERBS) == [":alibi"]


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "bench"])
def test_flags_are_those_of_the_command(verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each command's parser is looked at when it parses."""
    found: dict[str, list[str]] = {}

    def parse(self: Parser, *arguments: object) -> None:
        found.update({flag: [*map(str, a.choices or [])] for flag, a in self._option_string_actions.items()})
        raise SystemExit(0)

    for method in ("parse_args", "parse_intermixed_args"):
        monkeypatch.setattr(Parser, method, parse)
    module = MODULES.get(verb, f"newllm.{verb}")
    try:
        import_module(module).main(["x"])
    except SystemExit:
        long = {flag for flag in found if flag.startswith("--")} | {"--help"}
        assert long == {*FLAGS[verb]}
        for flag, following in FLAGS[verb].items():
            assert not found.get(flag) or " ".join(found[flag]) == following


def test_the_shells_get_words_that_fit_what_they_replace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    breaks = " \t\n\"'><=;|&(:"

    def offered(shell: str, line: str) -> list[str]:
        return completion.answer(shell, line, breaks, VERBS)

    assert offered("bash", "LR=1 newllm train pos_encoding=rope,alibi_") == ["rope,alibi_per_head"]
    assert offered("bash", "newllm train 'eval=[loss,posi") == ["eval=[loss,position"]
    assert offered("bash", "newllm train --pack") == ["--package "]
    for name in ("a $(b)", "line\nbreak"):  # a shell would execute the first
        (tmp_path / name).mkdir()
    assert offered("bash", "newllm status ")[:1] == ["a\\ \\$\\(b\\)/"]
    assert offered("bash", 'newllm status "a') == offered("zsh", "newllm status li") == []
    assert offered("zsh", "newllm train pos_encoding=rope,alibi_") == ["pos_encoding=rope,alibi_per_head"]
    assert offered("zsh", "newllm train eval=\\[loss,posi") == ["eval=[loss,position"]
    assert offered("fish", "newllm sta") == ["status"]
    assert offered("fish", "newllm he") == ["help"]
    (tmp_path / "newllm").write_text(f'#!/bin/sh\nexec {sys.executable} -m newllm.cli "$@"\n')
    (tmp_path / "newllm").chmod(0o755)
    source = Path(completion.__file__).parents[1]
    path = os.pathsep.join([str(source), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": path}
    typed = "newllm train eval=[lo"
    scripts = {
        "bash": f'eval "$(newllm -sc install=bash)"; COMP_LINE="{typed}" COMP_POINT=99 COMP_CWORD=2 _newllm; '
        'printf "%s\\n" "${COMPREPLY[@]}"',
        "fish": f'newllm -sc install=fish | source; complete -C "{typed}"',
    }
    for shell, commands in scripts.items():
        if found := shutil.which(shell):
            done = subprocess.run(
                [found, "-c", commands], capture_output=True, text=True, env=environment, cwd=tmp_path
            )
            assert done.stdout.split() == [{"bash": "[loss", "fish": "eval=[loss"}[shell]], done.stderr


def test_it_imports_nothing_heavy() -> None:
    code = (
        "import sys; from newllm.cli import main; main(['-sc', 'query=bash']); "
        "print({'torch', 'hydra', 'transformers', 'pandas', 'rich'} & {*sys.modules})"
    )
    environment = {**os.environ, "COMP_LINE": "newllm train pos_encoding=rope pos_encoding.sca", "COMP_WORDBREAKS": "="}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout == "pos_encoding.scaling=\nset()\n", done.stderr
