"""The report on many runs: tables, comparisons, figures, and one page that opens offline.

options -> study (runs, parts, groups, comparisons) -> sections (tables and figures) -> files. `newllm.report(…)` makes
one in Python.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

    from newllm.store.run_names import Paths


@dataclass(frozen=True, repr=False)
class Report:
    """A report that has been written: its files, the page first, and its tables, by the stems of their files."""

    files: Sequence[Path]
    tables: "dict[str, pd.DataFrame]"

    def __repr__(self) -> str:
        return f"Report {self.files[0]} (tables: {', '.join(self.tables)})"


def report(runs: "Paths", overrides: Sequence[str] = ()) -> Report:
    """Write the report on these runs and print its summary; the same as ``newllm report RUNS OVERRIDES``.

    ::

        newllm.report("outputs/sweeps/pos_encoding-seed", ["baseline=pos_encoding=rope"]).tables["main"]

    Args:
        runs: a folder of runs, or a list of folders or of `Run`s. The report goes into report/ in the folder, or in the
            one that several have in common, unless ``out=FOLDER`` is given.
        overrides: options as on the command line; ``newllm report --help`` explains them.

    Raises ConfigError without a finished run, and for an option that is unknown or does not fit the runs.
    """
    from newllm.errors import ConfigError

    if isinstance(overrides, str):
        raise ConfigError(
            f"{overrides!r} is a string; expected a list of options, as in ['baseline=pos_encoding=rope']."
        )
    folders = [os.fspath(one) for one in ([runs] if isinstance(runs, str | os.PathLike) else runs)]
    if not folders:
        raise ConfigError("the list of runs is empty; expected a folder of runs, or a list of them.")
    common = []
    if len(folders) > 1:
        paths = [*map(os.path.abspath, folders)] if any(map(os.path.isabs, folders)) else folders
        common = [f"out={os.path.join(os.path.commonpath(paths), 'report')}"]
    import pandas as pd

    from newllm.report.__main__ import make_report

    sections, files = make_report([*folders, *common, *overrides])
    tables = [table for section in sections for table in section.tables]
    return Report(files, {table.name: pd.DataFrame(table.csv_rows()) for table in tables})
