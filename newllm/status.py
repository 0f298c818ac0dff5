"""`newllm status [DIR] [RUN …]`: show the runs of a sweep from any shell, print their logs, stop or retry them.

DIR is a sweep, a folder of sweeps, or a run directory; outputs/ if left out. RUN is a run's number in the table, its
name or signature, or a part of its name that no other run has. name=TEXT and notes=TEXT choose the runs whose labels
contain that text, tags=TAG those that have that tag. The state of each run is read from its directory, its lock and
SLURM, whether or not a launcher is still alive.

All commands take DIR:RUN for a run directory, as in newllm generate outputs/sweeps/seed:3 "Once", and RUN for one in
outputs/.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.live import Live

from newllm.console import Screen
from newllm.errors import ConfigError, Parser, run_command
from newllm.labels import LABELS, fits
from newllm.store.intact import is_file
from newllm.store.run_directory import RunDirectory
from newllm.store.run_names import choose, located, numbered, runs_in
from newllm.sweep.display import page
from newllm.sweep.launches import launches
from newllm.sweep.slurm_states import LOGS
from newllm.sweep.state import RunState, count_states, read_states

_MANY = 60  # runs of a sweep above which a terminal shows the first few of each state; a pipe gets all
_FEW = 12
_WIDE = 10_000
_RETRY = ("failed", "interrupted", "all")
_EPILOG = """\
exit status: 0; 1 if one of the runs shown has failed or cannot be read (also with --json and --watch), or if --cancel
could not reach all; 2 for bad input; 130 after Ctrl-C; with --retry, that of the sweep.

