"""`newllm status DIR [RUN …]`: the runs of a sweep as they are, from any shell; their logs; stopping and retrying them.

DIR is a sweep, a folder of sweeps, or a run directory. RUN is a run's name or signature, or a part of its name that no
other run has. The state of each run is found out from its directory, its lock and SLURM, whether or not a launcher is
still alive.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from newllm.errors import ConfigError, Parser, run_command
from newllm.store.run_directory import RunDirectory
from newllm.sweep.launches import launches
from newllm.sweep.run_names import choose
from newllm.sweep.slurm_states import LOGS
from newllm.sweep.survey import Line, counts, runs_in, survey, sweeps_in

if TYPE_CHECKING:
    from rich.console import Console, Group

_MANY = 60  # runs of a sweep above which a terminal shows the first few of each state; a pipe gets all
_FEW = 12
_WIDE = 10_000
_READ_SECONDS = 0.3  # between two looks at a log that is followed
_ASK_SECONDS = {False: 1.0, True: 10.0}  # between two looks at its run's state; True: SLURM is asked
_EPILOG = """\
exit status: 0; 1 if one of the runs shown has failed or can't be read (also with --json and --watch), or if --cancel
could not reach all; 2 for bad input; with --retry, that of the sweep.

--json prints one object:
  folder    DIR
  runs      list; of each: name, path, sweep, state (queued, running, done, failed, interrupted, unreadable), attended
            (a launcher or SLURM has it in hand), attempt, phase (of a first phase, whose iterations the steps are),
            step, steps, epoch, loss, val_ppl, tokens_per_second, seconds (of the latest attempt), seconds_left, host,
            pid, slurm (job id), slurm_state, updated, error, evaluated_from (of an evaluation under other
            settings: the run's name); null where not known
  counts    state -> number of runs
  launches  list, oldest first; of each: sweep, file, backend, launcher (its options), policy, host, pid, alive,
            started, ended, runs
"""

Sweeps = dict[Path, list[Path]]  # sweep folder -> the run directories asked for


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    return run_command(_run, sys.argv[1:] if argv is None else argv)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="newllm status",
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="newllm status DIR [RUN …] [--watch [SECONDS] | --logs [-f] | --cancel | --retry [WHICH] | --json]",
        allow_abbrev=False,
    )
    parser.add_argument("dir", metavar="DIR", type=Path, help="a sweep, a folder of sweeps, or a run directory")
    parser.add_argument("runs", metavar="RUN", nargs="*", help="only these runs")
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--watch", metavar="SECONDS", type=_interval, help="show the table anew every 2 (SECONDS) until all has ended"
    )
    what.add_argument("--logs", action="store_true", help="print the log of the run")
    what.add_argument("--cancel", action="store_true", help="stop the runs: they save, and queued ones do not start")
    what.add_argument(
        "--retry",
        metavar="WHICH",
        choices=("failed", "interrupted", "all"),
        help="start again what has failed (the default), or was interrupted, or all that is not done, with the "
        "launcher and the options of the sweep's latest launch",
    )
    what.add_argument("--json", action="store_true", help="print all that is known, as described below")
    parser.add_argument("-f", "--follow", action="store_true", help="with --logs: go on as the log grows")
    return parser


def _run(argv: list[str]) -> int:
    words = list(argv)
    for i, word in enumerate(words):  # the values for none, so that a RUN may come after these flags
        following = words[i + 1] if i + 1 < len(words) else ""
        if word == "--retry" and following not in ("failed", "interrupted", "all"):
            words[i] = "--retry=failed"
        if word == "--watch" and not following.replace(".", "", 1).isdigit():
            words[i] = "--watch=2"
    options = _parser().parse_intermixed_args(words)
    if options.follow and not options.logs:
        raise ConfigError("-f follows a log; type --logs RUN -f.")
    sweeps = _chosen(options.dir, options.runs)
    if options.logs:
        return _logs(sweeps, options.follow)
    if options.watch:
        return _watch(sweeps, options.watch)
    if options.json:
        return _json(options.dir, sweeps)
    if options.cancel or options.retry:
        from newllm.sweep.control import cancel, retry

        if options.cancel:
            reached = [cancel(sweep, runs, print) for sweep, runs in sweeps.items()]
            return int(not all(reached))
        return max(retry(sweep, runs, options.retry, print) for sweep, runs in sweeps.items())
    surveyed = _survey(sweeps)
    console = _console(soft_wrap=True)  # so that commands can be copied whole
    many = console.is_terminal and max(map(len, surveyed.values())) > _MANY
    console.print(_page(surveyed, _FEW if many else None))
    return _status(surveyed)


def _interval(text: str) -> float:
    if not text.replace(".", "", 1).isdigit() or not 0.1 <= float(text) <= 86400:
        raise ConfigError(f"--watch takes seconds between 0.1 and 86400; {text} was given, try --watch 5.")
    return float(text)


def _chosen(folder: Path, words: Sequence[str]) -> Sweeps:
    """The runs that the command is about, by sweep."""
    sweeps = sweeps_in(folder)
    if not words:
        return sweeps
    chosen = {*choose(words, [path for paths in sweeps.values() for path in paths])}
    return {sweep: kept for sweep, paths in sweeps.items() if (kept := [path for path in paths if path in chosen])}


def _survey(sweeps: Sweeps) -> dict[Path, list[Line]]:
    """The runs, and after each its evaluations under other settings."""
    return {
        sweep: survey(sweep, [path for run in runs for path in (run, *runs_in(run / "evaluations"))])
        for sweep, runs in sweeps.items()
    }


def _status(surveyed: dict[Path, list[Line]]) -> int:
    return int(any(line.state in ("failed", "unreadable") for lines in surveyed.values() for line in lines))


def _console(soft_wrap: bool) -> "Console":
    """As wide as the terminal; what is read by another program is neither cut nor broken."""
    from rich.console import Console

    return Console(highlight=False, soft_wrap=soft_wrap, width=None if sys.stdout.isatty() else _WIDE)


def _page(surveyed: dict[Path, list[Line]], fold: int | None) -> "Group":
    from rich.console import Group
    from rich.text import Text

    from newllm.sweep.table import advice, errors, table, total

    page: list[Text] = []
    for sweep, lines in surveyed.items():
        page += [Text(""), Text(str(sweep), style="bold")] if len(surveyed) > 1 else []
        page += [*table(lines, fold), Text(""), Text(total(lines)), *errors(lines, fold)]
        page += [Text(sentence) for sentence in advice(sweep, lines)]
    return Group(*page)


def _watch(sweeps: Sweeps, seconds: float) -> int:
    """The page, renewed until no run is at work or waits for a launcher that lives; Ctrl-C leaves."""
    from rich.live import Live

    console = _console(soft_wrap=False)
    surveyed = _survey(sweeps)
    try:
        with Live(console=console, auto_refresh=False) as live:
            while True:
                rows = max(2, console.height // (3 * len(surveyed)) - 4)  # so that the few states at a time fit
                live.update(_page(surveyed, rows), refresh=True)
                if not any(line.attended for lines in surveyed.values() for line in lines):
                    break
                time.sleep(seconds)
                surveyed = _survey(sweeps)
    except KeyboardInterrupt:
        pass
    if not console.is_terminal:
        console.print()
    return _status(surveyed)


def _json(folder: Path, sweeps: Sweeps) -> int:
    surveyed = _survey(sweeps)
    runs = [{**asdict(line), "sweep": str(sweep)} for sweep, lines in surveyed.items() for line in lines]
    content = {
        "folder": str(folder),
        "runs": runs,
        "counts": counts(line for lines in surveyed.values() for line in lines),
        "launches": [{"sweep": str(sweep), **launch} for sweep in sweeps for launch in launches(sweep)],
    }
    print(json.dumps(content, indent=2, ensure_ascii=False))
    return _status(surveyed)


def _logs(sweeps: Sweeps, follow: bool) -> int:
    """Print a run's train.log; follow: until the run has ended. What the process of a run that did not end well wrote
    to stderr comes last."""
    runs = [(sweep, path) for sweep, paths in sweeps.items() for path in paths]
    if len(runs) > 1:
        names = ", ".join(path.name for _, path in runs[:4])
        raise ConfigError(f"--logs shows one run's log; name one of {len(runs)}: {names}{' …' * (len(runs) > 4)}")
    ((sweep, run),) = runs
    log, position = RunDirectory(run).log_file, 0
    try:
        while True:
            (line,) = survey(sweep, [run])
            until = time.monotonic() + _ASK_SECONDS[line.slurm is not None]
            position = _print_from(log, position)  # after the survey, so that a run's last words are not missed
            if not (follow and line.attended):
                break
            while time.monotonic() < until:
                time.sleep(_READ_SECONDS)
                position = _print_from(log, position)
    except KeyboardInterrupt:
        if follow:
            return 0
        raise
    others: list[Path] = []
    if line.state != "done" and not line.attended:
        others.append(run / "stderr.log")
        if line.slurm and not log.exists():
            others += sorted((sweep / LOGS).glob(f"{line.slurm}_*log.err"))
    others = [file for file in others if file.is_file() and file.stat().st_size]
    for file in others:
        print(f"--- {file}")
        _print_from(file, 0)
    if not log.exists() and not others:
        why = f": {line.error}" if line.error else "."
        raise ConfigError(f"{run.name} has no log yet, since it has not begun; it is {line.state}{why}")
    return 0


def _print_from(file: Path, position: int) -> int:
    """Print what `file` holds after `position`; returns its length. A log that has become shorter was begun anew."""
    if not file.exists():
        return 0
    with file.open("rb") as stream:
        stream.seek(position if stream.seek(0, 2) >= position else 0)
        sys.stdout.write(stream.read().decode("utf-8", errors="replace"))
        sys.stdout.flush()
        return stream.tell()


if __name__ == "__main__":
    sys.exit(main())
