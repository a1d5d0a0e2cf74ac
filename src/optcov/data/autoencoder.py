"""An encoder and a decoder between images on [-1, 1] and latents: diffusers' autoencoders, or any pair of callables."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from optcov.checkpoint import digest_of
from optcov.foreign import DamagedError, read_json
from optcov.wording import first_line

KINDS = ("AutoencoderKL", "AutoencoderTiny", "AsymmetricAutoencoderKL", "VQModel")
HOW = "give the folder of a diffusers AutoencoderKL, or of a pipeline with a vae"


class Autoencoder(ABC):
    """Maps images to latents of about unit variance, and back."""

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """Latents ``[B, c, h, w]`` of images on [-1, 1], ``[B, C, H, W]``; deterministic."""

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Images of latents, nominally on [-1, 1]."""

    @abstractmethod
    def digest(self, probe: Tensor) -> str:
        """A hash that identifies the autoencoder.

        Args:
            probe: a few images; callables are told apart by their output for them.
        """

    def to(self, device: torch.device) -> Autoencoder:
        """Move the autoencoder to a device."""
        return self


class DiffusersAutoencoder(Autoencoder):
    """An autoencoder of diffusers; latents are the mode of its posterior, shifted and scaled as its config says.

    Some configs have ``latents_mean`` and ``latents_std`` for each channel, others a single ``shift_factor``.

    Args:
        module: a module such as ``AutoencoderKL``.
        scale: factor by which latents are multiplied; None for the config's ``scaling_factor``.
    """

    def __init__(self, module: nn.Module, scale: float | None = None) -> None:
        self.module = module.eval().requires_grad_(False)
        config: dict[str, Any] = dict(module.config)  # type: ignore[arg-type]
        scale = float(config.get("scaling_factor") or 1.0) if scale is None else scale
        means, stds = config.get("latents_mean"), config.get("latents_std")  # one per channel, used if both are given
        given = bool(means) and bool(stds)
        self.mean = torch.tensor(means if given else [float(config.get("shift_factor") or 0.0)]).reshape(1, -1, 1, 1)
        self.factor = scale / torch.tensor(stds if given else [1.0]).reshape(1, -1, 1, 1)

    def encode(self, images: Tensor) -> Tensor:
        answer = self.module.encode(images)  # type: ignore[operator]
        latents: Tensor = answer.latent_dist.mode() if hasattr(answer, "latent_dist") else answer.latents
        return (latents - self.mean.to(latents)) * self.factor.to(latents)

    def decode(self, latents: Tensor) -> Tensor:
        images: Tensor = self.module.decode(latents / self.factor.to(latents) + self.mean.to(latents)).sample  # type: ignore[operator]
        return images

    def digest(self, probe: Tensor) -> str:
        text = f"{digest_of(self.module.state_dict())} {self.factor.tolist()} {self.mean.tolist()}"
        return hashlib.sha256(text.encode()).hexdigest()

    def to(self, device: torch.device) -> Autoencoder:
        self.module.to(device)
        return self


class Pair(Autoencoder):
    """Two callables on batches, each computing on the device of its argument.

    Args:
        encoder, decoder: like `Autoencoder.encode` and `Autoencoder.decode`.
    """

    def __init__(self, encoder: Callable[[Tensor], Tensor], decoder: Callable[[Tensor], Tensor]) -> None:
        self.encoder, self.decoder = encoder, decoder

    def encode(self, images: Tensor) -> Tensor:
        return self.encoder(images)

    def decode(self, latents: Tensor) -> Tensor:
        return self.decoder(latents)

    def digest(self, probe: Tensor) -> str:
        latents = self.encode(probe)
        both = {"latents": latents, "images": self.decode(latents)}
        return digest_of({name: value.float().contiguous() for name, value in both.items()})

    def to(self, device: torch.device) -> Autoencoder:
        for each in (self.encoder, self.decoder):
            if isinstance(each, nn.Module):
                each.eval().to(device)
        return self


def autoencoder_of(source: Any, scale: float | None = None) -> Autoencoder:
    """Make an autoencoder from a folder, a module or callables.

    Args:
        source: a folder of diffusers, one of its modules, an object whose ``encode`` and ``decode`` take and return
            tensors, or a pair of callables.
        scale: replaces the ``scaling_factor`` of a diffusers config; None to keep it.
    Raises:
        ValueError: if the source is anything else, or a scale is given for callables.
    """
    if isinstance(source, Autoencoder):
        return source
    if isinstance(source, str | Path):
        return DiffusersAutoencoder(_of_folder(Path(source).expanduser()), scale)
    if isinstance(source, nn.Module) and hasattr(source, "config"):
        return DiffusersAutoencoder(source, scale)
    pair = source if isinstance(source, tuple) else (getattr(source, "encode", None), getattr(source, "decode", None))
    if scale is not None or len(pair) != 2 or not all(map(callable, pair)):
        raise ValueError(
            f"data.autoencoder must be a folder, a module with encode and decode, or a pair (got "
            f"{type(source).__name__} and scale {scale}): {HOW}"
        )
    return Pair(*pair)


def _of_folder(folder: Path) -> nn.Module:
    """Load the autoencoder in a folder of diffusers; only safetensors are read, so nothing in the folder is run."""
    home = folder / "vae" if (folder / "vae" / "config.json").is_file() else folder
    path = home / "config.json"
    if not path.is_file():
        raise ValueError(f"data.autoencoder = {folder} has no config.json (looked in {home.absolute()}): {HOW}")
    try:
        kind = read_json(path).get("_class_name")
    except (OSError, DamagedError, AttributeError) as error:
        raise ValueError(f"data.autoencoder: {path} is damaged ({error}): {HOW}") from error
    if kind not in KINDS:
        raise ValueError(f"data.autoencoder: {path} must name one of {', '.join(KINDS)} (got {kind}): {HOW}")
    if not any(home.glob("*.safetensors")):
        raise ValueError(f"data.autoencoder: {home} has no weights as safetensors: save it again with diffusers")
    try:
        import diffusers
    except ImportError as error:
        raise ValueError("diffusers must be installed for its folders: pip install 'optcov[diffusers]'") from error
    try:
        module = getattr(diffusers, kind).from_pretrained(
            home, local_files_only=True, use_safetensors=True, low_cpu_mem_usage=False
        )
    except Exception as error:  # damaged files make diffusers raise almost anything
        problem = first_line(error)
        raise ValueError(f"data.autoencoder = {folder} cannot be opened ({problem}): {HOW}") from error
    assert isinstance(module, nn.Module)
    return module
