"""Runs of the context/token model in its two phases, from the command's configuration to its results."""

import copy
import functools
import math
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import load_file

import newllm
from newllm import generate
from newllm.config import effective, signature
from newllm.config.values import check_values
from newllm.errors import ConfigError
from newllm.evaluate import __main__ as evaluate
from newllm.pack.compatibility import reason_not_to_pack
from newllm.run.execute import run
from newllm.run.prepare import prepare
from newllm.run.prepare import subject as evaluation_subject
from newllm.store.run_directory import RunDirectory
from newllm.sweep.check import build_all, parts
from newllm.training.loop import Loop
from newllm.training.step import Step
from newllm.two_phase import fixed_point
from newllm.two_phase.embeddings import Corpus
from newllm.two_phase.fixed_point import FixedPoint
from newllm.two_phase.stored_contexts import ContextReader, ContextRows
from tests.support.small_runs import read_status, timeless_results

OVERRIDES = [
    "model=context_token_tiny", "model.layers=2", "model.context_dim=16", "model.embed_dim=12",
    "model.num_input_tokens=2", "embeddings=none", "samples=60", "seq_len=32", "data.vocab_size=512", "batch_size=8",
    "epochs=2", "lr=5e-2", "precision=fp32", "trainer.shuffle=false", "trainer.log_every=1", "runtime.threads=1",
    "phase1.batch_tokens=600", "phase1.lr=0.01", "phase1.threshold=0.5", "phase1.stop=0.5", "phase1.iterations=12",
    "phase1.noise=0.01", "eval=[loss,accuracy,effective_rank,trigram,position]",
]  # fmt: skip


CORPUS = {"_target_": "newllm.two_phase.embeddings.Corpus"}


@functools.cache
def composed_cfg() -> DictConfig:
    return newllm.compose(OVERRIDES)


def small_config(directory: Path, **changes: Any) -> DictConfig:
    """A small run whose first phase is kept next to it. changes: ``trainer__epochs=1`` sets trainer.epochs."""
    cfg = copy.deepcopy(composed_cfg())
    changes = {
        "phase1__folder": str(directory.parent / f"{directory.name}-phase1"),
        **changes,
        "run_dir": str(directory),
    }
    for key, value in changes.items():
        OmegaConf.update(cfg, key.replace("__", "."), value, merge=False, force_add=True)
    return cfg


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """The small run, without interruption."""
    directory = tmp_path_factory.mktemp("finished") / "run"
    assert run(small_config(directory)) == 0
    return RunDirectory(directory)


def test_lines_and_results_of_both_phases(finished: RunDirectory) -> None:
    lines, results = finished.metrics(), finished.results()
    phases = ["phase" in line for line in lines]
    iterations = [line["iteration"] for line in lines if "phase" in line]
    assert phases == sorted(phases, reverse=True)  # the first phase's lines come first
    assert iterations == list(range(2, int(results["phase1/iterations"]) + 1))
    assert results["phase1/reached"] == 1
    loaded = newllm.load_run(finished.path)
    halves = {name: loaded.model.get_submodule(name) for name in ("context_block", "embed")}
    sizes = {name: sum(p.numel() for p in half.parameters()) for name, half in halves.items()}
    assert results["params/context_block"] == sizes["context_block"]
    assert results["params/total"] == results["params/trainable"] + sum(sizes.values())
    assert results["params/token_block"] + 2 * 12 == results["params/trainable"]  # the norm of the embeddings
    assert results["data/train_rows"] == math.ceil(results["data/train_tokens"] / 32)
    assert results["train/steps"] == 2 * math.ceil(results["data/train_rows"] / 8)
    found = {"val/accuracy", "context/rank_share@val", "context/parallel_cosine", "val/ppl_by_position/0-16"}
    assert found <= {*results}
    assert (finished.tables / "phase1.csv").exists()
    log = finished.log_file.read_text()
    assert f"context_block {sizes['context_block']:,}, token_block" in log
    assert log.index("Phase 1 ---") < log.index("Phase 2 ---") < log.index("epoch   train ppl")


def test_each_phase_trains_its_own_part(finished: RunDirectory) -> None:
    trained = load_file(finished.last_checkpoint)
    best = load_file(finished.best_checkpoint)
    fresh = dict(newllm.build_model(small_config(finished.path), 512).named_parameters())
    assert best.keys() == {f"model.{name}" for name in fresh}  # the model's own names
    first = load_file(finished.path.parent / "run-phase1" / "state.safetensors")
    for name, weight in fresh.items():
        now = trained[f"model.{name}"]
        if name.startswith("context_block."):
            assert torch.equal(now, first[f"model.{name.removeprefix('context_block.')}"])
            assert not torch.equal(now, weight)  # which the first phase has trained
        else:
            assert torch.equal(now, weight) == (not name.startswith("token_block.")), name


