"""Checks options against the constructors that take them: names by signature, types through pydantic.

This imports the classes that a configuration names, most of them with torch; composition alone does not.
"""

import inspect
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from types import FunctionType, ModuleType, NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from newllm.config.axes import OWN_KEYS
from newllm.config.catalog import REFERENCE, plain
from newllm.config.groups import group_of, parts_of
from newllm.errors import ConfigError
from newllm.suggest import did_you_mean, nearest
from newllm.trust import require_trusted, where_looked

T = TypeVar("T")

REQUIRED = inspect.Parameter.empty
LARGEST = 2**63 - 1
_WORDS = {int: "a whole number", float: "a number", str: "text", NoneType: "null"}


# --- what a target takes --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Signature:
    """The parameters of a target.

    options: those before ``*``, which YAML may set. handed: the names of those after it, which code passes. rest: there
    is a ``**rest``, which takes everything that code passes or, without a ``*``, any option.
    """

    options: Mapping[str, inspect.Parameter]
    handed: tuple[str, ...]
    rest: bool

    @property
    def open(self) -> bool:
        return self.rest and not self.handed


def signature_of(target: str) -> Signature:
    """The signature of the class or function at the dotted path `target`. Raises ConfigError if there is none."""
    return _signature(_find(target), target)


@cache
def _signature(value: type | FunctionType, target: str) -> Signature:
    try:
        parameters = inspect.signature(value, eval_str=True).parameters.values()
    except NameError:  # an annotation that is imported only for type checkers
        parameters = inspect.signature(value).parameters.values()
    except (TypeError, ValueError):  # a class written in C
        raise ConfigError(f"_target_={target} is not a class that can be used here.") from None
    kinds = {parameter.kind for parameter in parameters}
    options = {p.name: p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)}
    handed = tuple(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)
    rest = inspect.Parameter.VAR_KEYWORD in kinds and inspect.Parameter.VAR_POSITIONAL not in kinds
    return Signature(options, handed, rest)


def resolve(target: str, base: type[T]) -> Callable[..., T]:
    """The class that a `_target_` names: `base` or a subclass, or a function annotated to return one.

    Nothing is imported if it is outside newllm and the packages that the user has named. Raises ConfigError, with the
    nearest name if there is no such class.
    """
    value = _find(target)
    made = value if isinstance(value, type) else inspect.get_annotations(value, eval_str=True).get("return")
    if not (isinstance(made, type) and issubclass(made, base)) or inspect.isabstract(made):
        raise ConfigError(f"_target_={target} is not a class that can be used here; expected a {base.__name__}.")
    return cast(Callable[..., T], value)


def class_of(node: Mapping[str, Any], base: type[T]) -> type[T]:
    """The class that a node's `_target_` names, `base` or a subclass. Raises ConfigError."""
    found = resolve(str(node.get("_target_")), base)
    if not isinstance(found, type):
        raise ConfigError(f"_target_={node['_target_']} is a function; expected a class, a {base.__name__}.")
    return found


def _find(target: str) -> type | FunctionType:
    """The class or function at a dotted path. Raises ConfigError."""
    require_trusted(target)
    value, parent = None, ""
    for part in target.split("."):
        path = f"{parent}.{part}" if parent else part
        found = getattr(value, part, None)
        if found is None or (isinstance(found, ModuleType) and found.__name__ != path):  # a module that `value` imports
            found = _module(path, target, value)
        value, parent = found, path
    if not isinstance(value, type | FunctionType):
        raise ConfigError(f"_target_={target} is not a class.")
    return value


def _module(path: str, target: str, parent: Any) -> ModuleType:
    try:
        return import_module(path)
    except ModuleNotFoundError as error:
        if error.name and not f"{path}.".startswith(f"{error.name}."):  # a module that this one imports is missing
            raise ConfigError(f"_target_={target}: {path} can't be imported ({error}).") from error
        place, _, part = path.rpartition(".")
        names = list(getattr(parent, "__all__", [name for name in dir(parent) if not name.startswith("_")]))
        names += [module.name for module in iter_modules(getattr(parent, "__path__", []))]
        if not place:
            raise ConfigError(f"_target_={target}: there is no module {part}{where_looked()}.") from None
        raise ConfigError(f"_target_={target}: there is no {part} in {place}; {did_you_mean(part, names)}.") from None
    except (Exception, SystemExit) as error:  # whatever a user's module raises
        raise ConfigError(f"_target_={target}: {path} can't be imported ({type(error).__name__}: {error}).") from error


# --- values and types -----------------------------------------------------------------------------------------------


