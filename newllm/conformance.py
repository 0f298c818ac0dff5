"""`newllm conformance [key=value …]`: check that a position encoding works with an attention.

  newllm conformance pos_encoding=mine attention=mha --config-dir my_conf

Builds a small model with these choices and checks it without training: causality, decoding, shifts, order, gradients
and bf16. Prints one line per check; the exit status is 1 if one fails. Takes the same choices and options as training;
--config-dir FOLDER adds your own YAML files, laid out like conf/.
"""

import copy
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from newllm.errors import ConfigError, Parser, run_command, with_place

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from torch import Tensor

    from newllm.model.transformer import Transformer

VOCABULARY, LENGTH = 128, 48
SIZES = {
    "model": "tiny", "model.hidden_size": "64", "model.num_layers": "3", "model.heads": "4", "model.mlp_size": "96",
    "model.vocab_size": str(VOCABULARY), "model.init_std": "0.15", "seq_len": "256",
}  # fmt: skip


# Two rows of LENGTH tokens, one per character (Abraham Lincoln, 1863).
TEXT = "Four score and seven years ago our fathers brought forth on this continent, a new nation, concei"


class Violation(AssertionError):
    """A check failed; the message says by how much."""


# --- the checks: each takes a model and ids [2, LENGTH], and returns the measured figure, or raises Violation ---------


