"""The Gaussian update of every kind by every operator, against dense matrices; its draws, and its limits."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from optcov.covariance import (
    DCT,
    BasisCovariance,
    Covariance,
    DiagonalCovariance,
    FullCovariance,
    IsotropicCovariance,
    LowRankCovariance,
    MatrixFreeCovariance,
    SumCovariance,
)
from optcov.inverse import (
    BlockAverage,
    Blur,
    ConditionedCovariance,
    Mask,
    Operator,
    ReflectedBlur,
    condition,
    innovation,
)
from optcov.inverse.block import MeasuredBlock

EVENT, BATCH = (1, 4, 4), 3
GENERATOR = torch.Generator().manual_seed(5)


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=GENERATOR)


VARIANCE, FACTOR = normal(BATCH, *EVENT).exp(), normal(BATCH, 3, *EVENT)
WIDE = LowRankCovariance(VARIANCE, normal(BATCH, 9, *EVENT))  # of more directions than there are block averages
FULL = FullCovariance.of(WIDE)
KINDS: dict[str, Covariance] = {
    "isotropic": IsotropicCovariance(VARIANCE[:, 0, 0, 0], EVENT),
    "diagonal": DiagonalCovariance(VARIANCE),
    "low rank": LowRankCovariance(VARIANCE, FACTOR),
    "wide": WIDE,
    "singular": LowRankCovariance(torch.zeros_like(VARIANCE), FACTOR),
    "basis": BasisCovariance(DCT(EVENT), VARIANCE),
    "bounded": BasisCovariance(DCT(EVENT), VARIANCE).bounded(100.0),
    "full": FULL,
    "sum": SumCovariance([BasisCovariance(DCT(EVENT), VARIANCE), LowRankCovariance(VARIANCE, FACTOR)]),
    "matrix-free": MatrixFreeCovariance(FULL.matvec, VARIANCE, 16),
}
OPERATORS: dict[str, Operator] = {
    "mask": Mask(EVENT, torch.arange(4) < 2),
    "blocks": BlockAverage(EVENT, 2),
    "blur": Blur(EVENT, torch.tensor([[0.1, 0.2, 0.3], [0.1, 0.2, 0.1]])),
    "strided blur": Blur(EVENT, std=0.7, stride=2),
    "reflected blur": ReflectedBlur(EVENT, std=0.7),
}
kinds = pytest.mark.parametrize("kind", KINDS)
operators = pytest.mark.parametrize("name", OPERATORS)


class Counting:
    """Numbers of a stream that are all 0 but one, so that as many draws as numbers make the root of a covariance."""

    def __init__(self, one: int) -> None:
        self.one, self.count = one, 0

    def draw(self, shape: tuple[int, ...] | None = None) -> Tensor:
        shape = EVENT if shape is None else shape
        size = torch.Size(shape).numel()
        flat = torch.zeros(BATCH, size, dtype=torch.float64)
        if 0 <= self.one - self.count < size:
            flat[:, self.one - self.count] = 1
        self.count += size
        return flat.reshape(BATCH, *shape)


def drawn(covariance: Covariance) -> Tensor:
    """The covariance of draws, ``[B, d, d]``: the sum of ``r r^T`` over the response r to each number of the stream."""
    covariance.draw(counter := Counting(-1))
    responses = torch.stack([covariance.draw(Counting(i)).flatten(1) for i in range(counter.count)], 1)
    return responses.mT @ responses


def dense(covariance: Covariance, operator: Operator, variance: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
    matrix, prior = operator.matrix(VARIANCE), covariance.dense()
    total = matrix @ prior @ matrix.T + variance.expand(operator.measurement_shape).flatten().diag()
    gain = torch.linalg.solve(total, matrix @ prior).mT
    return (gain @ residual.flatten(1)[..., None])[..., 0], prior - gain @ matrix @ prior


@kinds
@operators
def test_the_update_is_that_of_dense_matrices(kind: str, name: str) -> None:
    covariance, operator = KINDS[kind], OPERATORS[name]
    residual = normal(BATCH, *operator.measurement_shape)
    for variance in (torch.tensor(0.01, dtype=torch.float64), 0.1 + normal(*operator.measurement_shape) ** 2):
        found = condition(covariance, residual, operator, variance)
        shift, after = found.shift, found.covariance
        assert float(found.residual.max()) < 1e-6
        wanted_shift, wanted = dense(covariance, operator, variance, residual)
        # Lanczos's 16 steps are exact up to the condition of S, some 1e4
        assert_close(shift.flatten(1), wanted_shift, rtol=1e-7, atol=1e-7)
        v = normal(BATCH, *EVENT)
        wanted_image = (wanted @ v.flatten(1)[..., None])[..., 0]
        assert_close(after.matvec(v).flatten(1), wanted_image, rtol=1e-7, atol=1e-7)
        if kind != "matrix-free":
            assert_close(after.diagonal().flatten(1), wanted.diagonal(dim1=1, dim2=2), rtol=1e-7, atol=1e-7)
    if kind != "matrix-free":  # whose draws are not linear in the noise
        scale, zero = torch.tensor([0.5, 2.0, 1.0], dtype=torch.float64), torch.zeros(BATCH, dtype=torch.float64)
        for end, expected in ((after, wanted), (after.affine(scale, zero + 0.3), None)):
            expected = scale[:, None, None] * wanted + 0.3 * torch.eye(16) if expected is None else expected
            assert_close(drawn(end), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("kind", "name", "total", "after"),
    [
        ("isotropic", "mask", DiagonalCovariance, DiagonalCovariance),
        ("low rank", "mask", LowRankCovariance, LowRankCovariance),
        ("low rank", "blocks", LowRankCovariance, ConditionedCovariance),
        ("full", "blur", FullCovariance, FullCovariance),
        ("basis", "mask", FullCovariance, ConditionedCovariance),
        ("isotropic", "blur", BasisCovariance, BasisCovariance),
        ("isotropic", "strided blur", BasisCovariance, ConditionedCovariance),
        ("isotropic", "reflected blur", BasisCovariance, BasisCovariance),
        ("basis", "reflected blur", BasisCovariance, BasisCovariance),
        ("bounded", "reflected blur", BasisCovariance, BasisCovariance),
        ("basis", "blur", FullCovariance, ConditionedCovariance),  # cosines are no eigenvectors of a circulant
        ("matrix-free", "mask", MatrixFreeCovariance, ConditionedCovariance),
    ],
)
def test_closed_forms_are_taken_where_there_are_any(kind: str, name: str, total: type, after: type) -> None:
    operator, variance = OPERATORS[name], torch.tensor(0.1)
    residual = normal(BATCH, *operator.measurement_shape)
    assert type(innovation(KINDS[kind], residual, operator, variance)) is total
    assert type(condition(KINDS[kind], residual, operator, variance).covariance) is after


SHARED = BasisCovariance(DCT(EVENT), VARIANCE[:1].expand(BATCH, *EVENT)).bounded(100.0)  # the same for all samples


@pytest.mark.parametrize(
    ("covariance", "operator", "total"),
    [
        (SHARED, Mask(EVENT, torch.arange(16).reshape(4, 4) % 5 > 1), MeasuredBlock),
        (KINDS["basis"], Mask(EVENT, torch.arange(16).reshape(4, 4) % 5 > 1), MeasuredBlock),
        (SHARED, OPERATORS["strided blur"], FullCovariance),
        (KINDS["basis"], OPERATORS["strided blur"], MatrixFreeCovariance),
        (SHARED, Mask(EVENT, torch.arange(16).reshape(4, 4) % 5 == 1), FullCovariance),  # more is hidden than measured
    ],
    ids=["block", "block of each", "one matrix", "steps", "sparse mask"],
)
def test_many_measurements_are_solved_exactly_where_one_factorization_does(
    covariance: Covariance, operator: Operator, total: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    residual, variance = normal(BATCH, *operator.measurement_shape), torch.tensor(0.01, dtype=torch.float64)
    wanted_shift, wanted = dense(covariance, operator, variance, residual)
    monkeypatch.setattr("optcov.inverse.conditioning.EXACT_UP_TO", 0)
    found = innovation(covariance, residual, operator, variance)
    assert type(found) is total
    full = FullCovariance.of(found)
    for operation in ("solve", "matvec", "inv_quad"):
        assert_close(getattr(found, operation)(residual), getattr(full, operation)(residual), rtol=1e-6, atol=1e-6)
    assert_close(found.diagonal(), full.diagonal(), rtol=1e-9, atol=1e-9)
    assert_close(condition(covariance, residual, operator, variance).shift.flatten(1), wanted_shift)
    assert_close(drawn(condition(covariance, residual, operator, variance).covariance), wanted)


def test_a_block_has_the_operations_of_full() -> None:
    operator = Mask(EVENT, torch.arange(16).reshape(4, 4) % 5 > 1)
    block = MeasuredBlock(BasisCovariance(DCT(EVENT), VARIANCE), operator, False)
    full, v = FullCovariance.of(block), normal(BATCH, *operator.measurement_shape)
    scale, shift = torch.tensor([0.5, 2.0, 1.0], dtype=torch.float64), torch.tensor(0.3, dtype=torch.float64)
    assert_close(block.affine(scale, shift).solve(v), full.affine(scale, shift).solve(v))
    assert_close(block.bounded(0.4).dense(), full.bounded(0.4).dense())
    assert_close(block.logdet(), full.logdet())
    assert_close(drawn(block), full.matrix)


def test_a_solution_says_how_far_it_went() -> None:
    """Steps that are too few leave the residual of conjugate gradients, which the true residual confirms."""
    covariance, operator = KINDS["matrix-free"], OPERATORS["blur"]
    residual, variance = normal(BATCH, *EVENT), torch.tensor(0.01, dtype=torch.float64)
    last = torch.full((BATCH,), torch.inf, dtype=torch.float64)
    for steps in (1, 4, 9):
        found = condition(covariance, residual, operator, variance, steps)
        solved = innovation(covariance, residual, operator, variance, steps).solve(residual)
        true = operator(covariance.matvec(operator.adjoint(solved))) + variance * solved - residual
        assert_close(found.residual, true.flatten(1).norm(dim=1) / residual.flatten(1).norm(dim=1), rtol=1e-6, atol=0)
        assert bool((found.residual > 1e-9).all())
    assert bool((found.residual < last).all())


def test_a_conditioned_covariance_has_the_operations_of_full() -> None:
    operator, v = OPERATORS["blocks"], normal(BATCH, *EVENT)
    after = condition(
        KINDS["basis"], normal(BATCH, *operator.measurement_shape), operator, torch.tensor(0.5, dtype=torch.float64)
    ).covariance
    full = FullCovariance.of(after)
    assert type(after) is ConditionedCovariance
    for ours, theirs in ((after, full), (after.bounded(0.4), full.bounded(0.4))):
        for operation in ("solve", "matvec", "inv_quad"):
            assert_close(getattr(ours, operation)(v), getattr(theirs, operation)(v), rtol=1e-8, atol=1e-8)
        for operation in ("logdet", "trace", "inv_trace", "diagonal"):
            assert_close(getattr(ours, operation)(), getattr(theirs, operation)(), rtol=1e-8, atol=1e-8)
    assert_close(after.lerp(full, 0.3).dense(), full.dense(), rtol=1e-8, atol=1e-8)


@operators
def test_limits_of_the_noise(name: str) -> None:
    """None leaves what was measured as it is measured; much changes nothing."""
    operator, covariance = OPERATORS[name], KINDS["full"]
    residual = normal(BATCH, *operator.measurement_shape)
    found = condition(covariance, residual, operator, torch.tensor(1e-12, dtype=torch.float64))
    shift, after = found.shift, found.covariance
    assert_close(operator(shift), residual, rtol=1e-5, atol=1e-6)
    assert float(operator(after.draw(Counting(0))).abs().max()) < 1e-4
    found = condition(covariance, residual, operator, torch.tensor(1e14, dtype=torch.float64))
    shift, after = found.shift, found.covariance
    assert float(shift.abs().max()) < 1e-10
    assert_close(after.dense(), covariance.dense(), rtol=1e-9, atol=1e-9)
