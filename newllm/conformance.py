"""`newllm conformance [key=value …]`: does this encoding do what every encoding must, with this attention?

  newllm conformance pos_encoding=mine attention=mha --config-dir my_conf

A small model of the choices is built and checked; nothing is trained. One line per check says whether it holds, and the
exit status is 1 if one does not. Other choices and options may be given as in training; --config-dir FOLDER adds YAML
files of your own, laid out like conf/.
"""

import copy
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from newllm.errors import ConfigError, Parser, run_command

if TYPE_CHECKING:
    from torch import Tensor

    from newllm.model.transformer import Transformer

VOCABULARY, LENGTH = 128, 48
SIZES = {
    "model": "tiny", "model.hidden_size": "64", "model.num_layers": "3", "model.heads": "4", "model.mlp_size": "96",
    "model.vocab_size": str(VOCABULARY), "model.init_std": "0.15", "seq_len": "256",
}  # fmt: skip


class Violation(AssertionError):
    """A check does not hold; the text says by how much."""


# --- the checks: each takes a model and ids [2, LENGTH], and returns the figure that shows that it holds --------------


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
    """decoding from a cache gives what training sees

    All tokens at once, a prompt and then token by token, a few at a time; in fp64, where differences are no rounding.
    """
    import torch

    model = copy.deepcopy(model).double()
    expected = model(ids)
    _require(expected.std().item() > 0.05, "the outputs hardly differ, so nothing can be said")
    largest = 0.0
    for pieces in ([LENGTH], [7] + [1] * (LENGTH - 7), [5, 20, 1, LENGTH - 26]):
        cache = model.new_cache(2, LENGTH)
        decoded = torch.cat([model(piece, cache=cache) for piece in ids.split(pieces, dim=1)], dim=1)
        _require(cache.length == LENGTH, f"the cache holds {cache.length} of {LENGTH} tokens")
        largest = max(largest, (decoded - expected).abs().max().item())
    _require(largest < 1e-6, f"decoded logits differ by {largest:.1e}")
    return f"by {largest:.0e} at most"


def shift(model: "Transformer", ids: "Tensor") -> str:
    """states stay when all positions move, if the encoding is relative, and only then"""
    moved = (model.hidden(ids, start=8) - model.hidden(ids)).abs().max().item()  # near: fp32 angles are exact there
    if model.position.relative:
        _require(moved < 1e-4, f"relative is True, and states move by {moved:.1e}; is it relative = False?")
        return f"by {moved:.0e} at most"
    _require(moved > 1e-2, f"relative is False, and states move by {moved:.1e} only")
    return f"not relative: by {moved:.2g}"


def order(model: "Transformer", ids: "Tensor") -> str:
    """exchanging two early tokens changes the last output

    An encoding that reaches no score passes all other checks. NoPE is the exception that proves it: within one layer,
    its attention is blind to the order of the past.
    """
    from newllm.position.nope import NoPE

    acting = [i for i, block in enumerate(model.blocks) if block.encoding is not None]
    _require(bool(acting), "the encoding acts in no layer")
    one_layer = copy.copy(model)
    one_layer._modules = {**model._modules, "blocks": model.blocks[acting[0] : acting[0] + 1]}
    swapped = ids.clone()
    swapped[:, [3, 30]] = ids[:, [30, 3]]
    difference = (one_layer(swapped)[:, -1] - one_layer(ids)[:, -1]).abs().max().item()
    if isinstance(model.position, NoPE):
        _require(difference < 1e-5, f"without positions the order changes the output by {difference:.1e}")
        return "NoPE: blind to the order within a layer, as it should be"
    _require(difference > 1e-4, f"the order of tokens changes the output by {difference:.1e} only")
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
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(ids).float()
    share = ((out - expected).pow(2).mean().sqrt() / expected.std()).item()
    _require(share < 0.03, f"the error is {share:.1%} of the logits' deviation, above 3 %")
    return f"error {share:.1%} of the logits' deviation"


CHECKS: tuple[Callable[["Transformer", "Tensor"], str], ...] = (causality, decoding, shift, order, gradients, bf16)


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise Violation(otherwise)


# --- the model that is checked ----------------------------------------------------------------------------------------


def small_model(overrides: Sequence[str] = (), config_dir: str | None = None) -> "Transformer":
    """A small model of these choices; what an encoding learns from 0 on is drawn at random, so that it matters."""
    import torch

    from newllm.config import compose
    from newllm.model import build_model
    from newllm.model.transformer import Transformer

    given = {override.lstrip("+").partition("=")[0] for override in overrides}
    sizes = [f"{key}={value}" for key, value in SIZES.items() if key not in given]
    model = build_model(compose([*sizes, *overrides], config_dir=config_dir), tokens=VOCABULARY).eval()
    if not isinstance(model, Transformer):
        raise ConfigError("conformance checks encodings and attentions of transformers; leave model out.")
    generator = torch.Generator().manual_seed(0)
    for parameter in model.position.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=float(SIZES["model.init_std"]), generator=generator)
    return model


def token_ids() -> "Tensor":
    """[2, LENGTH], the same at each call."""
    import torch

    return torch.randint(VOCABULARY, (2, LENGTH), generator=torch.Generator().manual_seed(0))


# --- the command ------------------------------------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    return run_command(_run, sys.argv[1:] if argv is None else argv)


def _run(argv: list[str]) -> int:
    if any(word in ("-h", "--help") for word in argv):
        print((__doc__ or "").replace("`", ""))
        return 0
    parser = Parser(prog="newllm conformance", add_help=False)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--config-dir", "-cd")
    options = parser.parse_intermixed_args(argv)
    model, ids = small_model(options.overrides, options.config_dir), token_ids()

    import torch

    violated = 0
    for check in CHECKS:
        with torch.no_grad():
            try:
                verdict, figure = "ok  ", check(model, ids)
            except (Violation, RuntimeError) as error:  # a RuntimeError of torch: shapes that do not fit
                verdict, figure, violated = "FAIL", str(error).splitlines()[0], violated + 1
        print(f"{verdict}  {check.__name__:<10} {(check.__doc__ or '').splitlines()[0]}: {figure}", flush=True)
    print(f"{len(CHECKS) - violated} of {len(CHECKS)} checks hold")
    return 1 if violated else 0


if __name__ == "__main__":
    sys.exit(main())
