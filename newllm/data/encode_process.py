"""`python -m newllm.data.encode_process FOLDER DTYPE`: answers texts on stdin with their ids on stdout."""

import sys
from pathlib import Path

import numpy as np

from newllm.data.encode import Texts, read_parts, write_parts
from newllm.data.tokenizer import Tokenizer


def main(folder: str, dtype: str) -> None:
    """Until stdin ends: see `newllm.data.encode`."""
    texts = Texts(Tokenizer.load(Path(folder)), np.dtype(dtype))
    while (parts := read_parts(sys.stdin.buffer)) is not None:
        write_parts(sys.stdout.buffer, [ids.tobytes() for ids in texts.encode([str(part, "utf-8") for part in parts])])


if __name__ == "__main__":
    main(*sys.argv[1:])
