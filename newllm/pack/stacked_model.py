"""Several models stacked to one: the same modules, whose layers hold the parameters of all the models."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from newllm.errors import ConfigError
from newllm.model import LanguageModel, Transformer
from newllm.pack.layers import Linears, Norms, Split
from newllm.pack.packed_encoding import PackedEncoding, Rows
from newllm.position.encoding import PositionEncoding

_LAYERS: dict[type[nn.Module], Callable[[Any], nn.Module]] = {
    nn.Linear: Linears,
    nn.LayerNorm: Norms,
    nn.RMSNorm: Norms,
    nn.Embedding: Split,
}
_PLAIN = (bool, int, float, str, type(None))
_MAY_DIFFER = ("training", "observer")


def stack(models: Sequence[LanguageModel], rows: Rows) -> Transformer:
    """One model of all `models`: its `hidden` takes their rows run by run, [K * B, T] -> [K * B, T, hidden].

    It owns nothing: parameters and their gradients are those of the models. ConfigError, naming the class, if a module
    holds parameters that nothing is known of here, or if the models are not of one shape.
    """
    packed = _stack(models, rows, "model")
    assert isinstance(packed, Transformer)
    return packed


def _stack(modules: Sequence[nn.Module], rows: Rows, path: str) -> nn.Module:
    first = modules[0]
    name = type(first).__name__
    if any(type(module) is not type(first) for module in modules):
        kinds = ", ".join(dict.fromkeys(type(module).__name__ for module in modules))
        raise ConfigError(f"the models can't be packed, since {path} is of different classes: {kinds}")
    if isinstance(first, PositionEncoding):
        return PackedEncoding([one for one in modules if isinstance(one, PositionEncoding)], rows)
    _require_equal(modules, path)
    for kind, packed in _LAYERS.items():
        if isinstance(first, kind) and type(first).forward is kind.forward:  # a subclass may do something else
            return packed(modules)
    if any(parameter is not None for parameter in first._parameters.values()):
        raise ConfigError(
            f"the models can't be packed, since the class {name} ({path}) has parameters of its own; build it of "
            "torch's Linear, Embedding, LayerNorm and RMSNorm, or leave pack out"
        )
    copy: nn.Module = object.__new__(type(first))
    copy.__dict__.update(vars(first))
    copy._modules = {}
    for child, module in vars(first)["_modules"].items():
        theirs = [one._modules[child] for one in modules]
        copy._modules[child] = None if module is None else _stack(theirs, rows, f"{path}.{child}")  # type: ignore[arg-type]
    for attribute, value in vars(first).items():
        if isinstance(value, nn.Module):  # known to it, and not a part of it
            copy.__dict__[attribute] = _stack([vars(one)[attribute] for one in modules], rows, f"{path}.{attribute}")
    return copy


def _require_equal(modules: Sequence[nn.Module], path: str) -> None:
    """ConfigError if the modules differ in a plain attribute, a buffer or a parameter's shape."""
    first = modules[0]
    for other in modules[1:]:
        for name, value in vars(first).items():
            theirs = vars(other).get(name)
            if name not in _MAY_DIFFER and _is_plain(value) and _is_plain(theirs) and value != theirs:
                raise ConfigError(f"the models can't be packed, since {path}.{name} differs: {value}, {theirs}")
        for name, buffer in first.named_buffers(recurse=False):
            if not buffer.is_meta and not torch.equal(buffer, other.get_buffer(name)):
                raise ConfigError(f"the models can't be packed, since {path}.{name} differs")
        shapes = [{n: tuple(p.shape) for n, p in one.named_parameters(recurse=False)} for one in (first, other)]
        if shapes[0] != shapes[1]:
            raise ConfigError(f"the models can't be packed, since {path} has shapes {shapes[0]} and {shapes[1]}")


def _is_plain(value: Any) -> bool:
    return isinstance(value, _PLAIN) or (isinstance(value, list | tuple) and all(map(_is_plain, value)))
