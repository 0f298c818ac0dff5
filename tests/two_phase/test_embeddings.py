"""Stages that load embeddings: the model gets the matrix of the source, or the run is refused in one sentence."""

import copy
import functools
import json
import shutil
import sysconfig
import threading
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf

import newllm
from newllm.build import build
from newllm.data import Dataset, prepare
from newllm.data.disk_cache import locked
from newllm.errors import ConfigError, Interrupted
from newllm.run.load import load_run
from newllm.run.stage import build_stages
from newllm.runtime import Runtime
from newllm.store.run_directory import RunDirectory
from newllm.two_phase.embeddings import Embeddings
from tests.support.phases import small_run

WIDTH = 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("embeddings")


@pytest.fixture(scope="module")
def text(folder: Path) -> Path:
    """A .jsonl file of real text, eight documents."""
    names = ("abc", "bisect", "cmd", "code", "colorsys", "copy", "fnmatch", "heapq")
    library = Path(sysconfig.get_path("stdlib"))
    path = folder / "text.jsonl"
    path.write_text("".join(json.dumps({"text": (library / f"{name}.py").read_text()}) + "\n" for name in names))
    return path


MakeStage = Callable[..., tuple[Embeddings, DictConfig, Dataset]]


@pytest.fixture(scope="module")
def make_stage(folder: Path, text: Path) -> MakeStage:
    """make_stage(source, **options): stage, configuration and data of a run; ``data__split`` means data.split."""

    @functools.cache
    def composed(source: str) -> DictConfig:
        return newllm.compose([
            f"embeddings={source}", "data=text", f"data.path={text}", "data.vocab_size=300", "samples=60", "seq_len=16",
            "facts=none", "model.heads=1", f"model.hidden_size={WIDTH}", f"runtime.cache_dir={folder / 'cache'}",
            "runtime.threads=1", "precision=fp32",
            *(["embeddings.batch_tokens=64", "embeddings.lr=0.01"] if source == "corpus" else []),
        ])  # fmt: skip

    def make(source: str, **options: Any) -> tuple[Embeddings, DictConfig, Dataset]:
        cfg = copy.deepcopy(composed(source))
        for key, value in options.items():
            OmegaConf.update(cfg, key.replace("__", "."), value)
        return build(cfg.embeddings, Embeddings), cfg, prepare(cfg.data, None, seed=1, runtime=cfg.runtime)

    return make


def load_embeddings(embeddings: Embeddings, cfg: DictConfig, data: Dataset) -> torch.Tensor:
    """The frozen embeddings of a model after the stage has checked and run."""
    with torch.random.fork_rng():
        model = newllm.build_model(cfg, data.tokenizer.vocab_size)
    model.embed.requires_grad_(False)
    others = {name: one.clone() for name, one in model.named_parameters() if name != "embed.weight"}
    embeddings.check(cfg, model, data)
    with TemporaryDirectory() as folder:
        embeddings.run(small_run(cfg, Path(folder), model=model, data=data, runtime=build(cfg.runtime, Runtime)))
    assert not model.embed.weight.requires_grad
    assert all(torch.equal(one, others[name]) for name, one in model.named_parameters() if name in others)
    return model.embed.weight[: data.tokenizer.vocab_size].clone()


@pytest.fixture(scope="module")
def trained(make_stage: MakeStage, folder: Path) -> tuple[torch.Tensor, Path]:
    """Embeddings trained on the text, and the folder of the run that trained them."""
    weight = load_embeddings(*make_stage("corpus"))
    (run_folder,) = (path for path in (folder / "cache" / "embeddings").iterdir() if path.is_dir())
    return weight, run_folder


def test_corpus_is_trained_by_an_ordinary_run(
    trained: tuple[torch.Tensor, Path], make_stage: MakeStage, text: Path
) -> None:
    weight, run_folder = trained
    run = load_run(run_folder)
    assert run.status["state"] == "done"
    assert run.config.data.path == str(text)
    assert run.config.trainer.seed == 42
    assert run.results["val/ppl"] < 300  # below that of 300 equally likely ids
    assert torch.equal(weight, run.model.embed.weight[: len(weight)])
    assert run.model.head is None
    _, _, data = make_stage("corpus")
    assert run.tokenizer.backend.to_str() == data.tokenizer.backend.to_str()
    assert run.results["data/train_tokens"] == data.counts["data/train_tokens"]


