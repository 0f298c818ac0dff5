"""The token store against `datasets.map`: the same text, tokenizer and cores, from text on disk to tokens on disk.

newllm reads the text twice (to choose the documents that validate, and to encode), splits it, and computes checksums.
The peer does what transformers' own example scripts do: `load_dataset`, `map` with the fast tokenizer in batches and a
process for each core (ratio/datasets_map), then a second `map` that joins the ids and cuts rows (ratio/datasets_rows).
Each turn of a contestant is a process of its own with empty caches; its imports and the loading of the tokenizer are
not timed.

The text is Python's standard library as JSON lines; if that is too little, its files are repeated with another first
line. Memory is the sum of the proportional set sizes of a contestant's processes.

  sizes      megabytes (10^6) of text      rounds   turns of each contestant
  tokenizer  name or folder of a Hugging Face tokenizer; null trains a byte-level BPE of 16,384 ids
  peer       measure datasets too
"""

import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

from newllm.bench.harness import Result, in_turns, spread
from newllm.data.build_store import store_of
from newllm.data.corpora.stdlib import Stdlib
from newllm.data.corpora.text_files import TextFiles
from newllm.data.tokenizer import EOT, pretrained, train_bpe
from newllm.errors import NewllmError, RunError

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
    """For each size: seconds/<contestant>/<size>mb, mb_per_second/…, peak_bytes/newllm/… and peak_bytes/datasets/…,
    ratio/datasets_map/… and ratio/datasets_rows/…; the ratios of the largest size also without its name."""
    result = Result({"cores": CORES, "sizes_mb": sizes})
    metrics = result.metrics
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for size in sizes:
            text = Path(scratch, f"{size}.jsonl")
            metrics[f"documents/{size}mb"] = _write_text(text, size * 1_000_000)
            tokenizer = tokenizer or _train_tokenizer(text, Path(scratch, "tokenizer"))

            def build(name: str, text: Path = text, tokenizer: str = tokenizer) -> dict[str, float]:
                with tempfile.TemporaryDirectory(dir=scratch) as cache:
                    return _run(name, text, tokenizer, cache)

            stages = in_turns(["newllm", "datasets"] if peer else ["newllm"], rounds, build)
            text.unlink()
            seconds = {"newllm": [turn["total"] for turn in stages["newllm"]]}
            if peer:
                seconds["datasets_map"] = [turn["load"] + turn["map"] for turn in stages["datasets"]]
                seconds["datasets_rows"] = [turn["total"] for turn in stages["datasets"]]
                metrics[f"seconds/datasets_map_alone/{size}mb"] = [turn["map"] for turn in stages["datasets"]]
            for name, times in seconds.items():
                metrics[f"seconds/{name}/{size}mb"] = times
                speed = metrics[f"mb_per_second/{name}/{size}mb"] = size / statistics.median(times)
                library = name.partition("_")[0]
                peak = int(statistics.median(turn["peak"] for turn in stages[library]))
                metrics[f"peak_bytes/{library}/{size}mb"] = peak
                faster = ""
                if name != "newllm":
                    faster = result.ratio(f"ratio/{name}/{size}mb", times, seconds["newllm"])
                rows.append([LABELS[name], f"{size}", spread(times), f"{speed:.1f}", faster, f"{peak / 1e6:.0f}"])
    largest = f"/{sizes[-1]}mb"
    ratios = {key: value for key, value in metrics.items() if key.startswith("ratio/") and largest in key}
    metrics |= {key.replace(largest, ""): value for key, value in ratios.items()}
    columns = ["contestant", "MB", "seconds (min … max)", "MB/s", "newllm is faster", "peak MB"]
    result.table(f"Text to stored tokens, {CORES} cores; medians of {rounds} rounds", columns, rows)
    return result


def _write_text(file: Path, size: int) -> int:
    """Write at least `size` bytes of JSON lines; returns the number of documents."""
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


def _train_tokenizer(file: Path, folder: Path) -> str:
    """The folder of a tokenizer that both contestants load through transformers."""
    from transformers import PreTrainedTokenizerFast

    with open(file, encoding="utf-8") as stream:
        texts = [json.loads(line)["text"] for line in stream.readlines(TRAINED_ON)]
    backend = train_bpe(texts, VOCAB_SIZE).backend
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=EOT).save_pretrained(folder)
    return str(folder)


def _run(name: str, text: Path, tokenizer: str, cache: str) -> dict[str, float]:
    """Seconds of the stages of a contestant, their "total", and the "peak" memory of its processes in bytes."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        future = pool.submit({"newllm": _newllm, "datasets": _datasets}[name], str(text), tokenizer, cache)
        peak = 0
        while not future.done():
            peak = max(peak, sum(_memory(process.pid) for process in multiprocessing.active_children()))
            time.sleep(0.1)
    try:
        seconds: dict[str, float] = future.result()
    except NewllmError:
        raise
    except Exception as error:
        raise RunError(f"the contestant {name} has failed: {type(error).__name__}: {error}") from error
    return {**seconds, "total": sum(seconds.values()), "peak": peak}


def _memory(pid: int | None) -> int:
    """Bytes held by a process and its descendants, each with its share of shared pages; 0 if /proc does not say."""
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        children = [
            child for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
        ]
    except OSError:  # the process has ended, or there is no /proc
        return 0
    kilobytes = next((line.split()[1] for line in rollup.splitlines() if line.startswith("Pss:")), "0")
    return 1024 * int(kilobytes) + sum(_memory(int(child)) for child in children)


# --- the contestants, each in a process of its own; they return the seconds of their stages --------------------------


def _newllm(text: str, tokenizer: str, cache: str) -> dict[str, float]:
    pretrained(tokenizer, Path(cache))
    corpus = TextFiles(path=text, tokenizer=tokenizer, seq_len=SEQ_LEN)
    start = time.perf_counter()
    store_of(corpus, Path(cache))
    return {"build": time.perf_counter() - start}


def _datasets(text: str, tokenizer: str, cache: str) -> dict[str, float]:
    """As transformers' run_clm.py prepares text."""
    import datasets
    import transformers

    datasets.disable_progress_bars()
    fast = transformers.AutoTokenizer.from_pretrained(tokenizer, trust_remote_code=False)
    fast.model_max_length = sys.maxsize  # no warning about documents longer than some model

    def encode(batch: dict[str, list[str]]) -> Any:
        return fast(batch["text"])

    def group(batch: dict[str, list[list[int]]]) -> dict[str, list[list[int]]]:
        joined = {key: list(chain(*lists)) for key, lists in batch.items()}
        total = len(joined["input_ids"]) // SEQ_LEN * SEQ_LEN
        rows = {key: [ids[i : i + SEQ_LEN] for i in range(0, total, SEQ_LEN)] for key, ids in joined.items()}
        return {**rows, "labels": rows["input_ids"].copy()}

    options: dict[str, Any] = {"batched": True, "num_proc": CORES if CORES > 1 else None}
    times = [time.perf_counter()]
    data = datasets.load_dataset("json", data_files=text, split="train", cache_dir=cache)
    times.append(time.perf_counter())
    data = data.map(encode, remove_columns=["text"], **options)
    times.append(time.perf_counter())
    data.map(group, **options)
    times.append(time.perf_counter())
    return dict(zip(("load", "map", "rows"), (b - a for a, b in pairwise(times)), strict=True))
