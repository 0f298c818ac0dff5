"""Shell completion: what may follow on a command line, from the YAML files and the folders of runs alone.

`newllm -sc install=bash` prints what a shell needs (likewise zsh, fish); `newllm -sc query=bash` answers the shell,
which gives the line up to the cursor in COMP_LINE.
"""

import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

from newllm.bench import BENCHES
from newllm.config.catalog import Catalog, report_defaults, shipped
from newllm.config.compose import catalog_for
from newllm.config.groups import group_of, groups
from newllm.config.identity import value_at
from newllm.errors import ConfigError
from newllm.labels import LABELS
from newllm.store.run_directory import evaluated_run
from newllm.store.run_names import OUTPUTS, find_runs, short_names

# Verb -> flag -> the words that may follow it; None: no word, "": a word of any kind.
FLAGS: Mapping[str, Mapping[str, str | None]] = {
    "train": {
        "--help": None, "--multirun": None, "--cfg": "job hydra all", "--resolve": None, "--package": "",
        "--config-dir": "FOLDER",
    },
    "evaluate": {"--help": None, "--config-dir": "FOLDER"},
    "status": {
        "--help": None, "--watch": "", "--logs": None, "--cancel": None, "--retry": "failed interrupted all",
        "--json": None, "--follow": None,
    },
    "report": {"--help": None},
    "compare": {"--help": None},
    "import": {"--help": None, "--revision": ""},
    "generate": {
        "--help": None, "--max-new-tokens": "", "--temperature": "", "--top-p": "", "--seed": "",
        "--config-dir": "FOLDER",
    },
    "frequencies": {"--help": None, "--config-dir": "FOLDER", "--multirun": None},
    "conformance": {"--help": None, "--config-dir": "FOLDER"},
    "bench": {"--help": None},
}  # fmt: skip

_SHELL = re.compile(r"[\s$`;&|<>()'\"\\*?!#]")  # what a shell would not take as part of a name

SCRIPTS = {  # what a shell has to read once, as in eval "$(newllm -sc install=bash)"
    "bash": """\
_newllm() {
    local IFS=$'\\n'
    local line="${COMP_LINE:0:COMP_POINT}"
    COMPREPLY=($(COMP_LINE="$line" COMP_WORDBREAKS="$COMP_WORDBREAKS" newllm -sc query=bash 2>/dev/null))
}
complete -o nospace -F _newllm newllm""",
    "zsh": """\
_newllm() {
    local -a found
    found=("${(@f)$(COMP_LINE="$LBUFFER" newllm -sc query=zsh 2>/dev/null)}")
    compadd -U -S '' -- ${found:#}
}
(( $+functions[compdef] )) || { autoload -Uz compinit && compinit -u; }
compdef _newllm newllm""",
    "fish": """\
complete -c newllm -f -a '(COMP_LINE=(commandline -cp) newllm -sc query=fish 2>/dev/null)'""",
}


def answer(shell: str, line: str, breaks: str, verbs: Iterable[str]) -> list[str]:
    """The words that the shell offers for the line up to the cursor.

    verbs: those of the command newllm. breaks: bash's COMP_WORDBREAKS; it replaces only what follows the last of
    these characters.
    """
    words, quoted = _words(line)
    found = complete(words[1:], Path(), verbs) if len(words) > 1 else []
    if shell != "bash" or quoted:
        return [word for word in found if not (quoted and _SHELL.search(word))]
    start = 1 + max((words[-1].rfind(character) for character in breaks if not character.isspace()), default=-1)
    return [_SHELL.sub(r"\\\g<0>", word[start:]) + " " * word.startswith("-") for word in found]


