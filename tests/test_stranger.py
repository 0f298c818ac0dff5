"""A stranger's encodings: a Python file and YAML files in a folder that --config-dir names, and nothing elsewhere.

Every step is the command that a user would type, in that folder: training, sweeps, text and reports in processes of
their own. It works with newllm installed from a wheel as well.
"""

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from newllm import conformance, frequencies

MODULE = '''
"""Encodings of a stranger: rotations with frequencies of their own, and a bias."""

import numpy as np
import torch
from torch import Tensor

from newllm.position.bias import LinearBias
from newllm.position.encoding import PositionEncoding
from newllm.position.rope import Rope


def stretched(dim: int, theta: float, power: float = 1.0) -> np.ndarray:
    """theta ** -((k / K) ** power)."""
    return theta ** -((np.arange(dim // 2) / (dim // 2)) ** power)


class Sharpened(Rope):
    """RoPE whose queries are multiplied by a gain."""

    def __init__(
        self,
        theta: float = 10000.0,
        frequencies: str | dict = "stranger.stretched",
        gain: float = 1.0,
        layers: str | list[int] = "all",
        *,
        head_dim: int,
        num_layers: int,
        seq_len: int,
    ):
        super().__init__(
            theta, frequencies, layers=layers, head_dim=head_dim, num_layers=num_layers, seq_len=seq_len
        )
        self.gain = gain

    def rotate(self, q: Tensor, k: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        q, k = super().rotate(q, k, positions)
        return q * self.gain, k


class Falling(PositionEncoding):
    """ALiBi whose slopes fall off linearly from head to head."""

    def __init__(
        self, slope: float = 0.5, layers: str | list[int] = "all", *, heads: int, num_layers: int
    ):
        super().__init__(layers, num_layers=num_layers)
        self.register_buffer("slopes", torch.linspace(slope, slope / heads, heads), persistent=False)

    def bias(self) -> LinearBias:
        return LinearBias(self.slopes)
'''
STRETCHED = """# Rotations with stretched frequencies.
_target_: stranger.Sharpened
theta: ${theta}
frequencies:
  family: stranger.stretched
  power: 2.0
gain: 1.1
layers: all
"""
FALLING = """# Slopes that fall off.
_target_: stranger.Falling
slope: ${slope}
layers: all
"""
SMALL = [
    "samples=120", "seq_len=32", "data.vocab_size=512", "facts=none", "batch_size=8", "epochs=1", "precision=fp32",
    "model.hidden_size=32", "model.num_layers=2", "model.heads=2", "model.mlp_size=64", "runtime.threads=1",
]  # fmt: skip

Newllm = Callable[..., str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stranger")
    (folder / "conf/pos_encoding").mkdir(parents=True)
    (folder / "conf/stranger.py").write_text(MODULE)
    (folder / "conf/pos_encoding/stretched.yaml").write_text(STRETCHED)
    (folder / "conf/pos_encoding/falling.yaml").write_text(FALLING)
    return folder


@pytest.fixture(scope="module")
def newllm(folder: Path) -> Newllm:
    """newllm(verb, *words): what the command prints, typed in the stranger's folder."""

    def run(verb: str, *words: object) -> str:
        command = [sys.executable, "-m", f"newllm.{verb}", *map(str, words)]
        done = subprocess.run(
            command, cwd=folder, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{verb} {words}: {done.stdout[-2000:]}{done.stderr[-3000:]}"
        return done.stdout

    return run


@pytest.mark.parametrize(("encoding", "attention"), [("stretched", "mla"), ("falling", "mha")])
def test_it_conforms(
    folder: Path, encoding: str, attention: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    assert conformance.main([f"pos_encoding={encoding}", f"attention={attention}", "--config-dir", "conf"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "6 of 6 checks pass"


def test_its_spectrum_is_shown(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    words = ["model=tiny", "pos_encoding=stretched", "theta=100", "--config-dir", "conf", "out=spectrum.csv"]
    assert frequencies.main(words) == 0
    shown = [float(line["inv_freq"]) for line in csv.DictReader((folder / "spectrum.csv").open())]
    np.testing.assert_allclose(shown, 100.0 ** -((np.arange(32) / 32) ** 2), rtol=1e-6)


def test_it_trains_and_decodes(newllm: Newllm, folder: Path) -> None:
    words = [*SMALL, "pos_encoding=falling", "slope=0.3", "eval=[loss,kv_cache]", "hydra.run.dir=run"]
    newllm("train", "--config-dir", "conf", *words)
    results = json.loads((folder / "run/results.json").read_text())
    assert results["val/ppl"] < 512
    assert results["kv_cache/max_logit_error"] < 1e-3
    assert newllm("generate", "run", "def main", "--max-new-tokens", 12).startswith("def main")


def test_it_is_swept_and_reported(newllm: Newllm, folder: Path) -> None:
    """Two values of an axis that one of the two encodings has: three runs, whose spectra stand beside the results."""
    words = [*SMALL, "pos_encoding=stretched,falling", "theta=100,10000", "eval=[loss,extrapolation]"]
    newllm("train", "-m", "--config-dir", "conf", *words, "eval.extrapolation.lengths=[1x,2x]", "hydra.sweep.dir=sweep")
    runs = [json.loads(file.read_text())["state"] for file in sorted(folder.glob("sweep/*/status.json"))]
    assert runs == ["done"] * 3
    # A later edit changes no run of the sweep, whose copy of the code has the class.
    with (folder / "conf/stranger.py").open("a") as module:
        module.write("\nraise RuntimeError('edited')\n")
    (falling,) = folder.glob("sweep/*falling*")
    assert newllm("generate", falling, "def main", "--max-new-tokens", 12).startswith("def main")
    newllm("report", "sweep", "baseline=pos_encoding=falling", "out=report")
    page = (folder / "report/report.html").read_text()
    assert "Spectra and results" in page
    assert "stretched · theta 100" in page
