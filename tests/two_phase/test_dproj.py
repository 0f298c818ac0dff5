"""DProj: the recurrent projection, the transformer behind it, decoding, training end to end and in two phases."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import newllm
from newllm.errors import ConfigError
from newllm.model.cast import cast_products
from newllm.run.execute import run
from newllm.run.load import load_run
from newllm.two_phase.dproj import DProjTransformer

VOCABULARY, LENGTH, WIDTH, EMBED = 128, 24, 32, 48
DPROJ = ["model=dproj_tiny", f"model.hidden_size={WIDTH}", f"model.embed_dim={EMBED}"]
BODY = ["model.num_layers=2", "model.heads=2", "model.mlp_size=64"]
COMMON = [*BODY, f"model.vocab_size={VOCABULARY}", "model.init_std=0.15", "seq_len=64"]


def build(*overrides: str) -> DProjTransformer:
    model = newllm.build_model(newllm.compose([*DPROJ, *COMMON, *overrides]))
    assert isinstance(model, DProjTransformer)
    return model.eval()


@pytest.fixture(scope="module")
def model() -> DProjTransformer:
    return build()


@pytest.fixture(scope="module")
def ids() -> torch.Tensor:
    return torch.randint(VOCABULARY, (2, LENGTH), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("name", "width", "mlp", "published"),
    [("dproj_pythia", 320, 1280, 49_515_712), ("dproj_pythia_256", 256, 1024, 43_567_872)],
)
def test_parameters_of_the_published_shapes(name: str, width: int, mlp: int, published: int) -> None:
    """Projection (C + E) C + 3 C, embedding and its norm, six blocks with one norm each, final norm, head."""
    with torch.device("meta"):
        model = newllm.build_model(newllm.compose([f"model={name}", "rotary_pct=0.25"]))
    projection = (width + 512) * width + 3 * width
    block = 2 * width + 4 * width * width + 4 * width + 2 * width * mlp + mlp + width
    assert sum(p.numel() for p in model.projection.parameters()) == projection
    assert sum(p.numel() for p in model.parameters()) == published
    assert published == 50304 * 512 + 2 * 512 + projection + 6 * block + 2 * width + 50304 * width


def test_initial_weights() -> None:
    """The projection has spreads of its own, and a body of the same sizes begins as it would without it."""
    wide = build("model.hidden_size=128", "model.embed_dim=256")
    tiny = newllm.build_model(newllm.compose(["model=tiny", "model.hidden_size=128", *COMMON]))
    weights, plain = dict(wide.named_parameters()), dict(tiny.named_parameters())
    assert weights["projection.of_state.weight"].std().item() == pytest.approx(0.1, rel=0.03)
    assert weights["projection.of_inputs.weight"].std().item() == pytest.approx(0.1, rel=0.03)
    assert weights["projection.of_inputs.bias"].std().item() == pytest.approx(0.01, rel=0.2)
    assert weights["embed.weight"].std().item() == pytest.approx(0.15, rel=0.03)
    body = [name for name in plain if name.startswith(("blocks", "final_norm"))]
    assert len(body) > 10
    assert all(torch.equal(weights[name], plain[name]) for name in body)


def test_a_step_follows_the_formula(model: DProjTransformer, ids: torch.Tensor) -> None:
    """p_t = LN(p_{t-1} + gelu(W [p_{t-1}; e_t] + b)), one matrix over both, from zero."""
    projection = model.projection
    weight = torch.cat([projection.of_state.weight, projection.of_inputs.weight], dim=1)  # [C, C + E]
    state, states = torch.zeros(len(ids), WIDTH), []
    embedded = F.layer_norm(model.embed(ids), (EMBED,))
    for t in range(LENGTH):
        pre = torch.cat([state, embedded[:, t]], dim=1) @ weight.T + projection.of_inputs.bias
        state = F.layer_norm(state + pre * 0.5 * (1 + torch.erf(pre / 2**0.5)), (WIDTH,))
        states.append(state)
    torch.testing.assert_close(model.inputs(ids), torch.stack(states, dim=1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model.recurrent_inputs(ids), embedded, atol=1e-5, rtol=1e-5)
    assert projection(torch.zeros(5, WIDTH), embedded[0, :5]).shape == (5, 1, WIDTH)


@torch.no_grad()
@pytest.mark.parametrize(
    "chosen",
    [["pos_encoding=rope"], ["pos_encoding=alibi"], ["pos_encoding=learned"], ["attention=mla", "kv_dim=16"],
     ["pos_encoding=alibi", "attention=mla", "kv_dim=16"]],
    ids="-".join,
)  # fmt: skip
def test_decoding_in_pieces_equals_the_whole_pass(chosen: list[str], ids: torch.Tensor) -> None:
    model = build(*chosen).double()
    expected = model(ids)
    cache, out = model.new_cache(2, LENGTH), []
    for piece in ids.split([7, 1, 1, LENGTH - 9], dim=1):
        out.append(model(piece, cache=cache))
    torch.testing.assert_close(torch.cat(out, dim=1), expected, atol=1e-9, rtol=1e-9)


@torch.no_grad()
def test_selected_rows_of_a_cache_keep_their_states(model: DProjTransformer, ids: torch.Tensor) -> None:
    cache = model.new_cache(2, LENGTH)
    model(ids[:, :9], cache=cache)
    rows = torch.tensor([1, 0, 1])
    out = model(ids[rows, 9:], cache=cache.select(rows, LENGTH))
    torch.testing.assert_close(out, model(ids)[rows, 9:], atol=1e-5, rtol=1e-5)
    assert cache.length == 9  # and the cache they were taken from is as it was
    torch.testing.assert_close(model(ids[:, 9:], cache=cache), model(ids)[:, 9:], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_no_token_changes_an_output_before_it(model: DProjTransformer, ids: torch.Tensor) -> None:
    expected = model(ids)
    for t in (1, LENGTH // 2, LENGTH - 1):
        changed = ids.clone()
        changed[:, t] = (changed[:, t] + 1) % VOCABULARY
        out = model(changed)
        assert torch.equal(out[:, :t], expected[:, :t])
        assert (out[:, t:] - expected[:, t:]).abs().max() > 1e-3


def test_everything_learns_through_the_recurrence(model: DProjTransformer, ids: torch.Tensor) -> None:
    """Every parameter has a gradient; and so has the first token of the last one's state, through time alone."""
    model = copy.deepcopy(model)
    F.cross_entropy(model(ids).flatten(0, 1), ids.flatten()).backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    row = torch.arange(6)[None]
    (gradient,) = torch.autograd.grad(model.inputs(row)[0, -1].square().mul(torch.arange(WIDTH)).sum(),
                                      model.embed.weight)  # fmt: skip
    assert gradient[0].abs().max() > 1e-6
    assert not gradient[6:].any()


