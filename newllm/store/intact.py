"""Reads files and notices damage: each is judged once, and what is wrong with it is said in one sentence.

JSON and YAML that only newllm reads begin with the SHA-256 of the rest of the file, so that content and hash are
replaced together. Files that other programs read too (results, metrics, tables, tokens) have theirs in such a JSON file
beside them, and checkpoints in their header. A file without a hash counts as written by hand and is accepted.
SHA-256 takes about half a second per GB.
"""

import hashlib
import json
import os
import stat
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from newllm.errors import ConfigError
from newllm.store.atomic import finite, replacing, write_text

LARGE = 64 << 20  # bytes; larger files are hashed once per boot of the machine, unless their times have changed

_JSON_HEAD = '{\n  "sha256": "'
_YAML_HEAD = "# sha256 of the lines below: "
_KINDS = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"}
_BOOT = Path("/proc/sys/kernel/random/boot_id")


class Damaged(ConfigError):
    """A file is not what newllm wrote there: it cannot be read, or its content differs from its hash."""

    def __init__(self, path: str | os.PathLike[str], problem: str, advice: str = "") -> None:
        super().__init__(f"{path} {problem}{f'; {advice}' if advice else ''}")


def sha256(content: bytes | str) -> str:
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_file(path: Path, advice: str = "") -> bool:
    """Whether there is a file; raises Damaged if something else has its name, such as a folder or a pipe."""
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise Damaged(path, f"cannot be read ({error.strerror})", advice) from None
    if not stat.S_ISREG(mode):
        raise Damaged(path, f"is {_KINDS.get(stat.S_IFMT(mode), 'a device')} where a file is expected", advice)
    return True


def read_bytes(path: Path, advice: str = "") -> bytes | None:
    """The content of a file, None if there is none. Raises Damaged if it cannot be read; never waits for a pipe."""
    if not is_file(path, advice):
        return None
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Damaged(path, f"cannot be read ({error.strerror})", advice) from None


def read_text(path: Path, advice: str = "") -> str | None:
    content = read_bytes(path, advice)
    try:
        return None if content is None else content.decode()
    except UnicodeDecodeError:
        raise Damaged(path, "is not text", advice) from None


def read_json(path: Path, advice: str = "") -> dict[str, Any] | None:
    """The object in a file of `write_json`, None if there is no file. Raises Damaged."""
    text = read_text(path, advice)
    if text is None:
        return None
    values = parse_mapping(path, text, json.loads, "JSON", advice)
    if "sha256" in values:
        stored = str(values.pop("sha256"))
        if not text.startswith(_JSON_HEAD + stored) or sha256(text[len(_JSON_HEAD) + len(stored) :]) != stored:
            raise changed(path, advice)
    return values


def write_json(path: Path, values: Mapping[str, Any], durable: bool = True) -> None:
    """Write an object for `read_json`, with its hash. Floats keep their shortest exact form; NaN and infinity become
    null, since JSON cannot hold them."""
    text = json.dumps({"sha256": "", **finite(values)}, indent=2, ensure_ascii=False) + "\n"
    rest = text[len(_JSON_HEAD) :]
    write_text(path, f"{_JSON_HEAD}{sha256(rest)}{rest}", durable)


def with_hash(yaml: str) -> str:
    """YAML text with its hash as a comment in the first line."""
    return f"{_YAML_HEAD}{sha256(yaml)}\n{yaml}"


def without_hash(path: Path, yaml: str, advice: str = "") -> str:
    """The text of `with_hash`, checked. Raises Damaged."""
    if not yaml.startswith(_YAML_HEAD):
        return yaml
    first, _, rest = yaml.partition("\n")
    if first != _YAML_HEAD + sha256(rest):
        raise changed(path, advice)
    return rest


def parse_mapping(
    path: Path, text: str, parse: Callable[[str], Any], form: str, advice: str = "", problems: tuple[Any, ...] = ()
) -> dict[str, Any]:
    """What `parse` makes of a text; raises Damaged if it raises ValueError or one of `problems`, or is no mapping."""
    try:
        values = parse(text)
    except (ValueError, RecursionError, *problems) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())[:160]
        raise Damaged(path, f"is not valid {form} ({reason})", advice) from None
    if not isinstance(values, dict):
        raise Damaged(path, "does not hold a mapping", advice)
    return values


def require_types(path: Path, values: Mapping[str, Any], types: Mapping[str, Any], advice: str = "") -> None:
    """Raises Damaged if a value that is there has none of its key's types."""
    for name, kinds in types.items():
        value = values.get(name)
        if name in values and (not isinstance(value, kinds) or (isinstance(value, bool) and kinds is not bool)):
            raise Damaged(path, f"has {name}={json.dumps(value)[:40]}, which newllm never writes there", advice)


def changed(path: str | os.PathLike[str], advice: str = "") -> Damaged:
    return Damaged(path, "is damaged or was edited, since its content differs from its SHA-256", advice)


def check_file(path: Path, expected: str, advice: str = "") -> None:
    """Raises Damaged unless there is a file with this SHA-256.

    That a large file has been checked is noted beside it: it is not hashed again until it is written, or the machine
    is started again.
    """
    if not is_file(path, advice):
        raise Damaged(path, "is missing", advice)
    seen = path.stat()
    note = path.with_name(f".{path.name}.checked")
    state = json.dumps([expected, seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns, seen.st_ino, _boot()])
    if seen.st_size > LARGE:
        with suppress(OSError, Damaged):
            if read_bytes(note) == state.encode():
                return
    try:
        found = file_sha256(path)
    except OSError as error:
        raise Damaged(path, f"cannot be read ({error.strerror})", advice) from None
    if found != expected:
        raise changed(path, advice)
    if seen.st_size > LARGE:
        with suppress(OSError), replacing(note, durable=False) as temporary:
            temporary.write_text(state)


def _boot() -> str:
    with suppress(OSError):
        return _BOOT.read_text().strip()
    return ""