--json prints one object:
  folder    DIR
  runs      list; of each: number, name, path, sweep, state (queued, running, done, failed, interrupted, unreadable),
            attended (a process, a living launcher or SLURM takes care of it), attempt, phase (the first phase it is in,
            whose iterations the steps are), step, steps, epoch, loss, val_ppl, tokens_per_second, seconds (of the
            latest attempt), seconds_left, host, pid, slurm (job id), slurm_state, updated, error, evaluated_from (of an
            evaluation under other settings: the run's name), labels (name, tags, notes); null where not known
  counts    state -> number of runs
  launches  list, oldest first; of each: sweep, file, backend, launcher (its options), policy, host, pid, alive,
            started, ended, runs
"""


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    return run_command(_run, argv)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="newllm status",
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="newllm status [DIR] [RUN …] [name=TEXT] [tags=TAG,…] [notes=TEXT]\n"
        "                     [--watch [SECONDS] | --logs [-f] | --cancel | --retry [WHICH] | --json]",
        allow_abbrev=False,
    )
    parser.add_argument("words", metavar="DIR, RUN", nargs="*", help="see above")
    action = parser.add_mutually_exclusive_group()
    action.add_argument(
        "--watch",
        metavar="SECONDS",
        type=_interval,
        help="refresh the table every SECONDS (2) until all runs have ended",
    )
    action.add_argument("--logs", action="store_true", help="print the log of the run")
    action.add_argument("--cancel", action="store_true", help="stop the runs: they save, and queued ones do not start")
    action.add_argument(
        "--retry",
        metavar="WHICH",
        choices=_RETRY,
        help="start the failed runs again (the default), the interrupted ones, or all that are not done, with the "
        "launcher and the options of the sweep's latest launch",
    )
    action.add_argument("--json", action="store_true", help="print all that is known, as described below")
    parser.add_argument("-f", "--follow", action="store_true", help="with --logs: continue as the log grows")
    return parser


def _interval(text: str) -> float:
    seconds = _seconds(text)
    if seconds is None or not 0.1 <= seconds <= 86400:
        raise ConfigError(f"--watch takes seconds between 0.1 and 86400; {text} was given, try --watch 5.")
    return seconds


def _seconds(text: str) -> float | None:
    """The number that `text` is, if any."""
    try:
        return float(text)
    except ValueError:
        return None


def _run(argv: list[str]) -> int:
    words = list(argv)
    for i, word in enumerate(words):  # fill in the default values, so that a RUN may follow these flags
        following = words[i + 1] if i + 1 < len(words) else ""
        if word == "--retry" and following not in _RETRY:
            words[i] = "--retry=failed"
        if word == "--watch" and _seconds(following) is None:
            words[i] = "--watch=2"
    options = _parser().parse_intermixed_args(words)
    if options.follow and not options.logs:
        raise ConfigError("-f follows a log; type --logs RUN -f.")
    labels = dict(word.split("=", 1) for word in options.words if word.partition("=")[0] in LABELS and "=" in word)
    names = [word for word in options.words if word.partition("=")[0] not in LABELS or "=" not in word]
    folder = Path("outputs")
    if names and (not folder.is_dir() or os.path.exists(names[0]) or os.sep in names[0] or ":" in names[0]):
        folder = located(names.pop(0))
    runs = numbered(folder)
    numbers = {} if runs == [folder] else {str(run): number for number, run in enumerate(runs)}
    chosen = [run for run in (choose(names, runs, folder) if names else runs) if _has(run, labels)]
    if not chosen:
        raise ConfigError(f"no run in {folder} has {' and '.join(f'{key}={text}' for key, text in labels.items())}.")
    sweeps: dict[Path, list[Path]] = {}
    for run in chosen:
        sweeps.setdefault(run.absolute().parent if run == folder else run.parent, []).append(run)
    if options.cancel or options.retry:
        from newllm.sweep.control import cancel, retry

        if options.cancel:
            reached = [cancel(sweep, runs) for sweep, runs in sweeps.items()]
            return int(not all(reached))
        return max(retry(sweep, runs, options.retry) for sweep, runs in sweeps.items())
    if options.logs:
        return _logs([(sweep, run) for sweep, runs in sweeps.items() for run in runs], options.follow)
    if options.json:
        states = _states(sweeps, numbers)
        content = {
            "folder": str(folder),
            "runs": [{**asdict(run), "sweep": str(sweep)} for sweep, runs in states.items() for run in runs],
            "counts": count_states(run for runs in states.values() for run in runs),
            "launches": [{"sweep": str(sweep), **launch} for sweep in sweeps for launch in launches(sweep)],
        }
        print(json.dumps(content, indent=2, ensure_ascii=False))
    else:
        states = _table(sweeps, numbers, options.watch)
    return int(any(run.state in ("failed", "unreadable") for runs in states.values() for run in runs))


def _has(run: Path, typed: Mapping[str, str]) -> bool:
    """Whether the run has the typed labels."""
    own: Mapping[str, Any] = {}
    with suppress(ConfigError):  # a status.json that cannot be read
        own = RunDirectory(run).labels() if typed else {}
    return fits(own, typed)


def _states(sweeps: Mapping[Path, list[Path]], numbers: Mapping[str, int]) -> dict[Path, list[RunState]]:
    """The states of the runs, and after each run those of its evaluations under other settings."""
    states = {
        sweep: read_states(sweep, [path for run in runs for path in (run, *runs_in(run / "evaluations"))])
        for sweep, runs in sweeps.items()
    }
    return {sweep: [replace(run, number=numbers.get(run.path)) for run in runs] for sweep, runs in states.items()}


def _table(
    sweeps: Mapping[Path, list[Path]], numbers: Mapping[str, int], seconds: float | None
) -> dict[Path, list[RunState]]:
    """Print the table once, or refresh it every `seconds` until no run is attended; returns the last states."""
    # Lines are not cut where another program reads them, nor broken, so that commands can be copied whole.
    console = Screen(highlight=False, soft_wrap=not seconds, width=None if sys.stdout.isatty() else _WIDE)
    states = _states(sweeps, numbers)
    if not seconds:
        many = console.is_terminal and max(map(len, states.values())) > _MANY
        console.print(page(states, _FEW if many else None))
        return states
    with Live(console=console, auto_refresh=False) as live:
        while True:
            lines = max(2, console.height // (3 * len(states)) - 4)  # a sweep mostly has runs in at most three states
            live.update(page(states, lines), refresh=True)
            if not any(run.attended for runs in states.values() for run in runs):
                break
            time.sleep(seconds)
            states = _states(sweeps, numbers)
    if not console.is_terminal:
        console.print()
    return states


def _logs(runs: list[tuple[Path, Path]], follow: bool) -> int:
    """Print a run's train.log; follow: until the run has ended. If it did not end well, also its stderr."""
    if len(runs) > 1:
        names = ", ".join(path.name for _, path in runs[:4])
        raise ConfigError(f"--logs shows one run's log; name one of {len(runs)}: {names}{' …' * (len(runs) > 4)}")
    ((sweep, path),) = runs
    log, position = RunDirectory(path).log_file, 0
    while True:
        (run,) = read_states(sweep, [path])
        position = _print_from(log, position)  # after the state was read, so that a run's last lines are not missed
        if not (follow and run.attended):
            break
        for _ in range(10 if run.slurm else 1):  # SLURM is asked every ten seconds
            time.sleep(1.0)
            position = _print_from(log, position)
    others: list[Path] = []
    if run.state != "done" and not run.attended:
        others = [path / "stderr.log"]
        if run.slurm and not log.exists():
            others += sorted((sweep / LOGS).glob(f"{run.slurm}_*log.err"))
    others = [file for file in others if file.is_file() and file.stat().st_size]
    for file in others:
        print(f"--- {file}")
        _print_from(file, 0)
    if not log.exists() and not others:
        error = f": {run.error}" if run.error else "."
        raise ConfigError(f"{path.name} has no log yet, since it has not begun; it is {run.state}{error}")
    return 0


def _print_from(file: Path, position: int) -> int:
    """Print `file` from `position` on, or from its start if it has become shorter; returns its length."""
    if not is_file(file):
        return 0
    with file.open("rb") as stream:
        stream.seek(position if stream.seek(0, 2) >= position else 0)
        sys.stdout.write(stream.read().decode("utf-8", errors="replace"))
        sys.stdout.flush()
        return stream.tell()


if __name__ == "__main__":
    sys.exit(main())
