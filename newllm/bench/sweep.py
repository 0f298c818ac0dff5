"""A sweep with newllm's local launcher, with Hydra's basic launcher, and with a process for every run.

All three do the same runs, which differ in their seeds, on tokens prepared beforehand; each is timed from its command
to its end. newllm: `newllm train -m`, with as many runs at once as there are cores. Hydra's basic launcher: one run
after another in one process, with all cores. A process per run, as launchers on joblib or submitit have it: `newllm
train seed=N` for every N, as many at once as there are cores, with one thread each. Runs of seconds show the cost of
starting; the longer the runs, the smaller the differences.

Planning: `newllm train -m … dry_run=true` of `planned` runs, against Hydra composing each of them, which is timed for
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
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice, product
from pathlib import Path

from newllm.bench.harness import Result, in_turns, spread
from newllm.build import build
from newllm.config import compose
from newllm.config.catalog import shipped
from newllm.config.compose import version_base
from newllm.data import prepare
from newllm.errors import ConfigError, RunError
from newllm.runtime import Runtime, available_cores

DEFAULTS = ["model=tiny", "samples=300", "epochs=1", "facts=none", "eval=[loss]"]
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
    """ratio/<peer> (of wall seconds), seconds/<contestant>, run_seconds/<contestant> (the runs' own seconds, summed),
    runs_per_minute/<contestant>; overhead = wall / (run_seconds / runs at once), overhead/seconds_per_run: what a run
    costs beyond its own seconds; planning/seconds, ratio/hydra_compose.

    Raises ConfigError for overrides of the seed or of a sweep, RunError if a contestant does not finish its runs.
    """
    for word in overrides:
        key = word.lstrip("+").partition("=")[0]
        if key in ("seed", "seeds") or key.startswith(("sweep.", "hydra")):
            raise ConfigError(
                f"{word}: this bench chooses seeds, folders and launchers itself; type runs=N for N seeds."
            )
    cfg = compose(overrides)
    prepare(cfg.data, cfg.facts, seed=cfg.seed, runtime=build(cfg.runtime, Runtime))  # tokenizes the text beforehand
    slots = min(available_cores(), runs)
    seeds = [f"seed={seed}" for seed in range(1, runs + 1)]
    all_seeds = f"seed={','.join(map(str, range(1, runs + 1)))}"

    def process_per_run(folder: Path) -> None:
        with ThreadPoolExecutor(slots) as pool:
            for _ in pool.map(lambda seed: run_module(folder, "newllm.train", *overrides, seed, threads=1), seeds):
                pass

    commands: dict[str, Callable[[Path], None]] = {
        "newllm": lambda folder: run_module(folder, "newllm.train", "-m", *overrides, all_seeds),
        "process_per_run": process_per_run,
        "hydra_basic": lambda folder: run_module(
            folder, "newllm.bench.hydra_app", "-m", "hydra/launcher=basic", *overrides, all_seeds
        ),
    }
    measured = in_turns(commands, rounds, lambda name: time_sweep(LABELS[name], commands[name], runs))
    walls = {name: [wall for wall, _ in turns] for name, turns in measured.items()}
    own = {name: [seconds for _, seconds in turns] for name, turns in measured.items()}

    result = Result({"runs": runs, "rounds": rounds, "slots": slots, "model": cfg.choices.model})
    metrics = result.metrics
    rows = []
    for name, times in walls.items():
        metrics |= {f"seconds/{name}": times, f"run_seconds/{name}": own[name]}
        per_minute = metrics[f"runs_per_minute/{name}"] = 60 * runs / statistics.median(times)
        faster = "" if name == "newllm" else result.ratio(f"ratio/{name}", times, walls["newllm"])
        rows.append([LABELS[name], spread(times), f"{per_minute:.1f}", faster])
    columns = ["contestant", "seconds", "runs a minute", "newllm is faster"]
    result.table(f"{runs} runs of {cfg.choices.model}, {slots} at once", columns, rows)
    ideal = [seconds / slots for seconds in own["newllm"]]
    result.ratio("overhead", walls["newllm"], ideal)
    beyond = [(wall - least) * slots / runs for wall, least in zip(walls["newllm"], ideal, strict=True)]
    extra = metrics["overhead/seconds_per_run"] = statistics.median(beyond)
    result.notes.append(
        f"newllm takes {metrics['overhead']:.2f} x the time of its runs alone, which take "
        f"{statistics.median(own['newllm']) / runs:.1f} s each: {extra:.2f} s more per run, including its share of the "
        "sweep's start."
    )
    _planning(result, planned, composed)
    return result


def time_sweep(label: str, command: Callable[[Path], None], runs: int) -> tuple[float, float]:
    """Seconds from the command to its end, and the sum of the seconds that its runs report."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        command(Path(folder))
        wall = time.perf_counter() - start
        results = sorted(Path(folder).glob("outputs/**/results.json"))
        if len(results) != runs:
            raise RunError(
                f"{label} has finished {len(results)} of {runs} runs; newllm train with these overrides says why"
            )
        return wall, sum(json.loads(file.read_text(encoding="utf-8"))["speed/wall_seconds"] for file in results)


def run_module(folder: Path, module: str, *words: str, threads: int | None = None) -> None:
    """Run a module in `folder` to its end. Raises RunError with its last line if it fails."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    if threads:
        environment["OMP_NUM_THREADS"] = str(threads)
    done = subprocess.run(
        [sys.executable, "-m", module, *words], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
        raise RunError(f"python -m {module} {' '.join(words)} has ended with status {done.returncode}: {last}")


def _planning(result: Result, planned: int, composed: int) -> None:
    """planning/…: seconds of a dry run, and of Hydra for as many runs, from the median seconds of `composed` runs."""
    import hydra

    combinations = [[f"{key}={value}" for key, value in zip(GRID, one, strict=True)] for one in product(*GRID.values())]
    seeds = max(1, planned // len(combinations))
    runs = seeds * len(combinations)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        grid = [f"{key}={','.join(values)}" for key, values in GRID.items()]
        run_module(Path(folder), "newllm.train", "-m", *grid, f"seeds={seeds}", "dry_run=true")
        ours = time.perf_counter() - start
    seconds = []
    with hydra.initialize_config_dir(str(shipped()), job_name="train", **version_base()):
        hydra.compose("train", combinations[0], return_hydra_config=True)  # the first is slower
        for words in islice(combinations, composed):
            start = time.perf_counter()
            hydra.compose("train", words, return_hydra_config=True)
            seconds.append(time.perf_counter() - start)
    each = statistics.median(seconds)
    faster = each * runs / ours
    result.metrics |= {
        "planning/runs": runs, "planning/seconds": ours, "planning/composed": len(seconds),
        "planning/hydra_seconds_each": each, "planning/hydra_seconds": each * runs, "ratio/hydra_compose": faster,
    }  # fmt: skip
    rows = [
        ["newllm, dry_run=true", f"{ours:.1f}", ""],
        ["Hydra, each composed alone", f"{each * runs:.0f}", f"{faster:.0f} x"],
    ]
    result.table(f"Planning {runs:,} runs", ["contestant", "seconds", "newllm is faster"], rows)
    result.notes.append(f"Hydra's seconds for planning are those of {len(seconds)} runs, multiplied.")
