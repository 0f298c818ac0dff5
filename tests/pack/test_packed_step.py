"""Packed steps against the steps of the same runs alone, on real text."""

import pytest
import torch

import newllm
from newllm.data import Dataset
from newllm.errors import ConfigError, RunError
from newllm.pack import stacked_model
from newllm.pack.packed_encoding import PackedEncoding, Rows
from newllm.pack.packed_step import PackedStep
from newllm.position import Rope
from newllm.run.prepare import prepare
from tests.support.packs import SMALL, configs, losses_and_norms, make_steps, requests_at

CASES = {
    "seeds": (["model=tiny"], [["seed=1"], ["seed=2"], ["seed=3"]]),
    "rates, clipping and decay": (
        ["pos_encoding=nope"],
        [["lr=1e-3", "optim.clip=0.1"], ["lr=1e-2", "optim.clip=null"], ["lr=1e-2", "optim.weight_decay=0.5"]],
    ),
    "optimizers": (["attention=mla", "kv_dim=16"], [["optim=muon"], ["optim=adamw"], ["optim=muon", "seed=2"]]),
    "thetas": (["pos_encoding=rope", "rotary_pct=0.5"], [["theta=100"], ["theta=1e4"], ["theta=1e4", "seed=2"]]),
    "widths of rotation": (["pos_encoding=rope", "attention=gqa", "kv_heads=1"], [["rotary_pct=0.25"], []]),
    "learned taus": (
        ["pos_encoding=rope_evq", "pos_encoding.learn=true"],
        [["tau=1.0"], ["tau=2.0"], ["tau=2.0", "seed=2"]],
    ),
    "slopes": (["pos_encoding=alibi"], [["slope=0.0625"], ["slope=0.5"], ["slope=[0.5,0.25]"]]),
    "slopes in mla": (["pos_encoding=rope_alibi", "attention=mla", "kv_dim=16"], [["slope=0.1"], ["slope=0.5"]]),
    "a loss of the model's own": (["attention=vdproj", "trainer.accumulate=2"], [["seed=1"], ["seed=2"]]),
    "a recurrent projection": (["model=dproj_tiny", "model.embed_dim=48"], [["seed=1"], ["seed=2"]]),
    "learned positions": (["pos_encoding=learned", "trainer.accumulate=2"], [["seed=1"], ["seed=2"]]),
    "kernels of distances": (["pos_encoding=kerple_log"], [["pos_encoding.p=1"], ["pos_encoding.p=[0.5,2]", "seed=2"]]),
    "positions counted in gates": (["pos_encoding=cope", "pos_encoding.npos_max=8"], [["seed=1"], ["seed=2"]]),
    "layer norms and biases": (
        ["model=pythia_70m", "model.hidden_size=32", "model.num_layers=2", "model.heads=2", "model.mlp_size=64"],
        [["seed=1"], ["seed=2"]],
    ),
    "norms of queries and keys, biases of q, k and v": (
        ["attention=gqa", "kv_heads=1", "attention.qk_norm=true", "attention.bias=qkv", "model.head_dim=24"],
        [["seed=1"], ["seed=2"]],
    ),
    "a user's encoding": (
        ["pos_encoding=nope", "pos_encoding._target_=tests.support.packs.Distances"],
        [["pos_encoding.scale=1.0"], ["pos_encoding.scale=2.0", "seed=3"]],
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return prepare(newllm.compose([*SMALL, f"hydra.run.dir={tmp_path_factory.mktemp('packs') / 'run'}"])).data


def compare(case: str, data: Dataset, steps: int) -> None:
    shared, runs = CASES[case]
    cfgs = configs(runs, *shared)
    steps_alone, steps_packed, packed_step = make_steps(cfgs, data), make_steps(cfgs, data), PackedStep()
    for number in range(steps):
        alone = losses_and_norms([request.alone() for request in requests_at(steps_alone, cfgs, data, number)])
        packed = losses_and_norms(packed_step(requests_at(steps_packed, cfgs, data, number)))
        torch.testing.assert_close(packed[:, 0], alone[:, 0], rtol=0, atol=1e-5)
        torch.testing.assert_close(packed[:, 1], alone[:, 1], rtol=1e-4, atol=0)
    assert len(set(alone[:, 0].tolist())) == len(runs)  # the runs differ
    for step, other in zip(steps_alone, steps_packed, strict=True):
        for name, parameter in other.model.named_parameters():
            torch.testing.assert_close(parameter, step.model.get_parameter(name), rtol=0, atol=2e-5, msg=name)


@pytest.mark.parametrize("case", CASES)
def test_packed_runs_equal_themselves_alone(case: str, data: Dataset) -> None:
    compare(case, data, steps=12)


@pytest.mark.parametrize("case", ["seeds", "layer norms and biases"])
def test_batched_products_as_on_a_gpu_equal_single_ones(
    case: str, data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stacked_model, "_one_by_one", lambda x: False)
    compare(case, data, steps=6)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_packed_runs_equal_themselves_alone_for_200_steps(case: str, data: Dataset) -> None:
    compare(case, data, steps=200)


def test_runs_may_come_and_go_and_batches_of_other_shapes_are_trained_alone(data: Dataset) -> None:
    cfgs = configs([["seed=1"], ["seed=2"], ["seed=3"]])
    steps_alone, steps_packed, packed_step = make_steps(cfgs, data), make_steps(cfgs, data), PackedStep()
    for number, runs in enumerate(([0, 1], [0, 1, 2], [2], [0, 2])):
        alone, packed = (
            [requests_at(steps, cfgs, data, number)[run] for run in runs] for steps in (steps_alone, steps_packed)
        )
        if number == 1:  # run 2 is at the last rows of its epoch
            for request in (alone[2], packed[2]):
                request.pieces[:] = [tuple(tensor[:5] for tensor in request.pieces[0])]
        expected = losses_and_norms([request.alone() for request in alone])
        torch.testing.assert_close(losses_and_norms(packed_step(packed)), expected, rtol=1e-5, atol=1e-5)


def test_packed_layers_can_be_recomputed(data: Dataset) -> None:
    cfgs, found = configs([["seed=1"], ["seed=2"]], "pos_encoding=learned"), []
    for recompute in (False, True):
        steps = make_steps(cfgs, data)
        for step in steps[: 2 * recompute]:
            step.model.recompute_layers()
        found.append(losses_and_norms(PackedStep()(requests_at(steps, cfgs, data, 0))))
    assert torch.equal(*found)


def test_a_pack_without_enough_memory_says_so(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*args: object) -> None:
        raise MemoryError

    monkeypatch.setattr(PackedStep, "_losses", refused)
    cfgs = configs([["seed=1"], ["seed=2"]])
    requests = requests_at(make_steps(cfgs, data), cfgs, data, 0)
    with pytest.raises(RunError, match=r"8 x 32 tokens for each of 2 packed runs: it ran out; .*; a smaller pack=…"):
        PackedStep()(requests)


def test_a_run_with_a_broken_weight_does_not_affect_the_others(data: Dataset) -> None:
    cfgs = configs([["seed=1"], ["seed=2"]])
    steps_alone, steps_packed, packed_step = make_steps(cfgs, data), make_steps(cfgs, data), PackedStep()
    with torch.no_grad():
        steps_packed[1].model.blocks[0].mlp.down.weight.fill_(float("nan"))
    for number in range(3):
        alone = requests_at(steps_alone, cfgs, data, number)[0].alone()
        packed = packed_step(requests_at(steps_packed, cfgs, data, number))
        assert packed[0][0].item() == pytest.approx(alone[0].item(), abs=1e-5)
        assert packed[1][0].isnan()


def test_equal_encodings_share_one_call_and_unequal_ones_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    first, same, other = (
        newllm.build_model(cfg, 64).position for cfg in configs([["theta=100"], ["theta=100", "seed=2"], ["theta=1e4"]])
    )
    q, positions = torch.randn(12, 2, 5, 16), torch.arange(5)
    expected = torch.cat([first.rotate(q[:8], q[:8], positions)[0], other.rotate(q[8:], q[8:], positions)[0]])
    real, calls = Rope.rotate, []
    monkeypatch.setattr(Rope, "rotate", lambda self, q, *rest: (calls.append(len(q)), real(self, q, *rest))[1])
    rotated, _ = PackedEncoding([first, same, other], Rows(each=4)).rotate(q, q, positions)
    assert calls == [8, 4]
    assert torch.equal(rotated, expected)


@pytest.mark.parametrize(
    ("attention", "message"),
    [
        ("Tempered", r"class Tempered \(model.blocks.0.attention\)"),
        ("Gathering", "mixes the rows"),
    ],
)
def test_models_that_cannot_be_packed_are_refused_with_the_reason(attention: str, message: str, data: Dataset) -> None:
    cfgs = configs(
        [["seed=1"], ["seed=2"]], f"attention._target_=tests.support.packs.{attention}", "model.init_std=0.3"
    )
    steps = make_steps(cfgs, data)
    with pytest.raises(ConfigError, match=message):
        PackedStep()(requests_at(steps, cfgs, data, 0))


def test_models_of_different_shapes_are_refused_with_the_difference(data: Dataset) -> None:
    for words, message in ((["model.mlp_size=96"], "out_features differs: 128, 192"), (["model.norm_eps=0.1"], "eps")):
        cfgs = configs([[], words])
        with pytest.raises(ConfigError, match=message):
            PackedStep()(requests_at(make_steps(cfgs, data), cfgs, data, 0))
