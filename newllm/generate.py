"""`python -m newllm.generate RUN "prompt"`: continue a text with a finished run's model, decoding from its cache."""

import math
import sys

from newllm.config.compose import catalog_for
from newllm.errors import ConfigError, Parser, run_command

MOST_TOKENS = 1_000_000


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    return run_command(_run, argv)


def _run(argv: list[str]) -> int:
    parser = Parser(prog="newllm generate", description=__doc__)
    parser.add_argument("run", help="run directory, as in outputs/runs/tiny-rope-…")
    parser.add_argument("prompt", help="the text to continue")
    parser.add_argument("--max-new-tokens", type=int, default=100, metavar="N")
    parser.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0, the default, is greedy")
    parser.add_argument("--top-p", type=float, default=1.0, metavar="P", help="nucleus of probability P in (0, 1]")
    parser.add_argument("--seed", type=int, default=0, help="of the sampling")
    parser.add_config_dir()
    options = parser.parse_args(argv)
    catalog_for(options.config_dir)
    if not 0 <= options.temperature < math.inf:
        raise ConfigError(f"--temperature must be 0 (greedy) or a greater finite number; got {options.temperature:g}.")
    if not 0 < options.top_p <= 1:
        raise ConfigError(f"--top-p must lie in (0, 1]; got {options.top_p:g}.")
    if not 1 <= options.max_new_tokens <= MOST_TOKENS:
        raise ConfigError(f"--max-new-tokens must lie in [1, {MOST_TOKENS:,}]; got {options.max_new_tokens}.")
    if not 0 <= options.seed < 2**63:
        raise ConfigError(f"--seed must be a whole number from 0 to 2^63 - 1; got {options.seed}.")

    from newllm.model.decoder import generate
    from newllm.precision import resolve
    from newllm.run.load import load_run

    run = load_run(options.run)
    if not run.checkpoint.exists() and run.status.get("state") != "done":
        raise ConfigError(
            f"{options.run} has no weights yet, since its first epoch has not ended; the command that started it "
            "resumes it."
        )
    model, tokenizer = run.model, run.tokenizer
    precision = resolve(run.config.trainer.precision, model.embed.weight.device)
    prompt = tokenizer.encode(options.prompt)
    if not prompt:
        if tokenizer.eot_id is None:
            raise ConfigError(
                "the prompt is empty and the tokenizer has no end-of-text to begin after; give some text."
            )
        prompt = [tokenizer.eot_id]
    count = options.max_new_tokens
    if model.position.limit is not None and len(prompt) + count > model.position.limit:
        count = model.position.limit - len(prompt)
        why = f"the encoding has values for {model.position.limit} positions"
        print(f"newllm: {why}, so {max(0, count)} tokens are generated", file=sys.stderr)
    _print(options.prompt)
    written, ids = "", []
    sampling = (options.temperature, options.top_p, options.seed)
    for token in generate(model, prompt, count, *sampling, tokenizer.eot_id, precision):
        ids.append(token)
        text = tokenizer.decode(ids)
        if not text.endswith("\ufffd"):  # the bytes of a character may come as several tokens
            _print(text[len(written) :])
            written = text
    _print(tokenizer.decode(ids)[len(written) :] + "\n")  # the bytes of an incomplete character
    return 0


def _print(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
