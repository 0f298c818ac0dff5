"""What comes before a run's ordinary training: embeddings that are filled in, and a first phase."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from newllm.build import build
from newllm.config import schema
from newllm.errors import ConfigError

if TYPE_CHECKING:
    from newllm.data import Dataset
    from newllm.model import LanguageModel
    from newllm.two_phase import FirstPhase
    from newllm.two_phase.embeddings import Embeddings


@dataclass(frozen=True)
class Stages:
    """The stages of a configuration that come before training; None: there is no such stage."""

    embeddings: "Embeddings | None"
    phase: "FirstPhase | None"

    def check(self, cfg: DictConfig, model: "LanguageModel", data: "Dataset") -> None:
        """ConfigError for what is nothing for this model or this text; nothing has been written yet."""
        if self.embeddings is not None:
            self.embeddings.check(cfg, data.tokenizer, model.embed.embedding_dim)
        if self.phase is not None:
            self.phase.check(cfg, model, data)


def stages(cfg: DictConfig) -> Stages:
    """Those that `cfg` asks for. Raises ConfigError, also for settings of the run that a first phase cannot have."""
    phase1, objective, embeddings = (_plain(cfg, group) for group in ("phase1", "objective", "embeddings"))
    phase = first_phase(phase1, objective, cfg.trainer.seed)
    if phase is not None:
        chosen = f"phase1={(cfg.get('choices') or {}).get('phase1') or type(phase).__name__}"
        if cfg.trainer.devices > 1:
            raise ConfigError(
                f"{chosen} works in one process, and trainer.devices={cfg.trainer.devices} asks for more; leave it out."
            )
        if cfg.runtime.compile is True:
            raise ConfigError(
                f"a run with {chosen} isn't compiled, since it trains parts of the model by themselves; leave "
                "runtime.compile=true out."
            )
    if embeddings and cfg.trainer.devices > 1:
        chosen = (cfg.get("choices") or {}).get("embeddings") or str(embeddings["_target_"]).rpartition(".")[2]
        raise ConfigError(
            f"embeddings={chosen} fills the model of one process, and trainer.devices={cfg.trainer.devices} asks for "
            "more; leave that out."
        )
    return Stages(build(embeddings) if embeddings else None, phase)


def first_phase(phase1: Mapping[str, Any], objective: Mapping[str, Any], seed: int) -> "FirstPhase | None":
    """The first phase of these nodes, None if there is none. Raises ConfigError if one of them misses the other."""
    if not phase1:
        if objective:
            raise ConfigError(
                "an objective is what trains a first phase, and phase1=none has none; type objective=none, or name a "
                "first phase as in phase1=published."
            )
        return None
    takes = "objective" in schema.options(str(phase1["_target_"])).handed
    if takes and not objective:
        raise ConfigError("this first phase needs an objective to train on; type objective=mcdl.")
    if objective and not takes:
        raise ConfigError("this first phase has an objective of its own; type objective=none.")
    phase: FirstPhase = build(phase1, objective=dict(objective), seed=seed)
    return phase


def _plain(cfg: DictConfig, group: str) -> dict[str, Any]:
    """The node of a group, {} where nothing was chosen."""
    node = cfg.get(group)
    plain = OmegaConf.to_container(node, resolve=True) if node else {}
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()} if "_target_" in plain else {}
