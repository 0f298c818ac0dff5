"""A function chosen by name, with options, as a mapping in YAML gives them."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from newllm.config.coercion import coerce, expected
from newllm.errors import ConfigError
from newllm.suggest import did_you_mean

Named = str | dict[str, Any]  # a name alone, or {kind: name, option: value, …}


def choose(
    where: str, key: str, given: Named, functions: Mapping[str, Callable[..., Any]], handed: int
) -> tuple[Callable[..., Any], dict[str, Any]]:
    """The function whose name stands under `key` in `given`, and the options beside it, brought to their types.

    where: the option that `given` is the value of, for the sentences. handed: how many parameters the caller provides
    itself; those after them are the options. Raises ConfigError.
    """
    options = {key: given} if isinstance(given, str) else dict(given)
    name = options.pop(key, None)
    if name is None:
        raise ConfigError(f"{where} needs a {key}, as in {where}={{{key}:NAME}}; {did_you_mean('', functions)}.")
    if name not in functions:
        raise ConfigError(f"{where}={name}: there is no such {key}; {did_you_mean(str(name), functions)}.")
    known = {one.name: one for one in list(inspect.signature(functions[name]).parameters.values())[handed:]}
    for option, value in options.items():
        if option not in known:
            raise ConfigError(f"{where}.{option} is no option of {key} {name}; {did_you_mean(option, known)}.")
        try:
            options[option] = coerce(value, known[option].annotation)
        except ValueError as error:
            raise ConfigError(f"{where}.{option}={value}: {error}.") from None
    for option, parameter in known.items():
        if option not in options and parameter.default is parameter.empty:
            value = expected(parameter.annotation)
            raise ConfigError(f"{where}: {key} {name} needs the option {option}, {value}.")
    return functions[name], options
