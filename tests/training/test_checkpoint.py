from pathlib import Path

import pytest
import torch
from torch import nn

from newllm.errors import ConfigError, RunError
from newllm.training import checkpoint
from newllm.training.checkpoint import Progress, load_training, load_weights, save_training, save_weights

HEADER = {"data": "d", "signature": "s"}


def trained(steps: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3))
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    for _ in range(steps):
        step(model, optimizer)
    return model, optimizer


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    model(torch.randn(5, 4)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def test_resumed_training_is_bit_identical_random_numbers_included(tmp_path: Path) -> None:
    model, optimizer = trained(3)
    progress = Progress(step=3, epoch_loss=0.1 + 0.2, history=[{"epoch": 1, "val/loss": 1 / 3}])
    save_training(tmp_path / "last.safetensors", model, optimizer, progress, HEADER)
    step(model, optimizer)

    torch.manual_seed(77)
    other, other_optimizer = trained(0)
    assert load_training(tmp_path / "last.safetensors", other, other_optimizer, HEADER) == progress
    step(other, other_optimizer)
    for ours, theirs in zip(other.parameters(), model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_full_disk_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    path = tmp_path / "last.safetensors"
    model, optimizer = trained(1)
    save_training(path, model, optimizer, Progress(step=1), HEADER)
    good = path.read_bytes()
    step(model, optimizer)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, limits[1]))  # files may not grow beyond 64 bytes
    try:
        with pytest.raises(RunError, match="could not be written"):
            save_training(path, model, optimizer, Progress(step=2), HEADER)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == good
    assert list(tmp_path.iterdir()) == [path]
    assert load_training(path, *trained(0), HEADER).step == 1


def test_an_interrupted_save_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half_written(tensors, path, metadata) -> None:
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save_file", half_written)
    with pytest.raises(KeyboardInterrupt):
        save_weights(tmp_path / "best.safetensors", trained(0)[0], HEADER)
    assert list(tmp_path.iterdir()) == []


def test_each_kind_of_bad_checkpoint_has_its_error(tmp_path: Path) -> None:
    path = tmp_path / "last.safetensors"
    model, optimizer = trained(1)
    save_training(path, model, optimizer, Progress(), HEADER)
    with pytest.raises(ConfigError, match=r"written with another data \(d, now e\)"):
        load_training(path, model, optimizer, {**HEADER, "data": "e"})
    with pytest.raises(RunError, match=r"does not fit the model: 0.weight is of shape \(3, 4\), expected \(2, 4\)"):
        load_weights(path, nn.Sequential(nn.Linear(4, 2)))
    whole, weights = path.read_bytes(), model[0].weight.clone()
    for name, damaged in {
        "cut": whole[:100], "a bit of the last tensor": whole[:-1] + bytes([whole[-1] ^ 1]),
        "a digit of the progress": whole.replace(rb'\"step\": 0', rb'\"step\": 1'), "zeroed": bytes(len(whole)),
    }.items():  # fmt: skip
        assert damaged != whole, name
        path.write_bytes(damaged)
        with pytest.raises(ConfigError, match=r"last\.safetensors .*train afresh"):
            load_training(path, model, optimizer, HEADER)
    assert torch.equal(model[0].weight, weights)
    with pytest.raises(ConfigError, match="is missing"):
        load_weights(tmp_path / "none.safetensors", model)
