"""How far the iteration has come: the position, the recurrence's weights and its optimizer's state, in one file."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from newllm.training.checkpoint import read_tensors, write_tensors


@dataclass
class State:
    """iteration: the last one done, of which the contexts are on disk; 0 before the random ones."""

    iteration: int = 0
    steps: int = 0  # of the optimizer
    seconds: float = 0.0  # spent by all attempts
    lines: list[dict[str, Any]] = field(default_factory=list)  # of metrics.jsonl, one an iteration from the second on


def save(path: Path, state: State, recurrence: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Write the state, whole or not at all."""
    tensors = {f"weights.{name}": parameter.detach() for name, parameter in recurrence.named_parameters()}
    for name, parameter in recurrence.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{key}.{name}"] = value
    write_tensors(path, tensors, asdict(state))


@torch.no_grad()
def load(path: Path, recurrence: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> State:
    """Put weights, and the optimizer's state if there is one, back."""
    tensors, header = read_tensors(path, "")
    for name, parameter in recurrence.named_parameters():
        parameter.copy_(tensors[f"weights.{name}"])
        found = {
            key.split(".")[1]: tensor
            for key, tensor in tensors.items()
            if key.startswith("optimizer.") and key.split(".", 2)[2] == name
        }
        if optimizer is not None and found:
            optimizer.state[parameter] = {key: tensor.to(parameter.device) for key, tensor in found.items()}
    return State(**header)
