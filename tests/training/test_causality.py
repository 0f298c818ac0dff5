from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from newllm.attention import blocked, kernels
from newllm.errors import RunError
from newllm.run.execute import run
from newllm.run.prepare import prepare
from newllm.training import causality
from tests.support.small_runs import read_status, small_config


@pytest.fixture
def transposed_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention that sees only the future and itself: the mask with rows and columns exchanged."""
    sdpa = F.scaled_dot_product_attention

    def leaky(q: Tensor, k: Tensor, v: Tensor, attn_mask=None, dropout_p=0.0, is_causal=False, **options) -> Tensor:
        future = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool).triu()
        return sdpa(q, k, v, attn_mask=future, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", leaky)
    causal = kernels._causal
    monkeypatch.setattr(kernels, "_causal", lambda q, k: causal(q, k).T)
    make = blocked._Tiling.__init__

    def leaky_scores(self: blocked._Tiling, *arguments: Any) -> None:
        make(self, *arguments)
        self.future = self.future.T

    monkeypatch.setattr(blocked._Tiling, "__init__", leaky_scores)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_causal_model_has_no_leak(tmp_path: Path, precision: str) -> None:
    prepared = prepare(small_config(tmp_path / "run"))
    row = prepared.data.val.batch([0])[0][0]
    assert causality.check(prepared.model, row, precision) == 0


@pytest.mark.parametrize("precision", ["fp32", "bf16"])  # they take different kernels
@pytest.mark.usefixtures("transposed_mask")
def test_a_leaking_model_is_not_trained(tmp_path: Path, precision: str) -> None:
    directory = tmp_path / "run"
    with pytest.raises(RunError, match="sees the future"):
        run(small_config(directory, f"precision={precision}"))
    assert read_status(directory)["state"] == "failed"
    assert "sees the future" in read_status(directory)["error"]
    assert not (directory / "checkpoints").exists()


def test_a_faint_leak_is_found_at_any_scale_of_the_outputs(tmp_path: Path) -> None:
    prepared = prepare(small_config(tmp_path / "run"))
    row = prepared.data.val.batch([0])[0][0]
    block = prepared.model.blocks[0]
    for scale in (1e-3, 1.0, 1e3):

        def leak(module, args, x: Tensor) -> Tensor:  # a hundredth of the next token's state
            return x + 0.01 * torch.cat([x[:, 1:], x[:, -1:]], dim=1)

        with torch.no_grad():
            prepared.model.final_norm.weight.fill_(scale)
        handle = block.register_forward_hook(leak)
        with pytest.raises(RunError, match="sees the future"):
            causality.check(prepared.model, row, "fp32")
        handle.remove()
