"""The U-Net against diffusers' with the same weights, its size, and its variants."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from benchmarks.networks import diffusers_network, peer_weights
from optcov.model import LearnedEmbedding, UNet
from optcov.model.blocks import ResidualBlock

CIFAR10 = {
    "channel_mult": (1, 2, 2, 2),
    "num_blocks": 2,
    "attention_resolutions": (16,),
    "num_heads": 1,
    "dropout": 0.1,
}


def size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def randomised(module: nn.Module, seed: int = 0) -> nn.Module:
    """Every weight random, those that start at 0 or 1 too, so that a wrong or missing one shows."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=g))
    return module.eval()


def test_size_of_the_cifar10_network():
    with torch.device("meta"):
        network = UNet((3, 32, 32), 128, **CIFAR10)
    assert size(network) == 35_746_307  # DDPM's 35.7M, as google/ddpm-cifar10-32
    assert network.data_shape == (3, 32, 32)
    assert network.feature_channels == 128


def test_forward_pass_is_that_of_diffusers():
    pytest.importorskip("diffusers")
    peer = diffusers_network(size=16)  # google/ddpm-cifar10-32, on images of 16 to be quick
    randomised(peer)
    network = UNet((3, 16, 16), 128, **CIFAR10 | {"attention_resolutions": (8,)}).eval()
    network.load_state_dict(peer_weights(peer))  # strict: nothing missing, nothing left
    last: list[Tensor] = []
    peer.conv_norm_out.register_forward_pre_hook(lambda _, args: last.append(args[0]))

    x_t = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    time = torch.tensor([1.0, 417.0])
    with torch.no_grad():
        expected = peer(x_t, time).sample
        output, features = network(x_t, time)
    assert expected.std() > 0.1
    for ours, theirs in ((output, expected), (features, last[0])):  # float32, 40 layers, sums in another order
        assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * theirs.abs().max().item())


@pytest.mark.parametrize("heads", [1, 4])
def test_memory_format_and_bfloat16_change_rounding_alone(heads: int):
    """What inference on a CPU runs through (small norms in float32, attention as products) against float32."""
    network = randomised(UNet((3, 16, 16), 64, num_heads=heads, attention_resolutions=(8, 4)))
    x_t = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    time = torch.tensor([1.0, 417.0, 1000.0])
    expected = network(x_t, time)
    with torch.no_grad():
        for memory_format in (torch.contiguous_format, torch.channels_last):
            network.to(memory_format=memory_format)
            for ours, theirs in zip(network(x_t, time), expected, strict=True):
                assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * theirs.abs().max().item())  # sums in another order
            with torch.autocast("cpu", torch.bfloat16):
                for ours, theirs in zip(network(x_t, time), expected, strict=True):
                    assert (ours - theirs).std() < 0.02 * theirs.std()  # 8 bits, 20 layers; measured 0.007
    assert set(network.state_dict()) == set(UNet((3, 16, 16), 64, attention_resolutions=(8, 4)).state_dict())


def test_gradients_in_bfloat16_are_those_of_float32():
    network = randomised(UNet((3, 16, 16), 64, attention_resolutions=(8, 4)))
    x_t = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    weights, gradients = list(network.parameters()), []
    for half in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            output, _ = network(x_t, torch.tensor([1.0, 10.0, 417.0, 1000.0]))
        loss = (output.float() - x_t).square().sum()
        gradients.append(torch.cat([gradient.flatten() for gradient in torch.autograd.grad(loss, weights)]))
    assert F.cosine_similarity(*gradients, dim=0) > 0.999


