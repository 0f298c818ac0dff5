"""Finds runs: all in a folder, or the one that a number or a word means; and the short names that tables show."""

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from newllm.errors import ConfigError
from newllm.store.run_directory import RUN_FILES, RunDirectory, evaluated_run, is_run
from newllm.suggest import listed, nearest

Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]

OUTPUTS = Path("outputs")

_MOST_FOLDERS = 20_000  # without a run in them, which are searched in a few seconds
_SIGNATURE = re.compile(r"-([0-9a-f]{8})$")
_HYPHEN = re.compile(r"(?<!\de)-")  # not the one of 1e-05


def find_runs(path: Paths) -> list[Path]:
    """The run directories (folders with a config.yaml, or with a status.json if that is lost) at or below `path`,
    sorted by name, each once; each run is followed by the folders of its evaluations, and links to runs come last.

    Does not search inside run directories, in folders whose name begins with a dot, nor in links to other folders.
    Raises ConfigError for a path that does not exist, or that is no folder of runs, since it holds thousands of others.
    """
    found: dict[Path, Path] = {}
    for root in map(Path, [path] if isinstance(path, str | os.PathLike) else path):
        if not root.is_dir():
            wrong = f"{root} is a file" if root.exists() else f"{root}: no such folder"
            raise ConfigError(f"{wrong}; expected a run directory or a folder of runs, as outputs/runs")
        for folder, real in _walk(root):
            found.setdefault(real, folder)
    return list(found.values())


def _walk(root: Path) -> Iterator[tuple[Path, Path]]:
    """The run directories and evaluations, each with its real path; those that are links come last."""
    others, links, real = 0, list[Path](), root.resolve()
    for folder, folders, files in os.walk(root):
        if not RUN_FILES.isdisjoint([*files, *folders]):
            evaluations = sorted(Path(folder, "evaluations").glob("[!.]*"))
            for run in (Path(folder), *filter(_is_finished_evaluation, evaluations)):
                yield run, real / run.relative_to(root)
            folders.clear()
        else:
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            links += [Path(folder, name) for name in folders if os.path.islink(os.path.join(folder, name))]
            others += 1
            if others > _MOST_FOLDERS:
                raise ConfigError(
                    f"{root} holds more than {_MOST_FOLDERS:,} folders that are no runs; name one nearer to the runs."
                )
    for run in filter(is_run, links):
        yield from _walk(run)


def _is_finished_evaluation(folder: Path) -> bool:
    """Whether the folder holds an evaluation, broken or not. One whose process was killed is none yet."""
    try:
        return is_run(folder) and RunDirectory(folder).status().get("state", "done") == "done"
    except ConfigError:
        return True


def runs_in(folder: Path) -> list[Path]:
    """The run directories in a folder, by name."""
    return sorted(run for run in folder.glob("[!.]*") if is_run(run))


def numbered(folder: Path) -> list[Path]:
    """The runs at or below a folder, oldest first: the place of a run is its number in tables and on command lines.

    Raises ConfigError if there is none.
    """
    if runs := _by_age(folder):
        return runs
    raise ConfigError(
        f"{folder} holds no runs, which are folders with a config.yaml; sweeps land in outputs/sweeps and single runs "
        "in outputs/runs."
    )


def _by_age(folder: Path) -> list[Path]:
    """The runs at or below a folder, oldest first, without their evaluations."""

    def age(run: Path) -> tuple[str, list[int | str]]:
        created: Any = ""
        with suppress(ConfigError, OSError, TypeError, ValueError):  # unreadable
            created = RunDirectory(run).status().get("created")
        return created if isinstance(created, str) else "", natural(run.as_posix())

    return sorted((run for run in find_runs(folder) if evaluated_run(run) is None), key=age)


