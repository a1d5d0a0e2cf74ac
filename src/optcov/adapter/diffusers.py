"""Reads networks of diffusers (pipelines, folders and modules) and their configs.  diffusers is an optional extra."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from optcov.adapter.conventions import Conventions
from optcov.adapter.diffusers_schedule import of_scheduler
from optcov.adapter.files import read_json
from optcov.adapter.network import TIMES, AnswerError, inner
from optcov.wording import first_line

NETWORKS = ("unet", "transformer", "model")  # what pipelines call their network
VARIANT = re.compile(r".+_model\.(?!safetensors$|bin$)(\w+?)(?:-\d+-of-\d+)?\.(?:safetensors|bin)$")
ENCODERS = ("vae", "vqvae", "movq", "vqgan")  # what pipelines of latents call theirs
WITH_FRAMES = ("3D", "Motion", "Temporal", "Video")  # whose `sample_size` leaves out the frames
FRAMES_FIRST = ("CogVideoX", "ConsisID", "UNetSpatioTemporal")  # whose videos are [B, frames, C, H, W]


class Diffusers(nn.Module):
    """A network of diffusers as ``(x, time, **keywords) -> tensor``.

    Raises:
        ValueError: if it is not a network that predicts its data from noisy ones; the message says what to give.
    """

    label_keyword = "class_labels"

    def __init__(self, network: nn.Module, config: dict[str, Any]) -> None:
        super().__init__()
        self.network, self.time = network, _time_of(inner(network))
        self.kind, self.channels = type(inner(network)).__name__, config.get("in_channels")
        _check_channels(self.kind, config)

    @property
    def wrapped(self) -> nn.Module:
        """The network, by whose names its modules go."""
        return self.network

    def forward(self, x: Tensor, time: Tensor, **keywords: Any) -> Tensor:
        """``x`` ``[B, C, ...]`` and times ``[B]`` to the sample."""
        self._check_frames(x)
        words = keywords.get("encoder_hidden_states")
        if self.kind == "UNetMotionModel" and words is not None:  # which is fed the text of each frame
            keywords["encoder_hidden_states"] = words.repeat_interleave(x.shape[2], 0)
        answer: Tensor = self.network(x, **{self.time: time}, return_dict=False, **keywords)[0]
        return answer

    def _check_frames(self, x: Tensor) -> None:
        """Refuse videos whose axes stand in another order, and pictures where the network takes videos."""
        axis = 2 if self.kind.startswith(FRAMES_FIRST) else 1
        takes_videos = self.kind.startswith("UNet") and any(word in self.kind for word in WITH_FRAMES)
        if (x.ndim == 5 and self.channels not in (None, x.shape[axis])) or (x.ndim != 5 and takes_videos):
            order = "(frames, C, H, W)" if axis == 2 else "(C, frames, H, W)"
            raise AnswerError(
                f"shape must be {order} for {self.kind}, with C = {self.channels} (got {tuple(x.shape[1:])}): give the "
                "shape of such a video"
            )


def _time_of(network: nn.Module) -> str:
    """What a network calls its time.

    Raises:
        ValueError: if it takes none, or does not predict; the message says what to give instead.
    """
    kind, taken = type(network).__name__, inspect.signature(network.forward).parameters
    if "ControlNet" in kind or "Adapter" in kind:
        raise ValueError(
            f"source must be a network that predicts (got {kind}, which corrects another one): give a function "
            "(x, time) that calls both"
        )
    name = next((name for name in TIMES if name in taken), None)
    if name is not None:
        return name
    remedy = "give the network that predicts"
    if hasattr(network, "encode") and hasattr(network, "decode"):
        remedy = 'encode the data with it, and give the network of its latents with data_range="unbounded"'
    elif "input_ids" in taken:
        remedy = "its data are tokens, which have no Gaussian noise and no covariance"
    raise ValueError(f"source must be a network that is fed a time (got {kind}, which is not): {remedy}")


def _check_channels(kind: str, config: dict[str, Any]) -> None:
    """Refuse a network that sees more than its data, and a UNet1DModel that diffusers itself cannot call."""
    channels, out = config.get("in_channels"), config.get("out_channels")
    if isinstance(channels, int) and isinstance(out, int) and out not in (channels, 2 * channels):
        raise ValueError(
            f"source must be a network of noisy data alone (got {kind} with {channels} channels for {out}): give a "
            "function (x, time) that appends the others, such as a mask or an image"
        )
    first = (config.get("down_block_types") or ("",))[0]
    if kind != "UNet1DModel" or first != "DownBlock1DNoSkip" or config.get("use_timestep_embedding"):
        return
    width = config.get("time_embedding_dim") or 2 * config["block_out_channels"][0]
    extra = config.get("extra_in_channels")
    if config.get("time_embedding_type") == "fourier" and extra != width:
        raise ValueError(
            f"extra_in_channels of UNet1DModel must be the {width} channels of its embedded time (got {extra}), or "
            f"diffusers itself cannot call it: make it with extra_in_channels={width}"
            f"{f' or time_embedding_dim={extra}' if extra else ''}"
        )


def of_object(source: Any) -> tuple[Any, Conventions]:
    """The network in a pipeline or module, and the conventions that its configs state."""
    scheduler = getattr(source, "scheduler", None)
    network = next((getattr(source, name) for name in NETWORKS if getattr(source, name, None) is not None), source)
    network = network.module if isinstance(network, nn.DataParallel) else network
    if not isinstance(network, nn.Module) or not hasattr(network, "config"):
        raise ValueError(
            f"source must have a unet or a transformer (got {type(source).__name__}): give its network with schedule="
        )
    plain = inner(network)  # of a compiled one
    config = {"_class_name": type(plain).__name__} | dict(plain.config)
    made = Diffusers(network, config)
    said = of_scheduler(dict(scheduler.config) | {"_class_name": type(scheduler).__name__}, config) if scheduler else {}
    if getattr(source, "transformer_2", None) is not None:
        raise _of_two(type(source).__name__)
    if any(getattr(source, name, None) is not None for name in ENCODERS):
        said["data_range"] = "unbounded"
    return made, _conventions(plain, config, said)


def of_folder(folder: Path) -> tuple[Any, Conventions]:
    """Load the network of a saved pipeline, or a saved network, and the conventions that its configs state."""
    try:
        import diffusers
    except ImportError as error:
        raise ValueError("diffusers must be installed for its folders: pip install 'optcov[diffusers]'") from error
    home, scheduler = folder, folder / "scheduler_config.json"
    if (folder / "model_index.json").is_file():
        home = next((folder / name for name in NETWORKS if (folder / name / "config.json").is_file()), folder)
        scheduler = folder / "scheduler" / "scheduler_config.json"
        if (folder / "transformer_2" / "config.json").is_file():
            raise _of_two(folder.name)
        if home == folder:
            raise ValueError(
                f"source = {folder} must hold a unet or a transformer: give a pipeline of pixels or latents"
            )
    elif not scheduler.is_file():
        scheduler = folder.parent / "scheduler" / "scheduler_config.json"  # the network's folder inside of a pipeline
    config = read_json(home / "config.json")
    kind = getattr(diffusers, str(config.get("_class_name")), None)
    if not (isinstance(kind, type) and issubclass(kind, diffusers.ModelMixin)):
        raise ValueError(
            f"{home.name}/config.json must name a network of diffusers (got {config.get('_class_name')}): give a "
            "folder that save_pretrained made"
        )
    try:
        network = kind.from_pretrained(
            home, local_files_only=True, low_cpu_mem_usage=False, **_files(home), **_mended(config)
        )
    except (OSError, ValueError, RuntimeError, TypeError) as error:
        raise ValueError(f"source = {folder} cannot be opened ({first_line(error)}): download it again") from error
    config = dict(network.config) | {"_class_name": kind.__name__}
    made = Diffusers(network, config)
    said = of_scheduler(read_json(scheduler), config) if scheduler.is_file() else {}
    if any((scheduler.parent.parent / name / "config.json").is_file() for name in ENCODERS):
        said["data_range"] = "unbounded"
    return made, _conventions(network, config, said)


def _of_two(name: str) -> ValueError:
    return ValueError(
        f"source must have one network (got {name} with transformer and transformer_2, for different times): give a "
        "function (x, time) that calls the right one"
    )


def _mended(config: dict[str, Any]) -> dict[str, Any]:
    """What a config leaves out: older versions of diffusers fixed how wide Dance Diffusion's embedding of time is."""
    old = config.get("_class_name") == "UNet1DModel" and config.get("time_embedding_dim", 0) == 0
    extra = config.get("extra_in_channels")
    return {"time_embedding_dim": extra} if old and extra and config.get("time_embedding_type") == "fourier" else {}


