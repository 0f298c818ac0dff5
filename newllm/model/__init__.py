"""Language models, and `build_model`, which builds one from a configuration."""

from omegaconf import DictConfig, OmegaConf

from newllm.build import build
from newllm.config.groups import parts_of
from newllm.data import vocab_size
from newllm.errors import ConfigError
from newllm.model.language_model import LanguageModel
from newllm.model.transformer import Transformer

__all__ = ["LanguageModel", "Transformer", "build_model"]


def build_model(cfg: DictConfig, tokens: int | None = None, seq_len: int | None = None) -> LanguageModel:
    """Build the model of a composed configuration; its weights are drawn from its seed.

    ::

        logits = newllm.build_model(newllm.compose(["pos_encoding=alibi"]))(ids)  # [B, T] -> [B, T, vocabulary]

    tokens: size of the tokenizer (default: model.vocab_size, else that of data.tokenizer, which is opened for it).
    seq_len: the training length (default: data.seq_len).
    """
    if missing := [name for name in ("model", "data", "trainer", *parts_of("model")) if name not in cfg]:
        raise ConfigError(
            f"the configuration has no {missing[0]}; build_model takes one that newllm.compose has made, as in "
            "newllm.build_model(newllm.compose())."
        )
    if tokens is None:
        tokens = int(cfg.model.vocab_size or vocab_size(cfg.data))
    return build(
        cfg.model,
        LanguageModel,
        **{group: OmegaConf.to_container(cfg[group], resolve=True) for group in parts_of("model", cfg)},
        tokens=tokens,
        seq_len=seq_len or cfg.data.seq_len,
        seed=cfg.trainer.seed,
    )
