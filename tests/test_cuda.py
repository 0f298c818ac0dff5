"""What users rely on with one CUDA GPU: `pytest -m cuda`. Elsewhere these tests are skipped."""

import copy
import math
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from newllm import conformance
from newllm.analysis.frame import load_runs
from newllm.errors import ConfigError, RunError
from newllm.model.transformer import Transformer
from newllm.run.execute import run
from newllm.runtime import Place
from newllm.training.distributed import form_group
from newllm.training.optimizer import AdamW
from newllm.training.step import Step
from tests.support.pairs import PAIRS
from tests.support.small_runs import SMALL_RUN, read_status, small_config, timeless_results

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")]
CUDA = torch.device("cuda", 0)
ROOT = Path(__file__).resolve().parents[1]
OPTIM = AdamW(lr=1e-3, betas=[0.9, 0.95])


@pytest.fixture(scope="module", params=PAIRS, ids="-".join)
def model(request: pytest.FixtureRequest) -> Transformer:
    """A small model on the CPU of every encoding with every attention."""
    encoding, attention = request.param
    try:
        return conformance.small_model([f"pos_encoding={encoding}", f"attention={attention}"])
    except ConfigError as refusal:
        pytest.skip(str(refusal))


def gradients(model: Transformer, ids: Tensor) -> list[Tensor]:
    torch.nn.functional.cross_entropy(model(ids).flatten(0, 1), ids.flatten()).backward()
    found = [p.grad.cpu() for p in model.parameters()]
    model.zero_grad()
    return found


def test_logits_and_gradients_equal_those_of_the_cpu(model: Transformer) -> None:
    ids = conformance.token_ids()
    on_gpu = copy.deepcopy(model).to(CUDA)
    with torch.no_grad():
        torch.testing.assert_close(on_gpu(ids.to(CUDA)).cpu(), model(ids), atol=1e-4, rtol=1e-4)
    for ours, expected in zip(gradients(on_gpu, ids.to(CUDA)), gradients(model, ids), strict=True):
        assert (ours - expected).norm() <= 1e-4 * expected.norm() + 1e-6


@torch.no_grad()
@pytest.mark.parametrize(
    "check", [conformance.causality, conformance.decoding, conformance.bf16], ids=["causality", "decoding", "bf16"]
)
def test_conformance(check, model: Transformer) -> None:
    check(copy.deepcopy(model).to(CUDA), conformance.token_ids().to(CUDA))


def steps(model: Transformer, rates: Sequence[float], *, graph: bool) -> tuple[Transformer, list[Tensor]]:
    """A copy of the model after one step per rate, and the losses; from the second on no step waits for the device."""
    model = copy.deepcopy(model).to(CUDA).train()
    step, losses = Step(model, OPTIM, CUDA, "bf16"), []
    ids = conformance.token_ids()
    for number, rate in enumerate(rates):
        step.graph = graph
        torch.cuda.set_sync_debug_mode("error" if number and not graph else "default")
        try:
            losses.append(step([(ids, ids.roll(-number, 1))], rate)[0])
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert (step._recorded is not None) == graph
    return model, losses


def test_a_step_does_not_wait_for_the_device_and_its_graph_gives_the_same_numbers(model: Transformer) -> None:
    rates = [1e-3, 2e-3, 1e-3, 5e-4]
    plain, losses = steps(model, rates, graph=False)
    replayed, replayed_losses = steps(model, rates, graph=True)
    assert torch.equal(torch.stack(losses), torch.stack(replayed_losses))
    for ours, expected in zip(replayed.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours, expected)


def test_a_step_on_several_pieces_replays_the_divisor() -> None:
    model = conformance.small_model(["pos_encoding=rope", "attention=mha"])
    ids = conformance.token_ids()
    results = []
    for graph in (False, True):
        step = Step(copy.deepcopy(model).to(CUDA), OPTIM, CUDA, "fp32")
        step.graph = graph
        losses = []
        for ignored in (0, 5, 10, 20):  # another number of scored tokens at every step
            labels = ids.clone()
            labels[:, :ignored] = -100
            losses.append(step([(ids[:1], labels[:1]), (ids[1:], labels[1:])], 1e-3)[0].item())
        results.append(losses)
    assert results[0] == results[1]


def test_fp16_steps_do_not_wait_and_their_graph_keeps_the_scale() -> None:
    model, ids, found = conformance.small_model(["pos_encoding=rope", "attention=mla"]), conformance.token_ids(), []
    for graph in (False, True):
        step = Step(copy.deepcopy(model).to(CUDA), OPTIM, CUDA, "fp16")
        step.restore_scale({**step.scaler.state_dict(), "scale": 2.0**30})  # the first steps overflow
        step.graph, numbers = graph, []
        for number in range(30):
            torch.cuda.set_sync_debug_mode("error" if number and not graph else "default")
            try:
                numbers.append(torch.stack(step([(ids, ids)], 1e-3)[:2]))
            finally:
                torch.cuda.set_sync_debug_mode("default")
        assert (step._recorded is not None) == graph
        found.append((torch.stack(numbers).tolist(), step.scaler.get_scale()))
    assert str(found[0]) == str(found[1])  # NaN in the same places
    assert found[0][1] < 2.0**30
    assert math.isfinite(found[0][0][-1][1])


