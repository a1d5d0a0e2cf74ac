"""The U-Net against diffusers' with the same weights, its size, and its variants."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

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


def block_weights(peer: nn.Module) -> dict[str, Tensor]:
    """A diffusers ResnetBlock2D in our names."""
    names = {"norm1": "norm1", "conv1": "layer1", "time_emb_proj": "time", "norm2": "norm2", "conv2": "layer2"}
    names["conv_shortcut"] = "shortcut"
    return {f"{names[k.split('.')[0]]}.{k.split('.')[1]}": v for k, v in peer.state_dict().items()}


def attention_weights(peer: nn.Module) -> dict[str, Tensor]:
    """A diffusers Attention in our names: linear layers become 1x1 convolutions."""
    out = {f"norm.{kind}": getattr(peer.group_norm, kind) for kind in ("weight", "bias")}
    for kind in ("weight", "bias"):
        qkv = torch.cat([getattr(p, kind) for p in (peer.to_q, peer.to_k, peer.to_v)])
        output = getattr(peer.to_out[0], kind)
        out[f"qkv.{kind}"], out[f"output.{kind}"] = (w[..., None, None] if w.ndim == 2 else w for w in (qkv, output))
    return out


def level_weights(peer_level: nn.Module, resamplers: str) -> list[dict[str, Tensor]]:
    """Our list of stages of one level, in the order of the forward pass."""
    attentions = getattr(peer_level, "attentions", [None] * len(peer_level.resnets))
    stages = []
    for resnet, attention in zip(peer_level.resnets, attentions, strict=True):
        stage = {f"block.{k}": v for k, v in block_weights(resnet).items()}
        if attention is not None:
            stage |= {f"attention.{k}": v for k, v in attention_weights(attention).items()}
        stages.append(stage)
    for resampler in getattr(peer_level, resamplers) or []:
        stages.append({f"conv.{k}": v for k, v in resampler.conv.state_dict().items()})
    return stages


def peer_weights(peer: nn.Module) -> dict[str, Tensor]:
    """All weights of a diffusers UNet2DModel in our names."""
    parts = {
        "input": peer.conv_in.state_dict(),
        "time.1": peer.time_embedding.linear_1.state_dict(),
        "time.3": peer.time_embedding.linear_2.state_dict(),
        "middle1.block": block_weights(peer.mid_block.resnets[0]),
        "middle1.attention": attention_weights(peer.mid_block.attentions[0]),
        "middle2": block_weights(peer.mid_block.resnets[1]),
        "norm": peer.conv_norm_out.state_dict(),
        "output": peer.conv_out.state_dict(),
    }
    down = [stage for level in peer.down_blocks for stage in level_weights(level, "downsamplers")]
    up = [stage for level in peer.up_blocks for stage in level_weights(level, "upsamplers")]
    parts |= {f"down.{i}": stage for i, stage in enumerate(down)} | {f"up.{i}": stage for i, stage in enumerate(up)}
    return {f"{part}.{name}": value for part, weights in parts.items() for name, value in weights.items()}


def test_forward_pass_is_that_of_diffusers():
    diffusers = pytest.importorskip("diffusers")
    peer = diffusers.UNet2DModel(  # google/ddpm-cifar10-32, on images of 16 to be quick
        sample_size=16,
        block_out_channels=(128, 256, 256, 256),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=2,
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
        norm_eps=1e-6,
        norm_num_groups=32,
        attention_head_dim=None,
        act_fn="silu",
    )
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
