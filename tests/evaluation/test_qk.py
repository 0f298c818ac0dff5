import numpy as np
import pytest
import torch

from newllm.evaluation.qk import QueryKey, Statistics, band_rows, massive
from newllm.evaluation.subject import observing
from tests.support.evaluation_subject import make_subject


@torch.no_grad()
def captured(subject, rows):
    """q_before, q, … of each layer over the first rows, in one forward pass."""
    layers = {}
    with observing(subject.model, lambda layer, tensors: layers.setdefault(layer, tensors)):
        subject.model(subject.data.val.batch(np.arange(rows))[0])
    return layers


def test_sizes_are_averaged_over_batches_then_layers(subject):
    findings = QueryKey(batches=2, batch_size=5)(subject)
    layers = captured(subject, 10)
    means, stds, maxima = [], [], []
    for tensors in layers.values():
        halves = tensors["q"].split(5)
        means.append(np.mean([half.abs().mean() for half in halves]))
        stds.append(np.mean([half.std(unbiased=True) for half in halves]))
        maxima.append(tensors["q"].abs().max())
    assert findings.metrics["qk/q_max"] == pytest.approx(float(max(maxima)), rel=1e-5)
    assert findings.metrics["qk/q_mean"] == pytest.approx(np.mean(means), rel=1e-5)
    assert findings.metrics["qk/q_std"] == pytest.approx(np.mean(stds), rel=1e-5)
    before = max(float(tensors["k_before"].abs().max()) for tensors in layers.values())
    assert findings.metrics["qk/before/k_max"] == pytest.approx(before, rel=1e-5)
    assert findings.tables["qk_layers"][1]["q_max"] == pytest.approx(float(maxima[1]), rel=1e-5)


def test_observers_are_restored_even_after_an_error(subject):
    def mine(tensors):
        pass

    subject.model.blocks[0].attention.observer = mine
    with pytest.raises(RuntimeError, match="boom"):
        with observing(subject.model, lambda layer, tensors: None):
            raise RuntimeError("boom")
    assert [block.attention.observer for block in subject.model.blocks] == [mine, None]


PAIRS = [(0, 4, 1.0), (1, 5, 0.1), (2, 6, 0.01), (3, 7, 0.001)]  # half layout, 8 of 12 dims


def bands(x, pairs=PAIRS):
    stats = Statistics(pairs)
    for part in x.split(1):
        stats.add(part)
    return {(row["cut"], row["band"]): row for row in band_rows(stats)}


def test_only_the_lowest_frequency_large_lands_in_the_low_band():
    x = torch.full((2, 3, 5, 12), 0.1)
    x[..., 3] = 3.0
    x[..., 7] = -4.0  # the pair (3, 7): norm 5
    rows = bands(x)
    assert rows["frequency", "low"]["max"] == pytest.approx(5)
    assert rows["frequency", "high"]["max"] == pytest.approx(0.1 * 2**0.5)
    assert rows["frequency", "low"]["mean"] == pytest.approx((5 + 0.1 * 2**0.5) / 2)
    assert rows["frequency", "pass-through"]["max"] == pytest.approx(0.1)
    # The published halves split the pair's two coordinates: both halves look large.
    assert rows["published halves", "high"]["max"] == pytest.approx(3)
    assert rows["published halves", "low"]["max"] == pytest.approx(4)


def test_bands_follow_the_frequency_not_the_dim():
    x = torch.full((1, 1, 2, 4), 0.1)
    x[..., 0] = 7.0
    rows = bands(x, pairs=[(0, 1, 0.01), (2, 3, 1.0)])  # interleaved, ascending
    assert rows["frequency", "low"]["max"] == pytest.approx((7.0**2 + 0.1**2) ** 0.5)
    assert rows["frequency", "high"]["max"] < 1
    assert ("frequency", "pass-through") not in rows


def test_rotation_does_not_change_frequency_bands(subject):
    pairs = subject.model.blocks[0].encoding.pairs()
    tensors = captured(subject, 4)[0]
    before, after = bands(tensors["q_before"], pairs), bands(tensors["q"], pairs)
    for band in ("low", "high"):
        assert after["frequency", band]["max"] == pytest.approx(before["frequency", band]["max"], rel=1e-4)


@pytest.mark.parametrize(
    ("encoding", "attention", "rotary", "passed"),
    [
        ("rope", "mha", 8, 8),
        ("rope", "gqa", 8, 8),
        ("rope", "mla", 4, 20),
        ("alibi", "mha", 0, 16),
        ("alibi", "mla", 0, 16),
    ],
)
def test_every_dim_is_in_one_band(encoding, attention, rotary, passed):
    findings = QueryKey(batches=1)(make_subject(encoding, attention))
    rows = [row for row in findings.tables["qk_bands"] if row["layer"] == 0 and row["tensor"] == "k"]
    dims = {(row["cut"], row["band"]): row["dims"] for row in rows}
    assert dims.get(("frequency", "low"), 0) + dims.get(("frequency", "high"), 0) == rotary
    assert dims["frequency", "pass-through"] == passed
    assert sum(n for (cut, _), n in dims.items() if cut == "published halves") == rotary + passed
    assert ("qk/bands/q_low_over_high" in findings.metrics) == (rotary > 0)
    assert ("qk/latent_max" in findings.metrics) == (attention == "mla")


def test_massive_dims_of_each_head():
    x = torch.ones(4, 2, 16, 12)
    x[:, 1, :, 9] = 100.0
    stats = Statistics([])
    for part in x.split(2):
        stats.add(part)
    norms = stats.norms()
    torch.testing.assert_close(norms[1, 9], torch.tensor(400.0, dtype=torch.float64))  # 100 * sqrt(16)
    plain, spiked = massive(norms, factor=5)
    assert (plain["massive"], spiked["massive"], spiked["top_dim"]) == (0, 1, 9)
    assert plain["max_over_mean"] == pytest.approx(1)
    assert plain["top_share"] == pytest.approx(1 / 12)
    assert spiked["max_over_mean"] == pytest.approx(100 / (111 / 12))
    assert spiked["top_share"] == pytest.approx(10000 / 10011)
