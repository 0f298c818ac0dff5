"""The choices in the YAML folders: groups, their options, the root axes, and which options use which axis.

Read directly from the files, so that help pages and error messages need no composition.
"""

import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from newllm.errors import ConfigError
from newllm.labels import LABELS

REFERENCE = re.compile(r"\$\{\s*(\w+)\s*\}")  # to a root key, as in ${theta}
_ROOT = re.compile(r"\$\{\s*(\w+)\b(?![\w.]*:)")  # to a root key or inside it, as in ${model.bias}


def shipped() -> Path:
    """The folder conf/: next to the package in a checkout, inside it in a wheel."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "train.yaml").is_file():
            return folder
    raise ConfigError(f"no conf/train.yaml in {package} or next to it; expected the YAML files that newllm ships with.")


@dataclass(frozen=True)
class Catalog:
    """The choices in `folders`; a user's folders come first and may add to every group."""

    folders: tuple[Path, ...]

    @cached_property
    def _root(self) -> dict[str, Any]:
        return load(self.folders[-1] / "train.yaml")

    @cached_property
    def groups(self) -> dict[str, list[str]]:
        """Group name -> names of its options; experiment last."""
        found: dict[str, set[str]] = {group: set() for group in self.defaults}
        for folder in self.folders:
            for file in folder.glob("*/*.yaml"):
                if file.parent.name != "hydra" and not file.stem.startswith("_"):
                    found.setdefault(file.parent.name, set()).add(file.stem)
        return {group: sorted(found[group]) for group in sorted(found, key=lambda g: (g == "experiment", g))}

    @cached_property
    def defaults(self) -> dict[str, Any]:
        """Group -> default option, or list of options."""
        entries = [entry for entry in self._root["defaults"] if isinstance(entry, dict)]
        return {key: value for entry in entries for key, value in entry.items() if " " not in key}

    @cached_property
    def lists(self) -> list[str]:
        """The groups that take a list of options."""
        return [group for group, default in self.defaults.items() if isinstance(default, list)]

    @cached_property
    def axes(self) -> dict[str, Any]:
        """Root axis -> default value."""
        others = ("defaults", "hydra", *LABELS)
        return {k: v for k, v in self._root.items() if k not in others and not isinstance(v, dict)}

    @cached_property
    def labels(self) -> dict[str, Any]:
        """Label -> default value."""
        return {key: self._root[key] for key in LABELS}

    @cached_property
    def sweep_options(self) -> dict[str, Any]:
        """Option of the node `sweep` (may be typed without the prefix) -> default value."""
        return {key: value for key, value in self._root["sweep"].items() if key != "_target_"}

    @cached_property
    def launchers(self) -> list[str]:
        """The options of hydra/launcher."""
        return sorted({file.stem for folder in self.folders for file in folder.glob("hydra/launcher/*.yaml")})

    @property
    def run_dir(self) -> str:
        """The default of hydra.run.dir, which stands for: the run gets a folder of its own in it."""
        return str(self._root["hydra"]["run"]["dir"])

    @property
    def sweeps(self) -> str:
        """The default of hydra.sweep.dir: the folder in which each sweep has a folder of its own."""
        return str(self._root["hydra"]["sweep"]["dir"])

    @property
    def search_path(self) -> list[str]:
        """The override that adds the user's folder to Hydra's search path."""
        # In quotes, backslashes before a quote are doubled.
        quoted = [
            re.sub(r"(\\*)('|$)", lambda m: 2 * m[1] + m[2].replace("'", "\\'"), str(f)) for f in self.folders[:-1]
        ]
        return [f"hydra.searchpath=['file://{folder}']" for folder in quoted]

    @cached_property
    def comments(self) -> dict[str, str]:
        """Root axis or option of the sweep -> its comment in train.yaml."""
        text = (self.folders[-1] / "train.yaml").read_text(encoding="utf-8")
        return {name: comment.strip() for name, comment in re.findall(r"^ *(\w+):[^#\n]*#(.*)$", text, re.MULTILINE)}

    def users_files(self) -> list[dict[str, Any]]:
        """The contents of the user's YAML files, without broken ones."""
        contents = []
        for file in self._choices_of_user():
            with suppress(ConfigError):
                contents.append(load(file))
        return contents

    def hidden_file(self) -> Path | None:
        """A file of the user's that Hydra would not read, since newllm has another one of the same name."""
        for file in [*self._choices_of_user(), self.folders[0] / "train.yaml"]:
            ours = self.folders[-1] / file.relative_to(self.folders[0])
            if file.is_file() and ours.is_file() and file.read_bytes() != ours.read_bytes():
                return file
        return None

    def _choices_of_user(self) -> list[Path]:
        return [
            file for folder in self.folders[:-1] for depth in ("*", "*/*") for file in folder.glob(f"{depth}/*.yaml")
        ]

    def describe(self, group: str, option: str) -> str:
        """The first comment in an option's file that is not a Hydra directive."""
        lines = self._file(f"{group}/{option}").read_text(encoding="utf-8", errors="replace").splitlines()
        comments = [line[1:].strip() for line in lines if line.startswith("#") and not line.startswith("# @package")]
        return comments[0] if comments else ""

    def texts(self, option: str) -> Iterator[str]:
        """The texts of the file ``group/name`` and of the files that it is based on."""
        yield self._file(option).read_text(encoding="utf-8", errors="replace")
        with suppress(ConfigError):
            for base in self._bases(option, load(self._file(option))):
                yield from self.texts(base)

    def users(self, axis: str) -> dict[str, list[str]]:
        """Group -> options whose files refer to ``${axis}``."""
        found: dict[str, list[str]] = {}
        for group, names in self.groups.items():
            for option in names if group != "experiment" else ():
                with suppress(ConfigError):  # a broken file that is not chosen must not hide another mistake
                    if any(axis in references(content) for content in self.contents(f"{group}/{option}")):
                        found.setdefault(group, []).append(option)
        return found

    def _file(self, option: str) -> Path:
        for folder in self.folders:
            if (file := folder / f"{option}.yaml").is_file():
                return file
        raise ConfigError(f"there is no {option}.yaml in {' or '.join(map(str, self.folders))}.")

    def contents(self, option: str) -> Iterator[dict[str, Any]]:
        """The contents of the files in the defaults (``base``, ``shared/base@_here_``) of the file ``group/name``; then
        its own. Raises ConfigError for a file that is missing or broken."""
        content = load(self._file(option))
        for base in self._bases(option, content):
            yield from self.contents(base)
        yield content

    def _bases(self, option: str, content: dict[str, Any]) -> list[str]:
        """The files, as ``group/name``, in the defaults of a file, which are taken out of its content."""
        home = option.rpartition("/")[0]
        bases = [base.partition("@")[0] for base in content.pop("defaults", []) if isinstance(base, str)]
        return [base[1:] if base.startswith("/") else f"{home}/{base}" for base in bases if base != "_self_"]


