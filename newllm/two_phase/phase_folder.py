"""The folder of a fixed-point phase: its identity and its files. Runs with the same first phase share it.

It is in the cache, or named by phase1.folder.

meta.json             all that determines the result: options, digests of the texts and embeddings, arithmetic
state.safetensors     progress, weights, optimizer state
previous.[01].bin     contexts of the last two iterations, removed at the end
contexts.*.bin        contexts of all layers, for the second phase
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
from newllm.store.atomic import write_json
from newllm.training.run_context import Run
from newllm.two_phase.stored_contexts import open_contexts

RULE = 3  # increased when a code change alters the results of an unchanged configuration
_WITHOUT_EFFECT = {"_target_", "folder", "freeze_embedding", "require_convergence"}  # on the result of the phase
_PORTION = 1 << 22  # tokens

STATE, OUTCOME = "state.safetensors", "outcome.json"
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
    meta = folder / "meta.json"
    if not meta.exists():
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ConfigError(
                f"phase1.folder={folder} holds something other than a first phase; name an empty or a new folder, or "
                "leave it out to have one in the cache."
            )
        return
    try:
        stored = json.loads(meta.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{meta} cannot be read ({error}); delete {folder} to repeat phase 1.") from None
    different = differences({part: stored.get(part, {}) for part in content}, content)
    if different:
        listed = ", ".join(different[:5]) + (f" and {len(different) - 5} more" if len(different) > 5 else "")
        raise ConfigError(
            f"{folder} holds a first phase of another configuration ({listed}); name another phase1.folder, or leave "
            "it out to have one in the cache."
        )


def claim(folder: Path, content: Content) -> None:
    """Create `folder` for this content, and remove temporary files of killed processes. The caller holds its lock."""
    check(folder, content)
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob(".*.tmp"):
        leftover.unlink()
    if not (folder / "meta.json").exists():
        write_json(folder / "meta.json", content)


def texts_to_store(model: nn.Module) -> dict[Side, str]:
    """The texts whose contexts the second phase reads, with their names; none if the model runs its recurrence."""
    return {"train": "training", "val": "validation"} if hasattr(model, "read") else {}


def contexts_file(run: Run, folder: Path, side: Side) -> tuple[Path, tuple[int, int, int]]:
    """The file of a text's contexts, and their shape [N, L, C]."""
    recurrence: Any = run.model.recurrence
    return folder / f"contexts.{side}.bin", (len(run.data.stream(side)), recurrence.layers, recurrence.width)


def stored_contexts(run: Run, folder: Path) -> dict[Side, Tensor]:
    """The contexts [N, L, C] on disk, by text."""
    files = {side: contexts_file(run, folder, side) for side in texts_to_store(run.model)}
    opened = {side: open_contexts(*file, run.precision) for side, file in files.items()}
    return {side: contexts for side, contexts in opened.items() if contexts is not None}
