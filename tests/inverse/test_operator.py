"""Operators against their adjoints and matrices, and what they refuse."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from optcov.inverse import BlockAverage, Blur, Mask, MatrixOperator, Operator, PairOperator, ReflectedBlur, Strips

EVENT = (2, 4, 6)
KERNEL = torch.tensor([[0.1, 0.2, 0.0], [0.3, 0.1, 0.3]])  # not symmetric
HALF = torch.arange(6) < 3


def rows(x: Tensor) -> Tensor:
    return x[..., :2] * 3


OPERATORS: dict[str, Operator] = {
    "mask": Mask(EVENT, (torch.arange(48) % 5 < 2).reshape(EVENT)),
    "mask of one row": Mask(EVENT, HALF),
    "block average": BlockAverage(EVENT, 2),
    "blur": Blur(EVENT, KERNEL),
    "strided blur": Blur(EVENT, std=0.8, stride=2),
    "reflected blur": ReflectedBlur(EVENT, std=0.8),
    "strips": Strips(EVENT, 3),
    "matrix": MatrixOperator.random(EVENT, 5),
    "pair": PairOperator(EVENT, rows),
    "functions": PairOperator(EVENT, rows, lambda y: torch.nn.functional.pad(3 * y, (0, 4))),
}
operators = pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


@operators
def test_adjoint_matrix_and_gram_are_those_of_the_map(operator: Operator) -> None:
    x, y = normal(3, *EVENT), normal(3, *operator.measurement_shape)
    image, back = operator(x), operator.adjoint(y)
    assert image.shape == y.shape
    assert back.shape == x.shape
    assert_close((image * y).flatten(1).sum(1), (x * back).flatten(1).sum(1), rtol=1e-12, atol=1e-12)
    matrix = operator.matrix(x)
    assert_close(x.flatten(1) @ matrix.T, image.flatten(1), rtol=1e-12, atol=1e-12)
    gram = operator.gram(x)
    dense = torch.einsum("md,bd,nd->bmn", matrix, x.flatten(1), matrix)
    if gram is not None:
        assert_close(gram.flatten(1).diag_embed(), dense, rtol=1e-12, atol=1e-12)
    assert operator.selects == (gram is not None and torch.equal(matrix @ matrix.T, torch.eye(len(matrix)).double()))
    assert operator(x.float()).dtype == operator.adjoint(y.float()).dtype == torch.float32


def test_a_blur_convolves_around_the_centre_of_its_kernel() -> None:
    x = torch.zeros(1, *EVENT, dtype=torch.float64)
    x[0, 1, 2, 5] = 1  # at the end of a row, which goes on at its beginning
    image = Blur(EVENT, KERNEL)(x)[0]
    assert_close(image[1, 2], torch.tensor([0.3, 0, 0, 0, 0.3, 0.1]).double(), rtol=0, atol=1e-7)
    assert_close(image[1, 1], torch.tensor([0.0, 0, 0, 0, 0.1, 0.2]).double(), rtol=0, atol=1e-7)
    assert_close(image[0], torch.zeros_like(image[0]), rtol=0, atol=1e-12)
    assert_close(Blur(EVENT, std=2.0)(torch.ones_like(x)), torch.ones_like(x))


def test_a_reflected_blur_convolves_what_a_mirror_continues() -> None:
    kernel = torch.tensor([[0.1, 0.2, 0.1], [0.3, 0.5, 0.3], [0.1, 0.2, 0.1]]).double()
    x = normal(3, *EVENT)
    wide = torch.cat([x[..., :1], x, x[..., -1:]], -1)  # a mirror shows the outermost pixels twice
    wide = torch.cat([wide[..., :1, :], wide, wide[..., -1:, :]], -2)
    wanted = torch.nn.functional.conv2d(wide.flatten(0, 1)[:, None], kernel[None, None]).reshape(x.shape)
    assert_close(ReflectedBlur(EVENT, kernel)(x), wanted, rtol=1e-12, atol=1e-12)
    assert_close(ReflectedBlur(EVENT, std=3.0)(torch.ones_like(x)), torch.ones_like(x))


def test_strips_at_right_angles_are_sums_over_columns_and_rows() -> None:
    x = normal(3, *EVENT)
    strips = Strips(EVENT, [0, 90, 30])(x)
    assert strips.shape == (3, 2, 3, 7)  # the diagonal between centres is 5.8
    # an even number of columns lies between the middles of an odd number of strips
    pairs = torch.nn.functional.avg_pool1d(torch.nn.functional.pad(x.sum(-2), (1, 1)), 2, 1)
    assert_close(strips[:, :, 0], pairs, rtol=1e-12, atol=1e-12)
    pairs = torch.nn.functional.avg_pool1d(torch.nn.functional.pad(x.sum(-1), (2, 2)), 2, 1)
    assert_close(strips[:, :, 1], pairs, rtol=1e-12, atol=1e-12)
    odd = Strips((1, 3, 5), [0, 90])(x[:, :1, :3, :5])  # whose columns and rows are strips
    assert_close(odd[:, 0, 0, 1:6], x[:, 0, :3, :5].sum(-2), rtol=1e-12, atol=1e-12)
    assert_close(odd[:, 0, 1, 2:5], x[:, 0, :3, :5].sum(-1), rtol=1e-12, atol=1e-12)
    # the pixel beside the centre lies 0.71 strips from the middle
    beside = torch.zeros(1, 1, 3, 5, dtype=torch.float64)
    beside[..., 1, 3] = 1
    shares = Strips((1, 3, 5), [45])(beside)[0, 0, 0]
    assert_close(
        shares, torch.tensor([0, 0, 0, 1 - 0.5**0.5, 0.5**0.5, 0, 0], dtype=torch.float64), rtol=1e-12, atol=1e-12
    )
    assert_close(strips.sum(-1), x.sum((-2, -1))[..., None].expand(3, 2, 3), rtol=1e-12, atol=1e-12)


def test_a_mask_takes_images_and_values() -> None:
    operator, image = OPERATORS["mask of one row"], normal(*EVENT)
    assert torch.equal(operator.accept(image), image[None, ..., :3].flatten(1))
    assert torch.equal(operator.accept(image[None]), operator.accept(image[..., :3].flatten()))
    with pytest.raises(ValueError, match=r"y must have shape \(24,\) or \(2, 4, 6\), or .* \(got \(2, 5\)\)"):
        operator.accept(normal(2, 5))
    with pytest.raises(ValueError, match="y must hold finite numbers"):
        operator.accept(image / 0)


class Physics:
    """As deepinv's have it."""

    def A(self, x: Tensor) -> Tensor:
        return 2 * x

    def A_adjoint(self, y: Tensor) -> Tensor:
        return 2 * y


