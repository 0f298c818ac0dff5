"""The token store against `datasets.map`: the same text, tokenizer and cores, from text on disk to tokens on disk.

newllm reads the text twice (which documents validate, and encoding), splits it, and checks sums. The peer is what
transformers' own example scripts do: `load_dataset`, `map` with the fast tokenizer in batches and a process for each
core (ratio/datasets_map), then a second `map` that joins the ids and cuts rows (ratio/datasets_rows). Each round of
each contestant is a process of its own with empty caches; its imports and the loading of the tokenizer are not timed.

The text is the source files of this Python and its packages, as JSON lines; where that is less than asked for, they
are taken again with another first line. Memory is the sum of the proportional set sizes of a contestant's processes.
"""

import json
import os
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from newllm.bench.result import Result
from newllm.bench.timing import ratio
from newllm.data.bpe import EOT, train_bpe
from newllm.errors import RunError

PURPOSE = "building a token store against datasets.map"
OPTIONS: dict[str, Any] = {"sizes": [10, 100], "rounds": 3, "peer": True, "tokenizer": None}
DEFAULTS: list[str] = []

VOCAB_SIZE = 16_384
TRAINED_ON = 4_000_000  # bytes of text for the tokenizer


def measure(overrides: list[str], *, sizes: list[int], rounds: int, peer: bool, tokenizer: str | None) -> Result:
    """Megabytes a second and peak memory at each size.

    sizes: megabytes (10^6) of text. peer: datasets too, or newllm alone. tokenizer: name or folder of a Hugging Face
    tokenizer; None trains a byte-level BPE of 16,384 ids.
    """
    names = ["newllm", "datasets"] if peer else ["newllm"]
    metrics: dict[str, Any] = {"cores": _cores(), "sizes_mb": sizes}
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for size in sizes:
            file = Path(scratch, f"{size}.jsonl")
            documents = _write(file, size * 1_000_000)
            tokenizer = tokenizer or _train(file, Path(scratch, "tokenizer"))
            found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
            for turn in range(rounds):
                for name in names[:: 1 if turn % 2 else -1]:
                    with tempfile.TemporaryDirectory(dir=scratch) as cache:
                        found[name].append(_run(name, file, tokenizer, cache))
            file.unlink()
            metrics |= {f"documents/{size}mb": documents, **_metrics(found, size)}
            rows += _rows(found, size)
    largest = f"/{sizes[-1]}mb"
    metrics |= {key.replace(largest, ""): value for key, value in metrics.items() if "ratio/" in key and largest in key}
    title = f"Text to stored tokens, {metrics['cores']} cores; medians of {rounds} rounds"
    columns = ["contestant", "MB", "seconds", "min … max", "MB/s", "newllm is", "peak MB"]
    return Result(metrics, [(title, columns, rows)])


def _metrics(found: dict[str, list[dict[str, float]]], size: int) -> dict[str, Any]:
    metrics: dict[str, Any] = {}
    seconds = {"newllm": [one["total"] for one in found["newllm"]]}
    if "datasets" in found:
        seconds["datasets_map"] = [one["load"] + one["map"] for one in found["datasets"]]
        seconds["datasets_rows"] = [one["total"] for one in found["datasets"]]
        metrics[f"seconds/datasets_map_alone/{size}mb"] = [one["map"] for one in found["datasets"]]
    for name, times in seconds.items():
        metrics[f"seconds/{name}/{size}mb"] = times
        metrics[f"mb_per_second/{name}/{size}mb"] = size / statistics.median(times)
        if name != "newllm":
            for which, value in ratio(times, seconds["newllm"]).items():
                metrics[f"ratio/{name}/{size}mb" + ("" if which == "median" else f"/{which}")] = value
    for name, runs in found.items():
        metrics[f"peak_bytes/{name}/{size}mb"] = int(statistics.median(one["peak"] for one in runs))
    return metrics


def _rows(found: dict[str, list[dict[str, float]]], size: int) -> list[list[str]]:
    metrics = _metrics(found, size)
    rows = []
    for name, label in {
        "newllm": "newllm",
        "datasets_map": "datasets: load, map",
        "datasets_rows": "datasets: load, map, rows",
    }.items():
        times = metrics.get(f"seconds/{name}/{size}mb")
        if times is None:
            continue
        faster = metrics.get(f"ratio/{name}/{size}mb")
        peak = metrics[f"peak_bytes/{name.partition('_')[0]}/{size}mb"]
        rows.append(
            [
                label,
                f"{size}",
                f"{statistics.median(times):.1f}",
                f"{min(times):.1f} … {max(times):.1f}",
                f"{metrics[f'mb_per_second/{name}/{size}mb']:.1f}",
                f"{faster:.1f} x faster" if faster else "",
                f"{peak / 1e6:.0f}",
            ]
        )
    return rows


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _sources() -> Iterator[str]:
    for root in dict.fromkeys(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")):
        for folder, below, names in os.walk(root):
            below[:] = sorted(set(below) - {"site-packages", "__pycache__"})
            for name in sorted(name for name in names if name.endswith(".py")):
                try:
                    text = Path(folder, name).read_text("utf-8")
                except (OSError, UnicodeDecodeError):  # tests of decoding itself
                    continue
                if text.strip() and "\0" not in text:
                    yield text


def _write(file: Path, size: int) -> int:
    """JSON lines of `size` bytes at least; returns the number of documents."""
    documents = copy = 0
    with open(file, "w", encoding="utf-8") as stream:
        while True:
            for text in _sources():
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
    words = [name, str(file), tokenizer, cache]
    process = subprocess.Popen(
        [sys.executable, "-m", "newllm.bench.data_contestant", *words],
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
