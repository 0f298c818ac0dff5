"""An SVG figure as a part of the page: no ids that clash, its colours the page's, its groups within reach of CSS."""

import re

from newllm.report.figures.style import COLOURS, GRID, INK, MUTED


def inline(svg: str, name: str) -> str:
    """The <svg> element of a matplotlib file, to stand in HTML under the figure's `name`.

    Ids become ``name-id``, but those of groups and legend entries become classes (``group-3``, ``key-3``) that all
    figures share. Ink, grid and group colours become CSS variables with the printed colour as a fallback.
    """
    element = svg[svg.index("<svg") :]
    element = re.sub(r"<metadata>.*?</metadata>", "", element, flags=re.DOTALL)
    element = re.sub(r'<g id="patch_1">.*?</g>', "", element, count=1, flags=re.DOTALL)  # the paper behind it all
    element = re.sub(r'id="(group|key)-(\d+)-\d+"', r'class="\1 \1-\2"', element)
    element = re.sub(r'id="([^"]+)"', rf'id="{name}-\1"', element)
    element = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", element)
    element = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', element)
    element = re.sub(r'(<svg\b[^>]*?) height="[^"]*"', r"\1", element, count=1)
    element = re.sub(r'(<svg\b[^>]*?) width="[^"]*"', r"\1", element, count=1)
    for printed, variable in _variables():
        element = element.replace(f": {printed}", f": var({variable}, {printed})")
    element = element.replace("fill: #ffffff", "fill: none")
    return re.sub(r"\n\s*", "\n", element.replace("'DejaVu Sans'", "var(--sans)"))


def _variables() -> list[tuple[str, str]]:
    own = [(INK, "--ink"), (MUTED, "--muted"), (GRID, "--line")]
    return own + [(colour, f"--c{i}") for i, colour in enumerate(COLOURS)]
