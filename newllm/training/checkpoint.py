"""Checkpoints: safetensors with a JSON header, written atomically. Nothing in them can run code when loaded.

The header has the SHA-256 of every tensor and of itself, which are checked when a checkpoint is read.

`last.safetensors` holds everything needed to resume training (weights, optimizer state, torch's random state, the
progress); `best.safetensors` holds the weights only.
"""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from newllm.errors import ConfigError, RunError
from newllm.store.atomic import replacing
from newllm.store.intact import Damaged, changed, is_file, sha256

HEADER, HASHES = "newllm", "sha256"  # keys of the metadata of the safetensors file
_ADVICE = "restore it, or delete the run's directory to train afresh"


@dataclass
class Progress:
    """Together with a checkpoint's tensors, everything that a resumed run needs to produce the same numbers.

    Sums are Python floats added in the order of the steps, so the point of interruption does not matter.
    """

    step: int = 0  # optimizer steps done
    epoch: int = 0  # epochs done, validation included
    epoch_step: int = 0  # steps done in the current epoch
    epoch_loss: float = 0.0  # sum of nats over the epoch's scored tokens so far
    epoch_tokens: int = 0
    logged_loss: float = 0.0  # the same sum since the last line of metrics.jsonl
    logged_tokens: int = 0
    trained_tokens: int = 0  # tokens seen in total
    best_loss: float | None = None
    best_epoch: int | None = None
    bad_epochs: int = 0  # epochs since the best one
    last_loss: float | None = None  # training loss last written to metrics.jsonl
    finished: bool = False
    skipped_steps: int = 0  # steps whose fp16 gradients overflowed
    skipped_in_a_row: int = 0  # those up to now
    scaler: dict[str, Any] | None = None  # state of the fp16 gradients' scale
    metrics_bytes: int = 0  # length of metrics.jsonl
    metrics_sha256: str | None = None  # of its content
    peak_bytes: int | None = None  # memory of a training step, measured once
    seconds: float = 0.0  # of training, over all attempts
    history: list[dict[str, Any]] = field(default_factory=list)  # the lines of the finished epochs

    def count_step(self, tokens: int) -> None:
        """Count an optimizer step on `tokens` tokens; its loss is added later, when it is known."""
        self.step += 1
        self.epoch_step += 1
        self.trained_tokens += tokens

    def add(self, loss: float, scored: int) -> None:
        """Add the mean loss over `scored` tokens of the next step in order."""
        self.epoch_loss += loss * scored
        self.epoch_tokens += scored
        self.logged_loss += loss * scored
        self.logged_tokens += scored

    def take_logged(self) -> float:
        """Mean loss since the last call."""
        self.last_loss = self.logged_loss / max(self.logged_tokens, 1)
        self.logged_loss, self.logged_tokens = 0.0, 0
        return self.last_loss

    def add_validation(self, val_loss: float) -> bool:
        """Count an epoch that ended with this validation loss; returns whether it is the best so far."""
        self.epoch += 1
        if self.best_loss is None or val_loss < self.best_loss:
            self.best_loss, self.best_epoch, self.bad_epochs = val_loss, self.epoch, 0
            return True
        self.bad_epochs += 1
        return False

    def out_of_patience(self, patience: int | None) -> bool:
        """Whether `patience` epochs (None: no limit) have passed without a better one."""
        return patience is not None and self.bad_epochs >= patience

    def epoch_mean(self) -> float:
        """Mean loss of the current epoch so far."""
        return self.epoch_loss / max(self.epoch_tokens, 1)

    def end_epoch(self, line: dict[str, Any]) -> None:
        """Keep the `line` of the epoch that has ended and begin another."""
        self.history.append(line)
        self.epoch_step, self.epoch_loss, self.epoch_tokens = 0, 0.0, 0


def save_weights(path: Path, model: nn.Module, header: dict[str, Any]) -> None:
    """Write the model's weights and the header."""
    _write(path, {f"model.{name}": tensor for name, tensor in _weights(model).items()}, header)


def save_training(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress, header: dict[str, Any]
) -> None:
    """Write everything needed to resume training from `progress`; `header` identifies the data and configuration."""
    tensors = {f"model.{name}": tensor for name, tensor in _weights(model).items()}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{key}.{name}"] = value
    tensors["random.cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["random.cuda"] = torch.cuda.get_rng_state()
    _write(path, tensors, {**header, "progress": asdict(progress)})


def load_weights(path: Path, model: nn.Module) -> dict[str, Any]:
    """Copy a checkpoint's weights into `model`; returns the header."""
    tensors, header = _read(path, "model.")
    _fill(path, _weights(model), tensors)
    return header


def read_header(path: Path) -> dict[str, Any]:
    """The header of a whole checkpoint; raises Damaged if the file or any tensor in it is damaged."""
    return _read(path, "")[1]


def read_tensor(path: Path, name: str) -> Tensor:
    """One tensor of a checkpoint, by its whole name. Raises Damaged."""
    return _read(path, name)[0][""]


@torch.no_grad()
def load_part(path: Path, name: str, target: Tensor) -> None:
    """Copy the parameter `name` of a checkpoint into `target`."""
    _fill(path, {name: target}, _read(path, "model.")[0])


def load_training(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, header: dict[str, Any]) -> Progress:
    """Restore model, optimizer and random states. Raises ConfigError if its header differs from this one."""
    tensors, stored = _read(path, "")
    for key, ours in header.items():
        if stored.get(key) != ours:
            raise ConfigError(
                f"{path} was written with another {key} ({stored.get(key)}, now {ours}); give this run another "
                "directory with hydra.run.dir=…, or delete this one"
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
    return Progress(**stored["progress"])


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


def _write(path: Path, tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
    """Write tensors and the header, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(header)
    hashes = json.dumps({**_hashes(tensors), "": sha256(text)})
    try:
        with replacing(path) as temporary:
            save_file(tensors, temporary, {HEADER: text, HASHES: hashes})
    except (OSError, SafetensorError) as error:
        kept = "the previous one is untouched" if path.exists() else "there is no previous one"
        raise RunError(
            f"The checkpoint {path} could not be written ({error}), {kept}; make room and type the same command "
            "to go on"
        ) from error


def _read(path: Path, prefix: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors whose names begin with `prefix`, with the prefix removed, and the header. Raises Damaged."""
    if not is_file(path, _ADVICE):
        raise Damaged(path, "is missing", _ADVICE)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            text, hashes = metadata[HEADER], json.loads(metadata[HASHES])
            names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118 (no mapping)
            tensors = {name: file.get_tensor(name) for name in names}
        found = {**_hashes(tensors), "": sha256(text)}
        if any(hashes.get(name) != value for name, value in found.items()):
            raise changed(path, _ADVICE)
        return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}, json.loads(text)
    except (OSError, SafetensorError, KeyError, ValueError, AttributeError) as error:
        raise Damaged(path, f"cannot be read as a checkpoint ({error})", _ADVICE) from error


def _hashes(tensors: dict[str, Tensor]) -> dict[str, str]:
    """Name -> SHA-256 of the name, the type, the shape and the bytes of each tensor on the CPU."""

    def hashed(item: tuple[str, Tensor]) -> str:
        name, tensor = item
        digest = hashlib.sha256(f"{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    with ThreadPoolExecutor(2) as threads:
        return dict(zip(tensors, threads.map(hashed, tensors.items()), strict=True))
