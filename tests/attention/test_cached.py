"""Attention over a cache: equal to the whole, whatever the storage holds beyond its tokens; and the cache itself."""

import pytest
import torch

from newllm.attention import Cache, LayerCache, kernels
from newllm.position.bias import LinearBias, MatrixBias

HEADS, LENGTH, WIDTH, SCALE = 4, 40, 16, 0.25
BIASES = {
    "none": None,
    "uniform": LinearBias(torch.tensor([0.0625])),
    "per head": LinearBias(torch.tensor([0.5, 0.25, 0.125, 0.1])),
    "matrix": MatrixBias(lambda i, j: torch.sin(i[:, None] * 3.0 + j[None, :] * 0.7)[None]),
}


def random_storages(key_heads: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    """q of all tokens, and k and v in storage that is longer than the tokens."""
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, HEADS, LENGTH, WIDTH, generator=generator)
    k, v = (torch.randn(2, key_heads, LENGTH + 9, WIDTH, generator=generator) for _ in range(2))
    return q.to(dtype), k.to(dtype), v.to(dtype)


@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("key_heads", [HEADS, 2, 1])
@pytest.mark.parametrize("queries", [1, 11, LENGTH])
def test_queries_over_a_storage_equal_the_end_of_the_whole(monkeypatch, bias, key_heads, queries):
    """One query, a block of them behind a past (in several blocks, the last not full), all of them."""
    monkeypatch.setattr(kernels, "_CACHED_SCORES", 3 * 2 * (HEADS // key_heads) * (LENGTH + 9))
    q, k, v = random_storages(key_heads)
    uncached = kernels.plain(q, k[:, :, :LENGTH], v[:, :, :LENGTH], BIASES[bias], SCALE)
    out = kernels.attend_cached(q[:, :, -queries:], k, v, LENGTH, BIASES[bias], SCALE)
    torch.testing.assert_close(out, uncached[:, :, -queries:], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("key_heads", [HEADS, 1])
def test_bf16_stays_within_the_noise_of_its_products(key_heads):
    q, k, v = random_storages(key_heads, torch.bfloat16)
    exact = kernels.plain(*(t[:, :, :LENGTH].float() for t in (q, k, v)), BIASES["uniform"], SCALE)
    for queries in (1, 11):
        out = kernels.attend_cached(q[:, :, -queries:], k, v, LENGTH, BIASES["uniform"], SCALE)
        assert out.dtype == torch.bfloat16
        assert (out.float() - exact[:, :, -queries:]).abs().max() < 0.03


def test_a_growing_cache_keeps_its_tokens():
    cache, tokens = LayerCache(1000), torch.arange(2.0 * 3 * 400 * 5).view(2, 3, 400, 5)
    for start, stop in ((0, 7), (7, 8), (8, 200), (200, 399), (399, 400)):
        (storage,) = cache.append(tokens[:, :, start:stop])
        assert torch.equal(storage[:, :, :stop], tokens[:, :, :stop])
        assert stop <= storage.shape[2] <= stop + 100  # not the thousand that it may become
        assert storage.isfinite().all()
    assert cache.nbytes == tokens.nbytes


def test_selected_rows_go_their_own_way():
    cache = Cache(1, 6)
    cache.layers[0].append(torch.arange(3.0).view(3, 1, 1, 1).expand(3, 1, 4, 1))
    copy = cache.select(torch.tensor([2, 0, 2, 1]), capacity=10)
    assert copy.length == 4
    (storage,) = copy.layers[0].append(torch.full((4, 1, 5, 1), 9.0))
    assert storage[:, 0, :9, 0].tolist() == [[float(row)] * 4 + [9.0] * 5 for row in (2, 0, 2, 1)]
    assert cache.length == 4
    assert cache.nbytes == 3 * 4 * 4