VARIANTS = {
    "base": {},
    "additive_skips": {"additive_skips": True},
    "no_attention": {"attention_resolutions": (), "middle_attention": False},
    "heads": {"num_heads": 4},
    "scale_shift": {"scale_shift": True},
    "learned_time": {"time_embedding": LearnedEmbedding},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_run_see_the_time_and_differ(name: str):
    network, base = (randomised(UNet((3, 8, 16), **VARIANTS[n])) for n in (name, "base"))
    x_t = torch.randn(2, 3, 8, 16, generator=torch.Generator().manual_seed(1))
    outputs = []
    for time in ((3.0, 700.0), (3.0, 701.0)):
        output, features = network(x_t, torch.tensor(time))
        assert output.shape == x_t.shape
        assert features.shape == (2, network.feature_channels, 8, 16)
        read_out = network.output(F.silu(network.norm(features)))
        assert_close(output, read_out, rtol=1e-5, atol=1e-6)  # the map before the output's norm and convolution
        outputs.append(output)
    assert_close(outputs[0][0], outputs[1][0], rtol=1e-5, atol=1e-6)
    assert (outputs[0][1] - outputs[1][1]).abs().max() > 1e-4
    if name != "base":
        assert not torch.allclose(network(x_t, torch.tensor(time))[0], base(x_t, torch.tensor(time))[0], atol=1e-3)
    if name == "no_attention":
        assert not any("attention" in n for n, _ in network.named_parameters())


@pytest.mark.parametrize("channels", [16, 32, 48, 64])
def test_every_residual_block_sees_the_time(channels: int):
    """The time is added per channel before a norm: a group of one channel would subtract it again."""
    network = randomised(UNet((3, 8, 8), channels))
    blocks = [m for m in network.modules() if isinstance(m, ResidualBlock)]
    assert len(blocks) >= 6
    for i, block in enumerate(blocks):
        g = torch.Generator().manual_seed(i)
        x = torch.randn(2, block.norm1.num_channels, 8, 8, generator=g)
        time = torch.randn(2, 2, block.time.in_features, generator=g)
        first, second = (block(x, t) for t in time)
        assert (first - second).abs().max() > 1e-3


@pytest.mark.parametrize("total", [1000, 50])
def test_learned_times_are_told_apart(total: int):
    """Each n / N of the grid has its row: n * 1000 / N, which floating point may leave an ulp below an integer."""
    embedding = LearnedEmbedding(8)
    n = torch.arange(1, total + 1)
    exact = embedding((n * 1000 // total).double())
    assert len(exact.unique(dim=0)) == total
    for dtype in (torch.float32, torch.float64):
        t = n.double() / total
        assert torch.equal(embedding((t * total * 1000 / total).to(dtype)), exact)


def test_learned_times_are_continuous():
    embedding = LearnedEmbedding(8)
    rows = embedding(torch.tensor([41.0, 42.0]))
    assert_close(embedding(torch.tensor([41.25]))[0], 0.75 * rows[0] + 0.25 * rows[1])
    assert torch.isfinite(embedding(torch.tensor([-0.5, 0.0, 1000.0]))).all()
    assert torch.equal(embedding(torch.tensor([1000.0]))[0], embedding.table.weight[1000])


@pytest.mark.parametrize(
    ("shape", "mult"), [((3,), (1, 2)), ((3, 32), (1, 2)), ((3, 9, 8), (1, 2)), ((3, 8, 12), (1, 2, 2, 2))]
)
def test_refuses_shapes_that_do_not_fit(shape: tuple[int, ...], mult: tuple[int, ...]):
    with pytest.raises(ValueError, match=rf"{shape[-1]}"):
        UNet(shape, channel_mult=mult)


def test_patches_are_channels_inside_and_pixels_outside():
    torch.manual_seed(0)
    network = randomised(UNet((3, 8, 12), 16, channel_mult=(1, 2), patch=2))
    inner = UNet((12, 4, 6), 16, channel_mult=(1, 2)).eval()
    inner.load_state_dict(network.state_dict())
    x_t, time = torch.randn(2, 3, 8, 12, generator=torch.Generator().manual_seed(1)), torch.tensor([3.0, 700.0])
    squares = x_t.reshape(2, 3, 4, 2, 6, 2).permute(0, 1, 3, 5, 2, 4).reshape(2, 12, 4, 6)
    with torch.no_grad():
        output, features = network(x_t, time)
        expected = inner(squares, time)[0]
    assert_close(output, expected.reshape(2, 3, 2, 2, 4, 6).permute(0, 1, 4, 2, 5, 3).reshape(2, 3, 8, 12))
    assert features.shape == (2, network.feature_channels, 8, 12)
    for shape, channels in (((3, 9, 12), 16), ((3, 8, 12), 6)):
        with pytest.raises(ValueError, match=r"model\.patch must divide"):
            UNet(shape, channels, patch=2)
