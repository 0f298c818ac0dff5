"""A figure of the report, drawn once, to be written as SVG, as PNG and into the page."""

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

from newllm.report.inline import inline

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PNG_DPI = 160


@dataclass(frozen=True)
class Drawing:
    """`name` is the stem of its files; `file` holds the SVG document. The caption stands below it."""

    name: str
    title: str
    figure: "Figure"
    file: bytes
    caption: str = ""

    @property
    def svg(self) -> str:
        """For the page."""
        return inline(self.file.decode(), self.name)

    def png(self) -> bytes:
        from newllm.report.figures.style import styled

        held = io.BytesIO()
        with styled():
            self.figure.savefig(held, format="png", dpi=PNG_DPI)
        return held.getvalue()


def drawing(name: str, title: str, figure: "Figure", caption: str = "") -> Drawing:
    """To be called within `styled()`, where the figure was made."""
    held = io.BytesIO()
    figure.savefig(held, format="svg", metadata={"Date": None})
    figure.set_layout_engine("none")  # it is laid out now; the PNG need not do it again
    return Drawing(name, title, figure, held.getvalue(), caption)