def convert(value: Any, annotation: Any) -> Any:
    """`value` converted to the type `annotation` without loss: 5 -> 5.0 for a float, 5e3 -> 5000 for an int.

    A bool is not accepted as a number, nor a number as a bool, nor nan or infinity. Raises ValueError with what was
    expected.
    """
    from pydantic import ValidationError

    adapter = _adapter(annotation)
    if adapter is None:
        return value
    attempts = [value, _whole(value)]
    attempts += [str(value)] if type(value) is int else []  # a folder called 42
    for attempt in attempts:
        try:
            return _bounded(adapter.validate_python(attempt), annotation)
        except ValidationError as error:
            finite = "finite_number" not in {detail["type"] for detail in error.errors()}
            if not finite:
                break
    if finite:
        raise ValueError(f"expected {expected(annotation)}{_hint(value, annotation)}")
    raise ValueError(f"expected {expected(annotation)}".replace("a number", "a finite number"))


def _bounded(value: Any, annotation: Any) -> Any:
    """The value. Raises ValueError for a whole number, in lists too, that no counter or kernel holds."""
    for item in value if isinstance(value, list) else [value]:
        if type(item) is int and abs(item) > LARGEST:
            raise ValueError(f"expected {expected(annotation)}, at most 2^63 - 1")
    return value


def expected(annotation: Any) -> str:
    """The annotation in words, for error sentences: ``auto, fp32 or bf16``."""
    *others, last = _alternatives(annotation)
    return f"{', '.join(others)} or {last}" if others else last


def _alternatives(annotation: Any) -> list[str]:
    origin, args = get_origin(annotation), get_args(annotation)
    if annotation is bool:
        return ["true", "false"]
    if annotation in _WORDS:
        return [_WORDS[annotation]]
    if origin is Literal:
        return [shown(word) for word in args]
    if origin in (Union, UnionType):
        return [words for member in args for words in _alternatives(member)]
    if list in (annotation, origin):
        mappings = bool(args) and dict in (args[0], get_origin(args[0]))  # as sweep.grids and sweep.zip take
        example = {(int,): "[1,2]", (float,): "[0.5,1]"}.get(args, "[a,b]")
        return [f"a list such as {'[{lr:[1e-3,5e-4],batch_size:[4,8]}]' if mappings else example}"]
    return ["a mapping" if dict in (annotation, origin) else "any value"]


@cache
def _adapter(annotation: Any) -> Any:
    """pydantic's validator for a type; None for types it does not know, such as a user's class."""
    from pydantic import ConfigDict, PydanticUserError, TypeAdapter

    if annotation is REQUIRED or isinstance(annotation, str):
        return None
    try:
        return TypeAdapter(annotation, config=ConfigDict(strict=True, allow_inf_nan=False))
    except PydanticUserError:
        return None


