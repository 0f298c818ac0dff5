"""`python -m newllm.generate RUN "prompt"`: continue a text with a finished run's model, decoding from its cache."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from newllm.errors import ConfigError, Parser, run_command

if TYPE_CHECKING:
    import torch

    from newllm.model import LanguageModel
    from newllm.precision import Precision


def generate(
    model: "LanguageModel",
    prompt: Sequence[int],
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    stop: int | None = None,
    precision: "Precision" = "fp32",
) -> Iterator[int]:
    """Yield up to `max_new_tokens` token ids after `prompt`, decoding from a cache; ends before the id `stop`.

    temperature: 0 takes the likeliest token; else samples from softmax(logits / temperature). top_p: sample only among
    the likeliest tokens whose probabilities reach it (nucleus sampling, Holtzman et al. 2020, arXiv 1904.09751).
    precision: of the arithmetic, "fp32" or "bf16".
    """
    import torch

    from newllm.model.decoder import Decoder

    generator = torch.Generator().manual_seed(seed)
    length = len(prompt) + max_new_tokens
    decoder = Decoder(model, length, precision)
    step = torch.tensor([list(prompt)])  # [1, T]: the prompt, then one token at a time
    model.position.adapt(length)  # cached keys stay as they are, so the whole text has one scaling
    try:
        for _ in range(max_new_tokens):
            token = _choose(decoder(step)[0].cpu(), temperature, top_p, generator)
            if token == stop:
                return
            yield token
            step = torch.tensor([[token]])
    finally:
        model.position.adapt(model.seq_len)


def _choose(logits: "torch.Tensor", temperature: float, top_p: float, generator: "torch.Generator") -> int:
    import torch

    if temperature == 0:
        return int(logits.argmax())
    scaled = (logits.double() - logits.max()) / temperature  # at most 0: no temperature is too small
    probabilities, tokens = scaled.softmax(-1).sort(descending=True)
    before = probabilities.cumsum(0) - probabilities  # mass of the likelier tokens: 0 for the first, which always stays
    probabilities = probabilities.masked_fill(before >= top_p, 0.0)
    return int(tokens[torch.multinomial(probabilities, 1, generator=generator)])


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    return run_command(_run, sys.argv[1:] if argv is None else argv)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="newllm generate", description=__doc__)
    parser.add_argument("run", help="run directory, as in outputs/runs/tiny-rope-…")
    parser.add_argument("prompt", help="the text to continue")
    parser.add_argument("--max-new-tokens", type=int, default=100, metavar="N")
    parser.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0, the default, is greedy")
    parser.add_argument("--top-p", type=float, default=1.0, metavar="P", help="nucleus of probability P in (0, 1]")
    parser.add_argument("--seed", type=int, default=0, help="of the sampling")
    return parser


def _run(argv: list[str]) -> int:
    options = _parser().parse_args(argv)
    if not options.temperature >= 0:
        raise ConfigError(f"--temperature must be 0 (greedy) or greater; got {options.temperature:g}.")
    if not 0 < options.top_p <= 1:
        raise ConfigError(f"--top-p must lie in (0, 1]; got {options.top_p:g}.")
    if options.max_new_tokens < 1:
        raise ConfigError(f"--max-new-tokens must be at least 1; got {options.max_new_tokens}.")

    from newllm.precision import resolve
    from newllm.run.load import load_run

    run = load_run(options.run)
    if not run.directory.trained.best_checkpoint.exists():
        raise ConfigError(f"{options.run} has no weights before its first epoch's end; type the command of that run.")
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
        end = f"this encoding ends at position {model.position.limit}"
        print(f"newllm: {end}: {max(0, count)} new tokens", file=sys.stderr)
    _print(options.prompt)
    written, ids = "", []
    sampling = (options.temperature, options.top_p, options.seed)
    for token in generate(model, prompt, count, *sampling, tokenizer.eot_id, precision):
        ids.append(token)
        text = tokenizer.decode(ids)
        if not text.endswith("\ufffd"):  # the bytes of a character may come as several tokens
            _print(text[len(written) :])
            written = text
    _print(tokenizer.decode(ids)[len(written) :] + "\n")  # and what was left of a character that never came whole
    return 0


def _print(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
