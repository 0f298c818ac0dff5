"""The training step against its plain counterpart, on real text."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import newllm
from newllm import conformance
from newllm.errors import RunError
from newllm.model import Transformer, build_model
from newllm.precision import Precision
from newllm.run.prepare import prepare
from newllm.training import step as step_module
from newllm.training.cross_entropy import linear_cross_entropy
from newllm.training.cuda_graph import shapes_of
from newllm.training.memory import peak_bytes, told_if_too_little, what_fits
from newllm.training.optimizer import AdamW
from newllm.training.run_context import Run
from newllm.training.step import Step
from tests.support.small_runs import small_config

STEPS, ROWS = 10, 8
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return prepare(small_config(tmp_path_factory.mktemp("step") / "run", "precision=fp32"))


@pytest.fixture(scope="module")
def batches(prepared: Run) -> list[tuple[Tensor, Tensor]]:
    return [prepared.data.train.batch(np.arange(i * ROWS, (i + 1) * ROWS)) for i in range(STEPS)]


def new_model(prepared: Run) -> Transformer:
    return build_model(prepared.cfg, prepared.data.tokenizer.vocab_size).train()


def optim(clip: float | None) -> AdamW:
    # A large eps: Adam would otherwise divide most of a wrong scale of the gradient out again.
    return AdamW(lr=1e-2, betas=[0.9, 0.95], eps=1e-2, weight_decay=0.1, clip=clip)


def weights(model: Transformer) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def train_with_step(
    prepared: Run, batches: list[tuple[Tensor, Tensor]], clip: float | None, pieces: int = 1
) -> tuple[Tensor, list[float]]:
    """Weights after all the steps, and the norm of each step's gradient."""
    model = new_model(prepared)
    step = Step(model, optim(clip), CPU, "fp32")
    norms = []
    for inputs, labels in batches:
        parts = list(zip(inputs.chunk(pieces), labels.chunk(pieces), strict=True))
        _, norm, scored = step(parts, 1e-2)
        norms.append(norm.item())
        assert scored == labels.numel()
    return weights(model), norms


def train_with_plain_torch(
    prepared: Run, batches: list[tuple[Tensor, Tensor]], clip: float
) -> tuple[Tensor, list[float]]:
    """The same with torch's own clipping and the optimizer that is not fused."""
    model, options = new_model(prepared), optim(clip)
    groups = options.optimizer(model).param_groups
    optimizer = torch.optim.AdamW(
        [{"params": group["params"], "weight_decay": group["weight_decay"]} for group in groups],
        lr=options.lr, betas=options.betas, eps=options.eps, fused=False, foreach=False,
    )  # fmt: skip
    norms = []
    for inputs, labels in batches:
        hidden = model.hidden(inputs).flatten(0, 1)
        linear_cross_entropy(hidden, model.head_weight, labels.flatten()).backward()
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), clip).item())
        optimizer.step()
        optimizer.zero_grad()
    return weights(model), norms


@pytest.mark.parametrize("where", ["every step above the bound", "some above, some below", "every step below"])
def test_clipping_inside_the_fused_optimizer_equals_plain_clipping(
    prepared: Run, batches: list[tuple[Tensor, Tensor]], where: str
) -> None:
    unclipped, unclipped_norms = train_with_step(prepared, batches, clip=None)
    clip = {"every": min(unclipped_norms) / 2, "some": float(np.median(unclipped_norms))}[where.split()[0]]
    if where.endswith("step below"):
        clip = 2 * max(unclipped_norms)
    ours, norms = train_with_step(prepared, batches, clip)
    expected, their_norms = train_with_plain_torch(prepared, batches, clip)
    above = sum(norm > clip for norm in norms)
    assert {"every step above the bound": above == STEPS, "every step below": above == 0}.get(where, 0 < above < STEPS)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-6)
    assert norms == pytest.approx(their_norms, rel=1e-5)  # the norm before clipping is what a run reports
    if above:  # what is compared can tell clipping from none
        assert (ours - unclipped).abs().max() > 1e-4
    else:
        torch.testing.assert_close(ours, unclipped, rtol=0, atol=0)


def test_two_pieces_of_a_batch_equal_the_whole(prepared: Run, batches: list[tuple[Tensor, Tensor]]) -> None:
    whole, norms = train_with_step(prepared, batches, clip=1.0)
    pieces, same_norms = train_with_step(prepared, batches, clip=1.0, pieces=2)
    torch.testing.assert_close(pieces, whole, rtol=0, atol=1e-6)
    assert norms == pytest.approx(same_norms, rel=1e-5)


def test_pieces_with_unequal_numbers_of_scored_labels_equal_the_whole(
    prepared: Run, batches: list[tuple[Tensor, Tensor]]
) -> None:
    inputs, labels = batches[0][0], batches[0][1].clone()
    labels[: ROWS // 2, 5:] = -100  # a mean of the pieces' means would weigh these few labels like the many
    results = []
    for pieces in (1, 2):
        model = new_model(prepared)
        step = Step(model, optim(1.0), CPU, "fp32")
        loss, _, scored = step(list(zip(inputs.chunk(pieces), labels.chunk(pieces), strict=True)), 1e-2)
        assert scored == int((labels != -100).sum())
        results.append((loss.item(), weights(model)))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-6)
    torch.testing.assert_close(results[0][1], results[1][1], rtol=0, atol=1e-6)