def natural(name: str) -> list[int | str]:
    """A key to sort by: s2 before s10."""
    # Text and numbers alternate; Python reads no number of thousands of digits.
    return [int(part[:99]) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def located(typed: str | os.PathLike[str]) -> Path:
    """The run or folder that a user means: a path; ``FOLDER:RUN``; or ``RUN``, which is one in outputs/.

    RUN is a number in the table of ``newllm status FOLDER``, or whatever `choose` takes. A text that may be a mistyped
    path is returned as it is. Raises ConfigError if RUN fits several runs, or none in a folder that holds runs.
    """
    text = os.fspath(typed)
    folder, colon, run = text.rpartition(":")
    if os.path.exists(text) or not text:
        return Path(text)
    if colon and run and os.path.isdir(folder or OUTPUTS):
        word, inside = run, Path(folder or OUTPUTS)
        runs = numbered(inside)
    elif os.sep not in text and OUTPUTS.is_dir() and (runs := _by_age(OUTPUTS)):
        word, inside = text, OUTPUTS
    else:
        return Path(text)
    found = choose([word], runs, inside)
    if len(found) > 1:
        raise ConfigError(f"{text!r} fits {len(found)} runs; type one of {', '.join(map(str, found[:4]))}.")
    return found[0]


def signature_in(name: str) -> str | None:
    """The signature at the end of a run directory's name, None if the user chose a name without one."""
    found = _SIGNATURE.search(name)
    return found.group(1) if found else None


def short_names(names: Iterable[str]) -> dict[str, str]:
    """Name of each run directory -> short name, without the signature and the parts that all names share.

    Runs whose short names would be equal keep their signatures. A single run keeps its name.
    """
    names = list(names)
    parts = {name: _HYPHEN.split(_SIGNATURE.sub("", name)) for name in names}
    uses = Counter(part for words in parts.values() for part in set(words))
    short = {
        name: "-".join(word for word in words if uses[word] < len(names)) if len(names) > 1 else name
        for name, words in parts.items()
    }
    times = Counter(short.values())
    unclear = [name for name, text in short.items() if not text or times[text] > 1]
    marks = {name: signature_in(name) for name in unclear}
    return short | {name: f"{short[name]}-{mark}".lstrip("-") if mark else name for name, mark in marks.items()}


def choose(words: Sequence[str], runs: Sequence[Path], folder: Path) -> list[Path]:
    """The run directories among `runs`, all that are in `folder`, that the user named.

    A word is the number of a run (its place in `runs`), its path, name or signature, or a part of its name that no
    other run has. Parts may be left out (``alibi-s2`` for ``nano-alibi-mha-stdlib-s2-1a2b3c4d``), as in the short names
    of a table. Raises ConfigError with the candidates if a word matches no run or several.
    """
    short = short_names(dict.fromkeys(path.name for path in runs))
    chosen = []
    for word in words:
        if re.fullmatch(r"0|[1-9][0-9]{,8}", word) and int(word) < len(runs):
            chosen.append(runs[int(word)])
            continue
        name = _matching_name(word, short, folder)
        named = [path for path in runs if path.name == name]
        chosen += [path for path in named if path.resolve() == Path(word).resolve()] or named
    return list(dict.fromkeys(chosen))


def _matching_name(word: str, short: Mapping[str, str], folder: Path) -> str:
    """The name that the word matches. short: name -> short name."""
    part = os.path.basename(os.path.normpath(word))

    def in_order(name: str) -> bool:  # has the name all hyphenated parts of the word, in their order?
        rest = iter(_HYPHEN.split(name))
        return all(piece in rest for piece in _HYPHEN.split(part))

    exact = [name for name in short if part in (name, signature_in(name), short[name])]
    if not exact and re.fullmatch(r"\d{1,7}", word) and str(int(word)) == word:  # a number that no run has
        raise ConfigError(f"there is no run {word} in {folder}; its runs have the numbers 0 to {len(short) - 1}.")
    found = exact or [name for name in short if part in name] or [name for name in short if in_order(name)]
    if len(found) == 1:
        return found[0]
    if found:
        raise ConfigError(f"{word!r} is part of the names of {len(found)} runs; be more specific: {listed(found)}.")
    close = nearest(word, {*short.values(), *short})
    hint = f"did you mean {close}?" if close else f"there are {', '.join(list(short.values())[:4])}"
    raise ConfigError(f"there is no run {word!r} in {folder}; {hint}{' …' if not close and len(short) > 4 else ''}")
