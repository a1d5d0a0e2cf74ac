"""Every operation of every kind of covariance against the dense matrix it stands for, in float64."""

import copy
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

import optcov.covariance
from optcov.covariance import (
    DCT,
    PCA,
    Basis,
    BasisCovariance,
    CongruentCovariance,
    Covariance,
    DiagonalCovariance,
    FullCovariance,
    Hartley,
    IsotropicCovariance,
    KroneckerCovariance,
    LowRankCovariance,
    MatrixFreeCovariance,
    SkewedCovariance,
    SumCovariance,
)
from optcov.sampler import NoiseStream

EXACT = {"rtol": 1e-10, "atol": 1e-12}  # float64; a matrix of condition number 100 costs two of sixteen digits
BATCH = 4
EVENTS = [(1,), (5,), (2, 3, 2)]
Kind = Callable[..., tuple[Covariance, Tensor]]


def full_of(matrix: Tensor, event: tuple[int, ...]) -> Covariance:
    return FullCovariance(matrix, event)


def uniform(*shape: int, seed: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def size(event: tuple[int, ...]) -> int:
    return math.prod(event)


def eye(event: tuple[int, ...]) -> Tensor:
    return torch.eye(size(event), dtype=torch.float64)


def isotropic(event: tuple[int, ...], seed: int = 0, low: float = 0.05) -> tuple[Covariance, Tensor]:
    """Variances in [low, low + 2]."""
    variance = low + 2 * uniform(BATCH, seed=seed)
    return IsotropicCovariance(variance, event), variance[:, None, None] * eye(event)


def diagonal(event: tuple[int, ...], seed: int = 0, low: float = 0.05) -> tuple[Covariance, Tensor]:
    """Variances in [low, low + 2]."""
    variance = low + 2 * uniform(BATCH, *event, seed=seed)
    return DiagonalCovariance(variance), variance.flatten(1).diag_embed()


def full(event: tuple[int, ...], seed: int = 0, low: float = 0.05) -> tuple[Covariance, Tensor]:
    """Eigenvalues in [low, low + 2] along random axes, which pixels share unequally."""
    axes = torch.linalg.qr(normal(BATCH, size(event), size(event), seed=seed))[0]
    matrix = axes @ (low + 2 * uniform(BATCH, size(event), seed=seed + 1)).diag_embed() @ axes.mT
    matrix = (matrix + matrix.mT) / 2
    return full_of(matrix, event), matrix


def as_kind(kind: Kind, dense: Tensor, event: tuple[int, ...]) -> Covariance:
    """A matrix that the kind can hold, as that kind."""
    variance = dense.diagonal(dim1=1, dim2=2)
    if kind is isotropic:
        return IsotropicCovariance(variance[:, 0], event)
    return DiagonalCovariance(variance.reshape(-1, *event)) if kind is diagonal else full_of(dense, event)


def low_rank(event: tuple[int, ...], seed: int = 0, low: float = 0.05) -> tuple[Covariance, Tensor]:
    """Variances in [low, low + 2] and up to two directions."""
    variance, factor = (
        low + 2 * uniform(BATCH, *event, seed=seed),
        normal(BATCH, min(2, size(event)), *event, seed=seed),
    )
    return LowRankCovariance(variance, factor), low_rank_matrix(variance, factor)


def low_rank_matrix(variance: Tensor, factor: Tensor) -> Tensor:
    columns = factor.flatten(2)
    return variance.flatten(1).diag_embed() + columns.mT @ columns


def vectors_of(basis: Basis) -> Tensor:
    """Q, its vectors in columns, ``[d, d]``."""
    return basis.synthesise(eye(basis.event_shape).reshape(-1, *basis.event_shape)).flatten(1).T


def cosines(event: tuple[int, ...], seed: int = 0, low: float = 0.05) -> tuple[Covariance, Tensor]:
    """Variances in [low, low + 2] along cosines."""
    basis, variance = DCT(event), low + 2 * uniform(BATCH, *event, seed=seed)
    vectors = vectors_of(basis)
    return BasisCovariance(basis, variance), vectors @ variance.flatten(1).diag_embed() @ vectors.T


def kronecker(event: tuple[int, ...], seed: int = 0, low: float = 0.05) -> tuple[Covariance, Tensor]:
    """Variances in [low, low + 2] along the cosines of an image, times a matrix of its channels."""
    channel, spatial = full(event[:1], seed)[1], low + 2 * uniform(BATCH, *event[1:], seed=seed)
    vectors = vectors_of(DCT((1, *event[1:]))) if len(event) > 1 else torch.ones(1, 1, dtype=torch.float64)
    space = vectors @ spatial.reshape(BATCH, -1).diag_embed() @ vectors.T
    dense = torch.stack([torch.kron(one, other) for one, other in zip(channel, space, strict=True)])
    return KroneckerCovariance(channel, spatial), dense


def matrix_free(event: tuple[int, ...], seed: int = 0, low: float = 0.05) -> tuple[Covariance, Tensor]:
    """The matrix of `full` by its products; as many steps and probes as dimensions make it exact."""
    _, dense = full(event, seed, low)
    return products_of(dense, event), dense


def products_of(dense: Tensor, event: tuple[int, ...], **settings: object) -> MatrixFreeCovariance:
    like, variance = torch.empty(len(dense), *event, dtype=dense.dtype), dense.diagonal(dim1=1, dim2=2)
    settings = {"steps": size(event), "probes": max(2, size(event))} | settings
    product = full_of(dense, event).matvec
    return MatrixFreeCovariance(product, like, variance=variance.reshape(like.shape), **settings)


def congruent_to(event: tuple[int, ...], seed: int = 0, low: float = 0.05) -> tuple[Covariance, Tensor]:
    """The cosines, scaled pixel by pixel."""
    (inner, dense), scale = cosines(event, seed, low), 0.5 + uniform(BATCH, *event, seed=seed + 1)
    flat = scale.flatten(1)
    return CongruentCovariance(scale, inner), flat[:, :, None] * dense * flat[:, None]


def total(event: tuple[int, ...], seed: int = 0, low: float = 0.05) -> tuple[Covariance, Tensor]:
    """Cosines and pixels."""
    (one, dense), (other, other_dense) = cosines(event, seed, low), diagonal(event, seed + 1, low)
    return SumCovariance([one, other]), dense + other_dense


MAKERS = {
    IsotropicCovariance: isotropic,
    DiagonalCovariance: diagonal,
    FullCovariance: full,
    LowRankCovariance: low_rank,
    BasisCovariance: cosines,
    KroneckerCovariance: kronecker,
    MatrixFreeCovariance: matrix_free,
    CongruentCovariance: congruent_to,
    SumCovariance: total,
}
kinds = pytest.mark.parametrize("kind", MAKERS.values())
dense_kinds = pytest.mark.parametrize("kind", [isotropic, diagonal, full])  # of which any matrix can be made
events = pytest.mark.parametrize("event", EVENTS, ids=str)


def test_every_kind_is_tested():
    offered = {getattr(optcov.covariance, name) for name in optcov.covariance.__all__}
    assert offered == {
        Covariance,
        Basis,
        DCT,
        Hartley,
        PCA,
        SkewedCovariance,
        *MAKERS,
    }  # test_gms.py draws


class Given(NoiseStream):
    """Known numbers ``[B, n]``, one after another, in place of random ones."""

    def __init__(self, z: Tensor, event: torch.Size) -> None:
        self.z, self.event, self.taken = z, event, 0

    def draw(self, shape: tuple[int, ...] | None = None) -> Tensor:
        shape = self.event if shape is None else torch.Size(shape)
        start, self.taken = self.taken, self.taken + shape.numel()
        return self.z[:, start : self.taken].reshape(len(self.z), *shape)


def numbers(covariance: Covariance) -> int:
    """How many numbers a draw takes."""
    noise = Given(torch.zeros(covariance.shape[0], 1000, dtype=torch.float64), covariance.shape[1:])
    covariance.draw(noise)
    return noise.taken


def draw(covariance: Covariance, z: Tensor) -> Tensor:
    """One draw from numbers ``z [B, n]``."""
    return covariance.draw(Given(z, covariance.shape[1:]))


def square_root(covariance: Covariance, event: tuple[int, ...]) -> Tensor:
    """The matrix that takes the noise to the draw, column by column, ``[B, d, n]``."""
    unit = torch.eye(numbers(covariance), dtype=torch.float64)
    return torch.stack([draw(covariance, e.expand(BATCH, -1)).flatten(1) for e in unit], -1)


def assert_stands_for(covariance: Covariance, dense: Tensor, event: tuple[int, ...]) -> None:
    """That matrix, diagonal and law of the draws are those of ``dense``."""
    assert isinstance(covariance, Covariance)
    assert_close(covariance.dense(), dense, **EXACT)
    assert covariance.diagonal().shape == (BATCH, *event)
    assert_close(covariance.diagonal().flatten(1), dense.diagonal(dim1=1, dim2=2), **EXACT)
    root = square_root(covariance, event)
    assert_close(root @ root.mT, dense, **EXACT)


def positive_part(dense: Tensor) -> Tensor:
    """The nearest positive semidefinite matrix: negative eigenvalues become 0."""
    values, vectors = torch.linalg.eigh(dense)
    return vectors @ values.clamp(min=0).diag_embed() @ vectors.mT


def congruent(dense: Tensor, high: float) -> Tensor:
    """``S C S``, ``S = diag(min(1, sqrt(high / C_ii)))``, of the positive part of ``dense``."""
    dense = positive_part(dense)
    variance = dense.diagonal(dim1=1, dim2=2)
    scale = torch.where(variance > high, (high / variance).sqrt(), torch.ones_like(variance))
    return scale[:, :, None] * dense * scale[:, None, :]


@kinds
@events
def test_a_covariance_stands_for_its_matrix(kind: Kind, event: tuple[int, ...]):
    assert_stands_for(*kind(event), event)


@kinds
@events
@pytest.mark.parametrize("per_sample", [False, True])
def test_affine_scales_the_matrix_and_adds_white_noise(kind: Kind, event: tuple[int, ...], per_sample: bool):
    covariance, dense = kind(event)
    scale, shift = uniform(2, BATCH, seed=1)
    if not per_sample:
        scale, shift = scale[0], shift[0]
    expected = scale.reshape(-1, 1, 1) * dense + shift.reshape(-1, 1, 1) * eye(event)
    assert_stands_for(covariance.affine(scale, shift), expected, event)
    assert_stands_for(covariance, dense, event)  # is itself unchanged


@kinds
@events
@pytest.mark.parametrize("high", [0.01, 0.6, 1.0, 100.0])
def test_bounded_is_a_congruence(kind: Kind, event: tuple[int, ...], high: float):
    covariance, dense = kind(event)
    bounded = covariance.bounded(high)
    assert_stands_for(bounded, congruent(dense, high), event)
    assert float(bounded.diagonal().max()) <= high * (1 + 1e-12)  # rounding of a square root
    if high == 100.0:
        assert_close(bounded.dense(), dense, **EXACT)
    assert_stands_for(covariance, dense, event)


@kinds
@events
def test_a_congruence_scales_both_sides(kind: Kind, event: tuple[int, ...]):
    covariance, dense = kind(event)
    scale = uniform(BATCH, *event, seed=2)
    scale[:, 0] = 0.0
    rows = scale.flatten(1)
    assert_stands_for(covariance.congruence(scale), rows[:, :, None] * dense * rows[:, None], event)


def test_bounded_keeps_correlations_and_does_not_clamp_the_spectrum():
    """Of correlated pixels, eigenvalues reach d times the bound; that is what structure is worth."""
    event = (5,)
    correlated = full(event)[1] / 10 + 0.9  # variances on either side of the bound
    bounded = full_of(correlated, event).bounded(1.0).dense()
    variance, wanted = (matrix.diagonal(dim1=1, dim2=2) for matrix in (bounded, correlated))
    assert bool((wanted > 1).any())
    assert bool((wanted < 1).any())
    assert_close(variance, wanted.clamp(max=1), **EXACT)
    correlation = bounded / (variance[:, :, None] * variance[:, None, :]).sqrt()
    assert_close(correlation, correlated / (wanted[:, :, None] * wanted[:, None, :]).sqrt(), **EXACT)
    assert float(torch.linalg.eigvalsh(bounded).max()) > 4


@pytest.mark.parametrize("kind", [isotropic, diagonal, full, cosines])
@events
@pytest.mark.parametrize("high", [0.4, 10.0])
def test_bounded_takes_negative_estimates_for_zero_before_it_scales(kind: Kind, event: tuple[int, ...], high: float):
    covariance, dense = kind(event, low=-1.0)
    assert float(torch.linalg.eigvalsh(dense).min()) < 0
    bounded = covariance.bounded(high)
    # a square root of an eigenvalue that is 0 up to rounding has half the digits, but its square has them all
    assert_stands_for(bounded, congruent(dense, high), event)
    assert float(bounded.diagonal().min()) >= 0


@pytest.mark.parametrize("kind", [isotropic, diagonal])
@events
@pytest.mark.parametrize("high", [0.4, 1.0])
def test_bounded_clamps_variances_without_correlations(kind: Kind, event: tuple[int, ...], high: float):
    covariance, _ = kind(event, low=-1.0)
    clamped = covariance.diagonal().clamp(0, high)
    assert_close(covariance.bounded(high).diagonal(), clamped, **EXACT)


@kinds
@events
def test_products_and_solutions(kind: Kind, event: tuple[int, ...]):
    covariance, dense = kind(event)
    v = normal(BATCH, *event, seed=2)
    flat = v.flatten(1)
    product = (dense @ flat[..., None])[..., 0]
    solution = torch.linalg.solve(dense, flat)
    assert_close(covariance.matvec(v), product.reshape(v.shape), **EXACT)
    assert_close(covariance.solve(v), solution.reshape(v.shape), **EXACT)
    assert_close(covariance.inv_quad(v), (flat * solution).sum(1), **EXACT)
    assert covariance.inv_quad(v).shape == (BATCH,)
    assert_close(covariance.solve(covariance.matvec(v)), v, **EXACT)


@kinds
@events
def test_determinants_and_traces(kind: Kind, event: tuple[int, ...]):
    covariance, dense = kind(event)
    expected = {
        "logdet": torch.linalg.slogdet(dense).logabsdet,
        "trace": dense.diagonal(dim1=1, dim2=2).sum(1),
        "inv_trace": torch.linalg.inv(dense).diagonal(dim1=1, dim2=2).sum(1),
    }
    for name, value in expected.items():
        found = getattr(covariance, name)()
        assert found.shape == (BATCH,)
        assert_close(found, value, **EXACT)


@dense_kinds
@pytest.mark.parametrize("other_kind", [isotropic, diagonal, full])
@pytest.mark.parametrize("w", [0.0, 0.3, 1.0, -0.7, 2.5])
@events
def test_lerp_is_that_of_the_matrices(kind: Kind, other_kind: Kind, w: float, event: tuple[int, ...]):
    """Within a kind and across kinds, also beyond [0, 1] as guidance asks; correlations of neither are dropped."""
    (one, dense), (other, other_dense) = kind(event, seed=3), other_kind(event, seed=8)
    mixed = one.lerp(other, w)
    assert_close(mixed.dense(), dense + w * (other_dense - dense), **EXACT)
    assert_close(mixed.diagonal().flatten(1), mixed.dense().diagonal(dim1=1, dim2=2), **EXACT)
    if 0 <= w <= 1:
        assert_stands_for(mixed, dense + w * (other_dense - dense), event)


@kinds
@pytest.mark.parametrize("other_kind", [isotropic, diagonal, full])
def test_what_lerp_returns_can_be_bounded_and_used(kind: Kind, other_kind: Kind):
    """A mixture beyond [0, 1] may have negative eigenvalues, which a bound takes for 0."""
    event = (2, 2)
    (one, dense), (other, other_dense) = kind(event, seed=3), other_kind(event, seed=8)
    mixed = dense + 3.0 * (other_dense - dense)
    assert float(torch.linalg.eigvalsh(mixed).min()) < 0
    if kind is matrix_free:  # whose products stay as they are, while its draws take negative eigenvalues for 0
        root = square_root(one.lerp(other, 3.0).bounded(None), event)
        assert_close(root @ root.mT, positive_part(mixed), **EXACT)
    else:
        assert_stands_for(one.lerp(other, 3.0).bounded(1.0), congruent(mixed, 1.0), event)


@kinds
@events
def test_draws_are_linear_in_the_noise(kind: Kind, event: tuple[int, ...]):
    covariance, _ = kind(event)
    z = normal(2, BATCH, numbers(covariance), seed=4)
    combined = draw(covariance, 2 * z[0] - 0.5 * z[1])
    assert_close(combined, 2 * draw(covariance, z[0]) - 0.5 * draw(covariance, z[1]), **EXACT)
    assert_close(draw(covariance, torch.zeros_like(z[0])), torch.zeros(BATCH, *event).double(), rtol=0, atol=0)


@dense_kinds
def test_moments_of_draws(kind: Kind):
    """Mean 0 and the matrix, each within five standard errors: of a product x_i x_j, sqrt(C_ii C_jj + C_ij^2)."""
    event, draws = (2, 2), 8000
    _, dense = kind(event)
    covariance = as_kind(kind, dense.repeat_interleave(draws, 0), event)
    x = draw(covariance, normal(BATCH * draws, 4, seed=0)).reshape(BATCH, draws, 4)
    variance = dense.diagonal(dim1=1, dim2=2)
    assert bool(((x.mean(1) / (variance / draws).sqrt()).abs() < 5).all())
    error = ((variance[:, :, None] * variance[:, None, :] + dense**2) / draws).sqrt()
    assert bool((((x.mT @ x / draws - dense) / error).abs() < 5).all())


@kinds
@pytest.mark.parametrize("others", [0.0, 1.0])
def test_the_draw_of_a_sample_depends_on_its_own_noise_alone(kind: Kind, others: float):
    event = (2, 2)
    covariance, _ = kind(event)
    z = normal(BATCH, numbers(covariance), seed=4)
    changed = z.clone()
    changed[1:] = others
    assert torch.equal(draw(covariance, z)[0], draw(covariance, changed)[0])


def singular(kind: Kind, event: tuple[int, ...]) -> tuple[Covariance, Tensor]:
    """One of variance 0 in a direction at least: all of it, a pixel, or one eigenvector."""
    d = size(event)
    if kind is isotropic:
        return IsotropicCovariance(torch.zeros(BATCH, dtype=torch.float64), event), torch.zeros(BATCH, d, d).double()
    if kind is diagonal:
        variance = uniform(BATCH, *event, seed=0)
        variance.flatten(1)[:, 0] = 0
        return DiagonalCovariance(variance), variance.flatten(1).diag_embed()
    if kind is kronecker:
        channel = normal(BATCH, event[0], 1, seed=0)
        spatial = torch.zeros(BATCH, *event[1:], dtype=torch.float64)
        return KroneckerCovariance(channel @ channel.mT, spatial), torch.zeros(BATCH, d, d).double()
    if kind in (cosines, congruent_to, low_rank, total):
        variance, scale = uniform(BATCH, *event, seed=0), 1 + uniform(BATCH, *event, seed=1)
        variance.flatten(1)[:, 1] = 0
        if kind is low_rank:
            factor = variance[:, None]
            return LowRankCovariance(variance, factor), low_rank_matrix(variance, factor)
        vectors = vectors_of(DCT(event))
        dense, flat = vectors @ variance.flatten(1).diag_embed() @ vectors.T, scale.flatten(1)
        inner = BasisCovariance(DCT(event), variance)
        if kind is cosines:
            return inner, dense
        scaled = CongruentCovariance(scale, inner), flat[:, :, None] * dense * flat[:, None]
        return (
            scaled if kind is congruent_to else (SumCovariance([scaled[0], singular(isotropic, event)[0]]), scaled[1])
        )
    root = normal(BATCH, d, d - 1, seed=0)
    dense = root @ root.mT
    return (products_of(dense, event) if kind is matrix_free else full_of(dense, event)), dense


@kinds
@pytest.mark.parametrize("event", [(5,), (2, 3, 2)], ids=str)
def test_a_singular_covariance_is_drawn_from_and_multiplied_exactly(kind: Kind, event: tuple[int, ...]):
    """Rank is lost, not digits: what a square root of rounding adds is of the order of sqrt(1e-16), squared."""
    covariance, dense = singular(kind, event)
    root = square_root(covariance, event)
    assert root.isfinite().all()
    assert_close(root @ root.mT, dense, rtol=1e-10, atol=1e-12)
    v = normal(BATCH, *event, seed=2)
    assert_close(covariance.matvec(v).flatten(1), (dense @ v.flatten(1)[..., None])[..., 0], **EXACT)
    assert_close(covariance.trace(), dense.diagonal(dim1=1, dim2=2).sum(1), **EXACT)
    assert_close(covariance.bounded(0.5).dense(), congruent(dense, 0.5), **EXACT)
    # log det is -inf up to rounding of an eigenvalue: 1e-16 of 10, to the power of one
    regular = torch.linalg.slogdet(dense + eye(event)).logabsdet
    assert (covariance.logdet() < regular - 25).all()


@pytest.mark.parametrize("kind", [isotropic, diagonal])
def test_the_log_determinant_of_a_zero_variance_is_minus_infinity(kind: Kind):
    assert (singular(kind, (5,))[0].logdet() == -torch.inf).all()


@kinds
@pytest.mark.parametrize("event", [(5,), (2, 3, 2)], ids=str)
def test_white_noise_makes_a_singular_covariance_regular(kind: Kind, event: tuple[int, ...]):
    """C of an estimate that was 0, in a DDPM step."""
    covariance, dense = singular(kind, event)
    scale, shift = torch.tensor([0.7, 0.01], dtype=torch.float64)
    step, matrix = covariance.affine(scale, shift), 0.7 * dense + 0.01 * eye(event)
    assert_stands_for(step, matrix, event)
    v = normal(BATCH, *event, seed=2)
    assert_close(step.solve(v).flatten(1), torch.linalg.solve(matrix, v.flatten(1)), **EXACT)
    assert_close(step.logdet(), torch.linalg.slogdet(matrix).logabsdet, **EXACT)


@kinds
def test_a_zero_covariance_draws_nothing(kind: Kind):
    event = (2, 2)
    covariance, _ = kind(event)
    zero = torch.zeros((), dtype=torch.float64)
    nothing = covariance.affine(zero, zero)
    drawn = draw(nothing, normal(BATCH, numbers(nothing), seed=0))
    assert torch.equal(drawn, torch.zeros(BATCH, *event, dtype=torch.float64))
    assert torch.equal(nothing.bounded(1.0).dense(), torch.zeros(BATCH, 4, 4, dtype=torch.float64))


@kinds
@pytest.mark.parametrize("high", [0.0, 1e-50])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_bound_of_nothing_leaves_nothing_however_small_the_estimate(kind: Kind, high: float, dtype: torch.dtype):
    """The reciprocal of a subnormal variance is infinite, and 0 times that is not a number."""
    tiny = torch.finfo(dtype).tiny / 1000
    estimate = torch.tensor([1.0, 1.0, 1.0] if kind is isotropic else [tiny, 1.0, 0.0], dtype=dtype)
    estimate = torch.full_like(estimate, tiny) if kind is isotropic else estimate
    bounded = as_kind(kind, estimate.diag_embed().expand(BATCH, 3, 3), (3,)).bounded(high)
    assert_close(bounded.diagonal(), estimate.clamp(max=high).expand(BATCH, 3), rtol=1e-6, atol=0)


def entries(d: int) -> st.SearchStrategy[list[float]]:
    """Numbers of all sizes that a variance of images has, and none."""
    return st.lists(
        st.one_of(st.just(0.0), st.floats(-2, 3, allow_subnormal=False), st.floats(1e-6, 1e-2)),
        min_size=BATCH * d,
        max_size=BATCH * d,
    )


@settings(max_examples=40)
@given(
    data=st.data(),
    event=st.sampled_from(EVENTS),
    high=st.one_of(st.none(), st.just(0.0), st.floats(1e-4, 4)),
    as_tensor=st.booleans(),
    seed=st.integers(0, 1000),
)
@dense_kinds
def test_bounded_keeps_what_a_covariance_is(
    kind: Kind, data: st.DataObject, event: tuple[int, ...], high: float | None, as_tensor: bool, seed: int
):
    """Of any estimate: a diagonal within the bound, no eigenvalue below 0, correlations, and what needs no bound."""
    d = size(event)
    values = torch.tensor(data.draw(entries(d)), dtype=torch.float64).reshape(BATCH, d)
    if kind is isotropic:
        values = values[:, :1].expand(BATCH, d)
    axes = torch.linalg.qr(normal(BATCH, d, d, seed=seed))[0] if kind is full else eye(event).expand(BATCH, d, d)
    estimate = axes @ values.diag_embed() @ axes.mT
    estimate = (estimate + estimate.mT) / 2
    limit = torch.tensor(high, dtype=torch.float64) if as_tensor and high is not None else high
    bounded = as_kind(kind, estimate, event).bounded(limit)
    assert type(bounded) is type(as_kind(kind, estimate, event))

    found, clean = bounded.dense(), positive_part(estimate)
    variance, wanted = (matrix.diagonal(dim1=1, dim2=2) for matrix in (found, clean))
    bound = math.inf if high is None else high
    assert bool((variance <= bound * (1 + 1e-12)).all())
    assert_close(variance, wanted.clamp(max=bound), **EXACT)
    assert float(torch.linalg.eigvalsh(found).min()) >= -1e-14
    scale = torch.where(wanted > bound, (bound / wanted).sqrt(), 1.0)
    assert_close(found, scale[:, :, None] * clean * scale[:, None], **EXACT)
    # correlations, where there is a variance: r_ij sqrt(C_ii C_jj) on either side
    norm, wanted_norm = ((v[:, :, None] * v[:, None]).sqrt() for v in (variance, wanted))
    assert_close(found * wanted_norm, clean * norm, **EXACT)
    untouched = (wanted <= bound).all(1)
    assert_close(found[untouched], clean[untouched], **EXACT)
    assert_close(bounded.bounded(limit).dense(), found, **EXACT)


@settings(max_examples=30)
@given(scale=st.floats(0, 5), shift=st.floats(1e-3, 5), high=st.floats(0.05, 3), seed=st.integers(0, 1000))
def test_operations_compose_as_in_a_step(scale: float, shift: float, high: float, seed: int):
    """Bound, scale, bound, then a Gaussian's log density: what samplers and the likelihood ask in turn."""
    event = (2, 2)
    for kind in (isotropic, diagonal, full):
        covariance, dense = kind(event, seed, low=-0.2)
        step = covariance.bounded(1.0).affine(*torch.tensor([scale, shift], dtype=torch.float64)).bounded(high)
        expected = congruent(scale * congruent(dense, 1.0) + shift * eye(event), high)
        assert_stands_for(step, expected, event)
        x = normal(BATCH, 4, seed=seed)
        law = torch.distributions.MultivariateNormal(torch.zeros(4, dtype=torch.float64), expected)
        density = -0.5 * (step.inv_quad(x.reshape(-1, 2, 2)) + step.logdet() + 4 * math.log(2 * math.pi))
        # the condition number reaches (5 * 4 + 5) / 1e-3 = 2.5e4
        assert_close(density, law.log_prob(x), rtol=1e-9, atol=1e-9)


def cast(held: object) -> object:
    """A covariance with all it holds in single precision."""
    if isinstance(held, Tensor):
        return held.float()
    if isinstance(held, list):
        return [cast(each) for each in held]
    if not isinstance(held, Covariance | Basis):
        return held
    held = copy.copy(held)
    held.__dict__ = {name: cast(value) for name, value in vars(held).items()}
    return held


@kinds
def test_draws_keep_the_precision_of_images(kind: Kind):
    """Coefficients of a step are float64, the noise and the image float32."""
    event = (2, 3, 2)
    covariance, _ = kind(event)
    single, scale = cast(covariance), torch.tensor([0.3, 0.1, 0.7, 1.2], dtype=torch.float64)
    step = covariance.bounded(1.0).affine(scale, scale)
    z = normal(BATCH, numbers(step), seed=0).float()
    drawn = draw(single.bounded(1.0).affine(scale, scale), z)
    assert drawn.dtype == torch.float32
    assert_close(drawn.double(), draw(step, z.double()), rtol=1e-4, atol=1e-5)


# what concerns some of the kinds


@pytest.mark.parametrize("kind", [low_rank, total])
@pytest.mark.parametrize("high", [None, 0.4])
def test_parts_that_fall_below_zero_become_zero_each(kind: Kind, high: float | None):
    event = (2, 3, 2)
    bounded = kind(event, low=-1.0)[0].bounded(high)
    if kind is low_rank:
        expected = low_rank_matrix(kind(event, low=-1.0)[0].variance.clamp(min=0), kind(event)[0].factor)
    else:
        expected = sum(positive_part(each(event, seed, -1.0)[1]) for each, seed in ((cosines, 0), (diagonal, 1)))
    assert_stands_for(bounded, expected if high is None else congruent(expected, high), event)


@pytest.mark.parametrize("kind", [low_rank, cosines, kronecker, matrix_free, congruent_to, total])
@pytest.mark.parametrize("other_kind", MAKERS.values())
@pytest.mark.parametrize("w", [0.3, 1.7])
def test_structured_kinds_mix(kind: Kind, other_kind: Kind, w: float):
    event = (2, 3, 1)  # six numbers: a matrix-free kind takes as many steps for each of as many probes
    (one, dense), (other, other_dense) = kind(event, seed=3), other_kind(event, seed=8)
    mixed, expected = one.lerp(other, w), dense + w * (other_dense - dense)
    assert_close(mixed.dense(), expected, **EXACT)
    if w < 1:
        assert_stands_for(mixed, expected, event)
        assert_close(mixed.logdet(), torch.linalg.slogdet(expected).logabsdet, **EXACT)


@pytest.mark.parametrize("event", [(3, 4, 5), (1, 8, 8), (7,)], ids=str)
def test_cosines_are_those_of_scipy(event: tuple[int, ...]):
    scipy = pytest.importorskip("scipy.fft")
    x = normal(BATCH, *event, seed=0)
    axes = tuple(range(-min(2, len(event)), 0))
    assert_close(DCT(event).analyse(x), torch.from_numpy(scipy.dctn(x.numpy(), axes=axes, norm="ortho")), **EXACT)
    assert_close(DCT(event).synthesise(x), torch.from_numpy(scipy.idctn(x.numpy(), axes=axes, norm="ortho")), **EXACT)


@pytest.mark.parametrize("name", ["dct", "dct of channels", "dct of a vector of channels", "pca", "waves"])
def test_bases_are_orthonormal(name: str):
    event = (5,) if "vector" in name else (3, 2, 2)
    channels = torch.linalg.qr(normal(event[0], event[0], seed=1))[0] if "channels" in name else None
    named: dict[str, Basis] = {"pca": PCA.of(normal(40, *event, seed=2))[0], "waves": Hartley((2, 3, 4))}
    basis = named.get(name, DCT(event, channels))
    event = tuple(basis.event_shape)
    vectors, variance = vectors_of(basis), uniform(1, *event, seed=3)
    assert_close(vectors.T @ vectors, eye(event), **EXACT)
    x = normal(BATCH, *event, seed=4)
    assert_close(basis.analyse(x).flatten(1), x.flatten(1) @ vectors, **EXACT)
    spread = (vectors @ variance.flatten().diag() @ vectors.T).diagonal()
    assert_close(basis.spread(variance).flatten(), spread, **EXACT)
    gathered = (vectors.T @ variance.flatten().diag() @ vectors).diagonal()
    assert_close(basis.gather(variance).flatten(), gathered, **EXACT)


def test_principal_axes_are_those_of_the_data():
    images = normal(40, 2, 3, seed=0) * uniform(2, 3, seed=1)
    basis, variance = PCA.of(images)
    dense = vectors_of(basis) @ variance.flatten().diag() @ vectors_of(basis).T
    assert_close(dense, images.flatten(1).T.cov(), **EXACT)


def test_a_low_rank_draw_takes_d_and_r_numbers_and_other_kinds_d():
    event = (2, 3, 2)
    assert numbers(low_rank(event)[0]) == 12 + 2
    assert {numbers(kind(event)[0]) for kind in (cosines, kronecker, matrix_free, congruent_to)} == {12}


def test_a_bound_that_changes_nothing_leaves_the_closed_form_of_a_basis(monkeypatch: pytest.MonkeyPatch):
    """And its solutions cost what they cost: no dense matrix, for none can be made of so many dimensions."""
    monkeypatch.setattr("optcov.covariance.base.DENSE_LIMIT", 1)
    event = (2, 3, 2)
    covariance, dense = cosines(event)
    step, matrix = covariance.bounded(100.0).affine(*uniform(2, seed=1)), None
    scale, shift = uniform(2, seed=1)
    matrix = scale * dense + shift * eye(event)
    assert_close(step.logdet(), torch.linalg.slogdet(matrix).logabsdet, **EXACT)
    assert_close(step.inv_trace(), torch.linalg.inv(matrix).diagonal(dim1=1, dim2=2).sum(1), **EXACT)
    v = normal(BATCH, *event, seed=2)
    assert_close(step.solve(v).flatten(1), torch.linalg.solve(matrix, v.flatten(1)), **EXACT)


def test_few_steps_of_lanczos_are_near_and_quadrature_knows_its_error(monkeypatch: pytest.MonkeyPatch):
    """Of 64 dimensions: solutions within rounding in 30 steps, log det within 4 standard errors of 16 probes."""
    event = (1, 8, 8)
    _, dense = full(event, low=1.0)  # eigenvalues in [1, 3]
    covariance = products_of(dense, event, steps=30, probes=16)
    v = normal(BATCH, *event, seed=2)
    assert_close(covariance.solve(v).flatten(1), torch.linalg.solve(dense, v.flatten(1)), rtol=1e-8, atol=1e-10)
    values, vectors = torch.linalg.eigh(dense)
    drawn = (vectors @ values.sqrt().diag_embed() @ vectors.mT @ v.flatten(1)[..., None])[..., 0]
    assert_close(draw(covariance, v.flatten(1)).flatten(1), drawn, rtol=1e-8, atol=1e-10)
    value, error = covariance.log_determinant()
    exact = torch.linalg.slogdet(dense).logabsdet
    assert ((value - exact).abs() < 4 * error).all()
    assert (error < 0.03 * exact).all()
    big = SumCovariance([covariance, IsotropicCovariance(torch.zeros(BATCH, dtype=torch.float64), event)])
    monkeypatch.setattr("optcov.covariance.total.EXACT_UP_TO", 1)
    assert_close(big.solve(v).flatten(1), torch.linalg.solve(dense, v.flatten(1)), rtol=1e-10, atol=1e-12)


def test_products_without_a_diagonal_are_bounded_in_the_mean():
    event = (2, 3, 2)
    dense = full(event)[1]
    covariance = products_of(dense, event)
    assert_close(covariance.diagonal(), dense.diagonal(dim1=1, dim2=2).reshape(BATCH, *event), **EXACT)
    covariance.variance = None
    assert_close(covariance.diagonal(), dense.diagonal(dim1=1, dim2=2).reshape(BATCH, *event), **EXACT)
    bounded = covariance.bounded(0.1).dense()
    ratio = bounded.diagonal(dim1=1, dim2=2).mean(1) / 0.1
    assert ((ratio - 1).abs() < 0.5).all()  # one probe
    assert_close(bounded / bounded[:, :1, :1], dense / dense[:, :1, :1], **EXACT)


def test_how_far_an_indefinite_estimate_is_moved():
    matrix = torch.tensor([[3.0, 0.0], [0.0, -4.0]], dtype=torch.float64)
    assert_close(full_of(matrix[None], (2,)).indefiniteness(), torch.tensor([0.8], dtype=torch.float64))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LowRankCovariance(torch.ones(1, 2), torch.ones(1, 3, 2)), "rank must be at most the dimension 2"),
        (lambda: LowRankCovariance(torch.ones(1, 2), torch.ones(1, 1, 3)), r"factor must have shape \[B, rank"),
        (lambda: BasisCovariance(DCT((1, 4, 4)), torch.ones(1, 1, 4, 5)), r"basis must be for events \(1, 4, 5\)"),
        (lambda: DCT((3, 4, 4), torch.eye(2)), r"channels must be an orthonormal basis \[3, 3\]"),
        (lambda: PCA(torch.eye(3), (2,)), r"axes must have shape \[2, 2\]"),
        (lambda: PCA.of(torch.ones(3, 5000)), "at most 4096 dimensions"),
        (lambda: PCA.of(torch.ones(1, 5)), "images must be at least 2"),
        (lambda: KroneckerCovariance(torch.eye(2)[None], torch.ones(3, 4, 4)), r"channel must have shape \[3, C, C\]"),
        (lambda: products_of(torch.eye(2)[None], (2,), steps=3), "steps must be at least 1 and at most the dim"),
        (lambda: products_of(torch.eye(2)[None], (2,), probes=1), "probes must be at least 2"),
        (lambda: SumCovariance([]), "terms must be covariances of one shape"),
        (lambda: BasisCovariance(DCT((5000,)), torch.ones(1, 5000)).dense(), "at most 4096 dimensions"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_in_a_sentence(make: Callable[[], object], message: str):
    with pytest.raises(ValueError, match=message):
        make()
