"""Inception-v3 as used by the Frechet inception distance: TensorFlow's network of 2015-12-05 with 1008 outputs.

It differs from torchvision's in three ways: average pools exclude the padding; the last block has a maximum pool; and
the input is resized to 299 x 299 bilinearly, without half-pixel centres and without antialiasing, and scaled by
``(x - 128) / 128``.  Its weights have the names used in the file that pytorch-fid and torch-fidelity read.

Source: Szegedy et al. (arXiv:1512.00567); Heusel et al. (arXiv:1706.08500).
"""

from __future__ import annotations

import hashlib
import urllib.error
from pathlib import Path

import torch
from filelock import FileLock
from torch import Tensor, nn
from torch.nn import functional as F

from optcov.metric.features import TrainedFeatures

FILE = "pt_inception-2015-12-05-6726825d.pth"
SHA256 = "6726825d"  # first digits of the file's SHA-256
URL = f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{FILE}"
SIZE = 299  # pixels
NUM_CLASSES = 1008


def resize_like_tensorflow(images: Tensor, size: int = SIZE) -> Tensor:
    """Resize bilinearly, sampling at ``i * in / out``, as TensorFlow 1's ResizeBilinear with align_corners false.

    Args:
        images: float ``[B, C, H, W]``.
        size: side of the result in pixels.
    Returns:
        ``[B, C, size, size]``.
    """
    for dim, trailing in ((3, ()), (2, (1,))):
        count = images.shape[dim]
        position = torch.arange(size, dtype=torch.float64, device=images.device) * (count / size)
        lower = position.long()
        upper = (lower + 1).clamp(max=count - 1)
        weight = (position - lower).to(images.dtype).view(size, *trailing)
        images = torch.lerp(images.index_select(dim, lower), images.index_select(dim, upper), weight)
    return images


class _Convolution(nn.Module):
    def __init__(
        self, channels: int, out: int, kernel: int | tuple[int, int], stride: int = 1, pad: bool | None = None
    ) -> None:
        super().__init__()
        height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (height // 2, width // 2) if (stride == 1 if pad is None else pad) else 0
        self.conv = nn.Conv2d(channels, out, (height, width), stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)


def _mean_of_neighbours(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


class _BlockA(nn.Module):
    def __init__(self, channels: int, pool_channels: int) -> None:
        super().__init__()
        self.branch1x1 = _Convolution(channels, 64, 1)
        self.branch5x5_1 = _Convolution(channels, 48, 1)
        self.branch5x5_2 = _Convolution(48, 64, 5)
        self.branch3x3dbl_1 = _Convolution(channels, 64, 1)
        self.branch3x3dbl_2 = _Convolution(64, 96, 3)
        self.branch3x3dbl_3 = _Convolution(96, 96, 3)
        self.branch_pool = _Convolution(channels, pool_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        branches = [
            self.branch1x1(x),
            self.branch5x5_2(self.branch5x5_1(x)),
            self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x))),
            self.branch_pool(_mean_of_neighbours(x)),
        ]
        return torch.cat(branches, 1)


class _BlockB(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch3x3 = _Convolution(channels, 384, 3, stride=2)
        self.branch3x3dbl_1 = _Convolution(channels, 64, 1)
        self.branch3x3dbl_2 = _Convolution(64, 96, 3)
        self.branch3x3dbl_3 = _Convolution(96, 96, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        branches = [
            self.branch3x3(x),
            self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x))),
            F.max_pool2d(x, 3, stride=2),
        ]
        return torch.cat(branches, 1)


class _BlockC(nn.Module):
    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        row, column = (1, 7), (7, 1)
        self.branch1x1 = _Convolution(channels, 192, 1)
        self.branch7x7_1 = _Convolution(channels, inner, 1)
        self.branch7x7_2 = _Convolution(inner, inner, row)
        self.branch7x7_3 = _Convolution(inner, 192, column)
        self.branch7x7dbl_1 = _Convolution(channels, inner, 1)
        self.branch7x7dbl_2 = _Convolution(inner, inner, column)
        self.branch7x7dbl_3 = _Convolution(inner, inner, row)
        self.branch7x7dbl_4 = _Convolution(inner, inner, column)
        self.branch7x7dbl_5 = _Convolution(inner, 192, row)
        self.branch_pool = _Convolution(channels, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        branches = [
            self.branch1x1(x),
            self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x))),
            self.branch7x7dbl_5(self.branch7x7dbl_4(double)),
            self.branch_pool(_mean_of_neighbours(x)),
        ]
        return torch.cat(branches, 1)


class _BlockD(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch3x3_1 = _Convolution(channels, 192, 1)
        self.branch3x3_2 = _Convolution(192, 320, 3, stride=2)
        self.branch7x7x3_1 = _Convolution(channels, 192, 1)
        self.branch7x7x3_2 = _Convolution(192, 192, (1, 7))
        self.branch7x7x3_3 = _Convolution(192, 192, (7, 1))
        self.branch7x7x3_4 = _Convolution(192, 192, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        branches = [
            self.branch3x3_2(self.branch3x3_1(x)),
            self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x)))),
            F.max_pool2d(x, 3, stride=2),
        ]
        return torch.cat(branches, 1)