def test_the_step_uses_the_given_rate(prepared: Run, batches: list[tuple[Tensor, Tensor]]) -> None:
    model = new_model(prepared)
    before = weights(model)
    step = Step(model, optim(1.0), CPU, "fp32")
    step([batches[0]], 0.0)
    assert torch.equal(weights(model), before)
    assert all(p.grad is None for p in model.parameters())
    step([batches[1]], 1e-2)
    assert not torch.equal(weights(model), before)


class Recording:
    """In place of a CUDA graph: makes at each replay what a graph would record."""

    def __init__(self, pieces, device, losses, update, discard) -> None:
        self.shapes, self.losses, self.update, self.replays = shapes_of(pieces), losses, update, 0
        losses(pieces, torch.tensor(1.0))
        discard()

    def replay(self, pieces, divisor: float) -> tuple[Tensor, Tensor]:
        self.replays += 1
        return self.losses(pieces, torch.tensor(float(divisor))), self.update()


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_steps_by_a_graph_are_the_plain_steps(
    prepared: Run, batches: list[tuple[Tensor, Tensor]], monkeypatch: pytest.MonkeyPatch, precision: Precision
) -> None:
    """A graph serves all batches of its shapes, whatever their scored labels; a batch of another shape has none."""
    monkeypatch.setattr(step_module, "StepGraph", Recording)
    found = []
    for graph in (False, True):
        step = Step(new_model(prepared), optim(1.0), CPU, precision)
        step.graph = graph
        for number, rows in enumerate((8, 8, 8, 6, 8)):
            inputs, labels = (tensor[:rows] for tensor in batches[number])
            pieces = list(zip(inputs.chunk(2), labels.masked_fill(labels % 5 < number, -100).chunk(2), strict=True))
            step(pieces, 1e-2 / (number + 1))
        found.append(weights(step.model))
    assert torch.equal(*found)
    assert step._recorded.replays == 3


