"""The token store against `datasets.map`: the same text, tokenizer and cores, from text on disk to tokens on disk.

newllm reads the text twice (which documents validate, and encoding), splits it, and checks sums. The peer is what
transformers' own example scripts do: `load_dataset`, `map` with the fast tokenizer in batches and a process for each
core (ratio/datasets_map), then a second `map` that joins the ids and cuts rows (ratio/datasets_rows). Each round of
each contestant is a process of its own with empty caches; its imports and the loading of the tokenizer are not timed.

The text is Python's standard library as JSON lines; if that is less than asked for, its files are taken again with
another first line. Memory is the sum of the proportional set sizes of a contestant's processes.

  sizes      megabytes (10^6) of text      rounds   turns of each contestant
  tokenizer  name or folder of a Hugging Face tokenizer; null trains a byte-level BPE of 16,384 ids
  peer       datasets as well
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

from newllm.bench.harness import Result, turns
from newllm.data.build_store import store_of
from newllm.data.corpora.stdlib import Stdlib
from newllm.data.corpora.text_files import TextFiles
from newllm.data.tokenizer import EOT, pretrained, train_bpe
from newllm.errors import RunError

DEFAULTS: list[str] = []
VOCAB_SIZE = 16_384
TRAINED_ON = 4_000_000  # bytes of text for the tokenizer
SEQ_LEN = 128
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
LABELS = {
    "newllm": "newllm",
    "datasets_map": "datasets: load, map",
    "datasets_rows": "datasets: load, map, rows",
}


def measure(
    overrides: list[str],
    *,
    sizes: tuple[int, ...] = (10, 100),
    rounds: int = 3,
    peer: bool = True,
    tokenizer: str | None = None,
) -> Result:
    """For each size: seconds/<contestant>/<size>mb of every round, mb_per_second/…, peak_bytes/newllm/… and
    …/datasets/…, ratio/datasets_map/… and ratio/datasets_rows/…; the ratios of the largest size without it as well."""
    result = Result({"cores": CORES, "sizes_mb": sizes})
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for size in sizes:
            file = Path(scratch, f"{size}.jsonl")
            result.metrics[f"documents/{size}mb"] = _write(file, size * 1_000_000)
            tokenizer = tokenizer or _train(file, Path(scratch, "tokenizer"))
            found: dict[str, list[dict[str, float]]] = {"newllm": [], "datasets": []} if peer else {"newllm": []}
            for order in turns(list(found), rounds):
                for name in order:
                    with tempfile.TemporaryDirectory(dir=scratch) as cache:
                        found[name].append(_run(name, file, tokenizer, cache))
            file.unlink()
            rows += _rows(result, found, size)
    largest = f"/{sizes[-1]}mb"
    ratios = {key: value for key, value in result.metrics.items() if key.startswith("ratio/") and largest in key}
    result.metrics |= {key.replace(largest, ""): value for key, value in ratios.items()}
    columns = ["contestant", "MB", "seconds", "min … max", "MB/s", "newllm is", "peak MB"]
    result.table(f"Text to stored tokens, {CORES} cores; medians of {rounds} rounds", columns, rows)
    return result


def _rows(result: Result, found: dict[str, list[dict[str, float]]], size: int) -> list[list[str]]:
    """Keeps the figures of a size; returns its rows of the table."""
    metrics = result.metrics
    for name, runs in found.items():
        metrics[f"peak_bytes/{name}/{size}mb"] = int(statistics.median(one["peak"] for one in runs))
    seconds = {"newllm": [one["total"] for one in found["newllm"]]}
    if "datasets" in found:
        seconds["datasets_map"] = [one["load"] + one["map"] for one in found["datasets"]]
        seconds["datasets_rows"] = [one["total"] for one in found["datasets"]]
        metrics[f"seconds/datasets_map_alone/{size}mb"] = [one["map"] for one in found["datasets"]]
    rows = []
    for name, times in seconds.items():
        middle = statistics.median(times)
        metrics[f"seconds/{name}/{size}mb"] = times
        metrics[f"mb_per_second/{name}/{size}mb"] = size / middle
        faster = ""
        if name != "newllm":
            result.ratio(f"ratio/{name}/{size}mb", times, seconds["newllm"])
            faster = f"{metrics[f'ratio/{name}/{size}mb']:.1f} x faster"
        peak = metrics[f"peak_bytes/{name.partition('_')[0]}/{size}mb"]
        cells = [f"{middle:.1f}", f"{min(times):.1f} … {max(times):.1f}", f"{size / middle:.1f}", faster]
        rows.append([LABELS[name], f"{size}", *cells, f"{peak / 1e6:.0f}"])
    return rows


def _write(file: Path, size: int) -> int:
    """JSON lines of `size` bytes at least; returns the number of documents."""
    documents = copy = 0
    with open(file, "w", encoding="utf-8") as stream:
        while True:
            for text, _ in Stdlib().pieces():
                documents += 1
                varied = f"# copy {copy}\n{text}" if copy else text
                stream.write(json.dumps({"text": varied}, ensure_ascii=False) + "\n")
                if stream.tell() >= size:
                    return documents
            copy += 1


def _train(file: Path, folder: Path) -> str:
    """A folder with a tokenizer that both contestants read through transformers."""
    from transformers import PreTrainedTokenizerFast

    with open(file, encoding="utf-8") as stream:
        texts = [json.loads(line)["text"] for line in stream.readlines(TRAINED_ON)]
    backend = train_bpe(texts, VOCAB_SIZE).backend
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=EOT).save_pretrained(folder)
    return str(folder)


def _run(name: str, file: Path, tokenizer: str, cache: str) -> dict[str, float]:
    """Seconds of a contestant's stages and the most memory its processes held."""
    process = subprocess.Popen(
        [sys.executable, "-m", "newllm.bench.data", name, str(file), tokenizer, cache],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(entry or os.getcwd() for entry in sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    peak = 0
    while process.poll() is None:
        peak = max(peak, _held(process.pid))
        time.sleep(0.1)
    output, errors = process.communicate()
    if process.returncode:
        last = (errors.strip().splitlines() or [f"status {process.returncode}"])[-1]
        raise RunError(f"the contestant {name} has failed: {last}")
    seconds = json.loads(output.splitlines()[-1])
    return {**seconds, "total": sum(seconds.values()), "peak": peak}


def _held(pid: int) -> int:
    """Bytes held by a process and those below it, shared pages divided among them; 0 where /proc does not say."""
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        below = [
            child for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
        ]
    except OSError:  # it has ended, or there is no /proc
        return 0
    kilobytes = next((line.split()[1] for line in rollup.splitlines() if line.startswith("Pss:")), "0")
    return 1024 * int(kilobytes) + sum(_held(int(child)) for child in below)


def _newllm(file: str, tokenizer: str, cache: str) -> dict[str, float]:
    pretrained(tokenizer, Path(cache))
    corpus = TextFiles(path=file, tokenizer=tokenizer, seq_len=SEQ_LEN)
    began = time.perf_counter()
    store_of(corpus, Path(cache))
    return {"build": time.perf_counter() - began}


def _datasets(file: str, tokenizer: str, cache: str) -> dict[str, float]:
    """As transformers' run_clm.py prepares text."""
    import datasets
    import transformers

    datasets.disable_progress_bars()
    fast = transformers.AutoTokenizer.from_pretrained(tokenizer)
    fast.model_max_length = sys.maxsize  # documents longer than some model are no concern here

    def encode(batch: dict[str, list[str]]) -> Any:
        return fast(batch["text"])

    def group(batch: dict[str, list[list[int]]]) -> dict[str, list[list[int]]]:
        joined = {key: list(chain(*lists)) for key, lists in batch.items()}
        total = len(joined["input_ids"]) // SEQ_LEN * SEQ_LEN
        rows = {key: [ids[i : i + SEQ_LEN] for i in range(0, total, SEQ_LEN)] for key, ids in joined.items()}
        return {**rows, "labels": rows["input_ids"].copy()}

    share: dict[str, Any] = {"batched": True, "num_proc": CORES if CORES > 1 else None}
    times = [time.perf_counter()]
    data = datasets.load_dataset("json", data_files=file, split="train", cache_dir=cache)
    times.append(time.perf_counter())
    data = data.map(encode, remove_columns=["text"], **share)
    times.append(time.perf_counter())
    data.map(group, **share)
    times.append(time.perf_counter())
    return dict(zip(("load", "map", "rows"), (b - a for a, b in pairwise(times)), strict=True))


if __name__ == "__main__":  # a contestant: prints the seconds of its stages
    contestant, *words = sys.argv[1:]
    print(json.dumps({"newllm": _newllm, "datasets": _datasets}[contestant](*words)))
