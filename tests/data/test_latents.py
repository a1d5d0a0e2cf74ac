"""Latents: what an autoencoder says, encoded once; and tensors, in their unit and range."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import save_file
from torch import Tensor

import optcov
from optcov.data import DigitsData, LatentData, TensorData
from optcov.data.autoencoder import autoencoder_of
from optcov.data.pixels import from_uint8
from optcov.data_range import DataRange
from optcov.denoiser import Denoiser
from optcov.model import UNet
from optcov.schedule import LinearSchedule

VALUES = torch.randn(9, 2, 4, 4, generator=torch.Generator().manual_seed(0)) * 3 + 5


def kl(seed: int = 0) -> AutoencoderKL:
    """A random autoencoder of grey 8 x 8 images to 2 x 4 x 4."""
    torch.manual_seed(seed)
    return AutoencoderKL(
        in_channels=1, out_channels=1, down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, block_out_channels=(4, 4), layers_per_block=1, latent_channels=2,
        norm_num_groups=2, mid_block_add_attention=False, scaling_factor=0.5, shift_factor=0.25,
    ).eval()  # fmt: skip


class Halves(torch.nn.Module):
    """Every second pixel, and each of these twice: a pair whose latents are known."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def encode(self, x: Tensor) -> Tensor:
        self.calls += len(x)
        return x[..., ::2, ::2]

    def decode(self, z: Tensor) -> Tensor:
        return z.repeat_interleave(2, -1).repeat_interleave(2, -2)


def latents(autoencoder: Any, tmp_path: Path, **settings: Any) -> LatentData:
    return LatentData(DigitsData(), autoencoder, str(tmp_path / "cache"), **settings)


