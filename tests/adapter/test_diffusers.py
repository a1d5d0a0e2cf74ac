"""Networks of diffusers of every kind load and sample, or are refused in a sentence that says what to give."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import optcov
from optcov.schedule import FunctionSchedule

diffusers = pytest.importorskip("diffusers")

EPS: dict[str, Any] = {"schedule": "linear", "prediction": "eps", "time": "n-1", "data_range": "unbounded"}
FLOW: dict[str, Any] = {"schedule": "flow", "prediction": "velocity", "time": "t", "data_range": "unbounded"}
SMALL: dict[str, Any] = {"layers_per_block": 1, "block_out_channels": (8, 8), "norm_num_groups": 4}
TEXT = {"cross_attention_dim": 8, "attention_head_dim": 4}
WORDS = {"encoder_hidden_states": torch.ones(1, 3, 8)}


def sound(**settings: Any) -> nn.Module:
    """The network of Dance Diffusion."""
    return diffusers.UNet1DModel(
        **{"sample_size": 32, "extra_in_channels": 16, "time_embedding_dim": 16, "block_out_channels": (32, 32)}
        | settings, down_block_types=("DownBlock1DNoSkip", "DownBlock1D"),
        up_block_types=("UpBlock1D", "UpBlock1DNoSkip"),
    )  # fmt: skip


def paths() -> nn.Module:
    """The network of planners."""
    return diffusers.UNet1DModel(
        sample_size=16, in_channels=4, out_channels=4, block_out_channels=(8, 16), layers_per_block=1,
        time_embedding_type="positional", use_timestep_embedding=True, act_fn="mish",
        down_block_types=("DownResnetBlock1D",) * 2, mid_block_type="MidResTemporalBlock1D",
        up_block_types=("UpResnetBlock1D",), out_block_type="OutConv1DBlock",
    )  # fmt: skip


def pixels(**settings: Any) -> nn.Module:
    return diffusers.UNet2DModel(
        **{"sample_size": 8, "in_channels": 1, "out_channels": 1} | SMALL | settings, add_attention=False,
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
    )  # fmt: skip


def text(**settings: Any) -> nn.Module:
    return diffusers.UNet2DConditionModel(
        **{"sample_size": 8} | SMALL | TEXT | settings,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip


def video() -> nn.Module:
    return diffusers.UNet3DConditionModel(
        sample_size=8, **SMALL, **TEXT,
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"), up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
    )  # fmt: skip


def motion() -> nn.Module:
    return diffusers.UNetMotionModel(
        sample_size=8, **SMALL, cross_attention_dim=8, num_attention_heads=2, motion_num_attention_heads=2,
        down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"),
        up_block_types=("UpBlockMotion", "CrossAttnUpBlockMotion"),
    )  # fmt: skip


def frames_first() -> nn.Module:
    return diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, time_embed_dim=2, text_embed_dim=8,
        num_layers=1, sample_width=8, sample_height=8, sample_frames=5, max_text_seq_length=3,
    )  # fmt: skip


def pixart() -> nn.Module:
    return diffusers.PixArtTransformer2DModel(
        sample_size=4, num_layers=1, patch_size=2, attention_head_dim=4, num_attention_heads=2, caption_channels=8,
        in_channels=4, cross_attention_dim=8, out_channels=8, norm_num_groups=1, use_additional_conditions=False,
    )  # fmt: skip


def sd3() -> nn.Module:
    return diffusers.SD3Transformer2DModel(
        sample_size=4, patch_size=2, in_channels=4, num_layers=1, attention_head_dim=4, num_attention_heads=2,
        joint_attention_dim=8, caption_projection_dim=8, pooled_projection_dim=6, out_channels=4, pos_embed_max_size=8,
    )  # fmt: skip


def flux() -> nn.Module:
    return diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=8, pooled_projection_dim=6, axes_dims_rope=[2, 2, 4],
    )  # fmt: skip


def vae() -> nn.Module:
    return diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4)


def control() -> nn.Module:
    return diffusers.ControlNetModel(
        **SMALL, **TEXT, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        conditioning_embedding_out_channels=(8, 8),
    )  # fmt: skip


IDS = {"img_ids": torch.zeros(9, 3), "txt_ids": torch.zeros(3, 3)}
POOLED = {"pooled_projections": torch.ones(1, 6)}
WORKS: dict[str, tuple[Callable[[], Any], dict[str, Any], tuple[int, ...], str | None]] = {
    # network, conventions, the shape of its samples, the features that heads read
    "UNet1D of sounds": (sound, EPS, (2, 32), "up_blocks.1.resnets.2.group_norm_1"),
    "UNet1D of paths": (paths, EPS, (4, 16), "out_block.final_conv1d_act"),
    "UNet2D with classes": (lambda: pixels(num_class_embeds=3), EPS, (1, 8, 8), "conv_norm_out"),
    "UNet3D": (video, EPS | {"shape": (4, 2, 8, 8), "bind": WORDS}, (4, 2, 8, 8), "up_blocks.1.temp_convs.1.conv4.0"),
    "UNetMotion": (motion, EPS | {"shape": (4, 2, 8, 8), "bind": WORDS}, (4, 2, 8, 8), None),
    "CogVideoX": (frames_first, EPS | {"shape": (2, 4, 8, 8), "bind": WORDS}, (2, 4, 8, 8), None),
    "PixArt": (pixart, EPS | {"bind": WORDS}, (4, 4, 4), None),
    "SD3": (sd3, FLOW | {"bind": WORDS | POOLED}, (4, 4, 4), None),
    "Flux": (flux, FLOW | {"shape": (9, 4), "bind": WORDS | POOLED | IDS}, (9, 4), None),
}


@pytest.mark.parametrize("name", WORKS)
def test_it_loads_and_samples(name: str):
    make, stated, shape, features = WORKS[name]
    denoiser = optcov.load(make(), check=False, **stated)
    assert denoiser.network.features == features
    labels = {} if denoiser.num_classes is None else {"labels": 1}
    samples = optcov.sample(denoiser, num_steps=2, count=1, progress=False, **labels)
    assert samples.shape == (1, *shape)
    assert samples.isfinite().all()


REFUSED: dict[str, tuple[Callable[[], Any], dict[str, Any], str]] = {
    "a UNet1D of no use": (
        lambda: sound(time_embedding_dim=None), EPS, r"extra_in_channels of UNet1DModel must be the 64 .*\(got 16\), .*"
        r"make it with extra_in_channels=64 or time_embedding_dim=16",
    ),
    "text that is not bound": (text, EPS, r"bind its other arguments \(such as encoder_hidden_states, "),
    "a class that is not bound": (
        lambda: pixels(class_embed_type="timestep"), EPS, r"bind its other arguments \(such as class_labels\)",
    ),
    "a network of videos": (video, EPS, r"shape must be stated, .*\(C, frames, H, W\) of videos"),
    "a picture for a video": (
        motion, EPS | {"shape": (4, 8, 8), "bind": WORDS}, r"shape must be \(C, frames, H, W\) for UNetMotion",
    ),
    "frames after channels": (
        frames_first, EPS | {"shape": (4, 2, 8, 8), "bind": WORDS},
        r"shape must be \(frames, C, H, W\) for CogVideoX.*, with C = 4 \(got \(4, 2, 8, 8\)\)",
    ),
    "inpainting": (
        lambda: text(in_channels=9), EPS, r"noisy data alone \(got UNet2DConditionModel with 9 channels for 4",
    ),
    "an autoencoder": (vae, EPS, r"a time \(got AutoencoderKL, which is not\): encode the data with it"),
    "ControlNet": (control, EPS, r"that predicts \(got ControlNetModel, which corrects another one\): .* calls both"),
    "two networks": (
        lambda: SimpleNamespace(transformer=sd3(), transformer_2=sd3(), scheduler=diffusers.DDIMScheduler()), {},
        r"must have one network \(got SimpleNamespace with transformer and transformer_2",
    ),
    "time from noise to data": (
        lambda: SimpleNamespace(
            transformer=sd3(), scheduler=diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
        ), {}, r"time runs from data to noise \(got SD3Transformer2DModel, .*: give lambda x, t: -network\(x, 1 - t\)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_in_a_sentence(name: str):
    make, stated, message = REFUSED[name]
    with pytest.raises(ValueError, match=message) as caught:
        optcov.load(make(), check=False, **stated)
    assert "\n" not in str(caught.value)


def test_a_pipeline_with_an_autoencoder_has_latents_and_flux_is_fed_t():
    pipeline = SimpleNamespace(transformer=flux(), vae=vae(), scheduler=diffusers.FlowMatchEulerDiscreteScheduler())
    denoiser = optcov.load(pipeline, shape=(9, 4), bind=WORDS | POOLED | IDS, check=False)
    assert not denoiser.data_range.is_bounded
    assert float(denoiser.network_time(denoiser.levels(torch.tensor(0.3)))) == pytest.approx(0.3)


class Compiled(nn.Module):
    """As what `torch.compile` makes, whose import takes seconds."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self._orig_mod, self.config = network, network.config

    def forward(self, *arguments: Any, **keywords: Any) -> Any:
        return self._orig_mod(*arguments, **keywords)