class _BlockE(nn.Module):
    def __init__(self, channels: int, maximum: bool) -> None:
        super().__init__()
        row, column = (1, 3), (3, 1)
        self.maximum = maximum
        self.branch1x1 = _Convolution(channels, 320, 1)
        self.branch3x3_1 = _Convolution(channels, 384, 1)
        self.branch3x3_2a = _Convolution(384, 384, row)
        self.branch3x3_2b = _Convolution(384, 384, column)
        self.branch3x3dbl_1 = _Convolution(channels, 448, 1)
        self.branch3x3dbl_2 = _Convolution(448, 384, 3)
        self.branch3x3dbl_3a = _Convolution(384, 384, row)
        self.branch3x3dbl_3b = _Convolution(384, 384, column)
        self.branch_pool = _Convolution(channels, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        single = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        pooled = F.max_pool2d(x, 3, stride=1, padding=1) if self.maximum else _mean_of_neighbours(x)
        branches = [
            self.branch1x1(x),
            self.branch3x3_2a(single),
            self.branch3x3_2b(single),
            self.branch3x3dbl_3a(double),
            self.branch3x3dbl_3b(double),
            self.branch_pool(pooled),
        ]
        return torch.cat(branches, 1)


class InceptionV3(nn.Module):
    """The Inception-v3 network, with 23.9 million weights."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = _Convolution(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = _Convolution(32, 32, 3, pad=False)
        self.Conv2d_2b_3x3 = _Convolution(32, 64, 3)
        self.Conv2d_3b_1x1 = _Convolution(64, 80, 1)
        self.Conv2d_4a_3x3 = _Convolution(80, 192, 3, pad=False)
        self.Mixed_5b = _BlockA(192, 32)
        self.Mixed_5c = _BlockA(256, 64)
        self.Mixed_5d = _BlockA(288, 64)
        self.Mixed_6a = _BlockB(288)
        self.Mixed_6b = _BlockC(768, 128)
        self.Mixed_6c = _BlockC(768, 160)
        self.Mixed_6d = _BlockC(768, 160)
        self.Mixed_6e = _BlockC(768, 192)
        self.Mixed_7a = _BlockD(768)
        self.Mixed_7b = _BlockE(1280, maximum=False)
        self.Mixed_7c = _BlockE(2048, maximum=True)
        self.fc = nn.Linear(2048, NUM_CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Compute features.

        Args:
            images: float ``[B, 3, H, W]`` in 0..255, of any size.
        Returns:
            ``[B, 2048]``, not negative.
        """
        x = (resize_like_tensorflow(images) - 128) / 128
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = F.max_pool2d(x, 3, stride=2)
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x))
        x = F.max_pool2d(x, 3, stride=2)
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x)))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))
        return F.adaptive_avg_pool2d(x, 1).flatten(1)


class InceptionFeatures(TrainedFeatures[InceptionV3]):
    """The 2048 features before the last layer, with the standard weights.

    Args:
        weights: the file with the standard weights; None for torch.hub's folder, where pytorch-fid also stores it.
        download: download the file from `URL` (95 MB) if it is missing.
        batch_size: images per network call.
    Raises:
        ValueError: if the file is missing, cannot be downloaded, or has another SHA-256.
    """

    name = "inception"
    dim = 2048

    def __init__(self, weights: str | None = None, download: bool = False, batch_size: int = 64) -> None:
        super().__init__(batch_size)
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        self.path = folder / FILE if weights is None else Path(weights).expanduser()
        if download and not self.path.is_file():
            self._download()
        if not self.path.is_file():
            raise ValueError(
                f"features.weights = {self.path} is not a file: put {URL} there, set features.weights or "
                "OPTCOV_INCEPTION to where you have it, or set features.download=true (95 MB)"
            )
        with self.path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if not found.startswith(SHA256):
            raise ValueError(
                f"features.weights = {self.path} is not {FILE} (its SHA-256 begins {found[:8]}, not {SHA256}): "
                f"put {URL} there"
            )

    @property
    def suffix(self) -> str:
        return ""

    @property
    def key(self) -> str:
        return f"{self.name}-{SHA256}"

    def load(self) -> InceptionV3:
        with torch.device("meta"):  # do not initialise weights that are about to be replaced
            network = InceptionV3()
        network.load_state_dict(torch.load(self.path, map_location="cpu", weights_only=True), assign=True)
        return network

    def extract(self, images: Tensor) -> Tensor:
        features: Tensor = self.network(self.colour(images))
        return features

    def logits(self, features: Tensor) -> Tensor:
        """Output of the last layer without its bias, ``[B, 1008]``, which the published inception score uses."""
        return features @ self.network.fc.weight.T

    def _download(self) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(self.path.with_name(f".{self.path.name}.lock")):
                if not self.path.is_file():
                    torch.hub.download_url_to_file(URL, str(self.path), SHA256)
        except (urllib.error.URLError, OSError, RuntimeError) as error:  # RuntimeError: the SHA-256 differs
            raise ValueError(
                f"features.download: {URL} did not arrive ({error}): put it at {self.path} yourself, or set "
                "features.weights or OPTCOV_INCEPTION to where you have it"
            ) from error