def _files(folder: Path) -> dict[str, Any]:
    """Safetensors where there are any, else files read as tensors alone; a variant, such as fp16, if it is alone."""
    names = [path.name for path in folder.iterdir() if path.suffix in (".safetensors", ".bin")]
    safe = [name for name in names if name.endswith(".safetensors")]
    variants = {found[1] if (found := VARIANT.match(name)) else "" for name in safe or names}
    return {"use_safetensors": bool(safe) or not names, "variant": min(variants, default="") or None}


def _conventions(network: nn.Module, config: dict[str, Any], said: dict[str, Any]) -> Conventions:
    """What the configs of a network and of its scheduler state."""
    kind, channels, size = str(config.get("_class_name", "")), config.get("in_channels"), config.get("sample_size")
    shape = None
    if channels is not None and size is not None and not any(word in kind for word in WITH_FRAMES):
        sides = size if not isinstance(size, int) else (size,) if kind.startswith("UNet1D") else (size, size)
        shape = (int(channels), *map(int, sides))
    takes_labels = "class_labels" in inspect.signature(network.forward).parameters
    labels = (config.get("num_class_embeds") or config.get("num_embeds_ada_norm")) if takes_labels else None
    out = config.get("out_channels") or channels
    return Conventions(
        shape=shape,
        learned_sigma=None if channels is None else bool(out == 2 * channels),
        num_classes=None if labels is None else int(labels),
        null_class=int(labels) if labels is not None and kind.startswith("DiT") else None,  # it always learns one
        **said,
    )