def test_diffusers_latents_are_the_mode_shifted_and_scaled(tmp_path: Path) -> None:
    """Through a module and through its folder."""
    module = kl()
    module.save_pretrained(tmp_path / "pipeline" / "vae")
    images = from_uint8(DigitsData().train[:3])
    with torch.no_grad():
        expected = (module.encode(images).latent_dist.mean - 0.25) * 0.5
        back = module.decode(expected / 0.5 + 0.25).sample
    for source in (module, str(tmp_path / "pipeline"), str(tmp_path / "pipeline" / "vae")):
        data = latents(source, tmp_path)
        torch.testing.assert_close(data.train[:3], expected, rtol=1e-4, atol=1e-5)  # convolutions of other batches
        torch.testing.assert_close(data.decode(expected), back, rtol=1e-4, atol=1e-5)
        assert data.identity() == latents(module, tmp_path).identity()
    module.register_to_config(latents_mean=[1.0, 2.0], latents_std=[2.0, 4.0])
    data, raw = latents(module, tmp_path), expected / 0.5 + 0.25
    channels = [(raw[:, i] - (1, 2)[i]) * 0.5 / (2, 4)[i] for i in range(2)]
    torch.testing.assert_close(data.encode(images), torch.stack(channels, 1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(data.decode(data.encode(images)), back, rtol=1e-4, atol=1e-5)
    module.register_to_config(latents_mean=None, latents_std=None)
    scaled = latents(module, tmp_path, scale=2.0)
    torch.testing.assert_close(scaled.train[:3], expected * 4, rtol=1e-4, atol=1e-5)
    assert len(list((tmp_path / "cache").glob("*/images.npy"))) == 2  # one a scale


def test_images_are_encoded_once_and_scored_as_pixels(tmp_path: Path) -> None:
    halves = Halves()
    data = latents(halves, tmp_path)
    digits = DigitsData()
    assert data.train.equal(from_uint8(digits.train)[..., ::2, ::2])
    assert data.data_shape == (1, 4, 4)
    assert data.sample_shape == (1, 8, 8)
    assert data.data_range == DataRange(None, None, None)
    assert data.reference().equal(digits.train)
    assert data.labels("test").equal(digits.labels("test"))
    assert data.normalize(data.train[:2]).equal(data.train[:2])
    finished = data.finish(data.train[:5])
    assert finished.dtype == torch.uint8
    assert finished[..., ::2, ::2].equal(digits.train[:5, :, ::2, ::2])
    before = halves.calls
    again = latents(halves, tmp_path)
    assert again.train.equal(data.train)
    assert halves.calls - before <= 6  # to tell it from others, and its shape
    with pytest.raises(ValueError, match="1 of 2 contain NaN"):
        data.finish(torch.stack([data.train[0], data.train[0] * torch.nan]))


def test_a_damaged_latent_is_encoded_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    expected = latents(Halves(), tmp_path).train.clone()
    (path,) = (tmp_path / "cache").glob("*/images.npy")
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    assert latents(Halves(), tmp_path).train.equal(expected)
    assert "does not match its checksum" in caplog.text


def test_what_is_no_autoencoder_of_these_images_is_refused(tmp_path: Path) -> None:
    def squash(x: Tensor) -> Tensor:
        return x.flatten(1)

    config = tmp_path / "bad" / "config.json"
    config.parent.mkdir()
    for text, problem in (
        ("[" * 9999, "is damaged"),
        ('{"_class_name": "UNet2DModel"}', "must name one of AutoencoderKL"),
    ):
        config.write_text(text)
        with pytest.raises(ValueError, match=problem):
            autoencoder_of(str(config.parent))
    config.write_text('{"_class_name": "AutoencoderKL"}')
    (config.parent / "diffusion_pytorch_model.bin").write_bytes(b"a pickle")
    with pytest.raises(ValueError, match=r"data.autoencoder: .*bad has no weights as safetensors"):
        autoencoder_of(str(config.parent))
    (config.parent / "diffusion_pytorch_model.safetensors").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"data.autoencoder = .*bad cannot be opened \("):
        autoencoder_of(str(config.parent))
    for source, problem in (
        ((squash, squash), r"must give finite latents \[B, c, h, w\] \(got \[2, 64\]\)"),
        ((lambda x: x * torch.nan, squash), "must give finite latents"),
        ((lambda x: x[..., ::2], lambda z: z), r"must give images of shape \[1, 8, 8\] back \(got \[1, 8, 4\]\)"),
        ((torch.nn.Conv2d(3, 4, 2), squash), r"cannot encode images of shape \[1, 8, 8\]"),
        ("nowhere", "data.autoencoder = nowhere has no config.json"),
        (3, "must be a folder, a module with encode and decode, or a pair"),
    ):
        with pytest.raises(ValueError, match=problem) as error:
            latents(source, tmp_path).load("train")
        assert "\n" not in str(error.value)
    save_file({"z": VALUES}, tmp_path / "z.safetensors")
    data = LatentData(TensorData(str(tmp_path / "z.safetensors")), Halves(), str(tmp_path))
    with pytest.raises(ValueError, match=r"data.source must be images \(got vectors or tensors\)"):
        data.load("train")


def test_a_notebook_fits_to_a_source_and_decodes_what_it_draws(tmp_path: Path) -> None:
    data = latents(Halves(), tmp_path)
    denoiser = Denoiser(UNet(data.data_shape, channels=8), LinearSchedule(100), data_range=data.data_range)
    pairs = zip(data.train, data.labels("train"), strict=True)
    fitted = [
        optcov.fit("analytic_imperfect", denoiser, images, num_images=16, num_times=4)
        for images in (
            data,
            data.train,
            data.train.numpy(),
            data.train.split(500),
            pairs,
        )
    ]
    drawn = [optcov.sample(denoiser, strategy, num_steps=3, count=2, progress=False) for strategy in fitted]
    assert all(samples.equal(drawn[0]) for samples in drawn)
    assert data.finish(drawn[0]).shape == (2, 1, 8, 8)
    for images, problem in (
        ([{"image": data.train}], r"must be tensors or arrays, or pairs .* \(got dict\)"),
        ([data.train, data.train[..., :2]], r"must be of one shape \(got \[1, 4, 4\] and \[1, 4, 2\]\)"),
        ([], "must not be empty"),
        (DigitsData(), r"must have the shape \[n, 1, 4, 4\] \(got \[1500, 1, 8, 8\]\)"),
    ):
        with pytest.raises(ValueError, match=problem):
            optcov.fit("analytic_imperfect", denoiser, images)


def write(path: Path, **tensors: Tensor) -> Path:
    if path.suffix == ".safetensors":
        save_file(tensors, path)
    elif path.suffix == ".pt":
        torch.save(tensors if len(tensors) > 1 else next(iter(tensors.values())), path)
    elif path.suffix == ".npz":
        np.savez(path, **{name: tensor.numpy() for name, tensor in tensors.items()})
    else:
        np.save(path, next(iter(tensors.values())).numpy())
    return path


@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ".npz", ".npy"])
def test_tensors_come_as_they_are(suffix: str, tmp_path: Path) -> None:
    data = TensorData(str(write(tmp_path / f"z{suffix}", z=VALUES)), test_size=2)
    assert data.data_shape == (2, 4, 4)
    both = torch.cat([data.train, data.load("test")])
    assert sorted(both.flatten(1).sum(1).tolist()) == sorted(VALUES.flatten(1).sum(1).tolist())
    assert data.normalize(data.train).equal(data.train)
    assert data.finish(data.train).equal(data.train)
    assert data.data_range == DataRange(None, None, None)
    with pytest.raises(ValueError, match=r"no val split: give data.val_size"):
        data.load("val")
    with pytest.raises(ValueError, match="has no classes"):
        data.labels("train")
    if suffix == ".npy":
        return
    labelled = TensorData(str(write(tmp_path / f"y{suffix}", z=VALUES, y=torch.arange(9))))
    assert labelled.labels("train").tolist() == list(range(9))
    assert labelled.num_classes == 9
    several = write(tmp_path / f"s{suffix}", a=VALUES, b=VALUES * 2)
    with pytest.raises(ValueError, match=r"has the tensors a, b: give data.tensor=NAME"):
        TensorData(str(several)).load("train")
    assert TensorData(str(several), tensor="b").train.equal(VALUES * 2)


