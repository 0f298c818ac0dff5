"""Byte-level BPE word by word: a text repeats its words, so each distinct one is encoded once.

A byte-level BPE in GPT-2's manner (GPT-2, GPT-NeoX, OPT, our own) splits a text before it merges bytes, and a word's
ids depend on nothing around it. So text is cut at places where every such tokenizer cuts it, and ids are looked up.
Only ASCII is cut into single words, since there every version of Unicode agrees; around other characters a piece
reaches to a letter or mark before white space, where the splitting pattern always ends a word:

    's|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+
"""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import tokenizers

KEPT = 1 << 18  # distinct pieces remembered; some 200 bytes each
LONGEST = 64  # characters of a piece that is remembered

_OTHER = r"[^\t\n\r -~]"  # characters that are left to the tokenizer
_SPACE = r"[\t\n\r ]"
_MARK = r"[!-/:-@\[-`{-~]"
_END = r"(?<=[!-~\w\u2014\u2019\u201d\u2026])(?=[\t\n\r ])"  # after what is white space by no version of Unicode


class Words:
    """Encodes as the tokenizer does, many times as fast.

    backend: with encode_special_tokens, so that special tokens in a text are plain text.
    dtype: of the ids.
    """

    def __init__(self, backend: "tokenizers.Tokenizer", cutting: "re.Pattern[str]", dtype: np.dtype) -> None:
        self._backend, self._cut, self._dtype = backend, cutting.findall, dtype
        self._known: dict[str, bytes] = {}

    def encode(self, text: str) -> bytes:
        """The ids of a text, as `dtype`."""
        pieces = self._cut(text)
        unknown = list(set(pieces).difference(self._known))
        if len(self._known) + len(unknown) > KEPT:
            self._known.clear()
            unknown = list(set(pieces))
        encodings = self._backend.encode_batch_fast(unknown, add_special_tokens=False)
        for piece, encoding in zip(unknown, encodings, strict=True):
            self._known[piece] = np.array(encoding.ids, dtype=self._dtype).tobytes()
        ids = b"".join(map(self._known.__getitem__, pieces))
        for piece in unknown:
            if len(piece) > LONGEST:
                del self._known[piece]
        return ids


def cutting(spec: Mapping[str, Any]) -> "re.Pattern[str] | None":
    """The pattern whose matches, one after the other, are a text cut for the tokenizer.json `spec`.

    None for a tokenizer that splits in another way, drops merges at random, or adds tokens that reach over words.
    """
    model, normalizer, splitting = (spec.get(name) or {} for name in ("model", "normalizer", "pre_tokenizer"))
    added = spec.get("added_tokens") or []
    plain = [token["content"] for token in added if not token["special"]]
    if (
        model.get("type") != "BPE"
        or model.get("dropout")
        or normalizer.get("type", "NFC") != "NFC"  # which never joins anything to an ASCII character after it
        or splitting.get("type") != "ByteLevel"
        or splitting.get("add_prefix_space", True)
        or not splitting.get("use_regex", True)
        or any(token["single_word"] or token["lstrip"] or token["rstrip"] for token in added)
        or any(re.search(r"\s", token["content"]) for token in added if token["special"])
        or any(len(content) < 2 or content.strip(" ") for content in plain)  # GPT-NeoX's are runs of spaces
    ):
        return None
    return _pattern(sorted(map(len, plain), reverse=True))


def _pattern(runs: Sequence[int]) -> "re.Pattern[str]":
    """runs: lengths of the runs of spaces that are tokens of their own, the longest first."""
    space = rf"(?:(?! {{{runs[-1]}}}){_SPACE})" if runs else _SPACE
    return re.compile(
        "|".join(
            [
                rf" ?[A-Za-z]++(?!{_OTHER})",
                rf" ?[0-9]++(?!{_OTHER})",
                r"'(?:[stmd]|re|ve|ll)",
                rf" ?{_MARK}++(?!{_OTHER})",
                *(f" {{{run}}}" for run in runs),
                rf"(?!{_SPACE}++{_OTHER})(?:{space}+(?![!-~])|[\t\n\r])",  # a last space belongs to the word after it
                rf"(?s:.)+?(?:{_END}|\Z)",
            ]
        )
    )