@pytest.mark.parametrize("wrapper", [Compiled, nn.DataParallel])
def test_a_pipeline_whose_network_was_wrapped(wrapper: Callable[[nn.Module], nn.Module]):
    pipeline = SimpleNamespace(unet=wrapper(pixels()), scheduler=diffusers.DDIMScheduler())
    denoiser = optcov.load(pipeline, data_range=(-1, 1), check=False)
    assert denoiser.data_shape == (1, 8, 8)
    assert denoiser.network.features == "conv_norm_out"


def test_an_old_folder_of_dance_diffusion(tmp_path: Path):
    """Its config does not say how wide the embedding of the time is, and its scheduler is a path of its own."""
    network = sound()
    network.save_pretrained(tmp_path / "unet")
    diffusers.IPNDMScheduler().save_pretrained(tmp_path / "scheduler")
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "DanceDiffusionPipeline"}))
    config = tmp_path / "unet" / "config.json"
    content = json.loads(config.read_text())
    del content["time_embedding_dim"]
    config.write_text(json.dumps(content))
    denoiser = optcov.load(tmp_path, data_range=(-1, 1), check=False)
    assert isinstance(denoiser.schedule, FunctionSchedule)
    x_t, level = torch.randn(2, 2, 32), denoiser.levels(torch.tensor(0.3))
    torch.testing.assert_close(level.sigma, torch.tensor(0.3 * torch.pi / 2).sin().double(), rtol=1e-6, atol=0)
    with torch.no_grad():
        torch.testing.assert_close(denoiser(x_t, level).output, network.eval()(x_t, torch.full((2,), 0.3)).sample)
    with pytest.raises(ValueError, match=r"the folder of a file that diffusers saved .* give .*unet$"):
        optcov.load(tmp_path / "unet" / "diffusion_pytorch_model.safetensors")


def test_a_lora_is_not_a_network(tmp_path: Path):
    for name in ("lora_A", "lora_B"):
        save_file({f"unet.to_q.{name}.weight": torch.ones(2, 2)}, tmp_path / "lora.safetensors")
    torch.save({"state_dict": {"q.lora_up.weight": torch.ones(1), "q.alpha": torch.ones(())}}, tmp_path / "lora.pt")
    for name in ("lora.safetensors", "lora.pt"):
        with pytest.raises(ValueError, match=rf"{name} must hold the weights of a network \(got a LoRA"):
            optcov.load(tmp_path / name, network=pixels(), **EPS)
