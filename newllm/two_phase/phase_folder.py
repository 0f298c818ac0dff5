"""The folder of a first phase in the cache, shared by all runs with the same first phase.

meta.json             the configuration and input digests it was made from
state.safetensors     progress, weights, optimizer state
previous.[01].bin     contexts of the last two iterations, removed at the end
contexts.*.bin        contexts of all layers, for the second phase
outcome.json          metrics; written last
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from newllm.config.identity import canonical, differences
from newllm.errors import ConfigError
from newllm.store.atomic import write_json

RULE = 3  # increased when a code change alters the results of an unchanged configuration
_PORTION = 1 << 22  # tokens

Content = dict[str, dict[str, Any]]


def digest_of_tokens(tokens: np.ndarray) -> str:
    """SHA-256 of token ids, independent of their integer type."""
    digest = hashlib.sha256()
    for start in range(0, len(tokens), _PORTION):
        digest.update(np.asarray(tokens[start : start + _PORTION], dtype="<u4").tobytes())
    return digest.hexdigest()


def digest_of_weights(weights: Tensor) -> str:
    """SHA-256 of a matrix in its own dtype."""
    return hashlib.sha256(weights.detach().cpu().contiguous().numpy().data.cast("B")).hexdigest()


def refuse_other(folder: Path, content: Content) -> None:
    """Raises ConfigError if `folder` holds a first phase with different content, or other files.

    Compares only the parts that `content` has.
    """
    meta = folder / "meta.json"
    if not folder.exists():
        return
    if not folder.is_dir() or (not meta.exists() and any(folder.iterdir())):
        raise ConfigError(
            f"phase1.folder={folder} holds something other than a first phase; name an empty or a new folder, or leave "
            "it out to have one in the cache"
        )
    if not meta.exists():
        return
    try:
        stored = json.loads(meta.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{meta} cannot be read ({error}); delete {folder} to do phase 1 afresh") from None
    found = differences({part: stored.get(part, {}) for part in content}, content)
    if found:
        listed = ", ".join(found[:5]) + (f" and {len(found) - 5} more" if len(found) > 5 else "")
        raise ConfigError(
            f"{folder} holds a first phase of another configuration ({listed}); name another phase1.folder, or leave "
            "it out to have one in the cache"
        )


def claim(folder: Path, content: Content) -> None:
    """Create `folder` for this content, and remove temporary files of killed processes. The caller holds its lock."""
    refuse_other(folder, content)
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(".*.tmp"):
        left.unlink()
    if not (folder / "meta.json").exists():
        write_json(folder / "meta.json", content)


def plain(content: Mapping[str, Any]) -> Content:
    """The content as it comes back from JSON, with 1e4 and 10000 as the same number."""
    result: Content = json.loads(json.dumps(canonical(content)))
    return result