def report_defaults() -> dict[str, Any]:
    """The options of a report with their defaults."""
    return load(shipped() / "report.yaml")


def load(file: Path) -> dict[str, Any]:
    """The plain, unresolved content of a YAML file. Raises ConfigError, with the line, if it is not a mapping."""
    try:
        content = OmegaConf.load(file)
    except (OSError, UnicodeError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise yaml_error(error, file) from None
    if not isinstance(content, DictConfig):
        raise ConfigError(f"{file} is not a mapping of names to values; expected lines such as name: value.")
    return plain(content)


def yaml_error(error: Exception, file: Path | str) -> ConfigError:
    """The ConfigError for a YAML file that cannot be read: file, line, what is wrong."""
    mark = getattr(error, "problem_mark", None)
    place = mark.name if mark and str(mark.name).startswith("/") else file
    line = f", line {mark.line + 1}" if mark else ""
    reason = getattr(error, "problem", None) or getattr(error, "strerror", None) or str(error).splitlines()[0]
    return ConfigError(f"{place}{line}: this is not valid YAML ({reason}); correct the file.")


def references(content: Any) -> set[str]:
    """The root keys that a plain, unresolved container refers to."""
    if isinstance(content, str):
        return set(_ROOT.findall(content)) if "${" in content else set()
    if isinstance(content, dict):
        content = content.values()
    return set().union(*map(references, content)) if isinstance(content, Iterable) else set()


def plain(content: Any, resolve: bool = False) -> dict[str, Any]:
    """A DictConfig as a plain dictionary; {} for anything else."""
    found = OmegaConf.to_container(content, resolve=resolve, throw_on_missing=resolve) if content else {}
    return {str(key): value for key, value in found.items()} if isinstance(found, dict) else {}
