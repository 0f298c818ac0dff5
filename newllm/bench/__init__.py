"""`newllm bench NAME …`: speed as ratios, measured side by side.

A bench is a module of this package with

    DEFAULTS: list[str]              overrides of the run that it measures; [] if it measures no run
    measure(overrides, *, option=…)  -> Result, or an iterator that yields it whenever it has grown. The keyword-only
                                     parameters are the options of the command, and their defaults show their types;
                                     `overrides` are ready for `compose`
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
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
    "gpu": ("gpu", "one CUDA GPU: steps, kernels, decoding, packed and shared runs, and the goals; written as it goes"),
    "pack": ("pack", "training steps of packed runs against the same runs one by one, at small batches"),
    "sweep": ("sweep", "a sweep against Hydra's basic launcher and a process per run; planning against Hydra"),
    "train": ("train_step", "a training step against transformers, eager and compiled, and the roofline; peak memory"),
}
GATE = "short measurements against lower bounds of ratios, for continuous integration"


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    return run_command(_run, argv)


def measure(name: str, words: Sequence[str]) -> Result:
    """Run the bench `name`. Each word is an option of the bench or an override of the run that it measures.

    Raises ConfigError for an unknown bench or option.
    """
    *_, result = measured(name, words)
    return result


def measured(name: str, words: Sequence[str]) -> Iterator[Result]:
    """The same, yielding the result whenever it has grown."""
    bench = _bench(name)
    options, overrides = parse(words, bench.measure, bench.DEFAULTS)
    found = bench.measure(overrides, **options)
    yield from found if isinstance(found, Iterator) else [found]


def parse(
    words: Sequence[str], measure: Callable[..., Result], defaults: Sequence[str]
) -> tuple[dict[str, Any], list[str]]:
    """(options of the bench by name, overrides of the run), with the defaults of both unless a word replaces them.

    A bench without `defaults` measures no run and takes no overrides.
    """
    options = options_of(measure)
    overrides: list[str] = []
    for word in words:
        key, _, text = word.partition("=")
        if key in options:
            options[key] = _value(key, text, inspect.signature(measure).parameters[key])
        elif defaults:
            overrides.append(word)
        else:
            raise ConfigError(f"this bench has no option {key!r}; {did_you_mean(key, options)}.")
    replaced = {word.partition("=")[0].lstrip("+~") for word in overrides}
    return options, [word for word in defaults if word.partition("=")[0] not in replaced] + overrides


def options_of(measure: Callable[..., Result]) -> dict[str, Any]:
    """The options of a bench with their defaults."""
    parameters = inspect.signature(measure).parameters.values()
    return {one.name: one.default for one in parameters if one.kind is one.KEYWORD_ONLY}


def _value(key: str, text: str, parameter: inspect.Parameter) -> Any:
    """An option's value in the annotated type; a tuple of numbers is written with commas."""
    default, is_tuple = parameter.default, isinstance(parameter.default, tuple)
    try:
        value = yaml.safe_load(f"[{text.strip('[]')}]" if is_tuple else text)
        value = tuple(convert(one, int) for one in value) if is_tuple else convert(value, parameter.annotation)
        if any(type(one) is int and one < 1 for one in (value if is_tuple else [value])):
            raise ValueError("expected more than 0")
    except (ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"{key}={text}: {error}, as in {key}={_as_typed(default)}.") from None
    return value


def _as_typed(default: Any) -> str:
    """A default as users type it."""
    if isinstance(default, tuple):
        return ",".join(map(str, default))
    return "null" if default is None else str(default).lower() if isinstance(default, bool) else str(default)


def _bench(name: str) -> Any:
    if name not in BENCHES:
        meant = did_you_mean(name, [*BENCHES, "gate"], prefix="newllm bench ")
        raise ConfigError(f"there is no bench {name!r}; {meant}.")
    return import_module(f"newllm.bench.{BENCHES[name][0]}")


def _run(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print("newllm bench NAME [option=value …] [key=value of a run …] [out=FILE.json]\n")
        for name, purpose in [*((name, purpose) for name, (_, purpose) in BENCHES.items()), ("gate", GATE)]:
            print(f"  {name:<10} {purpose}")
        return 0
    name, *words = argv
    if name == "gate":
        return int(import_module("newllm.bench.gate").main(words))
    bench = _bench(name)
    if any(word in ("-h", "--help") for word in words):
        options = " ".join(f"{key}={_as_typed(value)}" for key, value in options_of(bench.measure).items())
        print(f"newllm bench {name} [option=value …] [out=FILE.json]\n\n{bench.__doc__.strip()}\n\nOptions: {options}")
        if bench.DEFAULTS:
            print(f"Run: {' '.join(bench.DEFAULTS)}, or any other key=value of newllm train")
        return 0
    files = [Path(word.removeprefix("out=")) for word in words if word.startswith("out=")]
    for file in files:
        if not file.parent.is_dir() or file.suffix not in (".json", ".md"):
            raise ConfigError(
                f"out={file} is not a JSON or Markdown file in an existing folder; type out={name}.json or {name}.md."
            )
    for result in measured(name, [word for word in words if not word.startswith("out=")]):
        for file in files:
            result.write(file, name)
    print(result.markdown())
    for file in files:
        print(f"Written to {file}")
    return 0