def test_the_true_recurrence_gives_the_perplexity_of_the_results(finished: RunDirectory) -> None:
    loaded = newllm.load_run(finished.path)
    text = torch.from_numpy(prepare(small_config(finished.path)).data.stream("val").astype(np.int64))
    with torch.no_grad():
        logits = loaded.model(text[None, :-1], cache=loaded.model.new_cache(capacity=len(text)))[0]
    loss = torch.nn.functional.cross_entropy(logits, text[1:]).item()
    assert loaded.results["data/val_tokens"] == len(text) - 1
    assert math.exp(loss) == pytest.approx(loaded.results["val/ppl"], rel=1e-5)
    hits = (logits.argmax(-1) == text[1:]).float().mean().item()
    assert loaded.results["val/accuracy"] == pytest.approx(hits, abs=1e-6)


def test_reevaluation_without_stored_contexts_is_equal_to_the_last_bit(
    finished: RunDirectory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(FixedPoint, "run", None)
    assert evaluate.main([str(finished.path)]) == 0
    assert "all equal" in capsys.readouterr().out
    assert generate.main([str(finished.path), "def ", "--max-new-tokens", "3"]) == 0
    assert capsys.readouterr().out.startswith("def ")


def _kill_at(owner: Any, name: str, call: int, after: bool = False) -> Callable[[pytest.MonkeyPatch], None]:
    """A patch that kills the process before (or `after`) the call number `call`, from 1, of a function."""
    real, calls = getattr(owner, name), []

    def dying(*args: Any, **kwargs: Any) -> Any:
        calls.append(None)
        if len(calls) == call and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = real(*args, **kwargs)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    return lambda patch: patch.setattr(owner, name, dying)


def test_a_run_killed_at_every_boundary_equals_an_uninterrupted_one(tmp_path: Path, finished: RunDirectory) -> None:
    directory = tmp_path / "run"
    places = [
        (fixed_point, "write_lines", 3, False),  # the second iteration is saved and its line is not yet written
        (fixed_point, "write_lines", 4, True),  # that of the fifth iteration is
        (fixed_point, "effective_rank", 1, False),  # the contexts are stored, the phase is not done
        (FixedPoint, "_store", 1, True),  # the phase is done, and its result has not been used
        (ContextReader, "__init__", 1, False),  # between the phases
        (Step, "__call__", 3, False),
        (Loop, "_validate", 1, True),  # the first epoch is saved
        (sys.modules["newllm.run.execute"], "evaluate", 1, False),
    ]
    for place in places:
        child = os.fork()
        if not child:
            with pytest.MonkeyPatch.context() as patch:
                _kill_at(*place)(patch)
                run(small_config(directory))
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL, place
        assert read_status(directory)["state"] == "running"
    assert run(small_config(directory)) == 0
    assert timeless_results(directory) == timeless_results(finished.path)
    for name in ("phase1", "effective_rank", "position"):
        kept = [[line.split(",")[:4] for line in (one.tables / f"{name}.csv").read_text().splitlines()]
                for one in (finished, RunDirectory(directory))]  # fmt: skip
        assert kept[0] == kept[1]
    assert "goes on after step" in (directory / "train.log").read_text()


def test_a_signal_interrupts_the_first_phase(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = fixed_point.write_lines

    def signalling(*args: Any, **options: Any) -> None:
        real(*args, **options)
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(fixed_point, "write_lines", signalling)
        assert run(small_config(tmp_path / "run")) == 128 + signal.SIGTERM
    status = read_status(tmp_path / "run")
    assert status["state"] == "interrupted"
    assert (status["progress"]["phase"], status["progress"]["steps"]) == ("fixed_point", 12)
    assert status["stage_seconds"] > 0


def test_embeddings_are_loaded_once_and_then_read_from_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    matrices = []

    def matrix(self: Corpus, *args: Any) -> torch.Tensor:
        matrices.append(torch.randn(512, 12, generator=torch.Generator().manual_seed(7)))
        return matrices[-1]

    def stopping(*args: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Corpus, "matrix", matrix)
    with monkeypatch.context() as patch:
        patch.setattr(sys.modules["newllm.run.execute"], "evaluate", stopping)
        assert run(small_config(tmp_path / "run", embeddings=CORPUS)) == 128 + signal.SIGTERM
    assert run(small_config(tmp_path / "run", embeddings=CORPUS)) == 0
    assert len(matrices) == 1
    assert torch.equal(newllm.load_run(tmp_path / "run").model.embed.weight, matrices[0])


def test_without_convergence_the_run_ends_until_told_to_continue(tmp_path: Path) -> None:
    strict = {"phase1__iterations": 3, "phase1__least": 2, "phase1__threshold": 1e-9, "trainer__epochs": 1}
    with pytest.raises(ConfigError, match=r"phase1\.require_convergence=false"):
        run(small_config(tmp_path / "run", **strict))
    assert read_status(tmp_path / "run")["state"] == "failed"
    assert run(small_config(tmp_path / "run", **strict, phase1__require_convergence=False)) == 0  # it is the same run
    assert "Phase 1 has been done before" in (tmp_path / "run" / "train.log").read_text()
    assert RunDirectory(tmp_path / "run").results()["phase1/reached"] == 0


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"phase1": {}, "objective": {}}, "phase1=published"),
        ({"phase1": {}}, "objective=none"),
        ({"objective": {}}, "objective=mcdl"),
        ({"facts": {"_target_": "newllm.data.facts.ReversalFacts"}}, "facts=none"),
        ({"data__passkey": 0.5}, "data.passkey"),
        ({"data__split": "chunks"}, "data.split=contiguous"),
        ({"trainer__devices": 2}, "trainer.devices=2"),
        ({"runtime__compile": True}, "runtime.compile=true"),
    ],
)
def test_settings_that_this_model_cannot_use_are_refused(tmp_path: Path, changes: dict[str, Any], key: str) -> None:
    cfg = small_config(tmp_path / "run", **changes)
    if "phase1" in changes:
        cfg.phase1 = {}
    with pytest.raises(ConfigError, match=re.escape(key)):
        run(cfg)
    assert not (tmp_path / "run").exists()


