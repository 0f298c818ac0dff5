"""`newllm bench NAME …`: speed as ratios, measured side by side.

A bench is a module of this package with

    DEFAULTS: list[str]              overrides of the configuration of the run it measures; [] if it measures none
    measure(overrides, *, option=…)  -> Result. The keyword-only parameters are the options of the command, and their
                                     defaults show their types; `overrides` is ready for `compose`
"""

import inspect
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml

from newllm.bench.harness import Result
from newllm.config.values import convert
from newllm.errors import ConfigError, run_command
from newllm.suggest import did_you_mean

BENCHES = {  # name -> module, purpose
    "attention": ("attention", "attention kernels with each kind of bias against plain causal attention: time, memory"),
    "context": ("context_pass", "the true contexts of a long text against token by token; an iteration of phase 1"),
    "data": ("data", "building a token store against datasets.map"),
    "decode": ("decode", "decoding by context length: tokens per second and cache bytes, MHA and absorbed MLA"),
    "evaluate": ("evaluation_pass", "losses of long rows and of the reversal facts: encodings, memory, all logits"),
    "pack": ("pack", "training steps of packed runs against the same runs one by one, at small batches"),
    "sweep": ("sweep", "a sweep against Hydra's basic launcher and a process per run; planning against Hydra"),
    "train": ("train_step", "a training step against transformers, eager and compiled, and the roofline; peak memory"),
}
GATE = "short measurements against lower bounds of ratios, for continuous integration"


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    return run_command(_run, sys.argv[1:] if argv is None else argv)


def measure(name: str, words: Sequence[str]) -> Result:
    """What the bench `name` finds with these words, each an option of the bench or an override of a run.

    Raises ConfigError for an unknown bench or option.
    """
    bench = _bench(name)
    options, overrides = parse(words, bench.measure, bench.DEFAULTS)
    result: Result = bench.measure(overrides, **options)
    return result


def parse(
    words: Sequence[str], measure: Callable[..., Result], defaults: Sequence[str]
) -> tuple[dict[str, Any], list[str]]:
    """(options by name, overrides of a run's configuration), each with its defaults unless a word sets it.

    A bench without `defaults` measures no run, so it takes no other words.
    """
    parameters = inspect.signature(measure).parameters
    options = options_of(measure)
    overrides: list[str] = []
    for word in words:
        key, _, text = word.partition("=")
        if key in options:
            options[key] = _value(key, text, parameters[key])
        elif defaults:
            overrides.append(word)
        else:
            raise ConfigError(f"this bench has no option {key!r}; {did_you_mean(key, options)}.")
    given = {_key(word) for word in overrides}
    return options, [word for word in defaults if _key(word) not in given] + overrides


def options_of(measure: Callable[..., Result]) -> dict[str, Any]:
    """The options of a bench with their defaults."""
    parameters = inspect.signature(measure).parameters.values()
    return {one.name: one.default for one in parameters if one.kind is one.KEYWORD_ONLY}


def typed(default: Any) -> str:
    """A default as one types it."""
    if isinstance(default, tuple):
        return ",".join(map(str, default))
    return "null" if default is None else str(default).lower() if isinstance(default, bool) else str(default)


def _value(key: str, text: str, parameter: inspect.Parameter) -> Any:
    """The value of an option: of the type that is annotated, a tuple of numbers with commas between them."""
    several = isinstance(parameter.default, tuple)
    try:
        value = yaml.safe_load(f"[{text.strip('[]')}]" if several else text)
        value = [convert(one, int) for one in value] if several else convert(value, parameter.annotation)
        if any(type(one) is int and one < 1 for one in (value if several else [value])):
            raise ValueError("expected more than 0")
    except (ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"{key}={text}: {error}, as in {key}={typed(parameter.default)}.") from None
    return tuple(value) if several else value


def _key(word: str) -> str:
    return word.partition("=")[0].lstrip("+~")


def _bench(name: str) -> Any:
    if name not in BENCHES:
        raise ConfigError(f"{name!r} is no bench; {did_you_mean(name, [*BENCHES, 'gate'], prefix='newllm bench ')}.")
    return import_module(f"newllm.bench.{BENCHES[name][0]}")


def _run(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        listed = [f"  {name:<10} {purpose}" for name, (_, purpose) in BENCHES.items()]
        usage = "newllm bench NAME [option=value …] [key=value of a run …] [out=FILE.json]"
        print("\n".join([usage, "", *listed, f"  {'gate':<10} {GATE}"]))
        return 0
    name, *words = argv
    if name == "gate":
        return int(import_module("newllm.bench.gate").main(words))
    bench = _bench(name)
    if any(word in ("-h", "--help") for word in words):
        options = " ".join(f"{key}={typed(value)}" for key, value in options_of(bench.measure).items())
        print(f"newllm bench {name} [option=value …] [out=FILE.json]\n\n{bench.__doc__.strip()}\n\nOptions: {options}")
        if bench.DEFAULTS:
            print(f"Run: {' '.join(bench.DEFAULTS)}, or any other key=value of newllm train")
        return 0
    out = [Path(word.removeprefix("out=")) for word in words if word.startswith("out=")]
    for file in out:
        if not file.parent.is_dir() or file.suffix not in (".json", ".md"):
            raise ConfigError(
                f"out={file} is no JSON or Markdown file in a folder that exists; type out={name}.json or {name}.md."
            )
    result = measure(name, [word for word in words if not word.startswith("out=")])
    print(result.markdown())
    for file in out:
        result.write(file, name)
        print(f"Written to {file}")
    return 0
