"""Training steps of runs that train together (newllm.pack) against the same runs one by one, in one process.

packs    runs in a pack                batches   rows of a batch
lengths  tokens of a row               rounds    turns of each contestant
steps    steps of each run in a turn
"""

import statistics

from newllm.bench.harness import Result, alternate
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
    """ratio/pack<K>/<batch>x<length>: how many times as many steps of runs a second packs of K make as single runs
    do; seconds/pack<K>/<batch>x<length>: of a step of one run."""
    result = Result({"packs": packs, "rounds": rounds, "steps": steps})
    rows = []
    for length in lengths:
        for batch in batches:
            shape = f"{batch}x{length}"
            words = [*overrides, f"batch_size={batch}", f"seq_len={length}"]
            configs = [compose([*words, f"seed={seed}"]) for seed in range(1, max(packs) + 1)]
            prepared = prepare(configs[0])
            contestants = {str(size): stepper(configs[:size], prepared) for size in (1, *packs)}
            seconds = {
                int(size): [time / int(size) for time in times]
                for size, times in alternate(contestants, rounds, steps).items()
            }
            result.metrics |= {f"seconds/pack{size}/{shape}": times for size, times in seconds.items()}
            row = [f"{batch} x {length}", f"{1e3 * statistics.median(seconds[1]):.1f}"]
            for size in packs:
                result.ratio(f"ratio/pack{size}/{shape}", seconds[1], seconds[size])
                row.append(f"{result.metrics[f'ratio/pack{size}/{shape}']:.2f} x")
            rows.append(row)
    precision, device, threads = prepared.precision, str(prepared.device), prepared.runtime.threads
    model = configs[0].choices.model
    result.metrics |= {"model": model, "precision": precision, "device": device, "threads": threads}
    columns = ["batch x tokens", "ms of a step alone", *(f"packs of {size}" for size in packs)]
    result.table(f"{model}, {precision}, {device}, {threads} thread(s)", columns, rows)
    result.notes.append("Steps of runs per second in packs, relative to one by one; medians of the rounds.")
    return result
