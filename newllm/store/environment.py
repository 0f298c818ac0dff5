"""The environment of a run: command line, version of the code, packages, machine."""

import hashlib
import os
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from newllm.store.intact import Damaged, read_json, require_types

CODE = "_code.json"  # in a copy of the package: the git state of its source

_NAME = (
    r"(?:pass(?:word|wd|phrase)|\bpwd\b|secret|(?:api|access|auth|private|hub|hf|wandb|signing)[-_]?(?:key|token)|"
    r"(?<![\w-])-*token\b|credential|\bsignature\b|\bsig\b|authorization)"
)
_SECRET = re.compile(_NAME, re.I)
_INNER = re.compile(rf"([\w-]*{_NAME}[\w-]*['\"]?\s*[=:]\s*)('[^']*'|\"[^\"]*\"|[^\s,&'\"}}\]]+)", re.I)
_KEYS = re.compile(
    r"\b(hf_|sk-|gh[opsur]_|github_pat_|glpat-|xox[a-z]-|AKIA|ASIA|AIza|wandb_v1_|eyJ)[\w.-]{12,}|Bearer \S+"
)

PACKAGES = [
    "newllm", "torch", "numpy", "hydra-core", "omegaconf", "safetensors", "tokenizers", "transformers", "datasets",
    "pandas", "pyarrow", "rich", "filelock", "submitit",
]  # fmt: skip


def describe(*, device: str, threads: int, precision: str) -> dict[str, Any]:
    """The contents of environment.json."""
    return {
        "command": without_secrets([sys.executable, *sys.orig_argv[1:]]),
        "folder": os.getcwd(),
        "git": git_state(Path(__file__).resolve().parents[1]),
        "python": platform.python_version(),
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
        "device": device,
        "threads": threads,
        "precision": precision,
        "cpu": _cpu_name(),
        "host": platform.node(),
        "platform": platform.platform(),
    }


def without_secrets(words: Sequence[str]) -> list[str]:
    """The words of a command line with *** for what looks like a password or a key."""
    shown, hide = [], False
    for word in words:
        word = re.sub(r"(\w://)[^/@\s]+@", r"\1***@", word)  # https://user:password@host
        word = _KEYS.sub("***", word)
        name, equals, _ = word.partition("=")
        word = _INNER.sub(r"\1***", word)  # in a URL's query, a mapping, or a line of shell
        secret = bool(_SECRET.search(name.rpartition(".")[2]))
        shown.append("***" if hide and not word.startswith("-") else f"{name}=***" if secret and equals else word)
        hide = secret and not equals and word.startswith("-")  # --token VALUE
    return shown


@dataclass(frozen=True)
class NumericSettings:
    """Settings of a run's latest attempt that the next ones keep, since they change the last bits of numbers."""

    threads: int
    compiled: bool
    precision: Literal["fp32", "tf32", "bf16", "fp16"]
    signature: str | None  # of the run


def numeric_settings(file: Path) -> NumericSettings | None:
    """The settings in an environment.json; None if there is no such file. Raises Damaged if it lacks them."""
    advice = "restore it, or delete it to continue with the threads, precision and compilation of a new run"
    values = read_json(file, advice)
    if values is None:
        return None
    require_types(file, values, {"threads": int, "compiled": bool, "precision": str, "signature": str}, advice)
    try:
        return NumericSettings(values["threads"], values["compiled"], values["precision"], values.get("signature"))
    except KeyError as missing:
        raise Damaged(file, f"has no {missing.args[0]}", advice) from None


def git_state(folder: Path) -> dict[str, str | None] | None:
    """Commit of the checkout that the code is in, and a hash of uncommitted changes; None outside a checkout.

    In a sweep's copy of the code: those of the checkout it was copied from, and a hash of the copied files.
    """
    if (source := read_json(folder / CODE)) is not None:
        return source
    if _git(folder, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None  # no checkout, or a folder inside another one
    commit = _git(folder, "rev-parse", "HEAD")
    changes = _git(folder, "diff", "HEAD", "--binary")
    dirty = hashlib.sha256(changes).hexdigest() if changes else None
    return {"commit": commit.decode().strip() if commit else None, "dirty_diff_sha256": dirty}


def _git(folder: Path, *arguments: str) -> bytes | None:
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = (line.split(":", 1)[1].strip() for line in lines if line.lower().startswith("model name"))
    return next(names, platform.processor())
