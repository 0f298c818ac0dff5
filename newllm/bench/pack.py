"""Training steps of runs that train together (newllm.pack) against the same runs one by one, in one process.

On a GPU the steps of the runs one by one are CUDA graphs.

packs    runs in a pack                batches   rows of a batch
lengths  tokens of a row               rounds    turns of each contestant
steps    steps of each run per turn
"""

import statistics

from newllm.bench.harness import Result, alternate, setup_metrics
from newllm.config import compose
from newllm.pack.measure import stepper
from newllm.run.prepare import prepare

DEFAULTS = ["model=tiny", "samples=256", "facts=none", "runtime.threads=1"]


def measure(
    overrides: list[str],
    *,
    packs: tuple[int, ...] = (2, 4, 8),
    batches: tuple[int, ...] = (1, 2, 4, 8),
    lengths: tuple[int, ...] = (64, 128),
    rounds: int = 5,
    steps: int = 4,
) -> Result:
    """ratio/pack<K>/<batch>x<length>: steps of single runs per second in packs of K, relative to runs alone;
    seconds/pack<K>/<batch>x<length>: per step of one run."""
    result = Result({"packs": packs, "rounds": rounds, "steps": steps})
    rows = []
    for length in lengths:
        for batch in batches:
            words = [*overrides, f"batch_size={batch}", f"seq_len={length}"]
            runs = [prepare(compose([*words, f"seed={seed}"])) for seed in range(1, max(packs) + 1)]
            on_gpu = runs[0].device.type == "cuda"
            contestants = {f"pack{size}": stepper(runs[:size], on_gpu and size == 1) for size in (1, *packs)}
            seconds = alternate(contestants, rounds, steps)
            per_run = {size: [time / size for time in seconds[f"pack{size}"]] for size in (1, *packs)}
            row = [f"{batch} x {length}", f"{1e3 * statistics.median(per_run[1]):.1f}"]
            for size, times in per_run.items():
                name = f"pack{size}/{batch}x{length}"
                result.metrics[f"seconds/{name}"] = times
                if size > 1:
                    result.ratio(f"ratio/{name}", per_run[1], times)
                    row.append(f"{result.metrics[f'ratio/{name}']:.2f} x")
            rows.append(row)
    result.metrics |= setup_metrics(runs[0].cfg, runs[0].precision, runs[0].device, runs[0].runtime)
    columns = ["batch x tokens", "ms of a step alone", *(f"packs of {size}" for size in packs)]
    result.table(f"{result.metrics['model']}, {result.setup}", columns, rows)
    result.notes.append("Steps of single runs per second in packs, relative to one by one; medians of the rounds.")
    return result