def complete(words: Sequence[str], here: Path, verbs: Iterable[str]) -> list[str]:
    """The words that may take the place of the last one, which is being typed. words: those after ``newllm``."""
    *before, last = words
    if not before:
        return _starting([*verbs, "help", "--help", "--version"], last)
    verb, *before = before
    flags = FLAGS.get(verb, {})
    if before and (following := flags.get({"-cd": "--config-dir", "-c": "--cfg"}.get(before[-1], before[-1]))):
        return _folders(here, last) if following == "FOLDER" else _starting(following.split(), last)
    if last.startswith("-"):
        return _starting(flags, last)
    folder = next((b for a, b in pairwise(before) if a in ("--config-dir", "-cd")), None)
    catalog = catalog_for(folder if folder and Path(folder).is_dir() else None)
    keys: Callable[[], list[str]] = {
        "evaluate": lambda: _keys_of_evaluations(catalog, before, last),
        "report": lambda: [f"{key}=" for key in report_defaults() if key != "_target_"],
        "status": lambda: [f"{label}=" for label in LABELS],
        "compare": lambda: ["metrics="],
        "import": list,
        "generate": list,
        "bench": lambda: [*BENCHES, "gate"],
    }.get(verb, lambda: _keys(catalog, before, last, verb))
    key, equals, _ = last.partition("=")
    if equals:
        return _values(catalog, verb, key, last, here)
    with_runs = verb in ("evaluate", "report", "status", "compare", "generate")
    if with_runs and ":" in last:
        return _runs(here, last)
    return [*(_folders(here, last) if with_runs or verb == "import" else []), *_starting(keys(), last)]


def _words(line: str) -> tuple[list[str], bool]:
    """The words of a line as a shell reads them, and whether the last one is in quotes that are still open."""
    for quote in ("", "'", '"'):
        with suppress(ValueError):  # another quote is open
            *words, last = shlex.split(f"{line}x{quote}")  # the x is a word of its own after a space
            words.append(last[:-1])
            start = next((place for place, word in enumerate(words) if Path(word).name == "newllm"), 0)
            return words[start:], bool(quote)
    return [""], False


def _starting(names: Iterable[str], text: str) -> list[str]:
    return [name for name in dict.fromkeys(names) if name.startswith(text)]


def _folders(here: Path, text: str, files: bool = False) -> list[str]:
    """Folders, with a slash, that begin with the text; with `files`, files too. Hidden ones only if asked for."""
    parent, slash, name = text.rpartition("/")
    folder = here / Path(parent + slash).expanduser() if slash else here
    found = []
    if folder.is_dir():
        for path in sorted(folder.iterdir()):
            if (
                path.name.startswith(name)
                and path.name.isprintable()
                and (name.startswith(".") or not path.name.startswith("."))
            ):
                if path.is_dir():
                    found.append(f"{parent}{slash}{path.name}/")
                elif files:
                    found.append(f"{parent}{slash}{path.name}")
    return found


def _runs(here: Path, text: str) -> list[str]:
    """``FOLDER:RUN`` for the runs of a folder, by their short names; by their numbers if a digit is typed."""
    folder, _, part = text.rpartition(":")
    runs = [run for run in find_runs(here / (folder or OUTPUTS)) if evaluated_run(run) is None]
    names = [*short_names(run.name for run in runs).values(), *map(str, range(len(runs)) if part.isdecimal() else ())]
    return _starting([f"{folder}:{name}" for name in names], text)


def _keys(catalog: Catalog, before: Sequence[str], last: str, verb: str) -> list[str]:
    """Choices, axes, labels and options of the sweep; after ``GROUP.`` the options of the group's choice."""
    prefix = "+" * last.startswith("+")
    if "." in last:
        found = [*_options(catalog, before, last.lstrip("+")), "hydra.run.dir", "hydra.sweep.dir"]
        return [prefix + key + "=" * (not key.endswith(".")) for key in found]
    keys = [*catalog.groups, *catalog.axes]
    if verb == "train":
        keys += [*LABELS, *catalog.sweep_options, "hydra/launcher", "hydra.run.dir", "hydra.sweep.dir"]
    if verb == "frequencies":
        keys += ["out", "length"]
    found = [f"{key}=" for key in keys] + ["hydra.launcher."]
    found += [f"{group}." for group in catalog.groups if group != "experiment" and last and group.startswith(last)]
    return [prefix + key for key in found]


