"""Latents from the shell: encoded once, modelled, decoded, scored in pixels; tensors stay what they are."""

import numpy as np
import pytest
import torch
from command_line import CLI, results
from diffusers import AutoencoderKL
from PIL import Image
from safetensors.torch import save_file

from optcov.data_range import DataRange
from optcov.denoiser import Denoiser
from optcov.parameterization import Eps, Parameterization, V
from optcov.schedule import CosineSchedule, LinearSchedule, NoiseSchedule
from optcov.training.plan import warn_if_amplified

RNG = np.random.default_rng(8)


@pytest.fixture
def latents(run: CLI) -> list[str]:
    """A random autoencoder of 8 x 8 images, and the settings that use it."""
    torch.manual_seed(0)
    AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(4, 4), layers_per_block=1, norm_num_groups=2, mid_block_add_attention=False,
    ).save_pretrained(run.folder / "ae")  # fmt: skip
    for i, image in enumerate(RNG.integers(0, 256, (12, 8, 8, 3), np.uint8)):
        path = run.folder / "images" / ("cat" if i % 3 else "dog") / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    source = ["data@data.source=image_folder", "data.source.root=images", "data.source.image_size=8"]
    return ["data=latents", "data.autoencoder=ae", *source]


def test_a_run_on_latents_is_scored_in_pixels_and_made_again_from_its_folder(run: CLI, latents: list[str]) -> None:
    folder = run(*latents, "var=sn_dpm", "conditional=true")
    found = results(folder)
    assert found["data_shape"] == [3, 8, 8]
    assert found["metrics"]["fd_pixel_8"] > 0
    assert found["reference"]["fd_pixel_8"] == "latents train (12)"
    encoded = list((run.folder / "outputs" / "cache" / "data").glob("image_folder-latents-train-*/images.npy"))
    assert [np.load(path).shape for path in encoded] == [(12, 4, 4, 4)]
    samples = run(f"run={folder}", "num_samples=8", task="sample", tiny=False)
    with np.load(samples / "samples.npz") as drawn:
        assert drawn["arr_0"].dtype == np.uint8
        assert drawn["arr_0"].shape == (8, 8, 8, 3)
    again = results(run(f"run={folder}", task="evaluate", tiny=False))
    assert again["metrics"] == found["metrics"]


def test_what_latents_have_not_is_refused_before_anything_is_trained(run: CLI, latents: list[str]) -> None:
    assert "bits/dim need data with grey levels" in run.refused(*latents, "metric=nll")
    assert "data.random_flip must be false" in run.refused(*latents, "data.random_flip=true")
    assert "data.autoencoder = nowhere has no config.json" in run.refused(*latents, "data.autoencoder=nowhere")
    assert not list(run.folder.rglob("*.ckpt"))


def test_tensors_are_modelled_and_drawn_in_the_unit_of_their_file(run: CLI) -> None:
    values = torch.from_numpy(RNG.normal(100.0, 30.0, (12, 4, 8, 8))).float()
    save_file({"z": values}, run.folder / "z.safetensors")
    folder = run("data=tensors", "data.root=z.safetensors", "var=analytic_imperfect")
    assert results(folder)["data_shape"] == [4, 8, 8]
    samples = run(f"run={folder}", "num_samples=8", "sampler.num_steps=3", task="sample", tiny=False)
    with np.load(samples / "samples.npz") as drawn:
        assert drawn["arr_0"].dtype == np.float32
        assert drawn["arr_0"].shape == (8, 8, 8, 4)
        assert len(np.unique(drawn["arr_0"])) > 1000
    refused = run.refused(f"run={folder}", "format=png", task="sample", tiny=False)
    assert "format must be npz for samples that are vectors or tensors" in refused


@pytest.mark.parametrize("schedule", [CosineSchedule(1000), LinearSchedule(1000)])
@pytest.mark.parametrize("parameterization", [Eps(), V()])
@pytest.mark.parametrize("data_range", [DataRange(), DataRange(None, None, None)])
def test_an_error_that_is_multiplied_and_not_clipped_is_told(
    schedule: NoiseSchedule,
    parameterization: Parameterization,
    data_range: DataRange,
    caplog: pytest.LogCaptureFixture,
):
    warn_if_amplified(Denoiser(torch.nn.Linear(1, 1), schedule, parameterization, data_range=data_range))
    amplified = isinstance(schedule, CosineSchedule) and isinstance(parameterization, Eps)
    assert ("by 20291 on this schedule" in caplog.text) == (amplified and not data_range.is_bounded)