def test_a_stated_range_is_modelled_on_the_unit_and_given_back(tmp_path: Path) -> None:
    counts = torch.randint(0, 65_536, (9, 1, 4, 4), generator=torch.Generator().manual_seed(1)).to(torch.int32)
    path = str(write(tmp_path / "counts.npy", x=counts))
    data = TensorData(path, value_range=[0, 65_535], num_levels=65_536)
    assert data.data_range == DataRange(-1, 1, 65_536)
    unit = data.normalize(data.train)
    torch.testing.assert_close(unit, counts / 32_767.5 - 1, rtol=0, atol=1e-6)
    assert data.finish(unit).round().int().equal(counts)
    assert data.levels(data.train).equal((counts / 257).round().to(torch.uint8))
    with pytest.raises(ValueError, match=r"holds int32: say what it spans, such as data.value_range=\[0,255\]"):
        TensorData(path).load("train")
    with pytest.raises(
        ValueError, match=r"row \d of .* but they must be finite and from 0 to 100, as data.value_range"
    ):
        TensorData(path, value_range=[0, 100]).load("train")
    with pytest.raises(ValueError, match=r"data.num_levels must be at least 2, of data with a value_range"):
        TensorData(path, num_levels=256)


def test_unbounded_data_are_shown_within_four_standard_deviations_of_each_channel(tmp_path: Path) -> None:
    data = TensorData(str(write(tmp_path / "z.pt", z=VALUES * torch.tensor([1.0, 100.0]).reshape(2, 1, 1))))
    levels = data.reference().double()
    assert levels.dtype == torch.float64
    mean, std = levels.mean((0, 2, 3)), levels.std((0, 2, 3))
    assert (mean - 127.5).abs().max() < 1
    assert (std - 255 / 8).abs().max() < 1


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.pt", b"\x80\x04cos\nsystem\n(X\x02\x00\x00\x00idtR.", "is damaged, or holds more than tensors"),
        ("a.pt", b"PK", "is damaged, or holds more than tensors"),
        ("a.safetensors", (2**40).to_bytes(8, "little") + b"{}", "is damaged, or holds more than tensors"),
        ("a.npy", b"", "is damaged, or holds more than tensors"),
        ("a.npz", b"", "is damaged, or holds more than tensors"),
        ("a.txt", b"", "is of an unknown kind: give a .pt"),
        ("a.pt", VALUES * torch.nan, r"row 0 of .* has values from nan to nan, but they must be finite$"),
        ("a.pt", torch.zeros(1).expand(10**6, 10**6), r"declares more data than the file has: save a clone"),
        ("a.pt", torch.zeros(3), r"must hold samples \[n, ...\] \(got \[3\]\)"),
        ("a.pt", {"a": 1}, r"\(it holds a dict without tensors\)"),
        ("a.pt", {"z": VALUES, "y": torch.zeros(3)}, r"data.label: y in .* must be the class .*\(got float32 \[3\]\)"),
    ],
)
def test_bad_tensors_end_in_a_sentence(name: str, content: Any, problem: str, tmp_path: Path) -> None:
    if not isinstance(content, bytes):
        file = io.BytesIO()
        torch.save(content, file)
        content = file.getvalue()
    (tmp_path / name).write_bytes(content)
    data = TensorData(str(tmp_path / name))
    with pytest.raises(ValueError, match=problem) as error:
        [data.load("train"), data.labels("train")]
    assert "\n" not in str(error.value)
