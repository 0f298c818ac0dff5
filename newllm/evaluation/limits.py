"""Checks that evaluators share: option values, row lengths, memory and the presence of attention."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from newllm.checks import above
from newllm.errors import ConfigError
from newllm.evaluation.subject import Subject
from newllm.model import LanguageModel

T = TypeVar("T")

_SHORTEST = 2  # one token to read and one to predict
_LOGITS = 1024  # positions whose logits exist at the same time
_TILES = 20 * (8 << 20)  # bytes of attention's score tiles and their intermediates; a learned bias needs most

_MEMINFO = Path("/proc/meminfo")
_CGROUP_MOUNT = Path("/sys/fs/cgroup")
_CGROUP_SELF = Path("/proc/self/cgroup")
# cgroup version 2, then 1: folder, limit file, usage file, and the name of the file cache in memory.stat.
_CGROUP_FILES = (
    ("", "memory.max", "memory.current", "inactive_file"),
    ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def require_positive(node: str, **options: float | None) -> None:
    """Raises ConfigError if an option of `node` (such as "eval.qk") is 0 or less; None is allowed."""
    for name, value in options.items():
        if value is not None:
            above(f"{node}.{name}", value, 0, example=10)


def require_attention(node: str, model: LanguageModel) -> None:
    """Raises ConfigError if the model has no attention for the evaluator `node` to inspect."""
    if not all(hasattr(block, "attention") for block in model.blocks):
        raise ConfigError(
            f"{node} looks at attention, and {type(model).__name__} has none; leave it out, as in "
            "'eval=[loss,accuracy]'."
        )


def check_lengths(lengths: Sequence[int | str], option: str) -> None:
    """Raises ConfigError unless each length is a number of tokens or a multiple such as "2x"."""
    for length in lengths:
        if not isinstance(length, int) and not re.fullmatch(r"\d+(\.\d+)?x", length):
            raise ConfigError(
                f"{option} must be tokens or multiples of the training length, as in [1024,4096] or [1x,2x,4x]; "
                f"got {length!r}."
            )


def parse_lengths(lengths: Sequence[int | str], seq_len: int, option: str) -> list[int]:
    """The checked lengths in tokens, ascending and distinct: "2x" is twice `seq_len`, rounded down, 2048 is itself.

    option: the key named in errors, such as "eval.extrapolation.lengths".
    """
    tokens = set()
    for length in lengths:
        count = length if isinstance(length, int) else int(float(length.removesuffix("x")) * seq_len)
        if count < _SHORTEST:
            raise ConfigError(
                f"{option} must be {_SHORTEST} tokens or more each, as in [{seq_len},{2 * seq_len}] or [1x,2x]; "
                f"got {length}."
            )
        tokens.add(count)
    return sorted(tokens)


def require_room(option: str, lengths: list[int], model: LanguageModel, text: int, several: bool = True) -> None:
    """Raises ConfigError if the longest of `lengths` (ascending) exceeds the text, the encoding or the memory.

    text: tokens of the longest row that the validation text can fill. several: whether the option is a list.
    """
    if not lengths:
        return
    longest, limit = lengths[-1], model.position.limit
    bounds = [(text, f"the validation text has room for {text:,}", "give more text (samples, data.val_fraction)")]
    if limit is not None:
        table = f"pos_encoding has values for {limit:,} positions"
        bounds.append((limit, table, "train with an encoding that has no table, such as pos_encoding=rope"))
    device = next(model.parameters()).device
    free = free_bytes(device)
    if free is not None:
        takes = f"one takes about {_gigabytes(row_bytes(model, longest))}, of which {_gigabytes(free)} are free"
        bounds.append((longest_row(model, free), f"{takes} on {device}", "take a machine with more memory"))
    most, why, instead = min(bounds)
    if longest > most:
        fitting = ",".join(str(length) for length in lengths if length <= most) or str(most)
        raise ConfigError(
            f"{option} asks for rows of {longest:,} tokens, and {why}: the longest that fits has {most:,}; type "
            + (f"'{option}=[{fitting}]'" if several else f"{option}={fitting}")
            + f", or {instead}."
        )


def try_length(subject: Subject, length: int, measure: Callable[[], T], cache_bytes: int = 0) -> tuple[T | None, str]:
    """The result of `measure()` on rows of `length` tokens, or None and the reason why it failed.

    Running out of memory is a reason and not an error, so that the other lengths keep their numbers. Meanwhile, an
    inference-time scaling without a fixed factor is set to `length`. cache_bytes: memory needed in addition to a row.
    """
    needed, free = row_bytes(subject.model, length) + cache_bytes, free_bytes(subject.device)
    if free is not None and needed > free:  # trying might make the system kill the process
        return None, f"a row takes about {_gigabytes(needed)} and {_gigabytes(free)} are free on {subject.device}"
    try:
        subject.model.position.adapt(length)
        return measure(), ""
    except (MemoryError, RuntimeError) as error:  # torch raises either if memory runs out
        if subject.device.type == "cuda":
            torch.cuda.empty_cache()
        return None, (str(error) or type(error).__name__).splitlines()[0]
    finally:
        subject.model.position.adapt(subject.model.seq_len)


def row_bytes(model: LanguageModel, length: int) -> int:
    """Upper estimate of the bytes needed for the losses of a row of `length` tokens, in addition to the weights.

    ``4 (2 S + 3 H) length + 8 * 1024 V + 160 MiB``. S is the sum of the output widths of one block's linear layers
    (queries, keys, values, MLP …), each held twice in fp32 (raw, and rotated, activated or normed); H is the hidden
    size of the residual stream, its norm and the final states; V is the vocabulary size, for logits and their
    exponentials at 1024 positions at a time. Linear in the length, since scores are computed in tiles.
    """
    widths = [sum(m.out_features for m in block.modules() if isinstance(m, nn.Linear)) for block in model.blocks]
    return 4 * (2 * max(widths) + 3 * model.hidden_size) * length + 8 * _LOGITS * model.vocab_size + _TILES


def longest_row(model: LanguageModel, free: int) -> int:
    """Tokens of the longest row that fits into `free` bytes according to `row_bytes`; 0 if none fits."""
    fixed = row_bytes(model, 0)
    return max(0, (free - fixed) // (row_bytes(model, 1) - fixed))


def free_bytes(device: torch.device) -> int | None:
    """Free memory of the device, within the limit of a container or job; None if unknown."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0] + unused)
    if device.type != "cpu" or not _MEMINFO.exists():
        return None
    available = re.search(r"MemAvailable:\s+(\d+) kB", _MEMINFO.read_text())
    bounds = [int(available[1]) * 1024 if available else None, free_in_cgroup()]
    return min((bound for bound in bounds if bound is not None), default=None)


def free_in_cgroup() -> int | None:
    """Bytes left under the tightest memory limit of this process's cgroups and their parents; None without a limit.

    Containers and SLURM set such limits, and /proc/meminfo does not show them.
    """
    lines = _CGROUP_SELF.read_text().splitlines() if _CGROUP_SELF.exists() else []
    # A container sees its own cgroup as the root.
    groups = {"/", *(line.split(":", 2)[2] for line in lines if line.count(":") >= 2)}
    free = []
    for mount, limit_file, usage_file, cache in _CGROUP_FILES:
        own = [_CGROUP_MOUNT / mount / group.strip("/") for group in groups]
        for folder in {folder for path in own for folder in (path, *path.parents)}:
            try:
                limit, usage = (int((folder / name).read_text()) for name in (limit_file, usage_file))
            except (OSError, ValueError):  # no such file, or "max"
                continue
            stat = (folder / "memory.stat").read_text() if (folder / "memory.stat").exists() else ""
            reclaimable = re.search(rf"^{cache} (\d+)$", stat, re.MULTILINE)
            free.append(max(0, limit - usage + (int(reclaimable[1]) if reclaimable else 0)))
    return min(free, default=None)


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.3g} GB"
