"""Heads: shapes, zero at the start, and the published form."""

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from optcov.model import ComplexHead, SimpleHead

SHAPES = [(32, (3, 8, 8)), (5, (1, 4, 6)), (64, (2,)), (2, (2,)), (1, (1,))]
shapes = pytest.mark.parametrize(("channels", "shape"), SHAPES)
heads = pytest.mark.parametrize("make", [SimpleHead, ComplexHead, lambda c, s: ComplexHead(c, s, hidden_channels=24)])
TIMES = [torch.tensor(0.5, dtype=torch.float64), torch.tensor([0.1, 0.5, 1.0], dtype=torch.float64)]


def features_of(channels: int, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.randn(3, channels, *shape[1:], generator=torch.Generator().manual_seed(0))


def randomise(head: torch.nn.Module) -> None:
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in head.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=g))


@heads
@shapes
@pytest.mark.parametrize("t", TIMES, ids=["0-dim", "batch"])
def test_shape_and_zero_at_the_start(make, channels: int, shape: tuple[int, ...], t: torch.Tensor):
    output = make(channels, shape)(features_of(channels, shape), t)
    assert output.shape == (3, *shape)
    assert output.dtype == torch.float32
    assert_close(output, torch.zeros_like(output), rtol=0, atol=0)


@heads
def test_it_learns_from_channels_last_features(make):
    """As a frozen network in that format gives them: PyTorch's own norm crashes there, in the backward pass."""
    gradients = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        head = make(32, (3, 8, 8)).double()
        randomise(head)
        output = head(features_of(32, (3, 8, 8)).double().to(memory_format=memory_format), TIMES[1])
        gradients.append(torch.autograd.grad(output.square().sum(), list(head.parameters())))
    assert_close(*gradients)


@heads
@shapes
def test_a_gradient_step_leaves_zero(make, channels: int, shape: tuple[int, ...]):
    head = make(channels, shape)
    head(features_of(channels, shape), TIMES[1]).sub(1).square().sum().backward()
    with torch.no_grad():
        for p in head.parameters():
            if p.grad is not None:
                p.sub_(0.01 * p.grad)
    assert head(features_of(channels, shape), TIMES[1]).abs().max() > 0


def test_simple_head_is_norm_silu_convolution():
    head = SimpleHead(128, (3, 8, 8))  # as on the published CIFAR-10 network
    randomise(head)
    weights = dict(head.named_parameters())
    assert sorted(tuple(w.shape) for w in weights.values()) == [(3,), (3, 128, 3, 3), (128,), (128,)]
    weight = next(w for w in weights.values() if w.ndim == 4)
    bias = next(w for w in weights.values() if w.shape == (3,))
    gain, shift = (w for w in weights.values() if w.shape == (128,))
    x = features_of(128, (3, 8, 8))
    expected = F.conv2d(F.silu(F.group_norm(x, 32, gain, shift, eps=1e-6)), weight, bias, padding=1)
    assert_close(head(x, TIMES[0]), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("channels", "shape"), [(32, (3, 8, 8)), (64, (2,))])
def test_the_complex_head_sees_the_time_and_one_time_is_that_of_each(channels: int, shape: tuple[int, ...]):
    head = ComplexHead(channels, shape).eval()
    randomise(head)
    x = features_of(channels, shape)
    one, each = head(x, TIMES[0]), head(x, TIMES[1])
    assert_close(one[1], each[1], rtol=1e-4, atol=1e-5)
    assert (one[0] - each[0]).abs().max() > 1e-3