def test_tf32_is_near_fp32_and_not_equal(tmp_path: Path) -> None:
    losses = []
    for precision in ("fp32", "tf32"):
        assert run(small_config(tmp_path / precision, f"precision={precision}", "model.hidden_size=128")) == 0
        losses.append(timeless_results(tmp_path / precision)[1]["val/loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)
    assert losses[0] != losses[1]


def test_recomputed_layers_train_to_the_same_bits() -> None:
    model, ids, losses = conformance.small_model(["pos_encoding=t5", "attention=mha"]), conformance.token_ids(), []
    for recompute in (False, True):
        copied = copy.deepcopy(model).to(CUDA).train()
        if recompute:
            copied.recompute_layers()
        step = Step(copied, OPTIM, CUDA, "bf16")
        losses.append([step([(ids, ids)], 1e-3)[0].item() for _ in range(4)])
    assert losses[0] == losses[1]


def test_a_gpu_out_of_memory_says_what_fits() -> None:
    ids = conformance.token_ids().repeat(64, 1)
    step = Step(conformance.small_model(["pos_encoding=rope", "attention=mha"]).to(CUDA), OPTIM, CUDA, "fp32")
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(1e-4)
    try:
        with pytest.raises(RunError, match=r"128 x 48 tokens: it ran out when .* asked for on cuda:0, which has .* GB"):
            step([(ids, ids)], 1e-3)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


KILLED = """
import os, pathlib, signal, sys
from newllm.run.execute import run
from newllm.training.step import Step
from tests.support.small_runs import small_config
step, calls = Step.__call__, []
def dying(self, *args):
    calls.append(None)
    if len(calls) == 8:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, *args)
Step.__call__ = dying
run(small_config(pathlib.Path(sys.argv[1]), *sys.argv[2:]))
"""


@pytest.mark.parametrize("graph", ["true", "false"])
def test_a_killed_run_resumes_to_the_same_numbers(tmp_path: Path, graph: str) -> None:
    options = [f"runtime.graph={graph}", "runtime.checkpoint_steps=3"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert run(small_config(whole, *options)) == 0
    dying = subprocess.run([sys.executable, "-c", KILLED, str(killed), *options], cwd=ROOT, timeout=120)
    assert dying.returncode == -signal.SIGKILL
    assert run(small_config(killed, *options)) == 0
    assert timeless_results(whole) == timeless_results(killed)
    assert read_status(killed)["state"] == "done"


@pytest.mark.parametrize("optim", ["adamw", "muon"])
def test_eager_and_graph_runs_are_equal(tmp_path: Path, optim: str) -> None:
    for graph in ("true", "false"):
        assert run(small_config(tmp_path / graph, f"runtime.graph={graph}", f"optim={optim}")) == 0
    assert timeless_results(tmp_path / "true") == timeless_results(tmp_path / "false")


def test_a_compiled_run_with_a_graph(tmp_path: Path) -> None:
    assert run(small_config(tmp_path, "runtime.compile=true", "runtime.graph=true")) == 0


def test_one_rank_by_nccl_makes_the_same_steps() -> None:
    model = conformance.small_model(["pos_encoding=rope", "attention=mha"])
    ids, losses = conformance.token_ids(), []
    for ranks in (0, 1):
        step = Step(copy.deepcopy(model).to(CUDA), OPTIM, CUDA, "fp32")
        if ranks:
            store = dist.TCPStore("127.0.0.1", 0, is_master=True)
            form_group(store, Place(0, 1, 0, 1), CUDA)
            assert dist.get_backend() == "nccl"
            step.distribute()
        losses.append([step([(ids, ids)], 1e-3)[0].item() for _ in range(4)])
    dist.destroy_process_group()
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def sweep(folder: Path, *words: str) -> pd.DataFrame:
    """The finished runs of a sweep of four seeds."""
    command = [sys.executable, "-m", "newllm.train", "-m", *SMALL_RUN, "seeds=4", *words, f"hydra.sweep.dir={folder}"]
    assert subprocess.run(command, cwd=ROOT, timeout=240).returncode == 0
    return load_runs(folder)


def test_four_runs_share_a_gpu(tmp_path: Path) -> None:
    frame = sweep(tmp_path, "hydra.launcher.jobs_per_gpu=4")
    assert len(frame) == 4
    assert frame["val/ppl"].nunique() == 4


def test_packed_runs_on_a_gpu(tmp_path: Path) -> None:
    assert len(sweep(tmp_path, "pack=4")) == 4


def test_memory_and_generation(tmp_path: Path) -> None:
    assert run(small_config(tmp_path)) == 0
    _, results = timeless_results(tmp_path)
    assert results["memory/peak_bytes"] > results["params/total"] * 16  # weights, gradients and two moments in fp32
    generated = subprocess.run(
        [sys.executable, "-m", "newllm.generate", str(tmp_path), "The people", "--max-new-tokens", "5"],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert generated.returncode == 0, generated.stderr
