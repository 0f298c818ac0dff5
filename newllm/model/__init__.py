"""Models, and how a configuration becomes one."""

from omegaconf import DictConfig, OmegaConf

from newllm.build import build
from newllm.model.transformer import Transformer


def build_model(cfg: DictConfig, tokens: int | None = None, seq_len: int | None = None) -> Transformer:
    """The model of a composed configuration, weights drawn from its seed.

    tokens: size of the tokenizer; by default read off the configuration (a Hugging Face tokenizer is opened for it
    unless model.vocab_size says enough). seq_len: the training length, where it is not that of the data.
    """
    if tokens is None:
        from newllm.data import vocab_size

        tokens = int(cfg.model.vocab_size or vocab_size(cfg.data))
    return build(
        cfg.model,
        attention=OmegaConf.to_container(cfg.attention, resolve=True),
        pos_encoding=OmegaConf.to_container(cfg.pos_encoding, resolve=True),
        tokens=tokens,
        seq_len=seq_len or cfg.data.seq_len,
        seed=cfg.trainer.seed,
    )


__all__ = ["Transformer", "build_model"]
