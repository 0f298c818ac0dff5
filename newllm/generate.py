"""`python -m newllm.generate RUN "prompt"`: continue a text with a finished run's model, decoding from its cache."""

import sys

from newllm.checks import sampling
from newllm.config.compose import catalog_for
from newllm.errors import Parser, run_command


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    return run_command(_run, argv)


def _run(argv: list[str]) -> int:
    parser = Parser(prog="newllm generate", description=__doc__)
    parser.add_argument("run", help="run directory, as in outputs/runs/nano-rope-…")
    parser.add_argument("prompt", help="the text to continue")
    parser.add_argument("--max-new-tokens", type=int, default=100, metavar="N")
    parser.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0, the default, is greedy")
    parser.add_argument("--top-p", type=float, default=1.0, metavar="P", help="nucleus of probability P in (0, 1]")
    parser.add_argument("--seed", type=int, default=0, help="of the sampling")
    parser.add_config_dir()
    options = parser.parse_args(argv)
    catalog_for(options.config_dir)
    values = (options.max_new_tokens, options.temperature, options.top_p, options.seed)
    sampling(*values, flags=True)

    from newllm.run.load import load_run

    pieces = load_run(options.run).continuation(options.prompt, *values)
    first = next(pieces)  # once this is there, nothing is wrong with what was typed
    for text in (options.prompt, first, *pieces, "\n"):
        _print(text)
    return 0


def _print(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
