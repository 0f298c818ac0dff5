"""stdout and stderr of a command, also where they are closed, full, without a reader, or lack a character."""

import io
import os
import re
import sys
from typing import Any

# What moves a terminal's cursor, changes its colours or the order of letters. A line may end with \r\n.
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]|\r(?!\n)")


def visible(text: str) -> str:
    """The text with control characters as escapes (\\u001b): names and messages in a run directory may come from
    somebody else, and a terminal would execute them."""
    return _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


class Output(io.TextIOWrapper):
    """A text stream on a file descriptor; a character that its encoding lacks is written as an escape.

    needed: the text is what the user asked for, so a failed write raises OSError (BrokenPipeError if the reader has
    gone). Otherwise the command goes on without its output.
    """

    def __init__(self, descriptor: int, encoding: str, *, needed: bool) -> None:
        file = io.BufferedWriter(io.FileIO(descriptor, "wb", closefd=False))
        super().__init__(file, encoding, errors="backslashreplace", line_buffering=True)
        self.needed = needed
        self.styled = _Styled(self)

    def write(self, text: str) -> int:
        return self.write_styled(visible(text) if self.fileno() == 1 else text)  # libraries draw bars on stderr

    def write_styled(self, text: str) -> int:
        """Write text with the colours and movements of a `Screen`."""
        try:
            return super().write(text)
        except OSError as error:
            self._discard(error)
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            self._discard(error)

    def _discard(self, error: OSError) -> None:
        """Send this and all further text to /dev/null. Raises if the text is needed."""
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
        if self.needed:
            raise type(error)(error.errno, error.strerror, "the output") from None
        if self.fileno() == 1 and not isinstance(error, BrokenPipeError):
            print(f"newllm: the output can't be written ({error.strerror}); the work goes on", file=sys.stderr)


class _Styled:
    """An `Output` that writes control characters as they are."""

    def __init__(self, output: Output) -> None:
        self._output, self.write = output, output.write_styled

    def __getattr__(self, name: str) -> Any:
        return getattr(self._output, name)


def open_outputs() -> None:
    """Make sys.stdout and sys.stderr an `Output`, unless something else, such as a test, has replaced them."""
    for descriptor in range(3):  # one that is closed, as by `>&-`, would be taken by the next file that is opened
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest one that is free
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        stream: Any = getattr(sys, name)
        if stream is None or (stream is getattr(sys, f"__{name}__") and not isinstance(stream, Output)):
            if stream is not None:
                stream.flush()
            encoding = getattr(stream, "encoding", None) or "utf-8"
            setattr(sys, name, Output(descriptor, encoding, needed=name == "stdout"))


def go_on_without_output() -> None:
    """From now on stdout is a view of work whose results are stored: a reader that leaves does not stop the work."""
    if isinstance(sys.stdout, Output):
        sys.stdout.needed = False