def test_physics_of_a_library_is_a_pair() -> None:
    assert_close(PairOperator.of((3,), Physics())(torch.ones(1, 3)), torch.full((1, 3), 2.0))
    with pytest.raises(ValueError, match=r"physics must have A and A_adjoint \(got int\)"):
        PairOperator.of((3,), 3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Mask(EVENT, torch.zeros(4, 6)), "mask must have at least one 1"),
        (lambda: Mask(EVENT, torch.full((4, 6), 0.5)), "mask must hold zeros and ones"),
        (lambda: Mask(EVENT, torch.ones(5, 6)), r"mask must have the shape of an image, \(2, 4, 6\)"),
        (lambda: BlockAverage(EVENT, 4), r"factor must divide the sides 4 and 6 of images \(got 4\)"),
        (lambda: BlockAverage((6,), 2), r"data must be images .* \(got shape \(6,\)\)"),
        (lambda: Blur(EVENT, stride=0), "stride must divide"),
        (lambda: Blur(EVENT, std=0), r"std must be positive \(got 0\)"),
        (lambda: Blur(EVENT, torch.ones(5, 5)), r"kernel must have shape \[h, w\], at most 4 x 6"),
        (lambda: ReflectedBlur(EVENT, std=-1), r"std must be positive \(got -1\)"),
        (lambda: ReflectedBlur(EVENT, torch.ones(2, 3)), r"kernel must have shape \[h, w\] with odd sides"),
        (lambda: ReflectedBlur(EVENT, torch.eye(3)), "kernel must be the same with its rows or its columns reversed"),
        (lambda: Strips(EVENT, []), r"angles must be at least one finite angle in degrees \(got \[\]\)"),
        (lambda: MatrixOperator(EVENT, torch.ones(3, 40)), r"matrix must have shape \[m, 48\]"),
        (lambda: MatrixOperator.random(EVENT, 0), r"count must be at least 1 \(got 0\)"),
        (lambda: PairOperator(EVENT, rows, lambda y: torch.nn.functional.pad(y, (0, 4))), "adjoint must satisfy"),
    ],
)
def test_refusals(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
