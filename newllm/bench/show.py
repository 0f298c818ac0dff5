"""A bench's tables on the screen."""

import sys

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from newllm.bench.result import Result

WIDTH = 100  # columns, where the terminal does not say


def show(result: Result) -> None:
    """Print the tables, numbers to the right, and the notes."""
    console = Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False)
    for title, columns, rows in result.tables:
        table = Table(box=box.SIMPLE_HEAD)
        for number, column in enumerate(columns):
            table.add_column(Text(column), justify="right" if number else "left")
        for row in rows:
            table.add_row(*map(Text, row))
        console.print(Text(title, style="bold"))  # not as the table's title, which would wrap at the table's width
        console.print(table)
    for note in result.notes:
        console.print(Text(note))
