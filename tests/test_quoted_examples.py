"""Examples can be copied into bash and zsh: words with ``[ { ( *`` are quoted in docs, YAML comments and messages."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
KEY = r"""(?<![\w'"./\-`{])[+~]?(?:[A-Za-z_][\w./\-]*|\{[\w.\[\]]+\}[\w.]*)="""
# In Python, braces are also those of f-strings, so that only doubled ones count.
PROSE = re.compile(KEY + r"(?:[\w.]*\(|\[|\{|[\w./]*\*)")
PYTHON = re.compile(KEY + r"(?:(?:glob|range|choice|interval)\(|\[|\{\{)")


def unquoted(text: str, pattern: re.Pattern[str]) -> list[str]:
    return [text[found.start() : found.end() + 20].split("\n")[0] for found in pattern.finditer(text)]


def texts() -> Iterator[tuple[Path, str, re.Pattern[str]]]:
    for file in [ROOT / "README.md", ROOT / "launch" / "README.md", *(ROOT / "docs").rglob("*.md")]:
        yield file, file.read_text(encoding="utf-8").replace("`", " "), PROSE
    for file in (ROOT / "conf").rglob("*.yaml"):
        comments = [line.partition("#")[2] for line in file.read_text(encoding="utf-8").splitlines()]
        yield file, "\n".join(comments), PROSE
    for file in [*(ROOT / "newllm").rglob("*.py"), *(ROOT / "launch").rglob("*.py")]:
        if file.name == "completion.py":  # scripts of shells
            continue
        source = file.read_text(encoding="utf-8")
        lines = source.encode().splitlines(keepends=True)
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str)):
                piece = lines[node.lineno - 1 : node.end_lineno]
                piece[-1] = piece[-1][: node.end_col_offset]
                piece[0] = piece[0][node.col_offset :]
                yield file, b"".join(piece).decode().lstrip("rbfRBF"), PYTHON


def test_examples_are_quoted() -> None:
    found = {f"{file.relative_to(ROOT)}: {one}" for file, text, pattern in texts() for one in unquoted(text, pattern)}
    # The words of the user, as typed.
    found = {one for one in found if not re.search(r"\{name\}=\[\]: expected at least one", one)}
    assert not found


def test_the_scan_finds_what_a_shell_would_change() -> None:
    for text in (
        "newllm train eval=[loss]",
        "x pos_encoding.scaling={kind:yarn}",
        "seed=range(1,4)",
        "a=enc/*",
        "~b=glob(r*)",
    ):
        assert unquoted(text, PROSE), text
    for text in ("'eval=[loss]'", '"baseline=[theta=1e4]"', "seed=1,2", "theta=1e4 (the base)"):
        assert not unquoted(text, PROSE), text
