"""Runs that are no part of the tables: which, in what state, and why."""

from typing import TYPE_CHECKING

from newllm.report.table import ABSENT, Cell, Column, Table, words

if TYPE_CHECKING:
    import pandas as pd

MOST_ROWS = 200


def unfinished_table(runs: "pd.DataFrame") -> Table | None:
    """The runs that are not done, the unreadable and failed ones first; None where all are done."""
    if runs.empty:
        return None
    order = {"unreadable": 0, "failed": 1, "interrupted": 2, "running": 3, "queued": 4}
    ranked = sorted(range(len(runs)), key=lambda row: order.get(runs["state"].iloc[row], 5))
    rows = []
    for row in ranked[:MOST_ROWS]:
        run = runs.iloc[row]
        reason = run["error"] if isinstance(run["error"], str) else ""
        cells = [words(run["run"], "run"), words(run["sweep"], "sweep"), words(run["state"], "state")]
        rows.append([*cells, Cell(reason or ABSENT, reason or None, {"reason": reason}, kind="long")])
    more = len(runs) - MOST_ROWS
    notes = [f"{more:,} more are in the table of runs."] if more > 0 else []
    columns = [Column("run"), Column("sweep"), Column("state"), Column("reason")]
    return Table("unfinished", "State and reason", columns, rows, notes)
