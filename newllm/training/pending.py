"""The numbers of steps that are still on the device, so that no step waits for the one before it."""

import torch

from newllm.training.step import Numbers


class Pending:
    """Keeps steps' numbers until somebody wants to know them."""

    def __init__(self) -> None:
        self._numbers: list[Numbers] = []

    def __len__(self) -> int:
        return len(self._numbers)

    def append(self, numbers: Numbers) -> None:
        """Of the step after those that are here."""
        self._numbers.append(numbers)

    def fetch(self) -> list[tuple[float, float, int]]:
        """Loss, gradient norm and scored tokens of all steps since the last time, in their order. Waits for them."""
        if not self._numbers:
            return []
        losses = torch.stack([loss for loss, _, _ in self._numbers]).tolist()
        norms = torch.stack([norm for _, norm, _ in self._numbers]).tolist()
        scored = [count for _, _, count in self._numbers]
        self._numbers.clear()
        return list(zip(losses, norms, scored, strict=True))