def test_a_step_that_cannot_be_a_graph(
    prepared: Run, batches: list[tuple[Tensor, Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*parts: Any) -> None:
        raise RuntimeError("it waits for the device\nC++ stack")

    monkeypatch.setattr(step_module, "StepGraph", failing)
    said: list[str] = []
    step = Step(new_model(prepared), optim(1.0), CPU, "fp32")
    step.graph, step.say = "auto", said.append
    for _ in range(4):
        step([batches[0]], 1e-2)
    assert said == ["The step cannot be a CUDA graph, so its kernels start one by one: it waits for the device"]
    step.graph = True
    with pytest.raises(RunError, match=r"\(it waits for the device\); runtime.graph=auto goes on without"):
        step([batches[0]], 1e-2)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_nothing_in_a_step_reads_a_number_off_the_device(
    prepared: Run, batches: list[tuple[Tensor, Tensor]], precision: Precision
) -> None:
    """On a GPU each such read would wait for all the work queued so far. On CPUs the same reads can be counted."""

    class Reads(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.count += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
            return func(*args, **(kwargs or {}))

    step = Step(new_model(prepared), optim(1.0), CPU, precision)
    step([batches[0]], 1e-2)
    with Reads() as reads:
        loss, _, _ = step([batches[1]], 1e-2)
        assert reads.count == 0
        loss.item()
        assert reads.count == 1  # it does count


def test_a_step_never_holds_the_logits_of_the_batch() -> None:
    """Vocabulary 50,304: at most half of the memory of the plain path, which makes all logits in fp32."""
    node = {"hidden_size": 32, "num_layers": 1, "heads": 2, "mlp_size": 64}
    cfg = newllm.compose(["model.vocab_size=50304", *(f"model.{key}={value}" for key, value in node.items())])
    rows = torch.randint(0, 50304, (16, 129), generator=torch.Generator().manual_seed(0))
    inputs, labels = rows[:, :-1], rows[:, 1:]
    model = build_model(cfg, tokens=50304).train()
    parameters = list(model.parameters())

    def plain_pass() -> None:
        F.cross_entropy(model(inputs).flatten(0, 1), labels.flatten()).backward()

    plain = peak_bytes(plain_pass, parameters, CPU)
    step = Step(model, optim(1.0), CPU, "fp32")
    step([(inputs, labels)], 1e-3)
    assert peak_bytes(lambda: step([(inputs, labels)], 1e-3), step.tensors(), CPU) < plain / 2


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("bf16", 5e-3)])
def test_the_fused_step_trains_as_the_plain_one_does(
    prepared: Run, batches: list[tuple[Tensor, Tensor]], precision: Precision, tolerance: float
) -> None:
    curves = []
    for fused in (True, False):
        step = Step(new_model(prepared), optim(1.0), CPU, precision, fused)
        curves.append([step([batch], 1e-2)[0].item() for batch in batches * 2])
    assert curves[0] == pytest.approx(curves[1], abs=tolerance)
    assert curves[0][-1] < curves[0][0] - 0.1  # it did train


@pytest.mark.parametrize(
    "choices",
    [
        ["pos_encoding=t5", "attention=mha"],
        ["pos_encoding=fire", "attention=mla"],
        ["pos_encoding=rope", "attention=vdproj", "attention.reconstruction_weight=0.5"],  # a loss within the layers
    ],
    ids=lambda choices: "-".join(choice.partition("=")[2] for choice in choices[:2]),
)
def test_recomputed_layers_train_to_the_same_bits_in_less_memory(choices: list[str]) -> None:
    ids, results, peaks = conformance.token_ids(), [], []
    batch = [(ids, ids.roll(-1, 1))]
    for recompute in (False, True):
        model = conformance.small_model(choices).train()
        if recompute:
            model.recompute_layers()
        step = Step(model, optim(1.0), CPU, "fp32")
        numbers = [torch.stack(step(batch, 1e-2)[:2]) for _ in range(2)]
        results.append(torch.cat([*numbers, weights(model)]))
        held = sum(tensor.nbytes for tensor in step.tensors())
        peaks.append(peak_bytes(partial(step, batch, 1e-2), step.tensors(), CPU) - held)
    assert torch.equal(*results)
    assert peaks[1] < 0.8 * peaks[0]


@pytest.mark.parametrize(
    ("rows", "pieces", "share", "advice"),
    [
        (32, 1, 0.9, "trainer.accumulate=2 keeps the batch, or batch_size=28 should fit"),
        (32, 1, 0.2, "trainer.accumulate=6 keeps the batch, or batch_size=6 should fit"),
        (32, 4, 0.99, "trainer.accumulate=5 keeps the batch, or batch_size=28 should fit"),
        (32, 1, 3.0, "trainer.accumulate=2 keeps the batch, or batch_size=31 should fit"),  # other processes freed some
        (8, 8, 0.9, "a smaller seq_len or model needs less"),
        (32, 1, -0.1, "a smaller seq_len or model needs less"),  # the weights alone are too large
    ],
)
def test_what_fits_after_memory_ran_out(rows: int, pieces: int, share: float, advice: str) -> None:
    assert what_fits(rows, pieces, share).endswith(advice)


@pytest.mark.parametrize(
    ("error", "more"),
    [
        (MemoryError(), ""),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4000000000 bytes."), "4 GB"),
        (RuntimeError("CUDA error: out of memory"), ""),
    ],
)
def test_memory_that_runs_out_is_told(prepared: Run, error: Exception, more: str) -> None:
    ids = torch.zeros(2, 8, dtype=torch.int64)
    said = rf"for a step on 4 x 8 tokens: it ran out{f' when {more} more were asked for' if more else ''};"
    with pytest.raises(RunError, match=said), told_if_too_little([(ids, ids)] * 2, new_model(prepared), CPU):
        raise error
    with pytest.raises(ValueError, match="something else"), told_if_too_little([(ids, ids)], new_model(prepared), CPU):
        raise ValueError("something else")


def test_fp16_steps_are_those_of_fp32_but_for_skipped_ones(prepared: Run, batches: list[tuple[Tensor, Tensor]]) -> None:
    """Clipping at 0.5, below every norm: the gradient is divided by its scale first."""
    exact, scaled = (Step(new_model(prepared), optim(0.5), CPU, precision) for precision in ("fp32", "fp16"))
    assert scaled.scaler is not None
    scaled.restore_scale({**scaled.scaler.state_dict(), "scale": 2.0**40})  # its gradients overflow
    before = weights(scaled.model)
    loss, norm, _ = scaled([batches[0]], 1e-2)
    assert loss.isfinite()
    assert not norm.isfinite()
    assert torch.equal(weights(scaled.model), before)
    assert scaled.scaler.get_scale() == 2.0**39
    scaled.scaler.update(2.0**16)
    for batch in batches:
        pieces = list(zip(batch[0].chunk(2), batch[1].chunk(2), strict=True))
        ours, expected = scaled(pieces, 1e-2), exact(pieces, 1e-2)
        assert ours[0].item() == pytest.approx(expected[0].item(), abs=2e-3)
        assert ours[1].item() == pytest.approx(expected[1].item(), rel=2e-2)
        assert ours[1] > 0.5
    assert (weights(scaled.model) - weights(exact.model)).abs().max() < 2e-3
    assert (weights(scaled.model) - before).abs().max() > 1e-2


def test_memory_that_runs_out_on_a_gpu_is_told_with_what_others_use(
    prepared: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1e9, 16e9))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 7e9)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 6.8e9)
    ids, model = torch.zeros(32, 8, dtype=torch.int64), new_model(prepared)
    model.recompute_layers()
    with pytest.raises(RunError) as told, told_if_too_little([(ids, ids)], model, torch.device("cuda", 0)):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has …")
    assert str(told.value) == (
        "The memory is not enough for a step on 32 x 8 tokens: it ran out when 2.15 GB more were asked for on cuda:0, "
        "which has 16 GB (8 GB used by other processes); in a new run trainer.accumulate=2 keeps the batch, "
        "or batch_size=28 should fit"
    )