def causality(model: "Transformer", ids: "Tensor") -> str:
    """no token changes an output before it"""
    expected, before = model(ids), 0.0
    for t in (1, LENGTH // 2, LENGTH - 1):
        changed = ids.clone()
        changed[:, t] = (changed[:, t] + 1) % VOCABULARY
        difference = (model(changed) - expected).abs()
        before = max(before, difference[:, :t].max().item())
        _require(difference[:, t:].max().item() > 1e-3, f"token {t} changes no output")
    _require(before < 5e-6, f"a token changes outputs before it by {before:.1e}")
    return f"by {before:.0e} at most"


def decoding(model: "Transformer", ids: "Tensor") -> str:
    """decoding from a cache gives the logits of training

    All tokens at once, a prompt and then token by token, and a few at a time; in fp64, so that rounding stays below
    the bound.
    """
    import torch

    model = copy.deepcopy(model).double()
    expected = model(ids)
    _require(expected.std().item() > 0.05, "the logits hardly differ between tokens, so this check proves nothing")
    largest = 0.0
    for pieces in ([LENGTH], [7] + [1] * (LENGTH - 7), [5, 20, 1, LENGTH - 26]):
        cache = model.new_cache(2, LENGTH)
        decoded = torch.cat([model(piece, cache=cache) for piece in ids.split(pieces, dim=1)], dim=1)
        _require(cache.length == LENGTH, f"the cache has {cache.length} of {LENGTH} tokens")
        largest = max(largest, (decoded - expected).abs().max().item())
    _require(largest < 1e-6, f"decoded logits differ by {largest:.1e}")
    return f"by {largest:.0e} at most"


def shift(model: "Transformer", ids: "Tensor") -> str:
    """states stay equal when all positions shift, if and only if the encoding is relative"""
    # By 8 only: fp32 angles are exact at these positions.
    moved = (model.hidden(ids, start=8) - model.hidden(ids)).abs().max().item()
    if model.position.relative:
        _require(moved < 1e-4, f"relative is True, but states change by {moved:.1e}; should it be False?")
        return f"by {moved:.0e} at most"
    _require(moved > 1e-2, f"relative is False, but states change by only {moved:.1e}")
    return f"not relative: by {moved:.2g}"


def order(model: "Transformer", ids: "Tensor") -> str:
    """exchanging two early tokens changes the last output

    An encoding without any effect would pass all other checks. NoPE must fail this one: within one layer, its
    attention ignores the order of the past.
    """
    from newllm.position.nope import NoPE

    acting = [i for i, block in enumerate(model.blocks) if block.encoding is not None]
    _require(bool(acting), "the encoding is not used in any layer")
    one_layer = copy.copy(model)
    one_layer._modules = {**model._modules, "blocks": model.blocks[acting[0] : acting[0] + 1]}
    swapped = ids.clone()
    swapped[:, [3, 30]] = ids[:, [30, 3]]
    difference = (one_layer(swapped)[:, -1] - one_layer(ids)[:, -1]).abs().max().item()
    if isinstance(model.position, NoPE):
        _require(difference < 1e-5, f"NoPE, but the order changes the output by {difference:.1e}")
        return "NoPE: a layer ignores the order, as expected"
    _require(difference > 1e-4, f"the order changes the output by only {difference:.1e}")
    return f"by {difference:.2g}"


def gradients(model: "Transformer", ids: "Tensor") -> str:
    """every parameter gets a gradient"""
    import torch

    model.zero_grad()
    with torch.enable_grad():
        torch.nn.functional.cross_entropy(model(ids).flatten(0, 1), ids.flatten()).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    finite = all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    model.zero_grad()
    _require(not without, f"without a gradient: {', '.join(without)}")
    _require(finite, "a gradient is not finite")
    return f"{len(list(model.parameters()))} parameters"


def bf16(model: "Transformer", ids: "Tensor") -> str:
    """bf16 autocast stays close to fp32"""
    import torch

    expected = model(ids)
    with torch.autocast(ids.device.type, dtype=torch.bfloat16):
        out = model(ids).float()
    share = ((out - expected).pow(2).mean().sqrt() / expected.std()).item()
    _require(share < 0.03, f"the error is {share:.1%} of the logits' deviation, above 3 %")
    return f"error {share:.1%} of the logits' deviation"


CHECKS: tuple[Callable[["Transformer", "Tensor"], str], ...] = (causality, decoding, shift, order, gradients, bf16)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise Violation(message)


# --- the model that is checked ----------------------------------------------------------------------------------------


def small_model(overrides: Sequence[str] = (), config_dir: str | None = None) -> "Transformer":
    """A small model with these choices; see `model_of`."""
    from newllm.config.compose import catalog_for, compose
    from newllm.config.overrides import parse

    for override in parse(overrides, catalog_for(config_dir), sweep=True).parsed:
        if override.is_sweep_override():
            raise ConfigError(f"{override.input_line}: newllm conformance checks one model; give one value at a time.")
    keys = {override.lstrip("+").partition("=")[0] for override in overrides}
    sizes = [f"{key}={value}" for key, value in SIZES.items() if key not in keys]
    return model_of(compose([*sizes, *overrides], config_dir=config_dir))


def model_of(cfg: "DictConfig") -> "Transformer":
    """The model of a configuration; parameters of its encoding that start at 0 are drawn, so that they matter."""
    import torch

    from newllm.model import build_model
    from newllm.model.transformer import Transformer

    model = build_model(cfg, tokens=VOCABULARY).eval()
    if not isinstance(model, Transformer):
        raise ConfigError("newllm conformance checks encodings and attentions of a transformer; leave model= out.")
    generator = torch.Generator().manual_seed(0)
    for parameter in model.position.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=float(SIZES["model.init_std"]), generator=generator)
    return model


def token_ids() -> "Tensor":
    """The characters of TEXT, [2, LENGTH]."""
    import torch

    return torch.tensor(list(TEXT.encode())).view(2, LENGTH)


# --- the command ------------------------------------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    return run_command(_run, argv, usage=__doc__)


def _run(argv: list[str]) -> int:
    parser = Parser(prog="newllm conformance", add_help=False)
    parser.add_argument("overrides", nargs="*")
    parser.add_config_dir()
    options = parser.parse_intermixed_args(argv)
    model, ids = small_model(options.overrides, options.config_dir), token_ids()

    import torch

    failed = 0
    for check in CHECKS:
        with torch.no_grad():
            try:
                verdict, figure = "ok  ", check(model, ids)
            except Violation as violation:
                verdict, figure, failed = "FAIL", str(violation), failed + 1
            except Exception as error:  # of the class that is checked
                verdict, figure, failed = "FAIL", with_place(error), failed + 1
        print(f"{verdict}  {check.__name__:<10} {(check.__doc__ or '').splitlines()[0]}: {figure}", flush=True)
    print(f"{len(CHECKS) - failed} of {len(CHECKS)} checks pass")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
