"""A sweep under newllm's local launcher, under Hydra's basic launcher, and as a process for every run.

All three do the same runs, which differ in their seed, on tokens prepared beforehand; each is timed from its command
to its end. newllm: `newllm train -m`, as many runs at once as there are cores. Hydra's basic launcher: one run after
another in one process, with all cores. A process per run, as launchers on joblib or submitit do: `newllm train seed=N`
for every N, as many at once as there are cores, one thread each. Runs of seconds show what starting costs; the longer
the runs, the smaller the differences.

Planning: `newllm train -m … dry_run=true` of `planned` runs, against Hydra composing each of them, which is timed on
`composed` runs and multiplied.

  runs      in the sweep               rounds    turns of each contestant
  planned   runs of the planned sweep  composed  runs that Hydra composes
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice, product
from pathlib import Path
from typing import Any

from newllm.bench.result import Result
from newllm.bench.timing import ratio_metrics, turns
from newllm.build import build
from newllm.config import compose
from newllm.config.catalog import shipped
from newllm.data import prepare
from newllm.errors import ConfigError, RunError
from newllm.sweep.slots import available_cores

PURPOSE = "a sweep against Hydra's basic launcher and against a process per run; planning against Hydra's composing"
OPTIONS: dict[str, Any] = {"runs": 6, "rounds": 2, "planned": 10_000, "composed": 20}
DEFAULTS = ["samples=300", "epochs=1", "facts=none", "eval=[loss]"]
GRID = {
    "theta": ("1e4", "2e4", "5e4", "1e5", "5e5"),
    "rotary_pct": ("0.25", "0.5", "0.75", "1"),
    "lr": ("1e-4", "2e-4", "5e-4", "1e-3", "2e-3"),
}  # a hundred combinations, each planned with planned / 100 seeds
_LABELS = {
    "newllm": "newllm, local launcher",
    "process_per_run": "a process per run",
    "hydra_basic": "Hydra, basic launcher",
}


def measure(overrides: list[str], *, runs: int, rounds: int, planned: int, composed: int) -> Result:
    """ratio/<peer> (of wall seconds), seconds/<contestant> of every round, runs_per_minute/<contestant>;
    overhead = wall / (sum of the runs' own seconds / runs at once), overhead/seconds_per_run what a run costs beyond
    its own; planning/seconds, ratio/hydra_compose.

    Raises ConfigError for overrides of the seed or of a sweep, RunError if a contestant does not finish its runs.
    """
    _refuse(overrides)
    cfg = compose(overrides)
    prepare(cfg.data, cfg.facts, seed=cfg.seed, runtime=build(cfg.runtime))  # the tokens, before they are wanted
    slots = min(available_cores(), runs)
    contestants: dict[str, Callable[[Path], None]] = {
        "newllm": partial(_newllm, overrides, runs),
        "process_per_run": partial(_process_per_run, overrides, runs, slots),
        "hydra_basic": partial(_hydra_basic, overrides, runs),
    }
    walls: dict[str, list[float]] = {name: [] for name in contestants}
    own: dict[str, list[float]] = {name: [] for name in contestants}  # the runs' own seconds, summed
    for order in turns(list(contestants), rounds):
        for name in order:
            wall, seconds = _timed(_LABELS[name], contestants[name], runs)
            walls[name].append(wall)
            own[name].append(seconds)
    metrics = _metrics(walls, own, runs, slots)
    metrics |= {"runs": runs, "rounds": rounds, "slots": slots, "model": cfg.choices.model}
    metrics |= _planning(planned, composed)
    return Result(metrics, [_runs_table(metrics), _planning_table(metrics)], _notes(metrics))


def _refuse(overrides: list[str]) -> None:
    for word in overrides:
        key = word.lstrip("+").partition("=")[0]
        if key in ("seed", "seeds") or key.startswith(("sweep.", "hydra")):
            raise ConfigError(
                f"{word}: this bench chooses seeds, folders and launchers itself; type runs=N for N seeds."
            )


def _timed(label: str, do: Callable[[Path], None], runs: int) -> tuple[float, float]:
    """Seconds from the command to its end, and the sum of what its runs say of themselves."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        do(Path(folder))
        wall = time.perf_counter() - began
        results = sorted(Path(folder).glob("outputs/*/*/results.json"))
        if len(results) != runs:
            raise RunError(
                f"{label} has finished {len(results)} of {runs} runs; newllm train with these overrides says why"
            )
        return wall, sum(json.loads(file.read_text(encoding="utf-8"))["speed/wall_seconds"] for file in results)


def _newllm(overrides: Sequence[str], runs: int, folder: Path) -> None:
    _python(folder, "newllm.train", "-m", *overrides, f"seed={_seeds(runs)}")


def _hydra_basic(overrides: Sequence[str], runs: int, folder: Path) -> None:
    _python(folder, "newllm.bench.hydra_app", "-m", "hydra/launcher=basic", *overrides, f"seed={_seeds(runs)}")


def _process_per_run(overrides: Sequence[str], runs: int, slots: int, folder: Path) -> None:
    with ThreadPoolExecutor(slots) as pool:
        started = [
            pool.submit(_python, folder, "newllm.train", *overrides, f"seed={seed}", threads=1)
            for seed in range(1, runs + 1)
        ]
        for one in started:
            one.result()


def _seeds(runs: int) -> str:
    return ",".join(map(str, range(1, runs + 1)))


def _python(folder: Path, module: str, *words: str, threads: int | None = None) -> None:
    """Run a module in `folder` to its end; RunError, with the last thing it said, if it fails."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    if threads:
        environment["OMP_NUM_THREADS"] = str(threads)
    done = subprocess.run(
        [sys.executable, "-m", module, *words], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()[-1]
        raise RunError(f"python -m {module} {' '.join(words)} has ended with status {done.returncode}: {said}")


def _metrics(walls: dict[str, list[float]], own: dict[str, list[float]], runs: int, slots: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, seconds in walls.items():
        if name != "newllm":
            found |= ratio_metrics(f"ratio/{name}", seconds, walls["newllm"])
        found[f"seconds/{name}"] = seconds
        found[f"run_seconds/{name}"] = own[name]
        found[f"runs_per_minute/{name}"] = 60 * runs / statistics.median(seconds)
    ideal = [seconds / slots for seconds in own["newllm"]]
    overheads = [wall / least for wall, least in zip(walls["newllm"], ideal, strict=True)]
    found |= {"overhead": statistics.median(overheads), "overhead/min": min(overheads), "overhead/max": max(overheads)}
    beyond = [(wall - least) * slots / runs for wall, least in zip(walls["newllm"], ideal, strict=True)]
    return found | {"overhead/seconds_per_run": statistics.median(beyond)}


def _planning(planned: int, composed: int) -> dict[str, Any]:
    """planning/…: a dry run's seconds, and Hydra's for as many runs, from the seconds of `composed`."""
    seeds = max(1, planned // len([*product(*GRID.values())]))
    lines = [f"{key}={','.join(values)}" for key, values in GRID.items()]
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        _python(Path(folder), "newllm.train", "-m", *lines, f"seeds={seeds}", "dry_run=true")
        ours = time.perf_counter() - began
    jobs = [[f"{key}={value}" for key, value in zip(GRID, job, strict=True)] for job in product(*GRID.values())]
    each = _hydra_seconds(list(islice(jobs, composed)))
    runs = seeds * len(jobs)
    return {
        "planning/runs": runs,
        "planning/seconds": ours,
        "planning/composed": min(composed, len(jobs)),
        "planning/hydra_seconds_each": each,
        "planning/hydra_seconds": each * runs,
        "ratio/hydra_compose": each * runs / ours,
    }


def _hydra_seconds(jobs: Sequence[list[str]]) -> float:
    """Median seconds in which Hydra composes one of these; a first one is not timed."""
    import hydra

    seconds = []
    with hydra.initialize_config_dir(str(shipped()), job_name="train", version_base="1.3"):
        hydra.compose("train", jobs[0], return_hydra_config=True)
        for lines in jobs:
            began = time.perf_counter()
            hydra.compose("train", lines, return_hydra_config=True)
            seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def _runs_table(metrics: dict[str, Any]) -> tuple[str, list[str], list[list[str]]]:
    rows = []
    for name, label in _LABELS.items():
        seconds = metrics[f"seconds/{name}"]
        spread = f"{statistics.median(seconds):.1f} ({min(seconds):.1f} … {max(seconds):.1f})"
        faster = f"{metrics[f'ratio/{name}']:.2f} x" if f"ratio/{name}" in metrics else ""
        rows.append([label, spread, f"{metrics[f'runs_per_minute/{name}']:.1f}", faster])
    title = f"{metrics['runs']} runs of {metrics['model']}, {metrics['slots']} at once"
    return title, ["contestant", "seconds", "runs a minute", "newllm is faster"], rows


def _planning_table(metrics: dict[str, Any]) -> tuple[str, list[str], list[list[str]]]:
    rows = [
        ["newllm, dry_run=true", f"{metrics['planning/seconds']:.1f}", ""],
        [
            "Hydra, each composed alone",
            f"{metrics['planning/hydra_seconds']:.0f}",
            f"{metrics['ratio/hydra_compose']:.0f} x",
        ],
    ]
    return f"Planning {metrics['planning/runs']:,} runs", ["contestant", "seconds", "newllm is faster"], rows


def _notes(metrics: dict[str, Any]) -> list[str]:
    run = statistics.median(metrics["run_seconds/newllm"]) / metrics["runs"]
    return [
        f"newllm takes {metrics['overhead']:.2f} x the time of its runs alone, which are {run:.1f} s each: "
        f"{metrics['overhead/seconds_per_run']:.2f} s more for each run, the start of the sweep shared out among them.",
        f"Hydra's seconds for planning are those of {metrics['planning/composed']} runs, multiplied.",
    ]