def test_first_phases_and_their_parts_are_refused_to_other_models(tmp_path: Path) -> None:
    other = newllm.compose(["samples=60", "seq_len=32", "data.vocab_size=512", "facts=none", "eval=[loss]"])
    other.run_dir = str(tmp_path / "run")
    for changed, key in (
        ({"objective": composed_cfg().objective}, "objective=none"),
        ({"objective": composed_cfg().objective, "phase1": composed_cfg().phase1}, "model=context_token"),
        (
            {"eval": {"effective_rank": {"_target_": "newllm.two_phase.context_rank.EffectiveRank"}}},
            "eval=effective_rank",
        ),
    ):
        cfg = copy.deepcopy(other)
        for group, node in changed.items():
            OmegaConf.update(cfg, group, node, merge=False, force_add=True)
        with pytest.raises(ConfigError, match=key):
            run(cfg)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["model=context_token", "pos_encoding=rope"], "pos_encoding=rope"),
        (["model=context_token", "attention=mha"], "attention=mha"),
        (["pos_encoding=none"], "pos_encoding=nope"),
        (["attention=none"], "attention=mha"),
    ],
)
def test_attention_and_encoding_must_suit_the_model(overrides: list[str], key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        check_values(newllm.compose(overrides))


def test_stored_contexts_give_the_states_of_the_model_and_only_the_token_block_learns(finished: RunDirectory) -> None:
    p = prepare(small_config(finished.path))
    subject = evaluation_subject(p)
    assert isinstance(subject.rows, ContextRows)
    view = p.model.model_for_rows(subject.as_trained())
    inputs = subject.rows.batch(np.arange(3))[0]
    text = torch.from_numpy(p.data.stream("val")[: 3 * 32].astype(np.int64))
    hidden = view.hidden(inputs)
    torch.testing.assert_close(hidden.flatten(0, 1), p.model.hidden(text[None])[0], atol=1e-5, rtol=1e-5)
    hidden.square().sum().backward()
    assert {name.split(".")[0] for name, q in p.model.named_parameters() if q.grad is not None} == {"token_block"}


def test_planning_with_other_runs(tmp_path: Path) -> None:
    changes: list[dict[str, Any]] = [{}, {"trainer__seed": 43}, {"phase1__folder": "elsewhere"}, {"phase1__lr": -1.0}]
    configs = [effective(small_config(tmp_path / "run", **one)) for one in changes]
    assert not build_all(parts(configs[:3]))
    assert signature(configs[0]) == signature(configs[2]) != signature(configs[1])
    assert "phase1=published trains alone" in str(reason_not_to_pack(configs[:2]))
    (reason,) = build_all(parts(configs[3:])).values()
    assert "phase1.lr" in reason
