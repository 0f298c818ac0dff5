"""Stages: what a run does before training. conf/groups.yaml names their groups, the configuration chooses."""

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from omegaconf import DictConfig, OmegaConf

from newllm.build import build
from newllm.config.groups import group_of, parts_of, stages
from newllm.config.values import signature_of
from newllm.data import Dataset
from newllm.errors import ConfigError
from newllm.model import LanguageModel
from newllm.training.run_context import Run


@dataclass
class StageResult:
    """The results of a stage, besides the weights in the model.

    metrics: for results.json. data: what training and evaluation read from now on (`LanguageModel.model_for_rows` reads
    its rows); None: what they read before. metrics_bytes: length of its lines at the beginning of metrics.jsonl.
    """

    metrics: dict[str, float] = field(default_factory=dict)
    data: Dataset | None = None
    metrics_bytes: int = 0


class Stage(ABC):
    """Something done before training.

    Built from the node of its group, and the run's seed and the nodes of its parts if the constructor asks for them.
    """

    @abstractmethod
    def check(self, cfg: DictConfig, model: LanguageModel, data: Dataset) -> None:
        """Raise ConfigError if the stage cannot work on this model or text. Nothing has been written yet."""

    @abstractmethod
    def run(self, run: Run) -> StageResult:
        """Do the stage, resume it, or load its stored result: the same bits in all three cases.

        Calls `run.signals.check` between portions of work. Writes its own tables and console lines.
        """


def build_stages(cfg: DictConfig) -> dict[str, Stage]:
    """Group -> the stage that `cfg` chooses, in the order in which they run.

    Raises ConfigError if a stage cannot be built, or cannot be combined with other settings of the run.
    """
    built = {}
    for group in stages(cfg):
        names = [group, *parts_of(group, cfg)]
        nodes: Any = {name: OmegaConf.to_container(cfg[name], resolve=True) if cfg.get(name) else {} for name in names}
        stage = build_stage(group, nodes, cfg.trainer.seed)
        if stage is None:
            continue
        built[group] = stage
        chosen = f"{group}={(cfg.get('choices') or {}).get(group) or type(stage).__name__}"
        if cfg.trainer.devices > 1:
            raise ConfigError(
                f"{chosen} works in one process, and trainer.devices={cfg.trainer.devices} asks for more; leave "
                "trainer.devices out."
            )
        if cfg.runtime.compile is True and group_of(group, cfg).pack == "alone":
            raise ConfigError(
                f"a run with {chosen} isn't compiled, since it trains parts of the model by themselves; leave "
                "runtime.compile=true out."
            )
    return built


def build_stage(group: str, nodes: Mapping[str, Mapping[str, Any]], seed: int) -> Stage | None:
    """Build the stage of a group from `nodes`, its own and those of its parts; None if its own is empty.

    Raises ConfigError for a part that the stage does not take.
    """
    parts = {name: node for name, node in nodes.items() if name != group}
    chosen_parts = [name for name, node in parts.items() if node]
    if not nodes[group]:
        if chosen_parts:
            part, suggested = chosen_parts[0], group_of(group).suggest
            raise ConfigError(
                f"{part} is a part of {group}, and this run has {group}=none; type {part}=none, or choose a "
                f"{group}{f', as in {group}={suggested}' if suggested else ''}."
            )
        return None
    handed = signature_of(str(nodes[group]["_target_"])).handed
    for part in chosen_parts:
        if part not in handed:
            raise ConfigError(f"this {group} has no use for {part}; type {part}=none.")
    return build(nodes[group], Stage, **parts, seed=seed)


def run_stages(run: Run) -> StageResult:
    """Do all stages of a run, or load what earlier attempts have stored; returns their results together.

    Their seconds, over all attempts, are in status.json.
    """
    began, before = time.monotonic(), float(run.directory.status().get("stage_seconds") or 0.0)
    together = StageResult()
    try:
        for stage in run.stages.values():
            result = stage.run(run)
            together.metrics |= result.metrics
            together.data = result.data or together.data
            together.metrics_bytes = max(together.metrics_bytes, result.metrics_bytes)
    finally:
        run.directory.update_status(stage_seconds=before + time.monotonic() - began)
    return together
