"""Several models stacked to one: the same modules, whose layers hold the parameters of all the models.

A packed batch is run-major: in x [K * B, ...] the B rows of the first run come first. The parameters stay those of the
runs' own models, which get the gradients too, so a run's optimizer, clipping and checkpoints work as usual.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from newllm.errors import ConfigError
from newllm.model import LanguageModel, Transformer
from newllm.pack.packed_encoding import PackedEncoding, Rows
from newllm.position.encoding import PositionEncoding

_PLAIN = (bool, int, float, str, type(None))
_MAY_DIFFER = ("training", "observer")


def stack(models: Sequence[LanguageModel], rows: Rows) -> Transformer:
    """One model of all `models`: its `hidden` maps their rows, run by run, [K * B, T] -> [K * B, T, hidden].

    Parameters and their gradients are those of the models. Raises ConfigError, naming the class, if a module has
    parameters of its own, or if the models differ in shape.
    """
    stacked = _stack(models, rows, "model")
    assert isinstance(stacked, Transformer)
    return stacked


def _stack(modules: Sequence[nn.Module], rows: Rows, path: str) -> nn.Module:
    first = modules[0]
    name = type(first).__name__
    if any(type(module) is not type(first) for module in modules):
        kinds = ", ".join(dict.fromkeys(type(module).__name__ for module in modules))
        raise ConfigError(f"the models can't be packed, since {path} is of different classes: {kinds}")
    if isinstance(first, PositionEncoding):
        return PackedEncoding([one for one in modules if isinstance(one, PositionEncoding)], rows)
    _check_equal(modules, path)
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
        children = [one._modules[child] for one in modules]
        copy._modules[child] = None if module is None else _stack(children, rows, f"{path}.{child}")  # type: ignore[arg-type]
    for attribute, value in vars(first).items():
        if isinstance(value, nn.Module):  # a reference to a module that is not a child
            copy.__dict__[attribute] = _stack([vars(one)[attribute] for one in modules], rows, f"{path}.{attribute}")
    return copy


def _check_equal(modules: Sequence[nn.Module], path: str) -> None:
    """Raises ConfigError if the modules differ in a plain attribute, a buffer or a parameter's shape."""
    first = modules[0]
    for other in modules[1:]:
        for name, value in vars(first).items():
            another = vars(other).get(name)
            if name not in _MAY_DIFFER and _is_plain(value) and _is_plain(another) and value != another:
                raise ConfigError(f"the models can't be packed, since {path}.{name} differs: {value}, {another}")
        for name, buffer in first.named_buffers(recurse=False):
            if not buffer.is_meta and not torch.equal(buffer, other.get_buffer(name)):
                raise ConfigError(f"the models can't be packed, since {path}.{name} differs")
        shapes = [{n: tuple(p.shape) for n, p in one.named_parameters(recurse=False)} for one in (first, other)]
        if shapes[0] != shapes[1]:
            raise ConfigError(f"the models can't be packed, since {path} has shapes {shapes[0]} and {shapes[1]}")


def _is_plain(value: Any) -> bool:
    return isinstance(value, _PLAIN) or (isinstance(value, list | tuple) and all(map(_is_plain, value)))


# --- layers: one module in place of K equal ones, each with the parameters of its run -------------------------------


class Linears(nn.Module):
    """x [K * B, ..., in] -> [K * B, ..., out]."""

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        super().__init__()
        self._weights = [layer.weight for layer in layers]
        self._biases = [layer.bias for layer in layers if layer.bias is not None]

    def forward(self, x: Tensor) -> Tensor:
        runs, dtype = len(self._weights), x.dtype
        if torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
        rows = x.to(dtype).reshape(runs, -1, x.shape[-1])  # [K, N, in]
        y: Tensor = _Products.apply(rows, runs, *self._weights, *self._biases)  # [K, N, out]
        return y.view(*x.shape[:-1], y.shape[-1])


