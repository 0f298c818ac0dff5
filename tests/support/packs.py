"""Small runs that can be packed, on real text; an encoding and attentions as users write them."""

from collections.abc import Sequence

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

import newllm
from newllm.attention import MultiHead
from newllm.data import Dataset
from newllm.pack.packed_step import StepRequest
from newllm.position import PositionEncoding
from newllm.position.bias import MatrixBias
from newllm.training.muon import Muon
from newllm.training.optimizer import AdamW
from newllm.training.step import Numbers, Step, cut

CPU = torch.device("cpu")
ROWS = 8
SMALL = [
    "samples=160", "seq_len=32", "data.vocab_size=512", "facts=none", f"batch_size={ROWS}", "model.hidden_size=32",
    "model.num_layers=2", "model.heads=2", "model.mlp_size=64", "runtime.threads=1", "precision=fp32",
]  # fmt: skip


class Distances(PositionEncoding):
    """A learned bias for each head and distance up to `reach`, multiplied by `scale`."""

    def __init__(self, reach: int = 4, scale: float = 1.0, *, heads: int, num_layers: int):
        super().__init__(num_layers=num_layers)
        self.reach, self.scale = reach, scale
        self.table = nn.Parameter(torch.empty(heads, reach))

    def bias(self) -> MatrixBias:
        def matrix(query: Tensor, key: Tensor) -> Tensor:
            distance = (query[:, None] - key[None, :]).clamp(0, self.reach - 1)
            return self.scale * self.table[:, distance].float()

        return MatrixBias(matrix, (self.table,))


class Tempered(MultiHead):
    """An attention with a parameter of its own."""

    def __init__(
        self, kv_heads: int | None = None, bias: bool = False, kernel: str = "auto", qk_norm: bool = False,
        *, hidden_size: int, heads: int, head_dim: int,
    ):  # fmt: skip
        super().__init__(kv_heads, bias, kernel, qk_norm, hidden_size=hidden_size, heads=heads, head_dim=head_dim)
        self.temperature = nn.Parameter(torch.ones(1))


class Gathering(MultiHead):
    """An attention that mixes the rows of its batch."""

    def forward(self, x, *args):
        return super().forward(x - x.mean(0, keepdim=True), *args)


def configs(runs: Sequence[Sequence[str]], *shared: str) -> list[DictConfig]:
    return [newllm.compose([*SMALL, *shared, *run]) for run in runs]


def make_steps(cfgs: Sequence[DictConfig], data: Dataset) -> list[Step]:
    """A step for a new model of each configuration."""
    models = [newllm.build_model(cfg, data.tokenizer.vocab_size).train() for cfg in cfgs]
    return [Step(model, optim(cfg), CPU, "fp32") for model, cfg in zip(models, cfgs, strict=True)]


def optim(cfg: DictConfig) -> AdamW:
    # A large eps: Adam would otherwise divide most of a wrong scale of the gradient out again.
    kind = Muon if cfg.choices.optim == "muon" else AdamW
    return kind(cfg.optim.lr, [0.9, 0.95], 1e-4, cfg.optim.weight_decay, clip=cfg.optim.clip)


def requests_at(steps: Sequence[Step], cfgs: Sequence[DictConfig], data: Dataset, number: int) -> list[StepRequest]:
    """What the training loops of the runs request at step `number`, each in its own order of the rows."""
    epoch, place = divmod(number, len(data.train) // ROWS)
    requests = []
    for step, cfg in zip(steps, cfgs, strict=True):
        rows = data.order(cfg.trainer.seed, epoch)[place * ROWS : (place + 1) * ROWS]
        requests.append(StepRequest(step, cut(data.train, rows, cfg.trainer.accumulate), cfg.optim.lr))
    return requests


def losses_and_norms(results: Sequence[Numbers]) -> Tensor:
    """[runs, 2]"""
    return torch.tensor([[loss.item(), norm.item()] for loss, norm, _ in results])
