"""`python -m newllm.bench WHAT …`: speed as ratios, measured side by side in one process."""

import sys
from importlib import import_module

from newllm.cli import guarded
from newllm.errors import ConfigError
from newllm.suggest import did_you_mean

BENCHES = {"train": "the training step against transformers' own"}


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    return guarded(_run, sys.argv[1:] if argv is None else argv)


def _run(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print("newllm bench WHAT [key=value …]\n")
        print("\n".join(f"  {name:<8} {purpose}" for name, purpose in BENCHES.items()))
        return 0
    what, *rest = argv
    if what not in BENCHES:
        raise ConfigError(f"{what!r} is no bench; {did_you_mean(what, BENCHES)}.")
    return int(import_module(f"newllm.bench.{what}").main(rest))
