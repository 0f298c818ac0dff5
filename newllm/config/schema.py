"""The options of a `_target_`, read from its source: the constructor's signature is the schema of its YAML node.

Reading the source instead of importing it keeps torch out of composition. Where the source cannot tell (a class made
at run time, a compiled module), the target is imported and inspected after all.
"""

import ast
import inspect
import pkgutil
from dataclasses import dataclass
from functools import cache
from typing import Any

from newllm.config import source
from newllm.errors import ConfigError
from newllm.suggest import did_you_mean

REQUIRED = inspect.Parameter.empty
UNREAD = object()  # a default that is not a literal, so that only the class itself knows it


@dataclass(frozen=True)
class Option:
    """A parameter that YAML may set: its type (a typing object) and default (REQUIRED, UNREAD or the value)."""

    name: str
    annotation: Any
    default: Any


@dataclass(frozen=True)
class Signature:
    """What a target takes: options from YAML, and what the code that builds it hands over (parameters after ``*``).

    `open` targets take any option (``**options`` and no ``*``).
    """

    target: str
    options: dict[str, Option]
    handed: tuple[str, ...]
    open: bool = False


@cache
def options(target: str) -> Signature:
    """The signature of the dotted path `target`; ConfigError when there is nothing at that path."""
    missing = source.NotFound(target, "", [])
    try:
        return _read(target, *source.resolve(target))
    except source.NotFound as error:
        missing = error
    except source.Unreadable:
        pass
    try:
        if not missing.where.startswith("newllm"):  # our own modules hold what their source shows, nothing more
            return _inspect(target, pkgutil.resolve_name(target))
    except (ImportError, AttributeError, ValueError):
        pass
    place = f" in {missing.where}" if missing.where else ""
    raise ConfigError(
        f"_target_={target}: there is no {missing.name}{place}; {did_you_mean(missing.name, missing.names)}."
    )


def _read(target: str, module: source.Module, node: ast.stmt) -> Signature:
    if isinstance(node, ast.FunctionDef):
        return _from_arguments(target, module, node.args, skip_first=False)
    assert isinstance(node, ast.ClassDef)
    return _from_class(target, module, node) or Signature(target, {}, ())


def _from_class(target: str, module: source.Module, node: ast.ClassDef) -> Signature | None:
    """The constructor: `__init__`, else dataclass fields, else that of the first base that has one."""
    for statement in node.body:
        if isinstance(statement, ast.FunctionDef) and statement.name == "__init__":
            return _from_arguments(target, module, statement.args, skip_first=True)
    bases = [found for base in node.bases if (found := source.base_class(module, base))]
    if any("dataclass" in ast.unparse(decorator).split("(")[0] for decorator in node.decorator_list):
        return _from_fields(target, module, node, bases)
    inherited = (_from_class(target, *base) for base in bases)
    return next((signature for signature in inherited if signature), None)


def _from_arguments(target: str, module: source.Module, args: ast.arguments, skip_first: bool) -> Signature:
    positional = [*args.posonlyargs, *args.args]
    defaults: list[ast.expr | None] = [None] * (len(positional) - len(args.defaults)) + list(args.defaults)
    pairs = list(zip(positional, defaults, strict=True))[1 if skip_first else 0 :]
    found = {arg.arg: Option(arg.arg, source.annotation(module, arg.annotation), _default(d)) for arg, d in pairs}
    closed = args.vararg is not None or bool(args.kwonlyargs) or args.kwarg is None
    return Signature(target, found, tuple(arg.arg for arg in args.kwonlyargs), open=not closed)


def _from_fields(
    target: str, module: source.Module, node: ast.ClassDef, bases: list[tuple[source.Module, ast.ClassDef]]
) -> Signature:
    found: dict[str, Option] = {}
    handed: list[str] = []
    for base in bases:
        inherited = _from_class(target, *base)
        if inherited:
            found |= inherited.options
            handed += inherited.handed
    keyword_only = any("kw_only=True" in ast.unparse(decorator) for decorator in node.decorator_list)
    for field in node.body:
        if not isinstance(field, ast.AnnAssign) or not isinstance(field.target, ast.Name):
            continue
        hint = ast.unparse(field.annotation)
        if hint.split(".")[-1] == "KW_ONLY":
            keyword_only = True
        elif "ClassVar" not in hint:
            settings = _field_settings(field.value)
            if settings.get("init") == "False":
                continue
            name = field.target.id
            if keyword_only or settings.get("kw_only") == "True":
                handed.append(name)
            else:
                default = UNREAD if "default_factory" in settings else _default(settings.get("default", field.value))
                found[name] = Option(name, source.annotation(module, field.annotation), default)
    return Signature(target, found, tuple(handed))


def _field_settings(value: ast.expr | None) -> dict[str, Any]:
    """The keywords of a ``field(...)``, its default as an expression, the others as text."""
    if not isinstance(value, ast.Call) or ast.unparse(value.func).split(".")[-1] != "field":
        return {}
    settings: dict[str, Any] = {k.arg: ast.unparse(k.value) for k in value.keywords if k.arg and k.arg != "default"}
    return settings | {"default": next((k.value for k in value.keywords if k.arg == "default"), None)}


def _default(node: ast.expr | None) -> Any:
    if node is None:
        return REQUIRED
    try:
        return ast.literal_eval(node)
    except ValueError:
        return UNREAD


def _inspect(target: str, value: Any) -> Signature:
    parameters = inspect.signature(value, eval_str=True).parameters.values()
    keyword_only = tuple(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)
    plain = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    found = {p.name: Option(p.name, Any if p.annotation is p.empty else p.annotation, p.default) for p in plain}
    kinds = {p.kind for p in parameters}
    takes_any = inspect.Parameter.VAR_KEYWORD in kinds and inspect.Parameter.VAR_POSITIONAL not in kinds
    return Signature(target, found, keyword_only, open=takes_any and not keyword_only)
