"""Checkpoints: safetensors with a JSON header, written atomically. Nothing in them can run code when loaded.

`last.safetensors` holds everything needed to resume training (weights, optimizer state, torch's random state, the
progress); `best.safetensors` holds the weights only.
"""

import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from newllm.errors import ConfigError, RunError
from newllm.store.atomic import replacing
from newllm.training.progress import Progress

HEADER = "newllm"


def save_weights(path: Path, model: nn.Module, about: dict[str, Any]) -> None:
    """Write the model's weights, with `about` in the header."""
    _write(path, {f"model.{name}": tensor for name, tensor in _weights(model).items()}, about)


def save_training(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress, about: dict[str, Any]
) -> None:
    """Write everything needed to resume training from `progress`; `about` identifies the data and configuration."""
    tensors = {f"model.{name}": tensor for name, tensor in _weights(model).items()}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{key}.{name}"] = value
    tensors["random.cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["random.cuda"] = torch.cuda.get_rng_state()
    _write(path, tensors, {**about, "progress": asdict(progress)})


def load_weights(path: Path, model: nn.Module) -> dict[str, Any]:
    """Copy a checkpoint's weights into `model`; returns the header."""
    tensors, about = _read(path, "model.")
    _fill(path, _weights(model), tensors)
    return about


@torch.no_grad()
def load_part(path: Path, name: str, target: Tensor) -> None:
    """Copy the parameter `name` of a checkpoint into `target`."""
    _fill(path, {name: target}, _read(path, "model.")[0])


def load_training(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, about: dict[str, Any]) -> Progress:
    """Restore model, optimizer and random states. Raises ConfigError if the header differs from `about`."""
    tensors, header = _read(path, "")
    for key, ours in about.items():
        if header.get(key) != ours:
            raise ConfigError(
                f"{path} was written with another {key} ({header.get(key)}, now {ours}); give this run a directory "
                "of its own with hydra.run.dir=…, or delete this one"
            )
    _fill(path, _weights(model), {name.removeprefix("model."): tensor for name, tensor in tensors.items()})
    parameters = dict(model.named_parameters())
    for key, tensor in tensors.items():
        if key.startswith("optimizer."):
            _, moment, name = key.split(".", 2)
            # The fused kernels need the step count on the parameter's device as well, in fp32 as saved.
            optimizer.state[parameters[name]][moment] = tensor.to(parameters[name].device)
    torch.set_rng_state(tensors["random.cpu"])
    if torch.cuda.is_available() and "random.cuda" in tensors:
        torch.cuda.set_rng_state(tensors["random.cuda"])
    known = {f.name for f in fields(Progress)}
    return Progress(**{key: value for key, value in header["progress"].items() if key in known})


def weight_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Shapes of the parameters and buffers that a checkpoint stores, by name."""
    return {name: tuple(tensor.shape) for name, tensor in _weights(model).items()}


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """Parameters (tied ones once, under one name) and persistent buffers."""
    saved = model.state_dict().keys()
    buffers = {name: buffer for name, buffer in model.named_buffers() if name in saved}
    return {**{name: p.detach() for name, p in model.named_parameters()}, **buffers}


def _fill(path: Path, targets: dict[str, Tensor], tensors: dict[str, Tensor]) -> None:
    for name, target in targets.items():
        found = tensors.get(name)
        if found is None or found.shape != target.shape:
            shape = "missing" if found is None else f"of shape {tuple(found.shape)}"
            raise RunError(f"{path} does not fit the model: {name} is {shape}, expected {tuple(target.shape)}")
        target.copy_(found)


def _write(path: Path, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
    """Write tensors with `about` in the header, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with replacing(path) as temporary:
            save_file({name: t.contiguous() for name, t in tensors.items()}, temporary, {HEADER: json.dumps(about)})
    except (OSError, SafetensorError) as error:
        kept = "the one before it is untouched" if path.exists() else "there is none before it"
        raise RunError(
            f"The checkpoint {path} could not be written ({error}), {kept}; make room and type the same command "
            "to go on"
        ) from error


def _read(path: Path, prefix: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors whose names begin with `prefix`, with the prefix removed, and the header."""
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {})[HEADER])
            names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118 (no mapping)
            return {name.removeprefix(prefix): file.get_tensor(name) for name in names}, about
    except FileNotFoundError:
        raise RunError(f"There is no checkpoint {path}; run the training again to make it") from None
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise RunError(
            f"The checkpoint {path} cannot be read ({error}); delete it and type the same command to train afresh"
        ) from error
