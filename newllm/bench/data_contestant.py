"""`python -m newllm.bench.data_contestant NAME FILE TOKENIZER CACHE`: prints the seconds of its stages as JSON."""

import json
import os
import sys
import time
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

SEQ_LEN = 128


def main(name: str, file: str, tokenizer: str, cache: str) -> None:
    contestants = {"newllm": _newllm, "datasets": _datasets}
    if name not in contestants:
        raise SystemExit(f"there is no contestant {name}")
    print(json.dumps(contestants[name](file, tokenizer, cache)))


def _newllm(file: str, tokenizer: str, cache: str) -> dict[str, float]:
    from newllm.data.build_store import store_of
    from newllm.data.corpora.text_files import TextFiles
    from newllm.data.tokenizer import pretrained

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
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

    def encode(batch: dict[str, list[str]]) -> Any:
        return fast(batch["text"])

    def group(batch: dict[str, list[list[int]]]) -> dict[str, list[list[int]]]:
        joined = {key: list(chain(*lists)) for key, lists in batch.items()}
        total = len(joined["input_ids"]) // SEQ_LEN * SEQ_LEN
        rows = {key: [ids[i : i + SEQ_LEN] for i in range(0, total, SEQ_LEN)] for key, ids in joined.items()}
        return {**rows, "labels": rows["input_ids"].copy()}

    share: dict[str, Any] = {"batched": True, "num_proc": cores if cores > 1 else None}
    times = [time.perf_counter()]
    data = datasets.load_dataset("json", data_files=file, split="train", cache_dir=cache)
    times.append(time.perf_counter())
    data = data.map(encode, remove_columns=["text"], **share)
    times.append(time.perf_counter())
    data.map(group, **share)
    times.append(time.perf_counter())
    return dict(zip(("load", "map", "rows"), (b - a for a, b in pairwise(times)), strict=True))


if __name__ == "__main__":
    main(*sys.argv[1:])
