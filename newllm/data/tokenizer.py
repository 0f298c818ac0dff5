"""Tokenizers of the `tokenizers` package: trained here, or read once through transformers."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from newllm.config.content import content_hash
from newllm.config.groups import group_of
from newllm.data.corpora.hub import require_hub
from newllm.data.disk_cache import cache_folder, find_or_build, key_of
from newllm.errors import ConfigError
from newllm.store.atomic import replacing
from newllm.store.intact import Damaged, check_file, file_sha256, read_json, write_json

FILE = "tokenizer.json"
META = "tokenizer.meta.json"
EOT = "<|endoftext|>"  # of a tokenizer trained here
ENDS = (EOT, "<|end_of_text|>", "</s>", "<eos>", "[EOS]")  # end-of-text tokens, for a tokenizer that names none as such


class Tokenizer:
    """Text to ids and back without adding special tokens; a literal end-of-text in the text is plain text.

    vocab_size: number of ids of the model (the configured size of the auto tokenizer, even if its text gave fewer).
    eot_id: end-of-text, or None.
    token_bytes: int64 [vocab_size], UTF-8 bytes of text per id, 0 for special ids, of a byte-level vocabulary; else
        None, since ids do not say which text they stand for (unknown words, case, spaces): see `encode_with_bytes`.
    exact: the sum of token_bytes over an encoded text is always the length of the text.
    """

    def __init__(self, backend: tokenizers.Tokenizer, vocab_size: int, eot: str | None) -> None:
        self.backend = backend
        self.backend.encode_special_tokens = True
        self.backend.no_truncation()
        self.backend.no_padding()
        self.vocab_size = vocab_size
        self.eot = eot
        self.eot_id: int | None = backend.token_to_id(eot) if eot is not None else None
        spec = json.loads(backend.to_str())
        self.token_bytes = _token_bytes(spec, backend.get_vocab(), vocab_size)
        self.exact = self.token_bytes is not None and _keeps_all_bytes(spec)
        unknown = spec["model"].get("unk_token")
        self.unknown_id = backend.token_to_id(unknown) if unknown else spec["model"].get("unk_id")
        self.traits = _traits(spec, backend)  # what the tokenizer does beside encoding text, for the user

    @cached_property
    def digest(self) -> str:
        """16 hex digits that identify the tokenizer by its content."""
        return hashlib.sha256(self.backend.to_str().encode()).hexdigest()[:16]

    def encode(self, text: str) -> list[int]:
        return self.backend.encode(text, add_special_tokens=False).ids

    def encode_with_bytes(self, texts: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        """For each text its ids int64 [N], and the UTF-8 bytes of the text that each id stands for, int64 [N].

        A token stands for the text from the end of the one before it to its own end, the last one to the end of the
        text: spaces and characters that the tokenizer drops count with the next token, and the sum is the length of
        the text, whatever the tokenizer. (Without any token, nothing is counted.)
        """
        pairs = []
        for text, encoding in zip(texts, self.backend.encode_batch(list(texts), add_special_tokens=False), strict=True):
            ids, size = np.array(encoding.ids, dtype=np.int64), len(text.encode())
            counts = np.zeros(0, dtype=np.int64) if self.token_bytes is None else self.token_bytes[ids]
            if counts.sum() != size and len(ids):
                ends = _bytes_before(text)[[end for _, end in encoding.offsets]]
                ends = np.maximum.accumulate(ends)
                ends[-1] = size
                counts = np.diff(ends, prepend=0)
            pairs.append((ids, counts))
        return pairs

    def decode(self, ids: Sequence[int]) -> str:
        return self.backend.decode(list(ids), skip_special_tokens=False)

    def save(self, folder: Path) -> None:
        with replacing(folder / FILE) as temporary:
            self.backend.save(str(temporary))
        meta = {"vocab_size": self.vocab_size, "eot": self.eot, "tokenizer_sha256": file_sha256(folder / FILE)}
        write_json(folder / META, meta)

    @classmethod
    def load(cls, folder: Path) -> "Tokenizer":
        """The tokenizer that `save` wrote. Raises Damaged."""
        advice = "restore it, or, if it is a run's, delete the run's results.json and type its command again"
        meta = read_json(folder / META, advice)
        if meta is None:
            raise Damaged(folder / META, "is missing", advice)
        try:
            check_file(folder / FILE, meta["tokenizer_sha256"], advice)
            return cls(tokenizers.Tokenizer.from_file(str(folder / FILE)), meta["vocab_size"], meta["eot"])
        except ConfigError:
            raise
        except Exception as error:  # `tokenizers` raises bare Exception
            raise Damaged(folder / FILE, f"cannot be read as a tokenizer ({error})", advice) from None


def vocab_size(data_node: Mapping[str, Any]) -> int:
    """Number of ids of the data node's tokenizer, without reading any text."""
    if data_node["tokenizer"] == "auto":
        return int(data_node["vocab_size"])
    return pretrained(data_node["tokenizer"], cache_folder()).vocab_size


