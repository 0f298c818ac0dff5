"""`newllm evaluate RUN [RUN …] [key=value …]`: evaluate finished runs once more, without training."""

import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from newllm.cli import guarded
from newllm.config.catalog import Catalog
from newllm.config.coercion import coerce
from newllm.errors import ConfigError, NewllmError
from newllm.suggest import did_you_mean

if TYPE_CHECKING:
    from newllm.config.stored import Evaluation, Request
    from newllm.store.run_directory import RunDirectory

    Plans = dict[Path, tuple[RunDirectory, Evaluation]]
    Failures = dict[Path, BaseException]

FLAGS = ("--help", "--config-dir")
_USAGE = """\
Evaluate finished runs once more: nothing is trained, and no number that stands in a run's results ever changes.

  newllm evaluate RUN [RUN …] [eval=[NAME,…]] [GROUP.OPTION=VALUE …]     (or python -m newllm.evaluate …)

RUN is a run directory, or a folder of runs, of which all that are done are evaluated.

Examples
  newllm evaluate outputs/runs/tiny-rope-…                       its own evaluation again: are all numbers the same?
  newllm evaluate outputs/sweeps/lengths eval=[extrapolation]    other numbers, added to the results of each run
  newllm evaluate outputs/sweeps/lengths eval=[extrapolation] eval.extrapolation.lengths=[512,1024]
  newllm evaluate RUN eval=[extrapolation] pos_encoding.scaling=yarn
                                                                 under other settings, kept in RUN/evaluations/…
  newllm evaluate RUN data=text data.path=FILE                   on another text, with the run's own tokenizer

Settings that may be other than in training: eval, data (but the tokenizer), pos_encoding (as far as its weights stay),
runtime, attention.kernel, trainer.precision, trainer.eval_weights. Reports show such an evaluation beside the run.
"""
_OPTIONS = """\
Options
  rerun=true            compute also what has been found before, and compare
  apart=true            keep results in a folder of their own also where only evaluators have other options
  --config-dir FOLDER   YAML files of your own, laid out like conf/
  HYDRA_FULL_ERROR=1    (environment) show tracebacks

Exit status: 0; 1 if a number came out otherwise than it stands, or a run failed (the others go on); 2 for bad input;
130 after Ctrl-C, which leaves everything as it was: the same command goes on with the runs that are left.
"""


@dataclass
class _Command:
    """A command line, sorted."""

    folders: list[str] = field(default_factory=list)
    overrides: list[str] = field(default_factory=list)
    rerun: bool = False
    apart: bool = False
    config_dir: str | None = None
    help: bool = False


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    return guarded(_run, sys.argv[1:] if argv is None else argv)


def _run(argv: list[str]) -> int:
    command = _sorted(argv)
    if command.help:
        from newllm.config.compose import catalog_for

        print(_help(catalog_for(command.config_dir)))
        return 0
    if not command.folders:
        raise ConfigError("no run is given; type newllm evaluate RUN, as in newllm evaluate outputs/runs/tiny-rope-….")
    from newllm.config.stored import request

    asked = request(command.overrides, command.config_dir, command.apart)
    runs, left_out = _found(command.folders)
    plans, failures = _planned(runs, asked)
    if not plans:
        raise next(iter(failures.values()))
    for path, failure in failures.items():
        _complain(path, failure)
    from newllm.training.signals import Interrupted

    try:
        failures |= _evaluate(plans, command.rerun)
    except Interrupted as stop:
        print(f"{stop}. Evaluations that had ended are kept; the same command goes on with the others.")
        return stop.exit_status
    if left_out:
        print(f"Left out, since they are not done: {_listed(left_out)}.")
    if len(runs) > 1:
        print(f"{len(runs) - len(failures)} of {len(runs)} runs evaluated.")
        if failures:
            print(f"newllm: failed: {_listed([*failures])}.", file=sys.stderr)
    return int(bool(failures))


