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

from newllm.bench.harness import Result, turns
from newllm.build import build
from newllm.config import compose
from newllm.config.catalog import shipped
from newllm.data import prepare
from newllm.errors import ConfigError, RunError
from newllm.sweep.slots import available_cores

DEFAULTS = ["samples=300", "epochs=1", "facts=none", "eval=[loss]"]
GRID = {
    "theta": ("1e4", "2e4", "5e4", "1e5", "5e5"),
    "rotary_pct": ("0.25", "0.5", "0.75", "1"),
    "lr": ("1e-4", "2e-4", "5e-4", "1e-3", "2e-3"),
}  # a hundred combinations, each planned with planned / 100 seeds
LABELS = {
    "newllm": "newllm, local launcher",
    "process_per_run": "a process per run",
    "hydra_basic": "Hydra, basic launcher",
}


def measure(
    overrides: list[str], *, runs: int = 6, rounds: int = 2, planned: int = 10_000, composed: int = 20
) -> Result:
    """ratio/<peer> (of wall seconds), seconds/<contestant> of every round, runs_per_minute/<contestant>;
    overhead = wall / (sum of the runs' own seconds / runs at once), overhead/seconds_per_run what a run costs beyond
    its own; planning/seconds, ratio/hydra_compose.

    Raises ConfigError for overrides of the seed or of a sweep, RunError if a contestant does not finish its runs.
    """
    for word in overrides:
        key = word.lstrip("+").partition("=")[0]
        if key in ("seed", "seeds") or key.startswith(("sweep.", "hydra")):
            raise ConfigError(
                f"{word}: this bench chooses seeds, folders and launchers itself; type runs=N for N seeds."
            )
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
            wall, seconds = _timed(LABELS[name], contestants[name], runs)
            walls[name].append(wall)
            own[name].append(seconds)

    result = Result({"runs": runs, "rounds": rounds, "slots": slots, "model": cfg.choices.model})
    metrics = result.metrics
    rows = []
    for name, times in walls.items():
        metrics |= {f"seconds/{name}": times, f"run_seconds/{name}": own[name]}
        per_minute = metrics[f"runs_per_minute/{name}"] = 60 * runs / statistics.median(times)
        faster = ""
        if name != "newllm":
            result.ratio(f"ratio/{name}", times, walls["newllm"])
            faster = f"{metrics[f'ratio/{name}']:.2f} x"
        spread = f"{statistics.median(times):.1f} ({min(times):.1f} … {max(times):.1f})"
        rows.append([LABELS[name], spread, f"{per_minute:.1f}", faster])
    columns = ["contestant", "seconds", "runs a minute", "newllm is faster"]
    result.table(f"{runs} runs of {cfg.choices.model}, {slots} at once", columns, rows)
    ideal = [seconds / slots for seconds in own["newllm"]]
    result.ratio("overhead", walls["newllm"], ideal)
    beyond = [(wall - least) * slots / runs for wall, least in zip(walls["newllm"], ideal, strict=True)]
    extra = metrics["overhead/seconds_per_run"] = statistics.median(beyond)
    result.notes.append(
        f"newllm takes {metrics['overhead']:.2f} x the time of its runs alone, which are "
        f"{statistics.median(own['newllm']) / runs:.1f} s each: {extra:.2f} s more for each run, the start of the "
        "sweep shared out among them."
    )
    _planning(result, planned, composed)
    return result


def _timed(label: str, do: Callable[[Path], None], runs: int) -> tuple[float, float]:
    """Seconds from the command to its end, and the sum of the seconds that its runs report."""
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
    _python(folder, "newllm.train", "-m", *overrides, f"seed={','.join(map(str, range(1, runs + 1)))}")


def _hydra_basic(overrides: Sequence[str], runs: int, folder: Path) -> None:
    seeds = f"seed={','.join(map(str, range(1, runs + 1)))}"
    _python(folder, "newllm.bench.hydra_app", "-m", "hydra/launcher=basic", *overrides, seeds)


def _process_per_run(overrides: Sequence[str], runs: int, slots: int, folder: Path) -> None:
    with ThreadPoolExecutor(slots) as pool:
        started = [
            pool.submit(_python, folder, "newllm.train", *overrides, f"seed={seed}", threads=1)
            for seed in range(1, runs + 1)
        ]
        for one in started:
            one.result()


def _python(folder: Path, module: str, *words: str, threads: int | None = None) -> None:
    """Run a module in `folder` to its end. Raises RunError with its last line if it fails."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    if threads:
        environment["OMP_NUM_THREADS"] = str(threads)
    done = subprocess.run(
        [sys.executable, "-m", module, *words], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()[-1]
        raise RunError(f"python -m {module} {' '.join(words)} has ended with status {done.returncode}: {said}")


def _planning(result: Result, planned: int, composed: int) -> None:
    """planning/…: a dry run's seconds, and Hydra's for as many runs, from the median seconds of `composed`."""
    import hydra

    jobs = [[f"{key}={value}" for key, value in zip(GRID, job, strict=True)] for job in product(*GRID.values())]
    seeds = max(1, planned // len(jobs))
    runs = seeds * len(jobs)
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        grid = [f"{key}={','.join(values)}" for key, values in GRID.items()]
        _python(Path(folder), "newllm.train", "-m", *grid, f"seeds={seeds}", "dry_run=true")
        ours = time.perf_counter() - began
    seconds = []
    with hydra.initialize_config_dir(str(shipped()), job_name="train", version_base="1.3"):
        hydra.compose("train", jobs[0], return_hydra_config=True)  # the first is slower
        for words in islice(jobs, composed):
            began = time.perf_counter()
            hydra.compose("train", words, return_hydra_config=True)
            seconds.append(time.perf_counter() - began)
    each = statistics.median(seconds)
    found: dict[str, Any] = {"runs": runs, "seconds": ours, "composed": len(seconds)}
    found |= {"hydra_seconds_each": each, "hydra_seconds": each * runs}
    result.metrics |= {f"planning/{name}": value for name, value in found.items()}
    faster = result.metrics["ratio/hydra_compose"] = each * runs / ours
    rows = [
        ["newllm, dry_run=true", f"{ours:.1f}", ""],
        ["Hydra, each composed alone", f"{each * runs:.0f}", f"{faster:.0f} x"],
    ]
    result.table(f"Planning {runs:,} runs", ["contestant", "seconds", "newllm is faster"], rows)
    result.notes.append(f"Hydra's seconds for planning are those of {len(seconds)} runs, multiplied.")
