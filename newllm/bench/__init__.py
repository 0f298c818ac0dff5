"""`newllm bench NAME …`: speed as ratios, measured side by side.

A bench is a module of this package with

    PURPOSE = "…"                  one line for the list (a literal: the list is read without importing the module)
    OPTIONS: dict[str, Any]        options of its own with their defaults, whose types they have (options.py)
    DEFAULTS: list[str]            overrides of the configuration of the run it measures; [] if it measures none
    measure(overrides, **options)  -> Result; `overrides` holds the defaults and what was typed, ready for `compose`
"""

import ast
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from newllm.cli import guarded
from newllm.errors import ConfigError
from newllm.suggest import did_you_mean

if TYPE_CHECKING:
    from newllm.bench.result import Result

COMMANDS = {
    "page": "docs/speed.md from the JSON files in docs/speed",
    "gate": "short measurements against lower bounds of ratios, for continuous integration",
}


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    return guarded(_run, sys.argv[1:] if argv is None else argv)


def benches() -> dict[str, str]:
    """{name: purpose} of the modules of this package that are benches."""
    files = sorted(Path(__file__).parent.glob("[a-z]*.py"))
    return {file.stem: purpose for file in files if (purpose := _purpose(file))}


def measure(name: str, words: list[str]) -> "Result":
    """What the bench `name` finds with these words, each an option of the bench or an override of a run.

    Raises ConfigError for a name that is no bench, and for options that are none.
    """
    from newllm.bench.options import parse

    _require_bench(name)
    bench = import_module(f"newllm.bench.{name}")
    options, overrides = parse(words, bench.OPTIONS, bench.DEFAULTS)
    result: Result = bench.measure(overrides, **options)
    return result


def _run(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(_usage())
        return 0
    name, *words = argv
    if name in COMMANDS:
        return int(import_module(f"newllm.bench.{name}").main(words))
    _require_bench(name)
    if any(word in ("-h", "--help") for word in words):
        print(_help(name))
        return 0
    out = [Path(word.removeprefix("out=")) for word in words if word.startswith("out=")]
    for file in out:
        if not file.parent.is_dir() or file.suffix != ".json":
            raise ConfigError(f"out={file} is no JSON file in a folder that exists; type out={name}.json.")
    result = measure(name, [word for word in words if not word.startswith("out=")])

    from newllm.bench.show import show

    show(result)
    for file in out:
        result.write(file, name)
        print(f"Written to {file}")
    return 0


def _require_bench(name: str) -> None:
    known = [*benches(), *COMMANDS]
    if name not in benches():
        raise ConfigError(f"{name!r} is no bench; {did_you_mean(name, known, prefix='newllm bench ')}.")


def _purpose(file: Path) -> str | None:
    """The literal PURPOSE of a module's source."""
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "PURPOSE" for t in node.targets):
            return str(ast.literal_eval(node.value))
    return None


def _usage() -> str:
    listed = [f"  {name:<10} {purpose}" for name, purpose in {**benches(), **COMMANDS}.items()]
    return "\n".join(["newllm bench NAME [option=value …] [key=value of a run …] [out=FILE.json]", "", *listed])


def _help(name: str) -> str:
    from newllm.bench.options import typed

    bench = import_module(f"newllm.bench.{name}")
    options = " ".join(f"{key}={typed(value)}" for key, value in bench.OPTIONS.items())
    lines = [f"newllm bench {name} [option=value …] [out=FILE.json]", "", (bench.__doc__ or "").strip(), ""]
    lines.append(f"Options: {options}")
    if bench.DEFAULTS:
        lines.append(f"Run: {' '.join(bench.DEFAULTS)}, or any other key=value of newllm train")
    return "\n".join(lines)
