"""The options `frequencies` and `scaling` of rotary encodings: a name, or a mapping with a name and options."""

import inspect
import pkgutil
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from newllm.checks import above
from newllm.config.values import convert, expected
from newllm.errors import ConfigError
from newllm.position.frequencies import evq, families
from newllm.position.frequencies import scaling as rules
from newllm.suggest import did_you_mean
from newllm.trust import require_trusted

Node = str | dict[str, Any]  # sigmoid, or {family: sigmoid, steepness: 7}; yarn, or {kind: yarn, factor: 8}


# --- frequencies ------------------------------------------------------------------------------------------------------


def spectrum(node: Node, dim: int, *, theta: float | None, head_dim: int, seq_len: int) -> np.ndarray:
    """The inverse frequencies of `dim` rotary dims that a `frequencies` node describes, float64 [dim / 2].

    The node names a family of FAMILIES or, by its dotted path (``my_module.my_family``), a function of the user's whose
    first parameter is `dim`. The function gets theta, head_dim and seq_len if it has parameters of these names and the
    node does not set them. Raises ConfigError.
    """
    sizes = {"dim": dim, "head_dim": head_dim, "seq_len": seq_len}
    values = _call("frequencies", "family", node, FAMILIES, sizes, {"theta": theta})
    inv_freq = np.asarray(values, dtype=np.float64)
    if inv_freq.shape != (dim // 2,) or not (inv_freq >= 0).all():
        raise ConfigError(
            f"frequencies={_name(node, 'family')} must give {dim // 2} numbers, 0 or greater, for {dim} rotary dims; "
            f"got {inv_freq}."
        )
    return inv_freq


def _mix(
    dim: int, a: Node, b: Node, alpha: float = 0.5, *, theta: float | None = None, head_dim: int, seq_len: int
) -> np.ndarray:
    """``(1 - alpha) a + alpha b`` of any two families' frequencies."""
    first, second = (spectrum(node, dim, theta=theta, head_dim=head_dim, seq_len=seq_len) for node in (a, b))
    return families.mix(first, second, alpha)


FAMILIES: Mapping[str, Callable[..., np.ndarray]] = {
    "geometric": families.geometric,
    "sigmoid": families.sigmoid,
    "anchored_polynomial": families.anchored_polynomial,
    "hybrid": families.hybrid,
    "mix": _mix,
    "evq_cosh": evq.evq_cosh,
    "evq_split": evq.evq_split,
    "highest": families.highest,
    "whole_turns": families.whole_turns,
    "listed": families.listed,
}


# --- scaling ----------------------------------------------------------------------------------------------------------


def scale(inv_freq: np.ndarray, scaling: Node | None, *, length: int, seq_len: int) -> tuple[np.ndarray, float]:
    """`inv_freq` [K] of a model trained at `seq_len`, scaled for inputs of `length` tokens; and the temperature.

    The temperature multiplies cosines and sines. scaling: the name of a kind, or a mapping with ``kind`` and its
    options, as in ``{kind: yarn, factor: 8}``. Every kind takes original_length (default: seq_len). Without a factor,
    ``max(1, length / original_length)`` is used, so that inputs of at most that length get the frequencies of training.
    """
    if scaling is None:
        return np.asarray(inv_freq, dtype=np.float64), 1.0
    options = {"kind": scaling} if isinstance(scaling, str) else dict(scaling)
    original_length = options.pop("original_length", seq_len)
    if type(original_length) is not int or original_length < 2:
        raise ConfigError(
            f"scaling.original_length must be a whole number above 1, as in scaling.original_length=2048; "
            f"got {original_length}."
        )
    arguments = {"inv_freq": inv_freq, "length": length, "original_length": original_length}
    own_factor = options.get("kind") in _OWN_FACTOR
    defaults = {} if own_factor else {"factor": max(1.0, length / original_length)}
    result = _call("scaling", "kind", options, SCALINGS, arguments, defaults)
    return result if isinstance(result, tuple) else (result, 1.0)


def _yarn(
    inv_freq: np.ndarray,
    original_length: int,
    factor: float,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
    attention_factor: float | None = None,
) -> tuple[np.ndarray, float]:
    temperature = _temperature(attention_factor, rules.yarn_temperature(factor))
    return rules.yarn(inv_freq, factor, original_length, beta_fast, beta_slow), temperature


def _yarn_channels(
    inv_freq: np.ndarray,
    original_length: int,
    factor: float,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
    truncate: bool = True,
    attention_factor: float | None = None,
) -> tuple[np.ndarray, float]:
    temperature = _temperature(attention_factor, rules.yarn_temperature(factor))
    return rules.yarn_channels(inv_freq, factor, original_length, beta_fast, beta_slow, truncate), temperature


def _longrope(
    inv_freq: np.ndarray,
    length: int,
    original_length: int,
    long: list[float],
    factor: float,
    short: list[float] | None = None,
    attention_factor: float | None = None,
) -> tuple[np.ndarray, float]:
    """Factors `long` for inputs beyond original_length, else `short` (default: all 1)."""
    temperature = _temperature(attention_factor, rules.longrope_temperature(factor, original_length))
    stretched = [rules.longrope(inv_freq, factors) for factors in (long, short or [1.0] * len(inv_freq))]
    return stretched[0 if length > original_length else 1], temperature


def _temperature(attention_factor: float | None, default: float) -> float:
    if attention_factor is None:
        return default
    above("attention_factor", attention_factor, 0, 1)
    return attention_factor


SCALINGS: Mapping[str, Callable[..., np.ndarray | tuple[np.ndarray, float]]] = {
    "position_interpolation": rules.position_interpolation,
    "ntk_aware": rules.ntk_spread,
    "dynamic_ntk": rules.dynamic_ntk,
    "dynamic_ntk_transformers": rules.dynamic_ntk_transformers,
    "yarn": _yarn,
    "yarn_channels": _yarn_channels,
    "yarn_index_ramp": rules.yarn_index_ramp,
    "llama3": rules.llama3,
    "longrope": _longrope,
    "proportional": rules.proportional,
}
_OWN_FACTOR = ("dynamic_ntk_transformers", "proportional")  # their factor is not the stretch


# --- names and options ------------------------------------------------------------------------------------------------


def _call(
    where: str,
    key: str,
    node: Node,
    functions: Mapping[str, Callable[..., Any]],
    arguments: Mapping[str, Any],
    defaults: Mapping[str, Any],
) -> Any:
    """Call the function that the node names, with the node's options; `where` and `key` are for error messages.

    arguments: values that the node may not set. defaults: values that it may leave out. The function gets those of both
    that it has parameters for. Raises ConfigError for unknown, missing and mistyped options.
    """
    name = _name(node, key)
    options = {} if isinstance(node, str) else {option: value for option, value in node.items() if option != key}
    if name is None:
        raise ConfigError(f"{where} needs a {key}, as in '{where}={{{key}:NAME}}'; {did_you_mean('', functions)}.")
    function = functions.get(name) or _user_function(where, key, name, functions, next(iter(arguments)))
    parameters = inspect.signature(function).parameters
    known = {option: parameter for option, parameter in parameters.items() if option not in arguments}
    for option in options:
        if option not in known:
            raise ConfigError(f"{where}.{option} is not an option of {key} {name}; {did_you_mean(option, known)}.")
    given = {option: value for option, value in arguments.items() if option in parameters}
    for option, value in {**defaults, **options}.items():
        if option in known:
            try:
                given[option] = convert(value, known[option].annotation)
            except ValueError as error:
                typed = f"{where}.{option}" if option in options else option
                raise ConfigError(f"{typed}={'null' if value is None else value}: {error}.") from None
    for option, parameter in known.items():
        if option not in given and parameter.default is parameter.empty:
            wanted = expected(parameter.annotation)
            raise ConfigError(f"{where}: {key} {name} needs the option {option}, {wanted}.")
    return function(**given)


def _name(node: Node, key: str) -> str | None:
    name = node if isinstance(node, str) else node.get(key)
    return None if name is None else str(name)


def _user_function(
    where: str, key: str, name: str, functions: Mapping[str, Callable[..., Any]], first: str
) -> Callable[..., Any]:
    """The user's function at a dotted path; it must have `first` as its first parameter."""
    try:
        if "." not in name:
            raise ValueError(name)
        require_trusted(name)
        function: Callable[..., Any] = pkgutil.resolve_name(name)
        parameters = list(inspect.signature(function).parameters)
    except (ImportError, AttributeError, TypeError, ValueError):
        raise ConfigError(f"{where}={name}: there is no such {key}; {did_you_mean(name, functions)}.") from None
    if parameters[:1] != [first]:
        raise ConfigError(f"{where}={name}: a {key} is a function whose first parameter is {first}.")
    return function
