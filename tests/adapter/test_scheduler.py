"""`OptCovScheduler` in pipelines of diffusers: the same samples as ours, there and back from disk."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMPipeline, DDPMPipeline, DDPMScheduler, UNet2DConditionModel, UNet2DModel
from torch import Tensor, nn
from torch.testing import assert_close

import optcov
from optcov.adapter.scheduler import OptCovScheduler
from optcov.denoiser import Denoiser
from optcov.seeds import Stream, derive_seed
from optcov.variance.base import VarianceStrategy

STEPS = 4
SAME = {"rtol": 1e-5, "atol": 1e-5}  # rounding of float32, which a chain of four steps passes on
BLOCKS = {
    "sample_size": 8,
    "layers_per_block": 1,
    "block_out_channels": (8, 8),
    "norm_num_groups": 4,
}


def generators(count: int) -> list[torch.Generator]:
    """Those of our samples 0..count - 1 with seed 0."""
    start = derive_seed(0, Stream.SAMPLES)
    return [torch.Generator().manual_seed((start + i) % 2**32) for i in range(count)]


def made(kind: type[nn.Module], **arguments: Any) -> nn.Module:
    """A tiny network with random weights, none of whose outputs is 0."""
    torch.manual_seed(0)
    return kind(**BLOCKS, **arguments).eval()


@pytest.fixture(scope="module")
def unet() -> nn.Module:
    down, up = ("DownBlock2D", "DownBlock2D"), ("UpBlock2D", "UpBlock2D")
    return made(UNet2DModel, in_channels=2, out_channels=2, down_block_types=down, up_block_types=up)


@pytest.fixture(scope="module")
def denoiser(unet: nn.Module) -> Denoiser:
    pipeline = DDPMPipeline(unet, DDPMScheduler(num_train_timesteps=40, beta_end=0.3))
    return optcov.load(pipeline, data_range=(-1, 1), check=False)


def fitted(denoiser: Denoiser, name: str, **settings: Any) -> VarianceStrategy:
    images = torch.rand(8, 2, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    steps = {} if name.startswith("analytic") else {"steps": 2}
    return optcov.fit(name, denoiser, images, **steps, progress=False, **settings)


STRATEGIES: dict[str, Callable[[Denoiser], VarianceStrategy]] = {
    "table": lambda denoiser: fitted(denoiser, "analytic_imperfect_diag", num_images=4),
    "head_on_features": lambda denoiser: fitted(denoiser, "npr_dpm"),
}


def images_of(samples: Tensor) -> Tensor:
    return (samples / 2 + 0.5).clamp(0, 1)


@pytest.mark.parametrize("name", STRATEGIES)
def test_ddpm_pipelines_draw_our_samples_also_from_disk(name: str, denoiser: Denoiser, unet: nn.Module, tmp_path: Path):
    strategy = STRATEGIES[name](denoiser)
    scheduler = OptCovScheduler.of(denoiser, strategy)
    ours = optcov.sample(denoiser, strategy, STEPS, 3, trajectory="linspace", progress=False)
    how = {"batch_size": 3, "num_inference_steps": STEPS, "output_type": "pt"}
    DDPMPipeline(unet, scheduler).save_pretrained(tmp_path)
    assert {path.name for path in (tmp_path / "scheduler").iterdir()} == {
        "scheduler_config.json",
        "strategy.json",
        "strategy.safetensors",
    }
    for pipeline in (DDPMPipeline(unet, scheduler), DDPMPipeline.from_pretrained(tmp_path)):
        assert isinstance(pipeline.scheduler, OptCovScheduler)
        pipeline.set_progress_bar_config(disable=True)
        pipeline.scheduler.attach(pipeline.unet)
        theirs = pipeline(generator=generators(3), **how).images
        assert_close(torch.as_tensor(theirs), images_of(ours), **SAME)
    beta_tilde = optcov.sample(denoiser, None, STEPS, 3, trajectory="linspace", progress=False)
    assert (ours - beta_tilde).abs().max() > 0.05


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_ddim_pipelines_draw_our_samples(spacing: str, denoiser: Denoiser, unet: nn.Module):
    """A DDIMPipeline makes a DDIMScheduler of whatever it is given, so that ours is set afterwards."""
    strategy = STRATEGIES["table"](denoiser)
    ours = optcov.sample(denoiser, strategy, STEPS, 3, "ddim", spacing, progress=False, eta=0.5)
    pipeline = DDIMPipeline(unet, DDPMScheduler())
    pipeline.scheduler = OptCovScheduler.of(denoiser, strategy, timestep_spacing=spacing, cut=1.0)
    pipeline.set_progress_bar_config(disable=True)
    how = {"batch_size": 3, "num_inference_steps": STEPS, "output_type": "pt", "eta": 0.5}
    assert_close(torch.as_tensor(pipeline(generator=generators(3), **how).images), images_of(ours), **SAME)


def test_a_loop_with_text_and_guidance_takes_a_table(denoiser: Denoiser):
    """Latents without bounds, a UNet2DConditionModel, and two samples a step of which one is made."""
    down, up = ("CrossAttnDownBlock2D", "DownBlock2D"), ("UpBlock2D", "CrossAttnUpBlock2D")
    more = {"cross_attention_dim": 8, "attention_head_dim": 4}
    unet = made(UNet2DConditionModel, in_channels=2, out_channels=2, down_block_types=down, up_block_types=up, **more)
    text = torch.randn(1, 3, 8, generator=torch.Generator().manual_seed(1))
    scheduler = DDPMScheduler(num_train_timesteps=40, beta_end=0.3)
    known = {"shape": (2, 8, 8), "prediction": "eps", "schedule": scheduler, "time": "n-1", "data_range": "unbounded"}
    latent = optcov.load(unet, **known, bind={"encoder_hidden_states": text}, check=False)
    strategy = fitted(latent, "analytic_imperfect", num_images=4)
    ours = optcov.sample(latent, strategy, STEPS, 1, trajectory="linspace", progress=False)
    loop = OptCovScheduler.of(latent, strategy)
    assert not loop.config.clip_sample
    loop.set_timesteps(STEPS)
    generator = generators(1)
    x = torch.randn(1, 2, 8, 8, generator=generator[0])
    for t in loop.timesteps:
        with torch.no_grad():
            both = unet(torch.cat([x, x]), t, encoder_hidden_states=torch.cat([text, text])).sample
        wanted, other = both.chunk(2)
        x = loop.step(other + 3 * (wanted - other), t, x, generator=generator).prev_sample
    assert_close(x, ours, **SAME)


def test_pushing_uploads_the_strategy_too(denoiser: Denoiser, monkeypatch: pytest.MonkeyPatch):
    import diffusers.utils.hub_utils as hub

    seen: list[set[str]] = []
    monkeypatch.setattr(hub, "create_repo", lambda name, **_: type("Repo", (), {"repo_id": name})())
    monkeypatch.setattr(hub, "load_or_create_model_card", lambda *_, **__: None)
    monkeypatch.setattr(
        hub, "populate_model_card", lambda *_, **__: type("Card", (), {"save": lambda self, path: None})()
    )
    monkeypatch.setattr(
        OptCovScheduler,
        "_upload_folder",
        lambda self, folder, *_, **__: seen.append({p.name for p in Path(folder).iterdir()}),
    )
    OptCovScheduler.of(denoiser, STRATEGIES["table"](denoiser)).push_to_hub("me/scheduler")
    assert seen == [{"scheduler_config.json", "strategy.json", "strategy.safetensors"}]


def test_what_a_pipeline_cannot_do_is_refused_in_a_sentence(denoiser: Denoiser, unet: nn.Module):
    strategy = STRATEGIES["head_on_features"](denoiser)
    scheduler = OptCovScheduler.of(denoiser, strategy)
    x = torch.zeros(2, 2, 8, 8)
    with pytest.raises(ValueError, match=r"call scheduler\.attach\(pipeline\.unet\) once"):
        scheduler.step(x, 39, x)
    scheduler.attach(unet)
    with torch.no_grad():
        unet(torch.cat([x, x]), 39)
    with pytest.raises(ValueError, match=r"once a step with 2 samples .* \(got 4, as with classifier-free guidance\)"):
        scheduler.step(x, 39, x)
    with pytest.raises(ValueError, match=r"timestep must be one of scheduler\.timesteps \(got 40\)"):
        scheduler.step(x, 40, x)
    with pytest.raises(ValueError, match="must have the module conv_norm_out"):
        scheduler.attach(nn.Linear(1, 1))
    flow = optcov.load(
        unet, shape=(2, 8, 8), prediction="velocity", schedule="flow", time="1000t", data_range=(-1, 1), check=False
    )
    with pytest.raises(ValueError, match=r"denoiser must predict eps, x0 or v .* \(got Velocity on FlowSchedule\)"):
        OptCovScheduler.of(flow, optcov.fit("beta", flow))
