"""Where a model's input embeddings come from, when they are not its own to learn: one file per source."""

from newllm.embeddings.base import Embeddings
from newllm.embeddings.corpus import Corpus
from newllm.embeddings.finished import FromRun
from newllm.embeddings.pretrained import Pretrained

__all__ = ["Corpus", "Embeddings", "FromRun", "Pretrained"]
