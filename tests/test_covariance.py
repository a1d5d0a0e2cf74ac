"""Every operation of every kind of covariance against the dense matrix it stands for."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from optcov.covariance import Covariance, DiagonalCovariance, IsotropicCovariance

EXACT = {"rtol": 1e-10, "atol": 1e-12}  # float64, a handful of operations
BATCH = 4
EVENTS = [(1,), (5,), (2, 3, 2)]


def isotropic(event: tuple[int, ...], seed: int = 0) -> tuple[Covariance, Tensor]:
    variance = 0.05 + 2 * torch.rand(BATCH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    d = torch.Size(event).numel()
    return IsotropicCovariance(variance, event), variance[:, None, None] * torch.eye(d, dtype=torch.float64)


def diagonal(event: tuple[int, ...], seed: int = 0) -> tuple[Covariance, Tensor]:
    g = torch.Generator().manual_seed(seed)
    variance = 0.05 + 2 * torch.rand(BATCH, *event, generator=g, dtype=torch.float64)
    return DiagonalCovariance(variance), variance.flatten(1).diag_embed()


kinds = pytest.mark.parametrize("kind", [isotropic, diagonal])
events = pytest.mark.parametrize("event", EVENTS)


def square_root(covariance: Covariance, event: tuple[int, ...]) -> Tensor:
    """The matrix that ``sqrt_mul`` applies, column by column."""
    basis = torch.eye(torch.Size(event).numel(), dtype=torch.float64)
    columns = [covariance.sqrt_mul(e.reshape(event).expand(BATCH, *event)).flatten(1) for e in basis]
    return torch.stack(columns, -1)


def assert_stands_for(covariance: Covariance, dense: Tensor, event: tuple[int, ...]) -> None:
    assert isinstance(covariance, Covariance)
    root = square_root(covariance, event)
    assert_close(root @ root.mT, dense, **EXACT)
    assert covariance.diagonal().shape == (BATCH, *event)
    assert_close(covariance.diagonal().flatten(1), dense.diagonal(dim1=1, dim2=2), **EXACT)


def spectrally(dense: Tensor, low: float, high: float) -> Tensor:
    values, vectors = torch.linalg.eigh(dense)
    return vectors @ values.clamp(low, high).diag_embed() @ vectors.mT


@kinds
@events
def test_square_root_and_diagonal(kind, event):
    assert_stands_for(*kind(event), event)


@kinds
@events
@pytest.mark.parametrize("per_sample", [False, True])
def test_affine(kind, event, per_sample: bool):
    covariance, dense = kind(event)
    scale, shift = torch.rand(2, BATCH, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    if not per_sample:
        scale, shift = scale[0], shift[0]
    identity = torch.eye(dense.shape[-1], dtype=torch.float64)
    expected = scale.reshape(-1, 1, 1) * dense + shift.reshape(-1, 1, 1) * identity
    assert_stands_for(covariance.affine(scale, shift), expected, event)
    assert_stands_for(covariance, dense, event)  # unchanged itself


@kinds
@events
@pytest.mark.parametrize("as_tensor", [False, True])
@pytest.mark.parametrize("bounds", [(0.0, 1.0), (0.5, 0.6), (0.0, 0.01), (3.0, 4.0), (0.0, 100.0)])
def test_clamp(kind, event, as_tensor: bool, bounds: tuple[float, float]):
    covariance, dense = kind(event)
    low, high = (torch.tensor(b, dtype=torch.float64) for b in bounds) if as_tensor else bounds
    assert_stands_for(covariance.clamp(low, high), spectrally(dense, *bounds), event)


@kinds
@events
def test_inverse_and_determinant(kind, event):
    covariance, dense = kind(event)
    v = torch.randn(BATCH, *event, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    flat = v.flatten(1)
    quadratic = (flat * torch.linalg.solve(dense, flat)).sum(1)
    assert covariance.inv_quad(v).shape == covariance.logdet().shape == (BATCH,)
    assert_close(covariance.inv_quad(v), quadratic, **EXACT)
    assert_close(covariance.logdet(), torch.linalg.slogdet(dense).logabsdet, **EXACT)


@given(scale=st.floats(0, 5), shift=st.floats(1e-3, 5), seed=st.integers(0, 1000))
def test_operations_compose_as_in_a_step(scale: float, shift: float, seed: int):
    """clamp, affine, clamp, then a Gaussian's log density: what a sampler and the likelihood ask in turn."""
    event = (2, 2)
    for kind in (isotropic, diagonal):
        covariance, dense = kind(event, seed)
        coefficients = torch.tensor([scale, shift], dtype=torch.float64)
        step = covariance.clamp(0.0, 1.0).affine(*coefficients).clamp(0.0, 3.0)
        identity = torch.eye(4, dtype=torch.float64)
        expected = spectrally(scale * spectrally(dense, 0, 1) + shift * identity, 0, 3)
        assert_stands_for(step, expected, event)
        x = torch.randn(BATCH, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        normal = torch.distributions.MultivariateNormal(torch.zeros(4, dtype=torch.float64), expected)
        density = -0.5 * (step.inv_quad(x.reshape(-1, 2, 2)) + step.logdet() + 4 * math.log(2 * math.pi))
        assert_close(density, normal.log_prob(x), **EXACT)


def test_singular_covariance():
    zero = IsotropicCovariance(torch.zeros(2, dtype=torch.float64), (3,))
    partly = DiagonalCovariance(torch.tensor([[0.0, 1.0, 2.0], [1.0, 0.0, 0.0]], dtype=torch.float64))
    for covariance in (zero, partly):
        assert (covariance.logdet() == -torch.inf).all()
        drawn = covariance.sqrt_mul(torch.ones(2, 3, dtype=torch.float64))
        assert_close(drawn**2, covariance.diagonal(), **EXACT)


def test_square_root_keeps_the_precision_of_images():
    z = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    for covariance in (IsotropicCovariance(torch.tensor([0.5, 2.0]), (3, 4, 4)), DiagonalCovariance(z**2)):
        scale = torch.tensor([0.3, 0.1], dtype=torch.float64)  # coefficients of a step, in float64
        drawn = covariance.affine(scale, scale).sqrt_mul(z)
        assert drawn.dtype == torch.float32
        variance = covariance.diagonal().double() * scale[:, None, None, None] + scale[:, None, None, None]
        assert_close(drawn, (variance.sqrt() * z).float(), rtol=1e-5, atol=1e-6)
