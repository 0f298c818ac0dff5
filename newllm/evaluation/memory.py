"""Memory that long rows take, estimated before they are tried."""

import re
from pathlib import Path

import torch
from torch import nn

from newllm.evaluation.cgroup import free_in_cgroup
from newllm.model import LanguageModel

_MEMINFO = Path("/proc/meminfo")
_LOGITS = 1024  # positions whose logits exist at one time
_TILES = 20 * (8 << 20)  # bytes of attention's tiles of scores and what is made of them: a learned bias needs most


def row_bytes(model: LanguageModel, length: int) -> int:
    """Bytes beside the weights that the losses of a row of `length` tokens take, estimated from above.

    ``4 (2 S + 3 H) length + 8 * 1024 V + 160 MiB``. S is the sum of the widths of what one block's linear layers give
    (queries, keys, values, MLP …), each held twice in fp32 (as it comes, and rotated, activated or normed); H is the
    hidden size, of the residual stream, its norm and the final states; V is the vocabulary, of which 1024 positions
    at a time have logits and their exponentials. Linear in the length, since scores are made in tiles.
    """
    return _token_bytes(model) * length + _fixed_bytes(model)


def longest_row(model: LanguageModel, free: int) -> int:
    """Tokens of the longest row that by `row_bytes` fits into `free` bytes; 0 if none does."""
    return max(0, (free - _fixed_bytes(model)) // _token_bytes(model))


def free_bytes(device: torch.device) -> int | None:
    """Memory that can still be had on the device, the limit of a container or job counted; None where the system does
    not say."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0] + unused)
    if device.type != "cpu" or not _MEMINFO.exists():
        return None
    found = re.search(r"MemAvailable:\s+(\d+) kB", _MEMINFO.read_text())
    known = (int(found[1]) * 1024 if found else None, free_in_cgroup())
    return min((one for one in known if one is not None), default=None)


def gigabytes(count: int) -> str:
    """Bytes as they are read: "1.25 GB"."""
    return f"{count / 1e9:.3g} GB"


def _token_bytes(model: LanguageModel) -> int:
    widths = (
        sum(layer.out_features for layer in block.modules() if isinstance(layer, nn.Linear)) for block in model.blocks
    )
    return 4 * (2 * max(widths) + 3 * model.hidden_size)


def _fixed_bytes(model: LanguageModel) -> int:
    return 8 * _LOGITS * model.vocab_size + _TILES
