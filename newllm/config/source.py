"""Definitions found by dotted path in source files, without importing anything."""

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.machinery import PathFinder
from pathlib import Path
from types import NoneType
from typing import Any, Literal, Union

Definition = ast.ClassDef | ast.FunctionDef

# Bases whose constructors take no options, or that would cost a long parse to learn so.
_WITHOUT_OPTIONS = {"object", "ABC", "Protocol", "Generic", "Module"}
_TYPES: dict[str, Any] = {"int": int, "float": float, "bool": bool, "str": str, "list": list, "dict": dict}
_TYPES |= {
    "List": list,
    "Sequence": list,
    "tuple": list,
    "Dict": dict,
    "Mapping": dict,
    "Any": Any,
    "object": Any,
}


class NotFound(Exception):
    """There is no `name` in the module `where`, which defines `names`."""

    def __init__(self, name: str, where: str, names: list[str]):
        super().__init__(name)
        self.name, self.where, self.names = name, where, names


class Unreadable(Exception):
    """The source does not say: only an import can tell."""


@dataclass(frozen=True)
class Module:
    name: str
    path: str
    package: str  # what relative imports start from


def resolve(dotted: str) -> tuple[Module, Definition]:
    """The class or function at `dotted`, re-exports followed to the file that defines it."""
    module, rest = _locate(dotted)
    if len(rest) != 1:
        raise NotFound(rest[0] if rest else dotted, module.name, _public(module))
    return _lookup(module, rest[0])


def base_class(module: Module, base: ast.expr) -> tuple[Module, ast.ClassDef] | None:
    """The class that a base expression names; None for those that take no options."""
    name = ast.unparse(base.value if isinstance(base, ast.Subscript) else base)  # Generic[T]
    if name.split(".")[-1] in _WITHOUT_OPTIONS:
        return None
    head, _, tail = name.partition(".")
    found = resolve(f"{_imported(module, head)}.{tail}") if tail else _lookup(module, head)
    if not isinstance(found[1], ast.ClassDef):
        raise Unreadable(name)
    return found[0], found[1]


def annotation(module: Module, node: ast.expr | None) -> Any:
    """The typing object of an annotation made of plain types, Literal, unions and aliases; Any for all else."""
    match node:
        case ast.Constant(value=None):
            return NoneType
        case ast.Constant(value=str(text)):
            return annotation(module, ast.parse(text, mode="eval").body)
        case ast.BinOp(op=ast.BitOr()):
            members = (annotation(module, node.left), annotation(module, node.right))
            return Any if Any in members else Union[members]  # noqa: UP007 - members are known at run time only
        case ast.Subscript():
            return _subscript(module, node)
        case ast.Attribute():
            return _TYPES.get(node.attr, Any)
        case ast.Name():
            return _TYPES[node.id] if node.id in _TYPES else _alias(module, node.id)
    return Any


def _subscript(module: Module, node: ast.Subscript) -> Any:
    name = ast.unparse(node.value).split(".")[-1]
    items = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    if name == "Literal":
        return Literal[tuple(ast.literal_eval(item) for item in items)]
    if name == "Annotated":
        return annotation(module, items[0])
    if name in ("Optional", "Union"):
        members = [annotation(module, item) for item in items] + [NoneType] * (name == "Optional")
        return Any if Any in members else Union[tuple(members)]  # noqa: UP007
    outer = _TYPES.get(name, Any)
    return list[annotation(module, items[0])] if outer is list else outer  # type: ignore[misc]


def _alias(module: Module, name: str) -> Any:
    for statement in _statements(module):
        value = statement.value if isinstance(statement, ast.Assign | ast.AnnAssign) else None
        if value is not None and _defines(statement, name):
            return annotation(module, value)
    try:
        home, _, original = _imported(module, name).rpartition(".")
        found, rest = _locate(home)
    except (NotFound, Unreadable):
        return Any
    return Any if rest or found == module else _alias(found, original)


def _locate(dotted: str) -> tuple[Module, list[str]]:
    """The longest module or package on the path, and the rest of the name."""
    parts = dotted.split(".")
    loaded = sys.modules.get(parts[0])
    search: list[str] | None = None
    module: Module | None = None
    for i in range(len(parts)):
        name = ".".join(parts[: i + 1])
        if i == 0 and loaded is not None and getattr(loaded, "__path__", None) and loaded.__file__:
            origin, locations = (
                loaded.__file__,
                list(loaded.__path__),
            )  # the copy that runs, however it was installed
        else:
            spec = PathFinder.find_spec(name, search)
            if spec is None:
                break
            origin, locations = spec.origin or "", list(spec.submodule_search_locations or [])
        package = name if locations else name.rpartition(".")[0]
        module, search, rest = Module(name, origin, package), locations, parts[i + 1 :]
        if not locations:
            break
    if module is None:
        raise NotFound(parts[0], "", [])
    return module, rest


def _lookup(module: Module, name: str) -> tuple[Module, Definition]:
    for statement in _statements(module):
        if isinstance(statement, Definition) and statement.name == name:
            return module, statement
        if isinstance(statement, ast.Assign) and _defines(statement, name):
            if isinstance(statement.value, ast.Name):
                return _lookup(module, statement.value.id)
            raise Unreadable(name)
        if isinstance(statement, ast.ImportFrom) and any((a.asname or a.name) == name for a in statement.names):
            return resolve(_imported(module, name))
        dynamic = isinstance(statement, ast.ImportFrom) and statement.names[0].name == "*"
        if dynamic or (isinstance(statement, ast.FunctionDef) and statement.name == "__getattr__"):
            raise Unreadable(name)
    raise NotFound(name, module.name, _public(module))


def _imported(module: Module, name: str) -> str:
    """The full dotted path that `name` was imported from."""
    for statement in _statements(module):
        if isinstance(statement, ast.Import):
            for alias in statement.names:
                if (alias.asname or alias.name.partition(".")[0]) == name:
                    return alias.name if alias.asname else name
        if isinstance(statement, ast.ImportFrom):
            for alias in statement.names:
                if (alias.asname or alias.name) == name:
                    parents = module.package.split(".")
                    base = parents[: len(parents) - statement.level + 1] if statement.level else []
                    return ".".join([*base, *([statement.module] if statement.module else []), alias.name])
    raise Unreadable(name)


def _public(module: Module) -> list[str]:
    """Classes (capitalised names) that the module defines or re-exports, and a package's modules."""
    names: set[str] = set()
    for statement in _statements(module):
        if isinstance(statement, ast.ClassDef):
            names.add(statement.name)
        if isinstance(statement, ast.ImportFrom) and module.path.endswith("__init__.py"):
            names |= {alias.asname or alias.name for alias in statement.names}
    folder = Path(module.path).parent if module.path.endswith("__init__.py") else None
    submodules = {path.stem for path in folder.glob("*.py")} - {"__init__"} if folder else set()
    return sorted({name for name in names if name[0].isupper()} | submodules)


def _defines(statement: ast.stmt, name: str) -> bool:
    targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
    return any(isinstance(target, ast.Name) and target.id == name for target in targets)


@cache
def _parse(path: str) -> ast.Module:
    if not path.endswith(".py"):
        raise Unreadable(path)
    with open(path, encoding="utf-8") as file:
        return ast.parse(file.read())


def _statements(module: Module) -> Iterator[ast.stmt]:
    """Top-level statements, those under ``if`` and ``try`` too."""
    pending = list(_parse(module.path).body)
    while pending:
        statement = pending.pop(0)
        yield statement
        if isinstance(statement, ast.If | ast.Try):
            pending = [*statement.body, *statement.orelse, *pending]
