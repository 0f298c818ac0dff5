"""`newllm evaluate RUN [RUN …] [key=value …]`: evaluate finished runs again, without training."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from newllm.config.compose import catalog_for
from newllm.errors import ConfigError, Interrupted, NewllmError, Parser, print_error, run_command
from newllm.store.run_directory import RunDirectory, evaluated_run, is_run
from newllm.store.run_names import find_runs, located, short_names
from newllm.streams import go_on_without_output, visible
from newllm.suggest import listed

_USAGE = """\
Evaluate finished runs again. Nothing is trained, and stored results never change.

  newllm evaluate RUN [RUN …] ['eval=[NAME,…]'] [GROUP.OPTION=VALUE …]     (or python -m newllm.evaluate …)

RUN is a run directory, or a folder of runs; then all finished runs in it are evaluated.

Examples
  newllm evaluate outputs/runs/nano-rope-…                       repeat its own evaluation and compare all numbers
  newllm evaluate outputs/sweeps/lengths 'eval=[extrapolation]'    add metrics to the results of each run
  newllm evaluate outputs/sweeps/lengths 'eval=[extrapolation]' 'eval.extrapolation.lengths=[512,1024]'
  newllm evaluate RUN 'eval=[extrapolation]' pos_encoding.scaling=yarn
                                                                 other settings, stored in RUN/evaluations/…
  newllm evaluate RUN data=text data.path=FILE                   on another text, with the run's own tokenizer

Settings that may differ from training: eval, data (except the tokenizer), pos_encoding (if the weights stay the same),
runtime, attention.kernel, trainer.precision, trainer.eval_weights. Reports show such an evaluation as a separate run.
"""
SHOWN_METRICS = 6  # columns of the table that ends an evaluation of several runs

_OPTIONS = """\
Options
  rerun=true            compute stored results again, and compare
  --config-dir FOLDER   YAML files of your own, laid out like conf/
  HYDRA_FULL_ERROR=1    (environment) show tracebacks

Exit status: 0; 1 if a result differs from the stored one, or a run failed (the others continue); 2 for bad input;
130 after Ctrl-C, which changes no results: the same command continues with the remaining runs.
"""


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    return run_command(_run, argv)


def _run(argv: list[str]) -> int:
    parser = Parser(prog="newllm evaluate", add_help=False, allow_abbrev=False)
    parser.add_argument("words", nargs="*")
    parser.add_argument("-h", "--help", action="store_true")
    parser.add_config_dir()
    options = parser.parse_intermixed_args(argv)
    if options.help:
        catalog = catalog_for(options.config_dir)
        lines = [f"  {name:<16} {catalog.describe('eval', name)}".rstrip() for name in catalog.groups["eval"]]
        print("\n".join([_USAGE, "Evaluators ('eval=[…]')", *lines, "", _OPTIONS.rstrip()]))
        return 0
    folders, overrides, rerun = [], [], False
    for word in options.words:
        if Path(word).is_dir():
            folders.append(Path(word))
        elif word.startswith("rerun="):
            if word.lower() not in ("rerun=true", "rerun=false"):
                raise ConfigError(f"{word}: expected true or false.")
            rerun = word.lower() == "rerun=true"
        elif "=" in word or word.startswith("~"):
            overrides.append(word)
        elif (folder := located(word)).is_dir():
            folders.append(folder)
        else:
            raise ConfigError(f"{word}: no such folder; expected a run directory, a folder of runs, or key=value.")
    if not folders:
        raise ConfigError("no run is given; type newllm evaluate RUN, as in newllm evaluate outputs/runs/nano-rope-….")

    from newllm.run.evaluation_plan import EvaluationPlan, parse_overrides, plan_evaluation

    parse_overrides(overrides, options.config_dir)  # an error that concerns every run is raised once
    runs, unfinished = _find_runs(folders)
    plans: dict[Path, EvaluationPlan] = {}  # all are planned before the first one starts
    failures: dict[Path, Exception] = {}
    measured: dict[Path, dict[str, float]] = {}
    for path in runs:
        try:
            plans[path] = plan_evaluation(path, overrides, options.config_dir)
        except NewllmError as error:
            failures[path] = error
    if not plans:
        raise next(iter(failures.values()))
    for path, failure in failures.items():
        print_error(failure, path.name)

    go_on_without_output()
    from newllm.run.reevaluate import reevaluate
    from newllm.training.signals import Signals

    try:
        with Signals().installed() as signals:
            for path, plan in plans.items():
                try:
                    measured[path] = reevaluate(plan, rerun, signals)
                except Exception as error:
                    if len(plans) == 1:
                        raise
                    print_error(error, path.name)
                    failures[path] = error
    except Interrupted as stop:
        print(f"{stop}. Finished evaluations are kept; the same command continues with the others.")
        return stop.exit_status
    if unfinished:
        print(f"Skipped, not done: {listed([path.name for path in unfinished])}.")
    if len(runs) > 1:
        _show_together(measured)
        print(f"{len(runs) - len(failures)} of {len(runs)} runs evaluated.")
        if failures:
            print(visible(f"newllm: failed: {listed([path.name for path in failures])}."), file=sys.stderr)
    return int(bool(failures))


def _show_together(measured: Mapping[Path, Mapping[str, float]]) -> None:
    """One table of the metrics that differ among the runs, so that nobody has to scroll back."""
    from newllm.console import Console, number

    names = dict.fromkeys(name for metrics in measured.values() for name in metrics)
    differ = [name for name in names if len({metrics.get(name) for metrics in measured.values()}) > 1]
    shown = differ[:SHOWN_METRICS]
    short = short_names(path.name for path in measured)
    rows = [
        {"run": short[path.name], **{name: number(metrics.get(name)) for name in shown}}
        for path, metrics in measured.items()
    ]
    more = len(differ) - len(shown)
    lines = [f"and {more} more metrics that differ, in the results of each run"] if more else []
    if len(rows) > 1 and shown:
        Console().section("All runs", [rows, *lines])


def _find_runs(folders: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """The runs to evaluate, each once; and the runs that are skipped since they are not done."""
    runs: dict[Path, Path] = {}
    unfinished = []
    for folder in folders:
        done = inside = [folder]
        if not is_run(folder):
            inside = [path for path in find_runs(folder) if evaluated_run(path) is None]
            done = [path for path in inside if _may_be_done(path)]
            unfinished += [path for path in inside if path not in done]
        if not done:
            if not inside:
                raise ConfigError(f"{folder} has no runs.")
            raise ConfigError(f"{folder} has {len(inside)} runs, none of them done; newllm status {folder} lists them.")
        for path in done:
            runs.setdefault(path.resolve(), path)
    return list(runs.values()), unfinished


def _may_be_done(path: Path) -> bool:
    try:
        return RunDirectory(path).is_done()
    except ConfigError:  # said when its evaluation is planned, and the others go on
        return True


if __name__ == "__main__":
    raise SystemExit(main())
