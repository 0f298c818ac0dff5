"""Everything between text and batches: corpora, tokenizers, the token store, splits and reversal facts.

`prepare` turns a data node and a facts node into a `Dataset`. torch is imported only with the first batch.
"""

from newllm.data.dataset import Dataset, Rows, prepare
from newllm.data.tokenizer import Tokenizer, vocab_size

__all__ = ["Dataset", "Rows", "Tokenizer", "prepare", "vocab_size"]
