"""A subject for evaluators: real text, tokenized by bytes, and a small model with its initial weights."""

import inspect
import textwrap
import tokenize
from contextlib import nullcontext
from dataclasses import dataclass, field

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf

from newllm.evaluation.subject import Subject
from newllm.model import build_model

LENGTH = 32
EOT = 256


@dataclass
class ByteTokenizer:
    """A tokenizer of bytes, with an end-of-text token of no bytes."""

    vocab_size: int = 257
    eot_id: int | None = EOT
    token_bytes: np.ndarray = field(default_factory=lambda: np.array([1] * 256 + [0]))

    digest: str = "bytes"

    def encode(self, text: str) -> list[int]:
        return list(text.encode())


@dataclass
class TextRows:
    inputs: np.ndarray
    labels: np.ndarray
    seq_len: int = LENGTH
    text: np.ndarray | None = None

    def text_bytes(self, places: np.ndarray) -> np.ndarray:
        assert self.text is not None
        return (self.text[places] != EOT).astype(np.int64)

    def documents_at(self, places: np.ndarray) -> np.ndarray:
        return np.zeros_like(places)

    def __len__(self) -> int:
        return len(self.inputs)

    def joined(self, most: int | None = None) -> "TextRows":
        return self

    def arrays(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.inputs[indices], self.labels[indices]

    def batch(self, indices: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        inputs, labels = self.arrays(indices)
        return torch.from_numpy(inputs), torch.from_numpy(labels)


@dataclass
class TextData:
    train: TextRows
    val: TextRows
    tokenizer: ByteTokenizer
    val_tokens: np.ndarray
    facts: object = None
    notes: list[str] = field(default_factory=list)
    tokenizer_notes: list[str] = field(default_factory=list)

    @property
    def val_bytes(self) -> int:
        return int(self.tokenizer.token_bytes[self.val.labels[self.val.labels != -100]].sum())

    def stream(self, side: str) -> np.ndarray:
        return self.val_tokens


def tokens_of(text: str) -> np.ndarray:
    return np.array([*text.encode(), EOT], dtype=np.int64)


def rows_of(text: str) -> TextRows:
    tokens = tokens_of(text)
    count = (len(tokens) - 1) // LENGTH
    inputs = tokens[: count * LENGTH].reshape(count, LENGTH)
    labels = tokens[1 : count * LENGTH + 1].reshape(count, LENGTH).copy()
    return TextRows(inputs, labels)


ENCODINGS = {
    "rope": {"_target_": "newllm.position.Rope", "rotary_pct": 0.5},
    "alibi": {"_target_": "newllm.position.Alibi"},
}
ATTENTIONS = {
    "mha": {"_target_": "newllm.attention.MultiHead"},
    "gqa": {"_target_": "newllm.attention.MultiHead", "kv_heads": 1},
    "mla": {"_target_": "newllm.attention.Latent", "kv_dim": 16, "rope_dim": 8},
}


def make_config(encoding: str = "rope", attention: str = "mha") -> DictConfig:
    return OmegaConf.create(
        {
            "model": {
                "_target_": "newllm.model.Transformer",
                "hidden_size": 64,
                "num_layers": 2,
                "heads": 4,
                "mlp_size": 96,
                "init_std": 0.1,
            },
            "pos_encoding": ENCODINGS[encoding],
            "attention": ATTENTIONS[attention],
            "data": {"seq_len": LENGTH},
            "trainer": {"seed": 3},
            "eval": {},
        }
    )


def make_subject(encoding: str = "rope", attention: str = "mha", batch_size: int = 4) -> Subject:
    config = make_config(encoding, attention)
    text = inspect.getsource(textwrap)[:3001]
    train, val = rows_of(inspect.getsource(tokenize)), rows_of(text)
    val.text = tokens_of(text)
    val.labels[1, 5:9] = -100  # labels that are not scored
    val.labels[-1, :] = -100
    val.labels[-1, 0] = EOT
    return Subject(
        model=build_model(config, tokens=257),
        data=TextData(train, val, ByteTokenizer(), tokens_of(text)),  # type: ignore[arg-type]
        device=torch.device("cpu"),
        autocast=nullcontext,
        batch_size=batch_size,
        config=config,
    )


@torch.no_grad()
def reference_losses(subject: Subject) -> tuple[np.ndarray, np.ndarray]:
    """The expected result of Subject.token_losses, by all logits at once and torch's cross-entropy."""
    inputs, labels = subject.data.val.batch(np.arange(len(subject.data.val)))
    logits = subject.model(inputs).double()
    losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none", ignore_index=-100)
    return losses.numpy(), (labels != -100).numpy()
