"""Training steps of runs that train together (newllm.pack) against the same runs one by one, in one process.

packs    runs in a pack                batches   rows of a batch
lengths  tokens of a row               rounds    turns of each contestant
steps    steps of each run in a turn
"""

import statistics
from typing import Any

from newllm.bench.result import Result
from newllm.bench.timing import alternate, ratio_metrics
from newllm.config import compose
from newllm.pack.measure import stepper
from newllm.run.prepare import prepare

PURPOSE = "steps of packed runs against the same runs one by one, at small batches"
OPTIONS: dict[str, Any] = {
    "packs": [2, 4, 8],
    "batches": [1, 2, 4, 8],
    "lengths": [64, 128],
    "rounds": 5,
    "steps": 4,
}
DEFAULTS = ["model=tiny", "samples=256", "facts=none", "runtime.threads=1"]


def measure(
    overrides: list[str], *, packs: list[int], batches: list[int], lengths: list[int], rounds: int, steps: int
) -> Result:
    """ratio/pack<K>/<batch>x<length>: how many times as many steps of runs a second packs of K make as single runs
    do; seconds/pack<K>/<batch>x<length>: of a step of one run."""
    metrics: dict[str, Any] = {"packs": packs, "rounds": rounds, "steps": steps}
    rows = []
    for length in lengths:
        for batch in batches:
            shape = f"{batch}x{length}"
            words = [*overrides, f"batch_size={batch}", f"seq_len={length}"]
            configs = [compose([*words, f"seed={seed}"]) for seed in range(1, max(packs) + 1)]
            prepared = prepare(configs[0])
            contestants = {size: stepper(configs[:size], prepared) for size in (1, *packs)}
            whole = alternate({str(size): step for size, step in contestants.items()}, rounds, steps)
            seconds = {size: [time / size for time in whole[str(size)]] for size in contestants}
            for size in packs:
                metrics |= ratio_metrics(f"ratio/pack{size}/{shape}", seconds[1], seconds[size])
            metrics |= {f"seconds/pack{size}/{shape}": times for size, times in seconds.items()}
            cells = [f"{metrics[f'ratio/pack{size}/{shape}']:.2f} x" for size in packs]
            rows.append([f"{batch} x {length}", f"{1e3 * statistics.median(seconds[1]):.1f}", *cells])
            metrics |= {"precision": prepared.precision, "device": str(prepared.device)}
            metrics |= {"threads": prepared.runtime.threads, "model": configs[0].choices.model}
    title = f"{metrics['model']}, {metrics['precision']}, {metrics['device']}, {metrics['threads']} thread(s)"
    columns = ["batch x tokens", "ms of a step alone", *(f"packs of {size}" for size in packs)]
    notes = ["Steps of runs per second in packs, relative to one by one; medians of the rounds."]
    return Result(metrics, [(title, columns, rows)], notes)
