"""Runs of schedule=wsd with several budgets: a run that begins with another one's trunk equals one trained alone."""

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file

from tests.support.small_runs import timeless_results

WSD = ["optim.schedule=wsd", "optim.warmup=4", "optim.cooldown=8", "eval=[loss]", "trainer.log_every=3"]


def test_a_run_on_another_ones_trunk_equals_the_same_run_alone(tmp_path: Path, do_run: Callable[..., int]) -> None:
    """The cool-down of the shorter run begins in its second epoch, so the best weights are part of the trunk."""
    longer = [*WSD, "optim=muon", "epochs=3", "optim.cooldown=0.4", "optim.cooldown_shape=linear"]
    assert do_run(tmp_path / "together" / "short", *WSD, "optim=muon") == 0
    assert do_run(tmp_path / "together" / "long", *longer) == 0
    assert do_run(tmp_path / "alone" / "long", *longer) == 0
    logs = [(tmp_path / folder / "long" / "train.log").read_text() for folder in ("together", "alone")]
    assert ["Begins after step" in log for log in logs] == [True, False]
    assert timeless_results(tmp_path / "together" / "long") == timeless_results(tmp_path / "alone" / "long")
    for name in ("last", "best", "stable"):
        file = Path("long", "checkpoints", f"{name}.safetensors")
        one, other = load_file(tmp_path / "together" / file), load_file(tmp_path / "alone" / file)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_only_the_same_run_of_another_budget_has_a_trunk(tmp_path: Path, do_run: Callable[..., int]) -> None:
    small = [*WSD, "samples=60", "optim.cooldown=6"]
    assert do_run(tmp_path / "trunk", *small) == 0
    others = {
        "rate": ["lr=2e-3"], "warm-up": ["epochs=3", "optim.warmup=0.3"], "shorter": ["epochs=1", "optim.cooldown=2"],
    }  # fmt: skip
    for name, words in others.items():
        assert do_run(tmp_path / name, *small, *words) == 0
        assert "Begins after step" not in (tmp_path / name / "train.log").read_text(), name
    for name, cooldown in (("stable", 6), ("stable_best", 7)):
        damaged = tmp_path / "trunk" / "checkpoints" / f"{name}.safetensors"
        content = damaged.read_bytes()
        damaged.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert do_run(tmp_path / name, *small, "epochs=3", f"optim.cooldown={cooldown}") == 0
        log = (tmp_path / name / "train.log").read_text()
        found = f"Begins after step 5 of 21, with the checkpoint of {tmp_path / 'shorter'}:"
        assert found in log, name  # not step 8, the damaged one's
        damaged.write_bytes(content)
