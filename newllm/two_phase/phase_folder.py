"""The folder of a fixed-point phase: its identity and its files. Runs with the same first phase share it.

It is in the cache, or named by phase1.folder.

meta.json             all that determines the result: options, digests of the texts and embeddings, arithmetic
state.safetensors     progress, weights, optimizer state
previous.[01].bin     contexts of the last two iterations, removed at the end
contexts.*.bin        contexts of all layers, for the second phase
hashes.json           SHA-256 of these .bin files, each written before what relies on it
outcome.json          metrics; written last
"""

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from newllm.config.identity import canonical, differences
from newllm.errors import ConfigError
from newllm.store.atomic import remove
from newllm.store.intact import Damaged, check_file, file_sha256, is_file, read_json, write_json
from newllm.suggest import listed
from newllm.training.run_context import Run
from newllm.two_phase.stored_contexts import open_contexts

RULE = 3  # increased when a code change alters the results of an unchanged configuration
_WITHOUT_EFFECT = {"_target_", "folder", "freeze_embedding", "require_convergence"}  # on the result of the phase
_PORTION = 1 << 22  # tokens

STATE, OUTCOME, HASHES, META = "state.safetensors", "outcome.json", "hashes.json", "meta.json"
Content = dict[str, Any]
Side = Literal["train", "val"]


def content_of_options(cfg: DictConfig) -> Content:
    """The options that determine the result, as JSON has them: 1e4 and 10000 are the same number."""
    content: Any = {name: OmegaConf.to_container(cfg[name], resolve=True) for name in ("model", "objective", "phase1")}
    phase1 = {name: value for name, value in content["phase1"].items() if name not in _WITHOUT_EFFECT}
    content["phase1"] = {**phase1, "seed": cfg.trainer.seed, "rule": RULE}
    return dict(json.loads(json.dumps(canonical(content))))


def content_of(run: Run, same_machine: bool) -> Content:
    """Everything that determines the result. same_machine: including device and thread count."""
    content = content_of_options(run.cfg)
    sides: list[Side] = [*texts_to_store(run.model)] or ["train"]
    for side in sides:
        tokens, digest = run.data.stream(side), hashlib.sha256()
        for start in range(0, len(tokens), _PORTION):
            digest.update(np.asarray(tokens[start : start + _PORTION], dtype="<u4").tobytes())
        content[side] = {"tokens": len(tokens), "sha256": digest.hexdigest()}
    weights = run.model.embed.weight.detach().cpu().contiguous().numpy()
    content["embeddings"] = {"sha256": hashlib.sha256(weights.data.cast("B")).hexdigest()}
    content["arithmetic"] = {"precision": run.precision}
    if same_machine:
        threads = {"threads": torch.get_num_threads()} if run.device.type == "cpu" else {}
        content["arithmetic"] |= {"device": run.device.type, **threads}
    return content


def check(folder: Path, content: Content) -> None:
    """Raises ConfigError if `folder` holds a first phase with different content, or other files.

    Compares only the parts that `content` has.
    """
    advice = f"delete {folder} to repeat phase 1"
    stored = read_json(folder / META, advice)
    if stored is None:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ConfigError(
                f"phase1.folder={folder} holds something other than a first phase; name an empty or a new folder, or "
                "leave it out to have one in the cache."
            )
        return
    different = differences({part: stored.get(part, {}) for part in content}, content)
    if different:
        raise ConfigError(
            f"{folder} holds a first phase of another configuration ({listed(different)}); name another phase1.folder, "
            "or leave it out to have one in the cache."
        )


def claim(folder: Path, content: Content) -> None:
    """Create `folder` for this content, and remove temporary files of killed processes. The caller holds its lock."""
    check(folder, content)
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob(".*.tmp"):
        leftover.unlink()
    if not is_file(folder / META):
        write_json(folder / META, content)


def clear(folder: Path) -> None:
    """Delete all files of a first phase but meta.json."""
    for name in (OUTCOME, STATE, HASHES, "previous.0.bin", "previous.1.bin", "contexts.train.bin", "contexts.val.bin"):
        remove(folder / name)


def add_hash(file: Path) -> None:
    """Store the hash of a file that has been written."""
    write_json(file.with_name(HASHES), {**_hashes(file.parent), file.name: file_sha256(file)})


def require_hash(file: Path) -> None:
    """Raises Damaged unless the file has its stored hash."""
    expected = _hashes(file.parent).get(file.name)
    if expected is None:
        raise Damaged(file, "has lost its hash")
    check_file(file, expected)


def texts_to_store(model: nn.Module) -> dict[Side, str]:
    """The texts whose contexts the second phase reads, with their names; none if the model runs its recurrence."""
    return {"train": "training", "val": "validation"} if hasattr(model, "read") else {}


def contexts_file(run: Run, folder: Path, side: Side) -> tuple[Path, tuple[int, int, int]]:
    """The file of a text's contexts, and their shape [N, L, C]."""
    recurrence: Any = run.model.recurrence
    return folder / f"contexts.{side}.bin", (len(run.data.stream(side)), recurrence.layers, recurrence.width)


def stored_contexts(run: Run, folder: Path) -> dict[Side, Tensor]:
    """The contexts [N, L, C] on disk, by text. Raises Damaged if a file is not what was written.

    A file without a hash does not count: its writer was killed before the hash was written.
    """
    files, hashes = {side: contexts_file(run, folder, side) for side in texts_to_store(run.model)}, _hashes(folder)
    stored = {side: file for side, file in files.items() if file[0].name in hashes and is_file(file[0])}
    for path, _ in stored.values():
        check_file(path, hashes[path.name])
    return {side: open_contexts(*file, run.precision) for side, file in stored.items()}


def _hashes(folder: Path) -> dict[str, str]:
    return read_json(folder / HASHES) or {}