def train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE (GPT-2's splitting and byte alphabet) of `vocab_size` ids, including end-of-text."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[EOT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return Tokenizer(backend, vocab_size, EOT)


def pretrained(name: str, cache: Path) -> Tokenizer:
    """The Hugging Face tokenizer `name` (or folder), cached so that transformers reads it only once.

    The folder tokenizer/ of a run is loaded directly.
    """
    folder = Path(name).expanduser()
    if (folder / META).is_file():
        return Tokenizer.load(folder)
    entry = cache / "tokenizers" / key_of(rule=1, tokenizer=identity(name))
    return find_or_build(entry, "tokenizer", Tokenizer.load, lambda new: _from_transformers(name).save(new))[0]


def identity(name: str) -> str:
    """Identifies a Hugging Face tokenizer in the cache: by name, or by the content of its folder or tokenizer.json."""
    found = content_hash(name, group_of("data").paths["tokenizer"])
    return f"folder:{found}" if found else f"hub:{name}"


def _from_transformers(name: str) -> Tokenizer:
    folder = Path(name).expanduser()
    if folder.is_file() and folder.name != FILE:
        raise ConfigError(f"data.tokenizer={name} is a file of another name than {FILE}; rename it, or name a folder")
    if folder.exists():
        source = _read(str(folder))
    elif name.count("/") > 1 or name.startswith(("/", ".", "~")):
        raise ConfigError(
            f"data.tokenizer={name} does not exist; expected auto, the name of a Hugging Face tokenizer, a folder with "
            "its tokenizer.json or that file; type data.tokenizer=auto"
        )
    else:
        try:
            source = _read(name, local_files_only=True)
        except ConfigError:  # not in the hub's own cache on this machine
            try:
                require_hub(f"tokenizer {name}")
            except ConfigError as error:
                raise ConfigError(
                    f"data.tokenizer={name} is not a folder, and {str(error).partition(';')[0]}; "
                    "type data.tokenizer=auto or data.tokenizer=FOLDER, which need no network"
                ) from None
            source = _read(name)
    backend = getattr(source, "backend_tokenizer", None)
    if backend is None:
        raise ConfigError(
            f"data.tokenizer={name} has no fast version (tokenizer.json), which the token store needs; "
            "type data.tokenizer=auto or another NAME or FOLDER"
        )
    if not backend.get_vocab(with_added_tokens=False):  # transformers invents an empty one
        raise ConfigError(
            f"data.tokenizer={name} has no tokenizer.json and no files to make one from; name the folder that has it, "
            "or type data.tokenizer=auto"
        )
    size = max(backend.get_vocab(with_added_tokens=True).values()) + 1
    special = {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
    return Tokenizer(backend, size, source.eos_token or next((token for token in ENDS if token in special), None))


def _read(name: str, **options: Any) -> Any:
    os.environ.setdefault("HF_HUB_DOWNLOAD_TIMEOUT", "20")
    import transformers

    try:
        if Path(name).is_file():
            return transformers.PreTrainedTokenizerFast(tokenizer_file=name)
        return transformers.AutoTokenizer.from_pretrained(name, trust_remote_code=False, **options)
    except Exception as error:  # many kinds from several libraries
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"data.tokenizer={name} could not be read as a Hugging Face tokenizer ({reason}); "
            "type data.tokenizer=auto, or the NAME or FOLDER of a tokenizer"
        ) from error


def _token_bytes(spec: Mapping[str, Any], vocab: Mapping[str, int], size: int) -> np.ndarray | None:
    """Bytes per id of a byte-level BPE, whose tokens have a character of GPT-2's byte alphabet per byte; else None."""
    model = spec["model"]
    affixes = model.get("continuing_subword_prefix") or model.get("end_of_word_suffix")
    whole_alphabet = vocab.keys() >= {*pre_tokenizers.ByteLevel.alphabet()}
    in_bytes = any(step["type"] == "ByteLevel" for step in _steps(spec.get("pre_tokenizer")))
    if model["type"] != "BPE" or affixes or not whole_alphabet or not in_bytes:
        return None
    lengths = np.zeros(size, dtype=np.int64)
    for token, index in vocab.items():
        lengths[index] = len(token)
    for added in spec["added_tokens"]:  # written as they are, e.g. GPT-NeoX's runs of spaces
        lengths[added["id"]] = 0 if added["special"] else len(added["content"].encode())
    return lengths


def _keeps_all_bytes(spec: Mapping[str, Any]) -> bool:
    """Whether no step before a byte-level BPE can change, add or remove a character."""
    steps = _steps(spec.get("pre_tokenizer"))
    return (
        not _steps(spec.get("normalizer"))
        and not any(added["lstrip"] or added["rstrip"] for added in spec["added_tokens"])
        and all(step["type"] in ("ByteLevel", "Split", "Digits", "Punctuation") for step in steps)
        and not any(step.get("behavior") == "Removed" or step.get("add_prefix_space") for step in steps)
    )


def _traits(spec: Mapping[str, Any], backend: tokenizers.Tokenizer) -> list[str]:
    """What a tokenizer does beside encoding text, such as "draws its tokens at random (dropout 0.1)"."""
    traits = []
    if dropout := spec["model"].get("dropout"):
        traits.append(f"draws its tokens at random (dropout {dropout:g}), so another cache holds other tokens")
    steps = [*_steps(spec.get("normalizer")), *_steps(spec.get("pre_tokenizer"))]
    if any(
        step["type"] == "Prepend"
        or step.get("prepend_scheme", "never") != "never"
        or (step["type"] == "ByteLevel" and step.get("add_prefix_space"))
        for step in steps
    ):
        traits.append("adds a space before every text")
    added = len(backend.encode("a", add_special_tokens=True)) - len(backend.encode("a", add_special_tokens=False))
    if added:
        traits.append(f"adds {added} token{'s' * (added > 1)} to a text by itself, left out here")
    return traits


def _steps(node: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    """The steps of a normalizer or pre-tokenizer, those of sequences one by one."""
    if node is None:
        return []
    inner = node.get("normalizers") or node.get("pretokenizers")
    return [step for part in inner for step in _steps(part)] if inner else [node]


def _bytes_before(text: str) -> np.ndarray:
    """UTF-8 bytes of the first n characters, for n from 0 to len(text), int64."""
    codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    sizes = 1 + (codes >= 0x80).astype(np.int64) + (codes >= 0x800) + (codes >= 0x10000)
    return np.concatenate(([0], np.cumsum(sizes)))
