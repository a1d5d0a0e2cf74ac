r"""Blurs, each diagonal in a basis, so that solutions need two transforms where C is diagonal in it too.

circular    FFT; A A^T is circulant.  Cosines are not its eigenvectors, so a DCT-diagonal C has no closed form here.
reflected   DCT; for symmetric kernels
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from optcov.covariance.bases import DCT, Basis, Hartley
from optcov.inverse.base import Operator, image_shape


class Blur(Operator):
    """A circular convolution of each channel by FFT; with a stride, only every ``stride``-th row and column is kept.

    For ``C = c I``, ``A C A^T`` is circulant with any stride, so a solution takes two transforms.

    Args:
        event_shape: ``(C, H, W)``.
        kernel: ``[h, w]``, no larger than the image; its centre is at ``(h // 2, w // 2)``.  None for a Gaussian.
        std: standard deviation of the Gaussian, in pixels, positive; ignored if a kernel is given.
        stride: 1 for a blur, more for super-resolution; it divides H and W.
    Raises:
        ValueError: if an argument is out of range, or events are not images.
    """

    spectrum: Tensor

    def __init__(
        self, event_shape: Sequence[int], kernel: Tensor | None = None, std: float = 1.0, stride: int = 1
    ) -> None:
        channels, height, width = image_shape(event_shape)
        if stride < 1 or height % stride or width % stride:
            raise ValueError(f"stride must divide the sides {height} and {width} of images (got {stride}): give 1 or 2")
        if kernel is None:
            positive(std)
            kernel = _gaussian(height, std)[:, None] * _gaussian(width, std)
        kernel = torch.as_tensor(kernel).double()
        if kernel.ndim != 2 or kernel.shape[0] > height or kernel.shape[1] > width:
            raise ValueError(
                f"kernel must have shape [h, w], at most {height} x {width} (got {tuple(kernel.shape)}): crop it"
            )
        super().__init__((channels, height, width), (channels, height // stride, width // stride))
        self.stride, self.is_normal = stride, stride == 1
        padded = torch.zeros(height, width, dtype=torch.float64)
        padded[: kernel.shape[0], : kernel.shape[1]] = kernel
        padded = padded.roll((-(kernel.shape[0] // 2), -(kernel.shape[1] // 2)), (0, 1))
        self.register_buffer("spectrum", torch.fft.rfft2(padded), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self._filter(x, self.spectrum)[..., :: self.stride, :: self.stride]

    def adjoint(self, y: Tensor) -> Tensor:
        x = y.new_zeros(len(y), *self.event_shape)
        x[..., :: self.stride, :: self.stride] = y
        return self._filter(x, self.spectrum.conj())

    def gram_in_basis(self) -> tuple[Basis, Tensor]:
        """Frequencies, and the means of ``|K|^2`` over those that a stride makes alike."""
        _, height, width = self.event_shape
        k, shape = self.stride, self.measurement_shape
        response = torch.fft.fft2(torch.fft.irfft2(self.spectrum, s=(height, width)))
        power = response.abs() ** 2
        return Hartley(shape), power.reshape(k, height // k, k, width // k).mean((0, 2)).expand(shape)

    def _filter(self, x: Tensor, spectrum: Tensor) -> Tensor:
        spectrum = spectrum.to(torch.complex128 if x.dtype == torch.float64 else torch.complex64)
        filtered: Tensor = torch.fft.irfft2(torch.fft.rfft2(x) * spectrum, s=self.event_shape[1:])
        return filtered


class ReflectedBlur(Operator):
    """A convolution of each channel by a symmetric kernel, with images continued beyond their edges as in a mirror.

    It is diagonal in cosines (`optcov.covariance.bases.DCT`), like the covariances of ``dct`` and ``dct_head``.
    ``A C A^T`` and C' are then diagonal as well, and so they are for ``C = c I``.

    Args:
        event_shape: ``(C, H, W)``.
        kernel: ``[h, w]`` with odd sides, unchanged if its rows or its columns are reversed.  None for a Gaussian.
        std: standard deviation of the Gaussian, in pixels, positive; ignored if a kernel is given.
    Raises:
        ValueError: if an argument is out of range, or events are not images.
    """

    is_normal = True
    gain: Tensor

    def __init__(self, event_shape: Sequence[int], kernel: Tensor | None = None, std: float = 1.0) -> None:
        channels, height, width = image_shape(event_shape)
        super().__init__((channels, height, width), (channels, height, width))
        if kernel is None:
            line = _gaussian(2 * math.ceil(5 * positive(std)) + 1, std)
            kernel = line[:, None] * line
        kernel = torch.as_tensor(kernel).double()
        if kernel.ndim != 2 or not kernel.shape[0] % 2 or not kernel.shape[1] % 2:
            raise ValueError(
                f"kernel must have shape [h, w] with odd sides (got {tuple(kernel.shape)}): pad it with zeros"
            )
        if not torch.allclose(kernel, kernel.flip(0)) or not torch.allclose(kernel, kernel.flip(1)):
            raise ValueError(
                "kernel must be the same with its rows or its columns reversed (got another): use Blur, which is "
                "circular and takes any kernel"
            )
        rows, columns = _cosines(kernel.shape[0], height), _cosines(kernel.shape[1], width)
        self.register_buffer("gain", rows @ kernel @ columns.T, persistent=False)
        self.basis = DCT(self.event_shape)

    def forward(self, x: Tensor) -> Tensor:
        return self.basis.synthesise(self.gain.to(x.dtype) * self.basis.analyse(x))

    def adjoint(self, y: Tensor) -> Tensor:
        return self.forward(y)

    def gram_in_basis(self) -> tuple[Basis, Tensor]:
        return self.basis, self.gain.expand(self.event_shape) ** 2

    def response(self, basis: Basis) -> Tensor | None:
        """The same for all channels, so that a basis of channels may be mixed into the cosines."""
        same = isinstance(basis, DCT) and basis.event_shape == self.event_shape and basis.axes == self.basis.axes
        return self.gain.expand(self.event_shape) if same else None


def positive(std: float) -> float:
    """Check the width of a Gaussian and return it.

    Raises:
        ValueError: if it is not positive.
    """
    if not 0 < std < math.inf:
        raise ValueError(f"std must be positive (got {std}): give the width of the blur in pixels, such as 1")
    return std


def _cosines(taps: int, size: int) -> Tensor:
    """``cos(pi k a / size)`` for the frequencies k of a side and the offsets a of a kernel, ``[size, taps]``."""
    offset = torch.arange(taps, dtype=torch.float64) - taps // 2
    return torch.cos(math.pi / size * torch.arange(size, dtype=torch.float64)[:, None] * offset)


def _gaussian(size: int, std: float) -> Tensor:
    """A normalised Gaussian at each pixel of a side, float64 ``[size]``, centred at ``size // 2``."""
    distance = torch.arange(size, dtype=torch.float64) - size // 2
    weights = torch.exp(-(distance**2) / (2 * std**2))
    return weights / weights.sum()