def test_corpus_is_trained_once_for_all_seeds_and_models(
    trained: tuple[torch.Tensor, Path],
    make_stage: MakeStage,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.setattr("newllm.two_phase.embeddings.train", lambda cfg: pytest.fail("trained again"))
    weight = load_embeddings(*make_stage("corpus", trainer__seed=7, optim__lr=0.5, model__num_layers=2))
    assert torch.equal(weight, trained[0])
    output = " ".join(capsys.readouterr().out.split())
    assert f"Embeddings: trained on this text already, by the run {trained[1]}" in output.replace("- ", "-")


def test_corpus_waits_for_a_process_that_trains_it(
    trained: tuple[torch.Tensor, Path], make_stage: MakeStage, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    """The test holds the lock and puts the finished run into place; the waiting stage loads it."""
    shutil.copytree(trained[1].parents[1], tmp_path / "cache", ignore=shutil.ignore_patterns("embeddings"))
    stage = make_stage("corpus", runtime__cache_dir=str(tmp_path / "cache"))
    final_folder = tmp_path / "cache" / "embeddings" / trained[1].name
    found: list[torch.Tensor] = []
    waiter = threading.Thread(target=lambda: found.append(load_embeddings(*stage)))
    output = ""
    with locked(final_folder, "embeddings"):
        waiter.start()
        while waiter.is_alive() and "waiting for it" not in output:
            time.sleep(0.01)
            output += capfd.readouterr().err
        shutil.copytree(trained[1], final_folder)
    waiter.join(timeout=60)
    assert "another process is building the embeddings; waiting for it" in output
    assert torch.equal(found[0], trained[0])


def test_corpus_trains_on_more_text_but_never_on_the_validation_text(make_stage: MakeStage, folder: Path) -> None:
    stage = make_stage(
        "corpus", embeddings__tokens="all", embeddings__batch_tokens=2048, data__val_samples=6, data__samples=20
    )
    load_embeddings(*stage)
    runs = [load_run(path) for path in (folder / "cache" / "embeddings").iterdir() if path.is_dir()]
    (run,) = (run for run in runs if run.config.data.val_samples == 6)
    corpus_data = prepare(run.config.data, None, seed=1, runtime=stage[1].runtime)
    data = stage[2]
    assert corpus_data.stream("val").tobytes() == data.stream("val").tobytes()
    assert corpus_data.stream("train")[: 20 * 16].tolist() == data.stream("train")[: 20 * 16].tolist()
    assert len(corpus_data.stream("train")) > 10 * len(data.stream("train"))
    assert run.results["data/train_tokens"] == corpus_data.counts["data/train_tokens"]


def test_an_interrupted_corpus_interrupts_the_run(make_stage: MakeStage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("newllm.two_phase.embeddings.train", lambda cfg: 128 + 15)
    with pytest.raises(Interrupted, match="SIGTERM"):
        load_embeddings(*make_stage("corpus", embeddings__seed=9))


def test_embeddings_of_a_run(trained: tuple[torch.Tensor, Path], make_stage: MakeStage) -> None:
    assert torch.equal(load_embeddings(*make_stage("run", embeddings__run=str(trained[1]))), trained[0])
    same = make_stage("run", embeddings__run=str(trained[1]), data__tokenizer=str(trained[1] / "tokenizer"))
    assert torch.equal(load_embeddings(*same), trained[0])


@pytest.fixture(scope="module")
def checkpoint(make_stage: MakeStage, folder: Path) -> Path:
    """A GPT-2 of random weights in the hub's layout, with the tokenizer of the text."""
    transformers = pytest.importorskip("transformers")
    tokenizer = make_stage("corpus")[2].tokenizer
    config = transformers.GPT2Config(vocab_size=tokenizer.vocab_size, n_embd=WIDTH, n_layer=1, n_head=2, n_positions=8)
    transformers.GPT2LMHeadModel(config).save_pretrained(folder / "gpt2")
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend, eos_token=tokenizer.eot).save_pretrained(
        folder / "gpt2"
    )
    return folder / "gpt2"


@pytest.mark.parametrize("form", ["whole", "shards", "half", "without a tokenizer"])
def test_embeddings_of_a_checkpoint(make_stage: MakeStage, checkpoint: Path, tmp_path: Path, form: str) -> None:
    import transformers

    model = transformers.GPT2LMHeadModel.from_pretrained(checkpoint)
    wte = model.transformer.wte.weight.detach()
    source = checkpoint
    if form != "whole":
        source = tmp_path / "other"
        shutil.copytree(
            checkpoint, source, ignore=shutil.ignore_patterns("model*", "token*" if "without" in form else "")
        )
        model = model.to(torch.float16) if form == "half" else model
        model.save_pretrained(source, max_shard_size="20KB" if form == "shards" else "1GB")
        assert (source / "model.safetensors").exists() == (form != "shards")
    found = load_embeddings(*make_stage("gpt2", embeddings__name=str(source)))
    assert found.dtype == torch.float32
    assert torch.equal(found, wte.half().float() if form == "half" else wte)


def refusal(stage: tuple[Embeddings, DictConfig, Dataset]) -> str:
    embeddings, cfg, data = stage
    width = cfg.model.get("embed_dim") or cfg.model.hidden_size
    with pytest.raises(ConfigError) as caught:
        embeddings.check(cfg, SimpleNamespace(embed=SimpleNamespace(embedding_dim=width)), data)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_refusals_of_runs(trained: tuple[torch.Tensor, Path], make_stage: MakeStage, tmp_path: Path) -> None:
    def refuse(run: Path | None, **options: Any) -> str:
        return refusal(make_stage("run", embeddings__run=run and str(run), **options))

    run_folder = trained[1]
    assert "type embeddings.run=FOLDER" in refuse(None)
    assert "is no run directory" in refuse(tmp_path)
    assert refuse(run_folder, model__hidden_size=64) == (
        f"embeddings.run={run_folder} has embeddings of 32 dims and model.hidden_size is 64; type model.hidden_size=32."
    )
    assert f"type data.tokenizer={run_folder / 'tokenizer'}" in refuse(run_folder, data__vocab_size=310)
    shutil.copytree(run_folder, tmp_path / "half")
    RunDirectory(tmp_path / "half").update_status(state="interrupted")
    assert "is not done but interrupted" in refuse(tmp_path / "half")
    shutil.copytree(run_folder, tmp_path / "bare", ignore=shutil.ignore_patterns("best*"))
    assert "can't be read" in refuse(tmp_path / "bare")


def test_refusals_of_checkpoints(make_stage: MakeStage, checkpoint: Path, tmp_path: Path, monkeypatch: Any) -> None:
    def refuse(name: object, **options: Any) -> str:
        return refusal(make_stage("gpt2", embeddings__name=str(name), **options))

    assert "has embeddings of 32 dims" in refuse(checkpoint, model__hidden_size=64)
    assert f"310 of data.tokenizer=auto; type data.tokenizer={checkpoint}" in refuse(checkpoint, data__vocab_size=310)
    bare = tmp_path / "bare"
    shutil.copytree(checkpoint, bare, ignore=shutil.ignore_patterns("token*"))
    assert "300 ids and data.tokenizer=auto has 310" in refuse(bare, data__vocab_size=310)
    (bare / "model.safetensors").write_bytes(b"no tensors")
    assert "can't be read" in refuse(bare)
    (bare / "model.safetensors").unlink()
    assert "has no model.safetensors" in refuse(bare)
    assert "does not exist" in refuse("/nowhere/at/all")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    message = refuse("someone/something-that-is-not-here")
    assert "cannot be reached" in message
    assert "type embeddings=corpus" in message


def test_refusals_of_corpus(make_stage: MakeStage, tmp_path: Path, text: Path) -> None:
    other_rows = refusal(make_stage("corpus", embeddings__tokens="all", data__split="contiguous"))
    assert "type embeddings.tokens=same" in other_rows
    for name in ("tokens", "epochs", "batch_tokens"):
        with pytest.raises(ConfigError, match=rf"embeddings\.{name} must"):
            make_stage("corpus", **{f"embeddings__{name}": 0})
    assert "num_layers must lie in [1, " in refusal(make_stage("corpus", embeddings__num_layers=0))
    (tmp_path / "one.txt").write_text(json.loads(text.read_text().splitlines()[1])["text"])
    single = {"embeddings__tokens": 5000, "data__path": str(tmp_path / "one.txt"), "data__samples": 20}
    with pytest.raises(ConfigError, match=r"single document.*type embeddings\.tokens=same"):
        load_embeddings(*make_stage("corpus", **single))


def test_several_devices_are_refused(make_stage: MakeStage) -> None:
    with pytest.raises(ConfigError, match=r"embeddings=corpus works in one process, and trainer\.devices=2"):
        build_stages(make_stage("corpus", trainer__devices=2)[1])
