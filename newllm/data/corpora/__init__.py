"""Where text comes from: one small class per kind of corpus, all with the options of `base.Data`."""

from newllm.data.corpora.base import Data, Piece

__all__ = ["Data", "Piece"]