def _options(catalog: Catalog, before: Sequence[str], typed: str) -> list[str]:
    """The dotted keys of the options below the node that is being typed, as the chosen YAML files list them."""
    root, *path = typed.split(".")[:-1]
    if root == "hydra":
        given = [word.partition("=")[2] for word in before if word.startswith("hydra/launcher=")]
        known = [name for name in given if name in catalog.launchers] or ["local"]
        return [f"hydra.launcher.{key}" for key in _listed(catalog, "hydra/launcher", known)]
    if root == "sweep":
        return [f"sweep.{key}" for key in catalog.sweep_options]
    if root not in catalog.groups:
        return []
    default = catalog.defaults.get(root)
    chosen = default if isinstance(default, list) else [default]
    for word in before:
        key, _, value = word.lstrip("+").partition("=")
        if key == root:
            chosen = [name.strip(" []'\"") for name in value.split(",")]
    names = [name for name in chosen if name in catalog.groups[root]] or catalog.groups[root]
    if root in catalog.lists:
        if not path:
            return [f"{root}.{name}." for name in names]
        names, path = [name for name in names if name == path[0]] or path[:1], path[1:]
        return [f"{root}.{names[0]}.{key}" for key in _listed(catalog, root, names)] if not path else []
    return [".".join([root, *path, key]) for key in _listed(catalog, root, names, path)]


def _listed(catalog: Catalog, group: str, names: Iterable[str], path: Sequence[str] = ()) -> list[str]:
    """The options in the files of these choices, of the node at `path` inside."""
    contents = [content for name in names for content in _contents(catalog, f"{group}/{name}")]
    nodes = [value_at(content, ".".join(path)) if path else content for content in contents]
    found = dict.fromkeys(str(key) for node in nodes if isinstance(node, dict) for key in node)
    return [key for key in found if key != "_target_"]


def _contents(catalog: Catalog, option: str) -> list[dict[str, Any]]:
    """The contents of an option's file and of the files that it is based on; none of a broken file."""
    with suppress(ConfigError):
        return [*catalog.contents(option)]
    return []


def _values(catalog: Catalog, verb: str, key: str, last: str, here: Path) -> list[str]:
    """What may follow ``key=``: names of a group, after commas and in lists as well; paths; true and false."""
    typed = last[len(key) + 1 :]
    name = key.lstrip("+")
    if verb == "report":
        rules = [file.stem for file in sorted((shipped() / "report" / "verdict").glob("*.yaml"))]
        known = {"verdict": rules}.get(name, _booleans(report_defaults().get(name)))
        return _starting([f"{key}={one}" for one in known], last)
    root, _, option = name.partition(".")
    paths = group_of(root).paths if root in groups() else {}
    if option in paths or name in ("hydra.run.dir", "hydra.sweep.dir", "out"):
        return [f"{key}={path}" for path in _folders(here, typed, files=option in paths)]
    if name in catalog.groups or name == "hydra/launcher":
        names = catalog.launchers if name == "hydra/launcher" else catalog.groups[name]
        head = typed[: 1 + max(map(typed.rfind, ",[ "))]
        opening = "[" if name in catalog.lists and not typed else ""
        taken = [word.strip(" [") for word in head.split(",")]
        start = f"{key}={opening}"
        return _starting([f"{start}{head}{one}" for one in names if one not in taken], f"{start}{typed}")
    values = {"rerun": ["failed", "none", "all"]} if verb == "train" else {"rerun": ["true", "false"]}
    default: Any = {**catalog.axes, **catalog.sweep_options}.get(name)
    if "." in name:
        *_, node = [{}, *_contents(catalog, f"{root}/{catalog.defaults.get(root)}")]
        default = node.get(option)
    return _starting([f"{key}={one}" for one in values.get(name, _booleans(default))], last)


def _booleans(default: Any) -> list[str]:
    return ["true", "false"] if isinstance(default, bool) else []


def _keys_of_evaluations(catalog: Catalog, before: Sequence[str], last: str) -> list[str]:
    """What an evaluation may change, by conf/groups.yaml."""
    free = {name: group for name, group in groups().items() if group.evaluate and name in catalog.groups}
    keys = [f"{name}=" for name, group in free.items() if group.evaluate == "any"]
    for name, group in free.items():
        if isinstance(group.evaluate, tuple):
            keys += [f"{name}.{option}=" for option in group.evaluate]
        elif name in catalog.lists and last.startswith(f"{name}."):
            keys += [key + "=" * (not key.endswith(".")) for key in _options(catalog, before, last)]
        elif last.startswith(f"{name}."):
            options = _listed(catalog, name, catalog.groups[name])
            keys += [f"{name}.{option}=" for option in options if option not in group.kept]
        else:
            keys.append(f"{name}.")
    return [*keys, "rerun="]
