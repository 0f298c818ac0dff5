"""The trackers of a run together: each gets each step once, whenever the run is killed.

metrics.jsonl is the record. When an attempt at the run begins, the file has been cut back to the last checkpoint, and
every tracker says which step it has last. It gets the steps after that one, first from the file and then as they are
made. A step that is repeated because the process was killed after its last checkpoint has the same numbers (except for
the times) and is not sent again. So nothing has to be stored about what was sent: a tracker that failed in one attempt
is complete after the next one, and a tracker that is added to a run gets all earlier steps.

This is exact if a tracker reports its last step correctly. Trackers of local files (csv, tensorboard, wandb offline)
report none and write their files again from the beginning. mlflow and trackio ask their database and write each step in
one transaction; what trackio had not written when it was killed is sent again. wandb online and trackio in a space ask
a server: a step may come twice if a killed process has sent it and the server stores it only after the next attempt has
asked. This is tested for local files and databases, not for servers.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from newllm.build import build
from newllm.loggers.logger import Logger, Tracked

_OF_EPOCH = {"train/loss": "train/epoch_loss", "train/ppl": "train/epoch_ppl"}  # lines of steps have these names too


class Loggers:
    """The trackers of one run, by name. One that fails is switched off with a sentence, and the run goes on."""

    def __init__(self, nodes: Mapping[str, Any], directory: Path) -> None:
        """nodes: the group `logger` of a configuration. Raises ConfigError."""
        self._loggers = {str(name): build(node, Logger, directory=directory) for name, node in nodes.items()}
        self._has: dict[str, int] = {}  # the last step of each
        self._step, self._row = -1, dict[str, float]()  # of the step whose lines may not be complete
        self._say: Callable[[str], None] = print

    def start(self, run: Tracked, lines: Iterable[Mapping[str, Any]], say: Callable[[str], None]) -> None:
        """Open all trackers and hand them the `lines` of metrics.jsonl that they lack. say: takes a sentence about one
        that fails."""
        self._say = say
        self._each(lambda name, logger: self._has.update({name: logger.start(run)}))
        for line in lines:
            self.log(line)

    def log(self, line: Mapping[str, Any]) -> None:
        """Take a line of metrics.jsonl. A step may have two lines, its own and that of the epoch that ends with it, so
        its row is sent when the first line of another step comes. Lines of a first phase are not sent; the table phase1
        has them."""
        if "train/loss" not in line:
            return
        if line["step"] != self._step:
            self._send()
            self._step = line["step"]
        names = _OF_EPOCH if "epoch" in line else {}
        values = {names.get(name, name): value for name, value in line.items() if name != "step"}
        self._row |= _finite(values)

    def finish(self, results: Mapping[str, Any], tables: Path) -> None:
        """Hand on the last step, the results of a finished run, and the CSV files in the folder `tables`."""
        self._send()
        files = {file.stem: file for file in sorted(tables.glob("*.csv"))}
        self._each(lambda name, logger: logger.finish(_finite(results), files))

    def close(self) -> None:
        """Close the trackers that have started. A step whose lines may not be complete is left to the next attempt."""
        self._each(lambda name, logger: logger.close() if name in self._has else None)
        self._loggers.clear()

    def _send(self) -> None:
        step, row = self._step, self._row
        self._row = {}
        if row:
            self._each(lambda name, logger: logger.log(step, row) if step > self._has.get(name, -1) else None)

    def _each(self, call: Callable[[str, Logger], Any]) -> None:
        for name, logger in list(self._loggers.items()):
            try:
                call(name, logger)
            except Exception as error:
                del self._loggers[name]
                reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
                self._say(f"The logger {name} failed ({reason}) and is off for the rest of this attempt.")


def _finite(values: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items() if value is not None and math.isfinite(value)}
