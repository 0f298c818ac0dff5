"""Makes a run directory of a released checkpoint; evaluation, generation and reports read it like any other."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from newllm.config import compose, effective
from newllm.config.content import content_hash
from newllm.config.groups import group_of
from newllm.config.identity import safe_name, stored_signature
from newllm.config.values import check_stored
from newllm.data.disk_cache import cache_folder
from newllm.data.tokenizer import Tokenizer, pretrained
from newllm.errors import ConfigError
from newllm.huggingface.checkpoint import Checkpoint, find
from newllm.huggingface.families import Source, Translation, translate
from newllm.model import LanguageModel, build_model
from newllm.run.prepare import parameters
from newllm.runtime import available_cores
from newllm.store.environment import describe
from newllm.store.run_directory import RunDirectory
from newllm.suggest import listed
from newllm.training.checkpoint import save_weights

HEADS = ("lm_head.weight", "embed_out.weight")  # the output layer; the second name is that of Pythia's files


def import_checkpoint(name: str, directory: str | os.PathLike[str] | None = None, revision: str | None = None) -> Path:
    """Make a run directory of a released checkpoint; returns its path.

    name: a folder with config.json, safetensors and tokenizer, or a repository on the Hugging Face hub, at `revision`.
    directory: the run directory (default: one in outputs/runs, named after the checkpoint). If it holds this checkpoint
    already, nothing is done.

    Raises ConfigError, before anything is written, for a checkpoint that does not fit one of our models exactly.
    """
    checkpoint = find(name, revision)
    translation = translate(checkpoint.name, checkpoint.config)
    weights = _weights(checkpoint, translation)
    checkpoint.require_tokenizer()
    tokenizer = pretrained(str(checkpoint.folder), cache_folder())
    size = checkpoint.config["vocab_size"]
    if tokenizer.vocab_size > size:
        raise ConfigError(
            f"the tokenizer of {checkpoint.name} has {tokenizer.vocab_size} ids and its config.json vocab_size={size}; "
            "copy the tokenizer that belongs to these weights."
        )
    label = checkpoint.name.rpartition("/")[2] + (f"@{revision}" if revision else "")
    overrides = [*translation.overrides, f"model.tied={'head.weight' not in weights}"]
    config = _config(checkpoint, overrides, label)
    with torch.device("meta"):
        model = build_model(check_stored(config), tokens=tokenizer.vocab_size)
    model.load_state_dict(weights, assign=True)
    return _write(config, model, tokenizer, directory, safe_name(label))


def _config(checkpoint: Checkpoint, overrides: list[str], label: str) -> dict[str, Any]:
    """The effective configuration. It has no text, and the settings of a training that are none of the model's."""
    others = ["model=tiny", "data=text", "samples=null", "facts=none", "eval=[]", "precision=fp32"]
    config = effective(compose([*others, *overrides]))
    config["imported"] = {
        "name": checkpoint.name,
        "revision": checkpoint.commit,
        "family": checkpoint.config["model_type"],
        "weights": content_hash(checkpoint.folder, sorted({f"/{file.name}" for file in checkpoint.files.values()})),
    }
    return {**config, "choices": {**config["choices"], "model": label}, "overrides": []}


def _weights(checkpoint: Checkpoint, translation: Translation) -> dict[str, Tensor]:
    """The checkpoint's tensors under our names. Raises ConfigError if one is missing, extra or of another shape."""
    names = {  # without the prefix -> in the file
        name.removeprefix(translation.base): name for name in checkpoint.files if not translation.ignored.search(name)
    }
    sources = dict(translation.sources)
    (embedding,) = sources["embed.weight"].parts
    head = next((name for name in HEADS if name in names), None)
    tied = checkpoint.config.get("tie_word_embeddings")
    if not (head is None if tied is None else tied):
        sources["head.weight"] = Source({head or HEADS[0]: sources["embed.weight"].parts[embedding]})
    elif head and embedding in names and torch.equal(*(checkpoint.tensor(names[one]) for one in (head, embedding))):
        del names[head]  # a copy

    wanted = {name: shape for source in sources.values() for name, shape in source.parts.items()}
    if missing := [name for name in wanted if name not in names]:
        raise ConfigError(
            f"{checkpoint.name} has no tensor {listed(missing, 3)}, which its config.json asks for; copy the whole "
            "checkpoint, or correct the file."
        )
    if extra := [names[name] for name in names if name not in wanted]:
        raise ConfigError(
            f"{checkpoint.name} has tensors that a {checkpoint.config['model_type']} of its config.json does not have: "
            f"{listed(extra, 3)}; newllm has no model of this kind."
        )
    weights = {}
    for ours, source in sources.items():
        parts = [checkpoint.tensor(names[name]) for name in source.parts]
        for (name, shape), part in zip(source.parts.items(), parts, strict=True):
            if tuple(part.shape) != shape or not part.is_floating_point():
                raise ConfigError(
                    f"{checkpoint.name}: the tensor {names[name]} has shape {tuple(part.shape)} ({part.dtype}), and "
                    f"config.json asks for numbers of shape {shape}; copy the checkpoint again, or correct the file."
                )
        joined = parts[0] if len(parts) == 1 else torch.cat(parts)
        weights[ours] = joined if source.arrange is None else source.arrange(joined)
    return weights


def _write(
    config: Mapping[str, Any],
    model: LanguageModel,
    tokenizer: Tokenizer,
    directory: str | os.PathLike[str] | None,
    name: str,
) -> Path:
    """Write the run beside its place and move it there, so that nothing half-written is left."""
    root = Path("outputs/runs") if directory is None else Path(directory).expanduser().parent
    root.mkdir(parents=True, exist_ok=True)
    temporary = root / f".import-{name}-{os.getpid()}"
    temporary.mkdir()
    try:
        run = RunDirectory(temporary)
        run.tokenizer.mkdir()
        tokenizer.save(run.tokenizer)
        content = {"data.tokenizer": content_hash(run.tokenizer, group_of("data").paths["tokenizer"])}
        config = {**config, "data": {**config["data"], "tokenizer": str(run.tokenizer)}, "content": content}
        signature = stored_signature(config)
        path = root / f"{name}-{signature}" if directory is None else Path(directory).expanduser()
        if path.exists() and any(path.iterdir()):
            if (stored := RunDirectory(path).config()) and stored_signature(stored) == signature:
                return path
            raise ConfigError(f"{path} holds something else; name another directory, or leave it out.")
        config["data"]["tokenizer"] = str(path / run.tokenizer.name)
        run.write_config(dict(sorted(config.items())))
        environment = describe(device="cpu", threads=available_cores(), precision="fp32")
        run.write_environment({**environment, "compiled": False})
        run.begin_attempt()
        save_weights(run.best_checkpoint, model, {"data": None, "signature": signature})
        run.write_results(parameters(model))
        run.end_attempt("done", signature=signature)
        temporary.replace(path)
        return path
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