def _whole(value: Any) -> Any:
    """5000 for 5e3, in lists too."""
    if isinstance(value, list):
        return [_whole(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _hint(value: Any, annotation: Any) -> str:
    members = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    literals = [member for member in members if get_origin(member) is Literal]
    words = [word for literal in literals for word in get_args(literal) if isinstance(word, str)]
    close = nearest(value, words) if isinstance(value, str) else None
    return f" (did you mean {close}?)" if close else ""


# --- nodes and configurations ---------------------------------------------------------------------------------------


def convert_options(
    node: Mapping[Any, Any], path: str = "", owner: str = "", axes: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """A plain node with its options converted to the types of its target; nested nodes are left to their own targets.

    path: of the node (`attention`), and owner: its choice (`attention=mla`), for error messages, which name the target
    without them. axes: option -> root key that supplies its value. Raises ConfigError.
    """
    if "_target_" not in node:
        raise ConfigError(f"{path or owner or 'a part'} has no _target_; it must name the class of this part.")
    target = str(node["_target_"])
    signature, prefix = signature_of(target), f"{path}." if path else ""
    converted = dict(node)
    for name in node:
        if name != "_target_" and name not in signature.options and not signature.open:
            raise unknown_option(f"{prefix}{name}", owner or path or target, list(signature.options), signature.handed)
    for name, parameter in signature.options.items():
        key, axis = f"{prefix}{name}", (axes or {}).get(name)
        if node.get(name, "???") != "???":
            try:
                converted[name] = convert(node[name], parameter.annotation)
            except ValueError as error:
                typed, where = (axis, f" for {key}") if axis else (key, "")
                raise ConfigError(f"{typed}={shown(node[name])}: {error}{where}.") from None
        elif name in node or parameter.default is REQUIRED:
            wanted = expected(parameter.annotation)
            raise ConfigError(f"{key} is required and has no value: type {key}=VALUE, {wanted}.")
    return converted


def unknown_option(key: str, owner: str, known: Sequence[str], handed: Sequence[str]) -> ConfigError:
    """The error for an option that `owner` does not have, or that code passes."""
    name = key.rpartition(".")[2]
    if name in handed:
        return ConfigError(f"{key} follows from other settings and can't be set; leave it out.")
    if not known:
        return ConfigError(f"{key}: {owner} has no options; leave it out.")
    meant = did_you_mean(name, known, prefix=key.removesuffix(name))
    return ConfigError(f"{key} is not an option of {owner}; {meant}.")


def check_values(cfg: DictConfig) -> DictConfig:
    """Check all values of a configuration and convert them, in place, to the types of their constructors.

    A value supplied by an axis is converted at the axis, which an error names. Raises ConfigError.
    """
    _check_parts(cfg)
    for path, node in _targets(cfg):
        choice = cfg.get("choices", {}).get(path)
        try:
            values = plain(node, resolve=True)
        except OmegaConfBaseException as error:
            raise ConfigError(f"{path} can't be resolved: {str(error).splitlines()[0]}.") from error
        axes = {  # option -> axis that supplies its value
            name: reference[1]
            for name, value in plain(node).items()
            if isinstance(value, str) and (reference := REFERENCE.fullmatch(value))
        }
        for name, value in convert_options(values, path, f"{path}={choice}" if choice else path, axes).items():
            if repr(value) != repr(values[name]):
                place, key = (cfg, axes[name]) if name in axes else (node, name)
                place[key] = value
    return cfg


def check_stored(config: Mapping[str, Any]) -> DictConfig:
    """The configuration of a run directory, which somebody else may have written, with checked values.

    Its loggers are left out: they were of the attempt that trained it. Raises ConfigError.
    """
    require_parts(config)
    return check_values(OmegaConf.create({**config, "logger": {}}))


def require_parts(config: Mapping[str, Any]) -> None:
    """Raises ConfigError if a stored configuration lacks what newllm writes into each."""
    nodes = {name: config.get(name) for name in ("data", "model", "optim", "runtime", "trainer")}
    evaluators = config.get("eval") or {}
    if isinstance(evaluators, Mapping):
        nodes |= {f"eval.{name}": node for name, node in evaluators.items()}
    for name, node in nodes.items():
        if not (isinstance(node, Mapping) and "_target_" in node):
            raise ConfigError(f"the stored configuration has no {name}._target_, so newllm has not written it.")
    choices = config.get("choices")
    lacking = [name for name in nodes if "." not in name and not (isinstance(choices, Mapping) and name in choices)]
    if lacking:
        raise ConfigError(f"the stored configuration has no choices.{lacking[0]}, so newllm has not written it.")


def _targets(parent: Any, path: str = "") -> Iterator[tuple[str, DictConfig]]:
    """Path and node of every mapping with a `_target_`, at any depth."""
    keys: Iterable[Any] = range(len(parent)) if isinstance(parent, ListConfig) else parent
    for key in keys:
        if (
            (not path and key in OWN_KEYS)
            or OmegaConf.is_missing(parent, key)
            or OmegaConf.is_interpolation(parent, key)
        ):
            continue
        node, place = parent[key], f"{path}[{key}]" if isinstance(key, int) else f"{path}.{key}".lstrip(".")
        if isinstance(node, DictConfig) and "_target_" in node:
            yield place, node
        if isinstance(node, DictConfig | ListConfig):
            yield from _targets(node, place)


def _check_parts(cfg: DictConfig) -> None:
    """Raises ConfigError for an attention or encoding that the model does not take, or that it lacks."""
    if "_target_" not in cfg.get("model", {}):
        return
    taken, model = signature_of(str(cfg.model["_target_"])), f"model={cfg.choices.get('model')}"
    for group in parts_of("model", cfg):
        given = "_target_" in (cfg.get(group) or {})
        if not given and group in taken.handed:
            raise ConfigError(f"{group}=none: {model} needs one; type {group}={group_of(group, cfg).suggest}.")
        if given and group not in taken.handed and not taken.open:
            raise ConfigError(f"{model} has no {group}; leave {group}={cfg.choices.get(group)} out.")


def shown(value: Any) -> str:
    """A value as it is typed on the command line, without quotes: ``{lr:[1,2]}``, null, 1e-05."""
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{shown(item)}" for key, item in value.items() if key != "_target_") + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(shown, value)) + "]"
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    short = f"{value:g}" if isinstance(value, float) else str(value)
    return str(value) if isinstance(value, float) and float(short) != value else short
