"""Packed steps against the same runs' own, on real text."""

import pytest
import torch

import newllm
from newllm.data import Dataset
from newllm.errors import ConfigError
from newllm.pack import stacked_model
from newllm.pack.packed_encoding import PackedEncoding, Rows
from newllm.pack.packed_step import PackedStep
from newllm.position import Rope
from newllm.run.prepare import prepare
from tests.support.packs import SMALL, configs, make, numbers, wanted

CASES = {
    "seeds": (["model=tiny"], [["seed=1"], ["seed=2"], ["seed=3"]]),
    "rates, clipping and decay": (
        ["pos_encoding=nope"],
        [["lr=1e-3", "optim.clip=0.1"], ["lr=1e-2", "optim.clip=null"], ["lr=1e-2", "optim.weight_decay=0.5"]],
    ),
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
    own, packed, packed_step = make(cfgs, data), make(cfgs, data), PackedStep()
    for step in range(steps):
        alone = numbers([one.alone() for one in wanted(own, cfgs, data, step)])
        together = numbers(packed_step(wanted(packed, cfgs, data, step)))
        torch.testing.assert_close(together[:, 0], alone[:, 0], rtol=0, atol=1e-5)
        torch.testing.assert_close(together[:, 1], alone[:, 1], rtol=1e-4, atol=0)
    assert len(set(alone[:, 0].tolist())) == len(runs)  # the runs can be told apart
    for one, other in zip(own, packed, strict=True):
        for name, parameter in other.model.named_parameters():
            torch.testing.assert_close(parameter, one.model.get_parameter(name), rtol=0, atol=2e-5, msg=name)


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


def test_runs_may_come_and_go_and_odd_batches_are_made_alone(data: Dataset) -> None:
    cfgs = configs([["seed=1"], ["seed=2"], ["seed=3"]])
    both, packed_step = [make(cfgs, data), make(cfgs, data)], PackedStep()
    for step, runs in enumerate(([0, 1], [0, 1, 2], [2], [0, 2])):
        own, packed = ([wanted(steps, cfgs, data, step)[run] for run in runs] for steps in both)
        if step == 1:  # run 2 is at the last rows of its epoch
            for one in (own[2], packed[2]):
                one.pieces[:] = [tuple(tensor[:5] for tensor in one.pieces[0])]
        expected = numbers([one.alone() for one in own])
        torch.testing.assert_close(numbers(packed_step(packed)), expected, rtol=1e-5, atol=1e-5)


def test_one_run_with_a_broken_weight_leaves_the_others_whole(data: Dataset) -> None:
    cfgs = configs([["seed=1"], ["seed=2"]])
    own, packed, packed_step = make(cfgs, data), make(cfgs, data), PackedStep()
    with torch.no_grad():
        packed[1].model.blocks[0].mlp.down.weight.fill_(float("nan"))
    for step in range(3):
        alone = wanted(own, cfgs, data, step)[0].alone()
        together = packed_step(wanted(packed, cfgs, data, step))
        assert together[0][0].item() == pytest.approx(alone[0].item(), abs=1e-5)
        assert together[1][0].isnan()


def test_equal_encodings_share_one_call_and_unequal_ones_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    first, same, other = (
        newllm.build_model(cfg, 64).position for cfg in configs([["theta=100"], ["theta=100", "seed=2"], ["theta=1e4"]])
    )
    q, positions = torch.randn(12, 2, 5, 16), torch.arange(5)
    expected = torch.cat([first.rotate(q[:8], q[:8], positions)[0], other.rotate(q[8:], q[8:], positions)[0]])
    real, calls = Rope.rotate, []
    monkeypatch.setattr(Rope, "rotate", lambda self, q, *rest: (calls.append(len(q)), real(self, q, *rest))[1])
    turned, _ = PackedEncoding([first, same, other], Rows(each=4)).rotate(q, q, positions)
    assert calls == [8, 4]
    assert torch.equal(turned, expected)


@pytest.mark.parametrize(
    ("attention", "said"),
    [
        ("Tempered", r"the class Tempered \(model.blocks.0.attention\) has parameters of its own"),
        ("Gathering", "so a part of them mixes the rows of a batch"),
    ],
)
def test_models_that_cannot_be_packed_are_refused_by_name(attention: str, said: str, data: Dataset) -> None:
    cfgs = configs(
        [["seed=1"], ["seed=2"]], f"attention._target_=tests.support.packs.{attention}", "model.init_std=0.3"
    )
    steps = make(cfgs, data)
    with pytest.raises(ConfigError, match=said):
        PackedStep()(wanted(steps, cfgs, data, 0))


def test_models_of_different_shapes_are_refused_by_what_differs(data: Dataset) -> None:
    for words, said in ((["model.mlp_size=96"], "out_features differs: 128, 192"), (["model.norm_eps=0.1"], "eps")):
        cfgs = configs([[], words])
        with pytest.raises(ConfigError, match=said):
            PackedStep()(wanted(make(cfgs, data), cfgs, data, 0))
