import numpy as np
import pytest
import torch

from newllm.effective_rank import effective_rank, singular_values


def by_svd(x: np.ndarray) -> float:
    sigma = np.linalg.svd(x.astype(np.float64), compute_uv=False)
    share = sigma[sigma > 0] / sigma.sum()
    return float(np.exp(-(share * np.log(share + 1e-10)).sum()))


def test_identities():
    assert effective_rank(torch.eye(7)) == pytest.approx(7)
    assert effective_rank(torch.outer(torch.arange(1.0, 9), torch.arange(1.0, 5))) == pytest.approx(1, abs=1e-6)
    assert effective_rank(torch.diag(torch.tensor([3.0, 3, 0, 0]))) == pytest.approx(2)
    # For singular values 2 and 1 the shares are 2/3 and 1/3; of their squares 4/5 and 1/5.
    values = torch.diag(torch.tensor([2.0, 1]))
    assert effective_rank(values) == pytest.approx(3 / 2 ** (2 / 3))
    assert effective_rank(values, squared=True) == pytest.approx(5 / 4**0.8)
    shifted = torch.eye(6).repeat(4, 1) + 100
    assert effective_rank(shifted, centred=True) == pytest.approx(5)
    assert effective_rank(shifted) < 2
    assert np.isnan(effective_rank(torch.tensor([[1.0, float("nan")]])))


@pytest.mark.parametrize("shape", [(2000, 60), (60, 60), (40, 200)], ids=["tall", "square", "wide"])
def test_the_gram_matrix_gives_what_the_decomposition_gives(shape):
    """For contexts in fp32 whose singular values span seven decades, and some of which are copies."""
    generator = np.random.default_rng(0)
    x = (generator.standard_normal(shape) * np.logspace(0, -7, shape[1])).astype(np.float32)
    x[:, -5:] = x[:, :5]
    assert effective_rank(x) == pytest.approx(by_svd(x), rel=1e-6)


def test_the_sample_is_drawn_by_its_seed_and_all_that_is_read():
    x = np.random.default_rng(1).standard_normal((500, 8)) * np.linspace(0.1, 1, 500)[:, None]

    class Recorder:
        read: np.ndarray

        def __len__(self):
            return len(x)

        def __getitem__(self, rows):
            self.read = rows
            return x[rows]

    source = Recorder()
    actual = effective_rank(source, samples=50, seed=3)
    assert len(np.unique(source.read)) == len(source.read) == 50
    assert (np.diff(source.read) > 0).all()  # from front to back, for a disk's sake
    assert actual == pytest.approx(by_svd(x[source.read]))
    assert effective_rank(torch.from_numpy(x), samples=50, seed=3) == actual
    assert effective_rank(x, samples=50, seed=4) != actual
    assert effective_rank(x, samples=500) == effective_rank(x, samples=None) == pytest.approx(by_svd(x))


def test_singular_values_and_their_gradients_are_those_of_the_decomposition():
    for shape in ((30, 6), (6, 30)):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
        weights = torch.arange(1.0, 7)
        actual, expected = singular_values(x), torch.linalg.svdvals(x).flip(0)
        torch.testing.assert_close(actual, expected)
        torch.testing.assert_close(*(torch.autograd.grad((v * weights).sum(), x)[0] for v in (actual, expected)))


def test_what_is_rounding_is_zero_and_has_no_gradient():
    x = torch.outer(torch.arange(1.0, 9), torch.arange(1.0, 5)).requires_grad_()
    values = singular_values(x)
    assert (values[:-1] == 0).all()
    values.sum().backward()
    assert x.grad.isfinite().all()
