"""Reading a Hugging Face tokenizer through transformers, once; afterwards its tokenizer.json is enough."""

import os
from pathlib import Path
from typing import Any

from newllm.data.corpora.hub import require_hub
from newllm.data.tokenizer import Tokenizer
from newllm.errors import ConfigError


def load_with_transformers(name: str) -> Tokenizer:
    """The tokenizer `name` of the hub (its local cache first) or of a folder."""
    folder = Path(name).expanduser()
    if not folder.is_dir() and (name.count("/") > 1 or name.startswith(("/", ".", "~"))):
        raise ConfigError(
            f"data.tokenizer={name} does not exist; it must be auto, the name of a Hugging Face tokenizer or a folder "
            "with its tokenizer.json; type data.tokenizer=auto"
        )
    source = _read(str(folder)) if folder.is_dir() else _from_hub(name)
    backend = getattr(source, "backend_tokenizer", None)
    if backend is None:
        raise ConfigError(
            f"data.tokenizer={name} has no fast form (tokenizer.json), which the token store needs; "
            "type data.tokenizer=auto or another NAME or FOLDER"
        )
    if not backend.get_vocab(with_added_tokens=False):  # transformers makes an empty one up
        raise ConfigError(
            f"data.tokenizer={name} has no tokenizer.json, nor files to make one of; name the folder that has it, or "
            "type data.tokenizer=auto"
        )
    size = max(backend.get_vocab(with_added_tokens=True).values()) + 1
    return Tokenizer(backend, size, source.eos_token)


def _from_hub(name: str) -> Any:
    try:
        return _read(name, local_files_only=True)
    except ConfigError:
        pass  # not in the hub's own cache on this machine
    try:
        require_hub(f"tokenizer {name}")
    except ConfigError as error:
        raise ConfigError(
            f"data.tokenizer={name} is no folder, and {str(error).partition(';')[0]}; "
            "type data.tokenizer=auto or data.tokenizer=FOLDER, which need no network"
        ) from None
    return _read(name)


def _read(name: str, **options: Any) -> Any:
    os.environ.setdefault("HF_HUB_DOWNLOAD_TIMEOUT", "20")
    import transformers

    try:
        return transformers.AutoTokenizer.from_pretrained(name, **options)
    except Exception as error:  # of many libraries, depending on what is broken
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"data.tokenizer={name} could not be read as a Hugging Face tokenizer ({reason}); "
            "type data.tokenizer=auto, or the NAME or FOLDER of a tokenizer"
        ) from error
