"""Where a model's input embeddings come from, when they are not its own to learn: one file per source."""

from newllm.two_phase.embeddings.base import Embeddings
from newllm.two_phase.embeddings.corpus import Corpus
from newllm.two_phase.embeddings.finished import FromRun
from newllm.two_phase.embeddings.pretrained import Pretrained

__all__ = ["Corpus", "Embeddings", "FromRun", "Pretrained"]
