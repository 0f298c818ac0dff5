"""`newllm bench page [FOLDER=docs/speed]`: the tables of FOLDER.md, written anew from the JSON files in FOLDER.

The prose of the page is written by hand; between ``<!-- speed:NAME -->`` and ``<!-- /speed -->`` stand the tables of
FOLDER/NAME.json, and between those of `machine` the machines that the files come from.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from newllm.errors import ConfigError
from newllm.store.atomic import write_text

FOLDER = "docs/speed"
_PLACE = re.compile(r"(<!-- speed:([\w-]+) -->\n).*?(<!-- /speed -->)", re.DOTALL)


def main(argv: list[str]) -> int:
    """Write the page, and the figures beside its files; returns the exit status."""
    if len(argv) > 1 or any(word.startswith("-") for word in argv):
        print((__doc__ or "").strip())
        return 0 if argv[0] in ("-h", "--help") else 2
    folder = Path(argv[0] if argv else FOLDER)
    page = folder.with_suffix(".md")
    if not folder.is_dir() or not page.is_file():
        raise ConfigError(
            f"a page needs a folder of JSON files and {page} beside it; write newllm bench page {FOLDER}."
        )
    found = read(folder)
    text = render(page.read_text(encoding="utf-8"), found, folder.name)
    if "decode" in found:
        from newllm.bench.plot import decoding

        decoding(found["decode"], folder / "decode.png")
    write_text(page, text)
    print(f"Written: {page}, from {', '.join(found) or 'no files'}.")
    return 0


def read(folder: Path) -> dict[str, dict[str, Any]]:
    """The results of a folder by the names of their files. Raises ConfigError for a file that holds none."""
    found = {}
    for file in sorted(folder.glob("*.json")):
        try:
            found[file.stem] = json.loads(file.read_text(encoding="utf-8"))
            _ = found[file.stem]["machine"], found[file.stem]["tables"], found[file.stem]["notes"]
        except (ValueError, KeyError, TypeError):
            raise ConfigError(f"{file} is no result of a bench; write one with newllm bench NAME out={file}.") from None
    return found


def render(page: str, results: Mapping[str, dict[str, Any]], folder: str) -> str:
    """The page with the places of these results filled; the place of a result that is not there says so.

    Raises ConfigError when the page has no place for a result, since it would be lost without a word.
    """
    places = {name for _, name, _ in _PLACE.findall(page)}
    missing = [name for name in results if name not in places]
    if missing:
        raise ConfigError(
            f"the page has no place for {missing[0]}.json: write <!-- speed:{missing[0]} --> and, below it, "
            "<!-- /speed --> where its tables belong."
        )

    def fill(place: re.Match[str]) -> str:
        name = place[2]
        if name == "machine":
            body = _machines(results)
        elif name in results:
            body = _tables(results[name], f"{folder}/{name}.png" if name == "decode" else None)
        else:
            body = f"Not measured yet: `newllm bench {name} out={FOLDER}/{name}.json`."
        return f"{place[1]}\n{body}\n\n{place[3]}"

    return _PLACE.sub(fill, page)


def _machines(results: Mapping[str, dict[str, Any]]) -> str:
    """A paragraph for each machine, with the benches that ran on it."""
    machines: dict[str, list[str]] = {}
    for name, result in results.items():
        machines.setdefault(_machine(result["machine"]), []).append(name)
    if len(machines) == 1:
        return next(iter(machines))
    return "\n\n".join(f"{machine} ({', '.join(names)})" for machine, names in machines.items())


def _machine(machine: Mapping[str, Any]) -> str:
    bf16 = "native bf16" if machine["native_bf16"] else "no native bf16"
    parts = [
        f"**{machine['cpu']}**, {machine['cores']} cores, {machine['threads']} threads",
        f"{machine['instructions']}, {bf16}",
        *([f"{machine['memory_gib']:g} GiB of memory"] if machine["memory_gib"] else []),
        *machine["gpus"],
        f"Python {machine['python']}",
        *(f"{name} {version}" for name, version in machine["packages"].items() if name != "newllm"),
    ]
    return "; ".join(parts)


def _tables(result: Mapping[str, Any], figure: str | None) -> str:
    parts = []
    if figure is not None:
        parts.append(f"![tokens per second against context length]({figure})")
    for table in result["tables"]:
        rows = [table["columns"], ["---", *["---:"] * (len(table["columns"]) - 1)], *table["rows"]]
        lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
        parts.append("\n".join([f"{table['title']}", "", *lines]))
    machine = result["machine"]
    version = machine["commit"] or f"newllm {machine['packages'].get('newllm', '')}".strip()
    parts += result["notes"]
    parts.append(f"*Measured {machine['date']} at {version}.*")
    return "\n\n".join(parts)
