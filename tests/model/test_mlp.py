"""The multi-layer perceptron: shapes, zero at the start, time, refusals."""

import pytest
import torch
from torch.testing import assert_close

from optcov.model import MLP

TIME = torch.tensor([1.0, 500.0, 1000.0])


def x_t(dim: int) -> torch.Tensor:
    return torch.randn(3, dim, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dim", [1, 2, 7])
@pytest.mark.parametrize(("channels", "num_blocks"), [(128, 3), (32, 0), (48, 1)])
def test_shapes_and_zero_at_the_start(dim: int, channels: int, num_blocks: int):
    network = MLP((dim,), channels, num_blocks)
    assert network.data_shape == (dim,)
    assert network.feature_channels == channels
    output, features = network(x_t(dim), TIME)
    assert output.shape == (3, dim)
    assert features.shape == (3, channels)
    assert_close(output, torch.zeros_like(output), rtol=0, atol=0)


def test_output_depends_on_data_and_time_sample_by_sample():
    network = MLP([2]).eval()
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=g))
    x = x_t(2)
    output, _ = network(x, TIME)
    assert_close(network(x[1:2], TIME[1:2])[0], output[1:2], rtol=1e-4, atol=1e-5)
    later, _ = network(x, TIME - torch.tensor([0.0, 0.0, 5.0]))
    assert_close(later[:2], output[:2], rtol=1e-4, atol=1e-5)
    assert (later[2] - output[2]).abs().max() > 1e-4
    moved, _ = network(x + 0.1, TIME)
    assert (moved - output).abs().amin() > 1e-5


@pytest.mark.parametrize("shape", [(3, 8, 8), (3, 4), ()])
def test_refuses_images(shape: tuple[int, ...]):
    with pytest.raises(ValueError, match=r"data_shape|vector"):
        MLP(shape)
