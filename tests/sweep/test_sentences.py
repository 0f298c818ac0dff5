"""The error messages of newllm/sweep, each once, as a user reads it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from newllm.errors import ConfigError, NewllmError, RunError
from newllm.store.run_names import choose, numbered
from newllm.sweep.command import Sweep
from newllm.sweep.local import Local
from newllm.sweep.plan import plan
from newllm.sweep.slots import Slots
from newllm.sweep.slurm import Slurm
from newllm.sweep.slurm_states import job_states

RUNS = [Path(f"tiny-{pe}-s{seed}-{i:08x}") for i, (pe, seed) in enumerate([("rope", 1), ("alibi", 1), ("alibi", 2)])]


@pytest.mark.parametrize(
    ("act", "kind", "message"),
    [
        (lambda: Local(slots=0), ConfigError, "hydra.launcher.slots must be at least 1; 0 was given"),
        (lambda: Slurm(cpus=0), ConfigError, "hydra.launcher.cpus must be at least 1; 0 was given."),
        (
            lambda: Slurm(time_min=2),
            ConfigError,
            "hydra.launcher.signal_delay_s=120 leaves no time to train within time_min=2; give fewer seconds or more "
            "minutes.",
        ),
        (
            lambda: Slurm().check(Path(), []),
            ConfigError,
            "hydra/launcher=slurm needs SLURM's sbatch, which is not on this machine's PATH; submit on a machine of "
            "the cluster, or leave the launcher out to use this machine.",
        ),
        (
            lambda: job_states(["1"]),
            RunError,
            "SLURM's squeue is not on this machine's PATH",
        ),
        (lambda: Sweep(seeds=0), ConfigError, "seeds must be at least 1; 0 was given, try seeds=5"),
        (
            lambda: plan({}, Path("nowhere"), only=[3]),
            ConfigError,
            "only=[3]: there is no run 3; the plan numbers them 0 to -1.",
        ),
        (
            lambda: Slots(1, ("0",), 1).take({"runtime": {"device": "cuda:1"}}),
            ConfigError,
            "runtime.device=cuda:1 names one GPU, while a launcher gives each run its own; leave runtime.device out "
            "and type CUDA_VISIBLE_DEVICES=1 before the command to use that one only",
        ),
        (
            lambda: choose(["alibi"], RUNS, Path("sweep")),
            ConfigError,
            f"'alibi' is part of the names of 2 runs; be more specific: {RUNS[1]}, {RUNS[2]}.",
        ),
        (
            lambda: choose(["alibi-s3"], RUNS, Path("sweep")),
            ConfigError,
            "there is no run 'alibi-s3' in sweep; did you mean alibi-s2?",
        ),
        (
            lambda: numbered(Path("conf")),
            ConfigError,
            "conf holds no runs, which are folders with a config.yaml; sweeps land in outputs/sweeps and single runs "
            "in outputs/runs.",
        ),
    ],
)
def test_sentence(
    act: Callable[[], object], kind: type[NewllmError], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "conf").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(kind) as error:
        act()
    assert str(error.value) == message
