"""The objectives of a first phase: values, bounds, effect on a batch of contexts, degenerate batches."""

import inspect
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from newllm.build import build
from newllm.effective_rank import effective_rank
from newllm.errors import ConfigError
from newllm.two_phase import objectives
from newllm.two_phase.objectives import Objective, dependence

CONF = Path(__file__).parents[2] / "conf" / "objective"
NODES = {file.stem: yaml.safe_load(file.read_text(encoding="utf-8")) for file in sorted(CONF.glob("*.yaml"))}
NAMES = [name for name, node in NODES.items() if node]
Kind = Callable[..., Objective]
ALL: list[Kind] = [getattr(objectives, name) for name in NAMES]
each = pytest.mark.parametrize("kind", ALL, ids=NAMES)


def sphere(n: int, width: int, seed: int = 0) -> torch.Tensor:
    """n random contexts of norm sqrt(width), as LayerNorm makes them."""
    x = torch.randn(n, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x / x.norm(dim=1, keepdim=True) * math.sqrt(width)


def balanced(width: int) -> torch.Tensor:
    """All axes in both directions: mean 0, equal variances, no correlations."""
    axes = torch.eye(width, dtype=torch.float64) * math.sqrt(width)
    return torch.cat([axes, -axes])


def simplex(n: int) -> torch.Tensor:
    """The corners of a regular simplex: n contexts of norm sqrt(n), as far from one another as can be."""
    corners = torch.eye(n, dtype=torch.float64) - 1 / n
    return corners / corners.norm(dim=1, keepdim=True) * math.sqrt(n)


# --- values ---------------------------------------------------------------------------------------------------------


def covariance(x: np.ndarray) -> np.ndarray:
    return np.cov(x, rowvar=False)


def odcm(x: np.ndarray) -> float:
    matrix = covariance(x)
    spread = np.maximum(1 - np.sqrt(np.diag(matrix) + 1e-4), 0).mean()
    return spread + 0.04 * (matrix[~np.eye(len(matrix), dtype=bool)] ** 2).sum() / x.shape[1]


def decorr(x: np.ndarray) -> float:
    z = (x - x.mean(0)) / x.std(0, ddof=1)
    return ((z.T @ z / len(x) - np.eye(x.shape[1])) ** 2).mean()


def udel(x: np.ndarray) -> float:
    std = x.std(0, ddof=1)
    return ((std - std.mean()) ** 2).mean() - std.mean()


def wmse(x: np.ndarray) -> float:
    """By the whitening itself, as published, in place of its closed form."""
    values, vectors = np.linalg.eigh(covariance(x) + 1e-4 * np.eye(x.shape[1]))
    whitened = (x - x.mean(0)) @ (vectors @ np.diag(values**-0.5) @ vectors.T)
    return ((whitened.T @ whitened / (len(x) - 1) - np.eye(x.shape[1])) ** 2).mean()


def sdl(x: np.ndarray) -> float:
    sigma = np.linalg.svd(x, compute_uv=False)
    share = sigma / sigma.sum()
    return (share * np.log(share + 1e-10)).sum()


def unif(x: np.ndarray) -> float:
    z = x / np.linalg.norm(x, axis=1, keepdims=True)
    pairs = [np.exp(-2 * ((a - b) ** 2).sum()) for i, a in enumerate(z) for j, b in enumerate(z) if i != j]
    return math.log(np.mean(pairs) + 1e-10)


def infonce(x: np.ndarray) -> float:
    z = x / np.linalg.norm(x, axis=1, keepdims=True)
    weights = np.exp(z @ z.T / 0.1)
    return -np.log(np.diag(weights) / weights.sum(1)).mean()


def due(x: np.ndarray) -> float:
    share = np.abs(x).mean(0) / np.abs(x).mean(0).sum()
    return (share * np.log(share)).sum() / math.log(x.shape[1])


FORMULAS: dict[str, Callable[[np.ndarray], float]] = {
    "mcdl": lambda x: -np.sqrt(((x - x.mean(0)) ** 2).sum()) / len(x),
    "oacd": lambda x: -np.sqrt(((x - x.mean(0)) ** 2).sum()) / len(x) + 0.1 * (x.mean(0) ** 2).sum(),
    "ctm": lambda x: -np.trace(covariance(x)) / x.shape[1],
    "odcm": odcm,
    "decorr": decorr,
    "udel": udel,
    "wmse": wmse,
    "sdl": sdl,
    "nuc": lambda x: -np.linalg.svd(x - x.mean(0), compute_uv=False).sum() / len(x),
    "unif": unif,
    "infonce": infonce,
    "due": due,
}


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize("shape", [(60, 8), (6, 9)], ids=["tall", "wide"])
def test_values_follow_the_formulas(name: str, shape: tuple[int, int]) -> None:
    x = sphere(*shape, seed=3) * torch.linspace(0.3, 1.5, shape[1], dtype=torch.float64) + 0.2
    found = getattr(objectives, name)(weight=1.0)(x, torch.zeros_like(x))
    assert float(found) == pytest.approx(FORMULAS[name](x.numpy()), rel=1e-6, abs=1e-9)


def test_hsic_of_two_dimensions_and_of_drawn_pairs() -> None:
    a, b = sphere(2, 30, seed=1)
    kernels = [np.exp(-((v[:, None] - v) ** 2)) for v in (a.numpy(), b.numpy())]
    away = np.eye(30) - 1 / 30
    expected = np.trace(kernels[0] @ away @ kernels[1] @ away) / 29**2
    assert float(dependence(a, b)) == pytest.approx(expected, rel=1e-9)
    # With two dimensions every pair that can be drawn is that of both.
    assert float(objectives.hsic(weight=1.0)(torch.stack([a, b], dim=1), a)) == pytest.approx(expected, rel=1e-9)
    assert torch.autograd.gradcheck(dependence, (a.requires_grad_(), b.requires_grad_()))
    a = a.detach()
    dependent = torch.stack([a, a, a], dim=1)
    assert float(objectives.hsic(weight=1.0)(dependent, a)) > 2 * expected


def test_hsic_draws_by_the_batch_so_a_resumed_run_repeats_it() -> None:
    x = sphere(50, 40)
    objective = objectives.hsic(weight=1.0, pairs=5, samples=20)
    first = objective(x, x)
    torch.rand(3)
    assert objective(x, x) == first
    assert objective(x + 1e-9, x) != pytest.approx(float(first), rel=1e-6)  # another batch, another draw


def test_pairs_are_complete_over_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Values and gradients do not depend on the size of a block, and the diagonal is the right one in each."""
    monkeypatch.setattr(objectives, "_ROWS", 5)
    x = sphere(13, 4).requires_grad_()
    for kind, formula in ((objectives.unif, unif), (objectives.infonce, infonce)):
        assert float(kind(1.0)(x, x).detach()) == pytest.approx(formula(x.detach().numpy()), rel=1e-8)
        assert torch.autograd.gradcheck(lambda out, kind=kind: kind(1.0)(out, out), x)


@each
def test_the_weight_mixes_diversity_and_distance_to_the_previous_pass(kind: Kind) -> None:
    out, previous = sphere(20, 6).requires_grad_(), sphere(20, 6, seed=1).requires_grad_()
    distance = ((out - previous) ** 2).mean()
    diversity = kind(weight=1.0)(out, previous)
    torch.testing.assert_close(kind(weight=0.3)(out, previous), 0.7 * distance + 0.3 * diversity)
    torch.testing.assert_close(kind(weight=0.0)(out, previous), distance)
    kind(weight=0.5)(out, previous).backward()
    assert previous.grad is None  # previous contexts are constants


def test_published_defaults() -> None:
    x, before = sphere(40, 5), sphere(40, 5, seed=1)
    mse, distance = float(((x - before) ** 2).mean()), FORMULAS["mcdl"](x.numpy())
    assert float(objectives.mcdl()(x, before)) == pytest.approx(0.2 * mse + 0.8 * distance)
    assert float(objectives.oacd()(x, before)) == pytest.approx(FORMULAS["oacd"](x.numpy()))  # no MSE
    # Logged: -0.2446 at n = 8000, C = 768 and -0.351 … -0.356 at C = 1536, with the bounds -0.248 and -0.351.
    assert objectives.mcdl().bound(8000, 768) == pytest.approx(-0.8 * 0.30984, abs=1e-5)
    assert objectives.mcdl().bound(8000, 1536) == pytest.approx(-0.8 * 0.43818, abs=1e-5)
    assert objectives.oacd().bound(5000, 320) == pytest.approx(-math.sqrt(320 / 5000))


def test_products_are_not_rounded_by_autocast() -> None:
    x = sphere(64, 16).float()
    plain = objectives.odcm(weight=1.0)(x, x)
    with torch.autocast("cpu", torch.bfloat16):
        assert objectives.odcm(weight=1.0)(x, x) == plain
    assert objectives.odcm()(x.bfloat16(), x).dtype == torch.float32


# --- bounds ---------------------------------------------------------------------------------------------------------


@each
def test_no_loss_is_below_its_bound(kind: Kind) -> None:
    objective = kind(weight=1.0)
    clouds = [sphere(n, width, seed) for n, width in ((1, 4), (2, 4), (5, 3), (6, 20), (90, 5)) for seed in range(4)]
    for x in [*clouds, balanced(6), simplex(7)]:
        least = objective.bound(*x.shape)
        assert least is not None
        assert float(objective(x, x)) >= least - 1e-9
    assert kind(weight=0.5).bound(90, 5) == pytest.approx(0.5 * objective.bound(90, 5))


@pytest.mark.parametrize(
    ("kind", "best"),
    [(kind, balanced(6)) for kind in ALL if kind.__name__ not in ("unif", "infonce", "hsic")]
    + [(kind, simplex(7)) for kind in ALL if kind.__name__ in ("unif", "infonce")],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_the_bound_is_reached(kind: Kind, best: torch.Tensor) -> None:
    objective = kind(weight=1.0)
    assert float(objective(best, best)) == pytest.approx(objective.bound(*best.shape), rel=1e-6, abs=1e-9)


# --- what training by it does -----------------------------------------------------------------------------------------

# Two are blind to a cloud that has collapsed: due looks at sizes alone, hsic takes equal contexts for independent.
SEEING = [kind for kind in ALL if kind.__name__ not in ("due", "hsic")]


@pytest.mark.parametrize("kind", SEEING, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("seed", range(3))
def test_a_step_of_descent_raises_the_rank_of_a_collapsed_cloud(kind: Kind, seed: int) -> None:
    spread = torch.logspace(0, -2, 16, dtype=torch.float64)
    x = sphere(1, 16, seed) + 0.05 * sphere(64, 16, seed + 10) * spread
    start = x.clone().requires_grad_()
    kind(weight=1.0)(start, x).backward()
    step = start.grad / start.grad.norm() * x.norm()
    for size in (1e-3, 1e-2):
        moved = x - size * step
        moved = moved / moved.norm(dim=1, keepdim=True) * 4
        assert effective_rank(moved) > effective_rank(x) + 0.1 * size


@each
@pytest.mark.parametrize(
    "x",
    [torch.ones(6, 4), torch.zeros(6, 4), torch.arange(4.0)[None], torch.ones(5, 1), torch.ones(1, 1)],
    ids=["equal", "zero", "single", "one dimension", "one number"],
)
def test_degenerate_batches_have_finite_losses_and_gradients(kind: Kind, x: torch.Tensor) -> None:
    x = x.clone().requires_grad_()
    loss = kind(weight=0.9)(x, torch.ones_like(x))
    loss.backward()
    assert loss.isfinite()
    assert x.grad is not None
    assert x.grad.isfinite().all()


# --- configuration --------------------------------------------------------------------------------------------------


def test_every_objective_is_shipped_with_its_own_defaults() -> None:
    """And under the name that the repository has for it."""
    assert NODES["none"] is None
    functions = {name: one for name, one in vars(objectives).items() if inspect.isfunction(one)}
    returned = {name: inspect.signature(one).return_annotation for name, one in functions.items()}
    assert [*NAMES] == sorted(name for name, kind in returned.items() if kind is Objective)
    for name in NAMES:
        target, options = NODES[name]["_target_"], {k: v for k, v in NODES[name].items() if k != "_target_"}
        parameters = inspect.signature(objectives.__dict__[name]).parameters.values()
        assert target == f"newllm.two_phase.objectives.{name}"
        assert options == {p.name: p.default for p in parameters}
        assert build(NODES[name], Objective).weight == options["weight"]


@pytest.mark.parametrize(
    ("kind", "option", "value"),
    [
        (objectives.mcdl, "weight", 1.2),
        (objectives.odcm, "weight", -0.1),
        (objectives.oacd, "centroid", -1.0),
        (objectives.odcm, "covariance", -1.0),
        (objectives.infonce, "temperature", 0.0),
        (objectives.hsic, "pairs", 0),
        (objectives.hsic, "samples", 0),
    ],
)
def test_options_out_of_range(kind: Kind, option: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"objective.{option}"):
        kind(**{option: value})