@torch.no_grad()
def test_weights_cast_once_give_the_numbers_of_autocast(model: DProjTransformer, ids: torch.Tensor) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected, cast = model(ids), cast_products(model, torch.bfloat16)
        assert cast.projection.of_state.weight.dtype == torch.bfloat16
        assert torch.equal(cast(ids), expected)
        cache = model.new_cache(2, LENGTH)
        model(ids, cache=cache)
    assert cache.state is not None
    assert cache.state.dtype == torch.float32  # what is carried is not rounded
    assert (expected.float() - model(ids)).pow(2).mean().sqrt() < 0.03 * model(ids).std()


@torch.no_grad()
def test_compiling_does_not_unroll_the_recurrence(model: DProjTransformer, ids: torch.Tensor) -> None:
    def operations(ids: torch.Tensor) -> int:
        found = []

        def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
            found.extend(node for node in graph.graph.nodes if node.op == "call_function")
            return graph.forward

        torch.compiler.reset()
        assert torch.equal(torch.compile(model.hidden, backend=backend)(ids), model.hidden(ids))
        return len(found)

    assert 0 < operations(ids) == operations(ids[:, : LENGTH // 2])


@pytest.mark.parametrize("option", ["embed_dim=0", "projection_std=-1", "projection_bias_std=-1", "hidden_size=30"])
def test_refusals(option: str) -> None:
    with pytest.raises(ConfigError, match=f"model.{option.partition('=')[0]}"), torch.device("meta"):
        newllm.build_model(newllm.compose(["model=dproj_tiny", f"model.{option}"]), tokens=300)


RUN = [*DPROJ, *BODY, "phase1=oacd", "objective=oacd", "phase1.iterations=5", "phase1.batch_tokens=1000",
       "phase1.require_convergence=false", "samples=160", "seq_len=32", "data.vocab_size=512", "facts=none",
       "batch_size=8", "epochs=1", "eval=[loss]", "runtime.threads=1", "precision=fp32"]  # fmt: skip


def trained(directory: Path, *overrides: str) -> DProjTransformer:
    """The model of a finished small run on real text."""
    assert run(newllm.compose([*RUN, *overrides, f"hydra.run.dir={directory}"])) == 0
    model = load_run(directory).model
    assert isinstance(model, DProjTransformer)
    return model


def test_two_phases(tmp_path: Path) -> None:
    """Phase 1 trains the projection, phase 2 everything else; the embedding too, unless it is frozen."""
    published = trained(tmp_path / "published", "phase1.freeze_embedding=false")
    frozen = trained(tmp_path / "frozen")  # with the first phase that the other has left
    start = newllm.build_model(newllm.compose(RUN), tokens=frozen.vocab_size)

    def same(one: DProjTransformer, other: torch.nn.Module, part: str) -> bool:
        pairs = zip(one.get_submodule(part).parameters(), other.get_submodule(part).parameters(), strict=True)
        return all(torch.equal(ours, theirs) for ours, theirs in pairs)

    assert not same(frozen, start, "projection")
    assert same(published, frozen, "projection")
    assert same(frozen, start, "embed")
    assert same(frozen, start, "embed_norm")
    assert not same(published, start, "embed")
    assert not same(published, start, "embed_norm")
    assert not same(frozen, start, "blocks")

    lines = [json.loads(line) for line in (tmp_path / "frozen" / "metrics.jsonl").read_text().splitlines()]
    phase = [line for line in lines if "phase" in line]
    assert [line["iteration"] for line in phase] == [2, 3, 4, 5]
    assert lines[: len(phase)] == phase
    assert all(line["phase1/bound"] < line["phase1/loss"] for line in phase)
    results = json.loads((tmp_path / "frozen" / "results.json").read_text())
    kept = sum(p.numel() for part in (frozen.projection, frozen.embed, frozen.embed_norm) for p in part.parameters())
    assert results["params/total"] - results["params/trainable"] == kept
    assert results["phase1/steps"] == 4
