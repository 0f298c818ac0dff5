"""Models, and how a configuration becomes one."""

from omegaconf import DictConfig, OmegaConf

from newllm.build import build
from newllm.config.groups import parts_of
from newllm.data import vocab_size
from newllm.model.language_model import LanguageModel
from newllm.model.transformer import Transformer

__all__ = ["LanguageModel", "Transformer", "build_model"]


def build_model(cfg: DictConfig, tokens: int | None = None, seq_len: int | None = None) -> LanguageModel:
    """The model of a composed configuration, weights drawn from its seed.

    tokens: size of the tokenizer; by default read off the configuration (a Hugging Face tokenizer is opened for it
    unless model.vocab_size says enough). seq_len: the training length, where it is not that of the data.
    """
    if tokens is None:
        tokens = int(cfg.model.vocab_size or vocab_size(cfg.data))
    model: LanguageModel = build(
        cfg.model,
        **{group: OmegaConf.to_container(cfg[group], resolve=True) for group in parts_of("model", cfg)},
        tokens=tokens,
        seq_len=seq_len or cfg.data.seq_len,
        seed=cfg.trainer.seed,
    )
    return model
