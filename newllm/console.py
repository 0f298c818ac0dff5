"""Output for the user, on the terminal and as plain text in train.log."""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from rich import box
from rich.console import Console as RichConsole
from rich.console import ConsoleOptions, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.rule import Rule
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from newllm.streams import Output, visible

LOG_WIDTH = 110


Bar = Callable[[int, float, float], None]  # takes the step, the loss and the tokens per second


class Screen(RichConsole):
    """rich's console on stdout, stderr or a file; control characters in what is printed are shown as text."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, force_jupyter=False)  # else each line in a notebook would be a block of HTML

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=visible(segment.text))

    @property
    def file(self) -> IO[str]:
        file = super().file
        return cast(IO[str], file.styled) if isinstance(file, Output) else file

    @file.setter
    def file(self, new: IO[str]) -> None:
        self._file = new


class Console:
    """Prints to stdout and, once `open_log` has been called, to a log file as well.

    On a terminal: colours (unless NO_COLOR is set) and a progress bar. Elsewhere: the same lines without
    control characters. Lines printed before the log file is open are written when it opens.
    """

    def __init__(self, bar: bool = True) -> None:
        terminal = sys.stdout.isatty()
        self._screen = Screen(width=None if terminal else LOG_WIDTH, highlight=False)
        self._bar = bar and terminal
        self._notebook = bar and type(sys.stdout).__module__ == "ipykernel.iostream"
        self._overwritten = 0  # characters of the line in a notebook that the next text overwrites
        self._log: Screen | None = None
        self._waiting: list[RenderableType] = []

    def open_log(self, path: Path) -> None:
        """Append everything printed so far and from now on to `path`, as plain text."""
        file = path.open("a", encoding="utf-8", buffering=1)
        self._log = Screen(file=file, width=LOG_WIDTH, no_color=True, force_terminal=False, highlight=False)
        for plain in self._waiting:
            self._write(plain)
        self._waiting.clear()

    def close_log(self) -> None:
        if self._log is not None:
            self._log.file.close()
            self._log = None

    def log_only(self, text: str) -> None:
        """Write to the log file only."""
        if self._log is not None:
            self._write(Text(text))

    def line(self, text: str = "", style: str = "") -> None:
        self._print(Text(text, style=style))

    def title(self, text: str) -> None:
        self.line()
        self._print(Rule(Text(text, style="bold"), align="left"), Rule(text, align="left", characters="-"))

    def settings(self, pairs: Mapping[str, str]) -> None:
        """Aligned `name  value` lines."""
        width = max(map(len, pairs), default=0)
        for name, value in pairs.items():
            self._print(Text.assemble((f"{name:<{width}}  ", "dim"), value))

    def table(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """A table with a column for each key; numbers are aligned right."""
        if rows:
            self._print(_table(rows, box.SIMPLE_HEAD), _table(rows, box.MARKDOWN))

    def section(self, title: str, body: Sequence[str | Sequence[Mapping[str, Any]]]) -> None:
        """A title, then lines and tables in their order."""
        self.title(title)
        for part in body:
            if isinstance(part, str):
                self.line(part)
            else:
                self.table(part)

    @contextmanager
    def progress(self, steps: int, done: int) -> Iterator[Bar]:
        """A bar over the steps of training with loss, tokens per second and time left on a terminal; a line with
        loss and speed in a notebook; nothing elsewhere."""
        if not self._bar:
            yield lambda step, loss, speed: self._overwrite(
                f"{step:,}/{steps:,}  loss {loss:.3f}  {speed:,.0f} tokens/s"
            )
            self._overwrite("")
            return
        columns = [
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[loss]}  {task.fields[speed]}"),
            TimeRemainingColumn(compact=True),
            TextColumn("left"),
        ]
        with Progress(*columns, console=self._screen, transient=True) as progress:
            task = progress.add_task("", total=steps, completed=done, loss="", speed="")
            yield lambda step, loss, speed: progress.update(
                task, completed=step, loss=f"loss {loss:.3f}", speed=f"{speed:,.0f} tokens/s"
            )

    def _overwrite(self, text: str) -> None:
        """In a notebook, show a text instead of the last one."""
        if self._notebook and (text or self._overwritten):
            sys.stdout.write("\r" + " " * self._overwritten + "\r" + text)
            self._overwritten = len(text)

    def _print(self, screen: RenderableType, plain: RenderableType | None = None) -> None:
        self._overwrite("")
        plain = screen if plain is None else plain
        # Soft wrapping leaves long lines to the terminal, so that paths and commands can be copied whole.
        self._screen.print(screen, soft_wrap=isinstance(screen, Text))
        if self._log is None:
            self._waiting.append(plain)
        else:
            self._write(plain)

    def _write(self, plain: RenderableType) -> None:
        assert self._log is not None
        self._log.print(plain, soft_wrap=isinstance(plain, Text))


def number(value: Any) -> str:
    """A value as text: thousands separated, four significant digits; text stays as it is."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "" if value is None else str(value)
    if isinstance(value, int) or (abs(value) >= 1e4 and abs(value) < 1e15):
        return f"{value:,.0f}"
    return f"{value:.4g}"


def _table(rows: Sequence[Mapping[str, Any]], style: box.Box) -> Table:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    table = Table(box=style, pad_edge=False, header_style="bold")
    for column in columns:
        numeric = all(isinstance(row.get(column), int | float | None) for row in rows)
        table.add_column(Text(column), justify="right" if numeric else "left")
    for row in rows:
        table.add_row(*(Text(number(row.get(column))) for column in columns))
    return table
