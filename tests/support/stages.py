"""A stage as a user would write it."""

from dataclasses import replace

from omegaconf import DictConfig

from newllm.data import Dataset
from newllm.data.dataset import Rows
from newllm.errors import ConfigError
from newllm.model import LanguageModel
from newllm.run.stage import Stage, StageResult
from newllm.training.run_context import Run


class FewerRows(Stage):
    """Trains on the first `rows` training rows only."""

    def __init__(self, rows: int, *, seed: int) -> None:
        self.rows, self.seed = rows, seed

    def check(self, cfg: DictConfig, model: LanguageModel, data: Dataset) -> None:
        if self.rows > len(data.train):
            raise ConfigError(f"there are {len(data.train)} rows; type fewer.rows={len(data.train)}")

    def run(self, run: Run) -> StageResult:
        train = run.data.train
        fewer = Rows(train.tokens, train.starts[: self.rows], train.seq_len, text=train.text)
        return StageResult({"fewer/rows": self.rows, "fewer/seed": self.seed}, replace(run.data, train=fewer))
