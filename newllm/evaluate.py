"""`newllm evaluate RUN [RUN …] [key=value …]`: evaluate finished runs again, without training."""

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from newllm.config.catalog import Catalog
from newllm.errors import ConfigError, NewllmError, run_command
from newllm.suggest import did_you_mean

if TYPE_CHECKING:
    from newllm.config.reevaluation import Evaluation
    from newllm.store.run_directory import RunDirectory

FLAGS = ("--help", "--config-dir")
_USAGE = """\
Evaluate finished runs again: nothing is trained, and no number that stands in a run's results ever changes.

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


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    return run_command(_run, sys.argv[1:] if argv is None else argv)


def _run(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("words", nargs="*")
    parser.add_argument("-h", "--help", action="store_true")
    parser.add_argument("--config-dir", nargs="?", const="")
    options, unknown = parser.parse_known_intermixed_args(argv)
    if unknown:
        raise ConfigError(f"{unknown[0]} is no flag of newllm evaluate; {did_you_mean(unknown[0], FLAGS)}.")
    if options.config_dir == "":
        raise ConfigError("--config-dir needs a folder, as in --config-dir my_conf.")
    from newllm.config.reevaluation import read

    if options.help:
        print(_help(read([], options.config_dir).catalog))
        return 0
    folders, overrides, switches = _sorted(options.words)
    if not folders:
        raise ConfigError("no run is given; type newllm evaluate RUN, as in newllm evaluate outputs/runs/tiny-rope-….")
    read(overrides, options.config_dir)  # what holds for no run is said once
    runs, left_out = _found(folders)
    return _evaluate(runs, left_out, overrides, options.config_dir, **switches)


def _evaluate(
    runs: Sequence[Path],
    left_out: Sequence[Path],
    overrides: Sequence[str],
    config_dir: str | None,
    rerun: bool = False,
    apart: bool = False,
) -> int:
    """Plan every run's evaluation before the first one begins, then do one after the other; returns the exit status."""
    from newllm.run.finished import plan_evaluation

    plans: dict[Path, tuple[RunDirectory, Evaluation]] = {}
    failures: dict[Path, Exception] = {}
    for path in runs:
        try:
            plans[path] = plan_evaluation(path, overrides, config_dir, apart)
        except NewllmError as error:
            failures[path] = error
    if not plans:
        raise next(iter(failures.values()))
    for path, failure in failures.items():
        _complain(path, failure)

    from newllm.run.reevaluate import reevaluate
    from newllm.training.signals import Interrupted, Signals

    try:
        with Signals().installed() as signals:
            for path, (run, asked) in plans.items():
                try:
                    reevaluate(run, asked, rerun, signals)
                except Exception as error:
                    if len(plans) == 1:
                        raise
                    _complain(path, error)
                    failures[path] = error
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


def _complain(path: Path, error: BaseException) -> None:
    if os.environ.get("HYDRA_FULL_ERROR") == "1" or not isinstance(error, NewllmError):
        traceback.print_exception(error)
    said = str(error) if isinstance(error, NewllmError) else type(error).__name__
    print(f"newllm: {path.name}: {said}", file=sys.stderr)


def _sorted(words: Sequence[str]) -> tuple[list[str], list[str], dict[str, bool]]:
    """Folders, overrides, and the command's own switches."""
    folders, overrides, switches = [], [], {}
    for word in words:
        name, equals, value = word.partition("=")
        if Path(word).is_dir():
            folders.append(word)
        elif name in ("rerun", "apart"):
            if value.lower() not in ("true", "false"):
                raise ConfigError(f"{word}: expected true or false.")
            switches[name] = value.lower() == "true"
        elif equals or word.startswith("~"):
            overrides.append(word)
        else:
            raise ConfigError(f"{word}: no such folder; expected a run directory, a folder of runs, or key=value.")
    return folders, overrides, switches


def _found(folders: Sequence[str]) -> tuple[list[Path], list[Path]]:
    """The runs to evaluate, each once; and those in folders of runs that are not done."""
    from newllm.store.run_directory import RunDirectory, evaluated_run, find_runs

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
