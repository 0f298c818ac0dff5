"""Which precision a run computes in: what the processor has, and never a silent replacement in training."""

from pathlib import Path
from typing import Any

import pytest
import torch

from newllm.errors import ConfigError
from newllm.precision import allow_tf32, resolve
from newllm.run import prepare as prepare_module
from newllm.run.prepare import prepare
from newllm.runtime import Runtime
from newllm.training.optimizer import AdamW
from tests.support.small_runs import small_config

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")


@pytest.mark.parametrize(
    ("capability", "found"),
    [
        ((7, 5), {"auto": "fp32", "fp32": "fp32", "bf16": "fp32", "fp16": "fp16", "tf32": "fp32"}),  # T4
        ((8, 0), {"auto": "bf16", "fp32": "fp32", "bf16": "bf16", "fp16": "fp16", "tf32": "tf32"}),  # A100
    ],
)
def test_a_gpu_computes_in_what_it_has(
    capability: tuple[int, int], found: dict[Any, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: capability >= (8, 0))
    assert {precision: resolve(precision, CUDA) for precision in found} == found
    assert resolve("fp16", CPU) == resolve("tf32", CPU) == "fp32"  # an evaluation of a GPU's run, which says so


def test_tf32_on_a_cpu_is_a_line(tmp_path: Path) -> None:
    notes = prepare(small_config(tmp_path / "run", "precision=tf32")).data.notes
    assert "cpu has no native tf32, so this run computes in fp32" in notes


def test_tf32_is_set_so_that_compilers_can_read_it() -> None:
    before = torch.get_float32_matmul_precision()
    try:
        for allowed in (True, False):
            allow_tf32(allowed)
            assert torch.backends.cuda.matmul.allow_tf32 == allowed  # raises RuntimeError unless all settings agree
            assert (torch.backends.cuda.matmul.fp32_precision == "tf32") == allowed
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize(
    ("device", "overrides", "message"),
    [
        (CPU, [], "needs a CUDA GPU"),
        (CUDA, ["runtime.fused=false"], "and leave runtime.fused=false out"),
        (CUDA, ["model=dproj_tiny", "phase1=oacd"], "not for runs with phase1, .* type precision=bf16"),
    ],
)
def test_fp16_is_refused_where_its_scale_does_not_work(
    tmp_path: Path, device: torch.device, overrides: list[str], message: str
) -> None:
    cfg = small_config(tmp_path / "run", "precision=fp16", *overrides)
    with pytest.raises(ConfigError, match=message):
        prepare_module._require_scale(cfg, AdamW(1e-3, [0.9, 0.95]), Runtime(fused=cfg.runtime.fused), device)