def _planned(runs: Sequence[Path], asked: "Request") -> tuple["Plans", "Failures"]:
    """Every run's evaluation, composed and checked before the first one begins; and the runs that cannot have it."""
    from newllm.config.stored import evaluation
    from newllm.run.finished import finished_run, stored

    plans: Plans = {}
    failures: Failures = {}
    for path in runs:
        try:
            run = finished_run(path)
            plans[path] = (run, evaluation(stored(run), asked))
        except NewllmError as error:
            failures[path] = error
    return plans, failures


def _evaluate(plans: "Plans", rerun: bool) -> "Failures":
    """One after the other; returns those that failed. The failure of the only one is raised."""
    from newllm.run.reevaluate import Again
    from newllm.training.signals import Signals

    failures: Failures = {}
    with Signals().installed() as signals:
        for path, (run, evaluation) in plans.items():
            try:
                Again(run, evaluation, rerun, signals).metrics()
            except Exception as error:
                if len(plans) == 1:
                    raise
                _complain(path, error)
                failures[path] = error
    return failures


def _complain(path: Path, error: BaseException) -> None:
    if os.environ.get("HYDRA_FULL_ERROR") == "1" or not isinstance(error, NewllmError):
        traceback.print_exception(error)
    said = str(error) if isinstance(error, NewllmError) else type(error).__name__
    print(f"newllm: {path.name}: {said}", file=sys.stderr)


def _sorted(argv: Sequence[str]) -> _Command:
    command, words = _Command(), list(argv)
    while words:
        word = words.pop(0)
        flag, equals, value = word.partition("=")
        if word in ("-h", "--help"):
            command.help = True
        elif flag == "--config-dir":
            if not equals and not words:
                raise ConfigError("--config-dir needs a folder, as in --config-dir my_conf.")
            command.config_dir = value if equals else words.pop(0)
        elif word.startswith("-"):
            raise ConfigError(f"{flag} is no flag of newllm evaluate; {did_you_mean(flag, FLAGS)}.")
        elif Path(word).is_dir():
            command.folders.append(word)
        elif flag in ("rerun", "apart"):
            setattr(command, flag, _truth(word, value))
        elif equals or word.startswith("~"):
            command.overrides.append(word)
        else:
            raise ConfigError(f"{word}: no such folder; expected a run directory, a folder of runs, or key=value.")
    return command


def _truth(word: str, value: str) -> bool:
    try:
        return bool(coerce({"true": True, "false": False}.get(value.lower(), value), bool))
    except ValueError as error:
        raise ConfigError(f"{word}: {error}.") from None


def _found(folders: Sequence[str]) -> tuple[list[Path], list[Path]]:
    """The runs to evaluate, each once; and those in folders of runs that are not done."""
    from newllm.analysis.frame import find_runs
    from newllm.store.run_directory import RunDirectory, evaluated_run

    runs: dict[Path, Path] = {}
    left_out = []
    for folder in map(Path, folders):
        if (folder / "config.yaml").exists():
            runs.setdefault(folder.resolve(), folder)
            continue
        inside = [path for path in find_runs(folder) if evaluated_run(path) is None]
        done = [path for path in inside if RunDirectory(path).is_done()]
        left_out += [path for path in inside if path not in done]
        if not done:
            which = f"{len(inside)} runs, of which none is done" if inside else "no run"
            raise ConfigError(f"{folder} holds {which}; newllm status {folder} shows what there is.")
        for path in done:
            runs.setdefault(path.resolve(), path)
    return list(runs.values()), left_out


def _listed(paths: Sequence[Path]) -> str:
    names = [path.name for path in paths]
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _help(catalog: Catalog) -> str:
    """Usage, and the evaluators with what their files say."""
    lines = [f"  {name:<16} {catalog.describe('eval', name)}".rstrip() for name in catalog.groups["eval"]]
    return "\n".join([_USAGE, "Evaluators (eval=[…])", *lines, "", _OPTIONS.rstrip()])


if __name__ == "__main__":
    raise SystemExit(main())
