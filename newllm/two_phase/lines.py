"""The lines of a first phase, which stand before all others in metrics.jsonl."""

import json
from typing import Any

from newllm.store.run_directory import RunDirectory

CLOCK = ("time/", "speed/")  # begin the names of values that no two attempts share


class Lines:
    """Writes a phase's lines where an earlier attempt may have written some or all of them already.

    A line that stands there is kept, whatever its times. So a run killed between a checkpoint and the line about it
    gets that line, and one whose stored phase is gone does the phase again below lines of its second phase, which
    stay. The first line that differs, or is missing, takes the place of all that come after it.
    """

    def __init__(self, directory: RunDirectory) -> None:
        self._directory = directory
        self._lengths, self._found = _leading(directory)
        self._count = 0

    def add(self, line: dict[str, Any]) -> None:
        """The phase's next line."""
        if self._count < len(self._found) and _timeless(self._found[self._count]) == _timeless(line):
            self._count += 1
            return
        self._cut()
        self._directory.append_metrics(line)
        # What has been cut off is forgotten; lines of this attempt need not be looked at again.
        self._found, self._lengths = [], [_size(self._directory)]
        self._count = 0

    def end(self) -> None:
        """There are no more lines of this phase."""
        if self._count < len(self._found):
            self._cut()

    def _cut(self) -> None:
        length = self._lengths[self._count]
        if _size(self._directory) != length:
            self._directory.truncate_metrics(length)


def leading_bytes(directory: RunDirectory) -> int:
    """How many bytes of metrics.jsonl the lines of a first phase take; 0 where there are none."""
    return _leading(directory)[0][-1]


def _leading(directory: RunDirectory) -> tuple[list[int], list[dict[str, Any]]]:
    """The lines with a phase that the file begins with, and the lengths in bytes of the first 0, 1, … of them."""
    lengths, found = [0], []
    text = directory.metrics_file.read_bytes() if directory.metrics_file.exists() else b""
    for line in text.splitlines(keepends=True):
        try:
            values = json.loads(line)
        except ValueError:  # cut off by a power failure
            break
        if "phase" not in values or not line.endswith(b"\n"):
            break
        found.append(values)
        lengths.append(lengths[-1] + len(line))
    return lengths, found


def _size(directory: RunDirectory) -> int:
    return directory.metrics_file.stat().st_size if directory.metrics_file.exists() else 0


def _timeless(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if not key.startswith(CLOCK)}