class _Products(torch.autograd.Function):
    """``y_k = x_k W_k^T + b_k`` for x [K, N, in]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, runs: int, *parameters: Tensor) -> Tensor:
        weights = [weight.to(x.dtype) for weight in parameters[:runs]]
        biases = [bias.to(x.dtype) for bias in parameters[runs:]]
        ctx.save_for_backward(x, *weights)
        ctx.dtypes = [parameter.dtype for parameter in parameters]
        if not _one_by_one(x):
            stacked = torch.stack(weights).mT
            return torch.baddbmm(torch.stack(biases)[:, None], x, stacked) if biases else torch.bmm(x, stacked)
        y = x.new_empty(runs, x.shape[1], weights[0].shape[0])
        for k, weight in enumerate(weights):
            if biases:
                torch.addmm(biases[k], x[k], weight.T, out=y[k])
            else:
                torch.mm(x[k], weight.T, out=y[k])
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grad_outputs  # [K, N, out]
        x, *weights = ctx.saved_tensors
        needs_x, _, *needed = ctx.needs_input_grad
        runs = len(weights)
        d_x: Tensor | None = None
        if not _one_by_one(x):
            d_x = torch.bmm(grad, torch.stack(weights)) if needs_x else None
            gradients = [*torch.bmm(grad.mT, x).unbind(), *(grad.sum(1).unbind() if len(needed) > runs else ())]
        else:
            if needs_x:
                d_x = torch.empty_like(x)
                for k, weight in enumerate(weights):
                    torch.mm(grad[k], weight, out=d_x[k])
            gradients = [torch.mm(grad[k].T, x[k]) for k in range(runs)]
            gradients += [grad[k].sum(0) for k in range(len(needed) - runs)]
        results = zip(gradients, needed, ctx.dtypes, strict=True)
        return d_x, None, *(gradient.to(dtype) if needs else None for gradient, needs, dtype in results)


def _one_by_one(x: Tensor) -> bool:
    """On a CPU separate products are as fast as a batched one, and equal to the run's own to the last bit."""
    return x.is_cpu


class Norms(nn.Module):
    """LayerNorm or RMSNorm of x [K * B, ..., *shape]: normalised together, scaled and shifted with each run's own."""

    def __init__(self, layers: Sequence[nn.LayerNorm | nn.RMSNorm]) -> None:
        super().__init__()
        first = layers[0]
        self._shape, self._eps = list(first.normalized_shape), first.eps
        self._centred = isinstance(first, nn.LayerNorm)
        self._scales: list[Tensor] = [layer.weight for layer in layers if layer.weight is not None]
        shifts = [getattr(layer, "bias", None) for layer in layers]
        self._shifts: list[Tensor] = [shift for shift in shifts if shift is not None]

    def forward(self, x: Tensor) -> Tensor:
        if self._centred:
            normed = F.layer_norm(x, self._shape, eps=self._eps or 1e-5)
        else:
            normed = F.rms_norm(x, self._shape, eps=self._eps)
        if not self._scales:
            return normed
        rows = normed.reshape(len(self._scales), -1, *self._shape) * torch.stack(self._scales)[:, None]
        if self._shifts:
            rows = rows + torch.stack(self._shifts)[:, None]
        return rows.view_as(x)


class Split(nn.Module):
    """The runs' own modules, each on the rows of its run."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self._layers = list(layers)  # no submodules: they belong to the runs' models

    def forward(self, x: Tensor) -> Tensor:
        chunks = x.chunk(len(self._layers))
        return torch.cat([layer(chunk) for layer, chunk in zip(self._layers, chunks, strict=True)])


_LAYERS: dict[type[nn.Module], Callable[[Any], nn.Module]] = {
    nn.Linear: Linears,
    nn.LayerNorm: Norms,
    nn.RMSNorm: Norms,
    nn.Embedding: Split,
}
