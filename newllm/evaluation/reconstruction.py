"""Reconstruction error of compressed values (attention=vdproj)."""

import torch
from torch import Tensor

from newllm.attention import CompressedValues
from newllm.data import Dataset
from newllm.errors import ConfigError
from newllm.evaluation.limits import require_positive
from newllm.evaluation.subject import Evaluator, Findings, Subject, Table
from newllm.model import LanguageModel


class Reconstruction(Evaluator):
    """`reconstruction/mse`: MSE(v', v) of the restored values v' over tokens and dims, mean over the layers.

    `reconstruction/relative_error` is the mean over the layers of sum (v' - v)^2 / sum v^2, which does not depend on
    the scale of values: 0 is exact, 1 is as good as zeros. A table has both per layer.

    batches, batch_size: number of validation rows, from the first on.
    """

    def __init__(self, batches: int = 10, batch_size: int = 8):
        require_positive("eval.reconstruction", batches=batches, batch_size=batch_size)
        self.batches, self.batch_size = batches, batch_size

    def check(self, data: Dataset, model: LanguageModel) -> None:
        """Raises ConfigError if the model restores no values."""
        if not any(isinstance(module, CompressedValues) for module in model.modules()):
            raise ConfigError(
                "eval.reconstruction compares restored values with the values, and no attention of this model restores "
                "any; type attention=vdproj, or leave reconstruction out of 'eval=[…]'."
            )

    def __call__(self, subject: Subject) -> Findings:
        sums: dict[int, Tensor] = {}  # layer -> fp64 sums of (v' - v)^2 and v^2, number of values

        def see(layer: int, tensors: dict[str, Tensor]) -> None:
            restored, value = tensors["restored"].double(), tensors["value"].double()
            found = [(restored - value).square().sum(), value.square().sum(), value.new_tensor(value.numel())]
            sums[layer] = sums.get(layer, torch.zeros(3, dtype=torch.float64)) + torch.stack(found).cpu()

        subject.observe(see, self.batches, self.batch_size)
        rows: Table = [
            {"layer": layer, "mse": float(error / count), "relative_error": float(error / square)}
            for layer, (error, square, count) in sorted(sums.items())
        ]
        metrics = {
            f"reconstruction/{name}": sum(row[name] for row in rows) / len(rows) for name in ("mse", "relative_error")
        }
        return Findings("Restored values", metrics, {"reconstruction": rows}, [rows])
