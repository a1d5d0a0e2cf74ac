"""Samples of a run, drawn over all devices and written as files, without ever having all of them in memory."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from tqdm import tqdm

from optcov.added import with_added
from optcov.cli.build import Parts
from optcov.cli.errors import ConfigError, refusals
from optcov.cli.identity import NOT_IDENTITY, difference
from optcov.cli.run_folder import UNTIL_THE_END, sweep_folder
from optcov.cli.trainer import root_device, sampling_trainer
from optcov.files import atomic_write, write_atomically
from optcov.report import picture
from optcov.training import SampleStore, SamplingStage
from optcov.training.store import digest_of, rank_zero

FORMAT = 1  # raise it when a change of code gives another meaning to the sample i of a config
# keys that say where, how many and what for: sample i is the same whatever they are
NOT_OF_SAMPLES = (
    *UNTIL_THE_END, "cache_dir", "checkpoint_every", "run", "mean_ckpt", "var_ckpt", "classifier_ckpt", "format",
    "mode", "callbacks", "optimizer", "warmup_steps",
)  # fmt: skip


def draw(cfg: DictConfig, parts: Parts, folder: Path) -> SampleStore:
    """Draw what is missing of ``num_samples`` samples, on all devices.

    Args:
        cfg: composed.
        parts: fitted.
        folder: of the run, which keeps what is drawn until :func:`forget`.
    Returns:
        The samples, which only the first process should read.
    Raises:
        ConfigError: if the folder holds samples of another config, or the network answers NaN.
    """
    if rank_zero():
        _claim(folder / ".parts", identity(cfg, parts))
    drawn = SampleStore(folder / ".parts", parts.denoiser.data_shape, cfg.num_samples, cfg.sample_batch_size)
    labels = parts.labels(drawn.batches[-1].stop, cfg.seed)
    stage = SamplingStage(
        parts.denoiser,
        parts.strategy,
        parts.sampler,
        parts.times,
        cfg.seed,
        drawn,
        parts.guidance,
        labels,
        "3/3 sampling",
    )
    if stage.missing:
        trainer = sampling_trainer(cfg)
        try:
            with refusals("samples"):
                trainer.predict(stage, return_predictions=False)
        except SystemExit:  # how Lightning ends on Ctrl+C
            sweep = sweep_folder()
            place = f"hydra.run.dir={folder}" if sweep is None else f"hydra.sweep.dir={sweep}"
            raise KeyboardInterrupt(f"3/3 sampling; the same command with {place} continues there") from None
        trainer.strategy.barrier()
    return drawn


def forget(folder: Path) -> None:
    """Delete the samples that :func:`draw` keeps in a folder, once they have become what they were drawn for."""
    shutil.rmtree(folder / ".parts", ignore_errors=True)


def identity(cfg: DictConfig, parts: Parts) -> dict[str, Any]:
    """Everything that determines sample i, as JSON: weights, times, and every key not known to have no influence.

    So does the kind of device, whose generator draws the noise.
    """
    config = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(config, dict)
    fitted = {"times": parts.times}
    for module in parts.modules:
        fitted |= {f"{type(module).__name__}.{name}": value for name, value in module.state_dict().items()}
    return {
        "format": FORMAT,
        "device": root_device(cfg).type,
        **{str(key): value for key, value in config.items() if key not in NOT_OF_SAMPLES},
        "trainer": {"precision": cfg.trainer.precision},
        "data": {key: value for key, value in config["data"].items() if key not in NOT_IDENTITY},
        "weights_and_times": digest_of(fitted),
    }


def _claim(folder: Path, ours: dict[str, Any]) -> None:
    """Take a folder for samples, by writing there what determines them; samples of the same are kept."""
    record = folder / "identity.json"
    ours = json.loads(json.dumps(ours))
    if record.is_file():
        read = {"device": "cpu"} | json.loads(record.read_text())  # the first records did not say
        theirs = {key: value for key, value in with_added(read).items() if key in ours or key in read}
        for key in ours | theirs:
            if theirs.get(key) != ours.get(key):
                raise ConfigError(
                    f"output_dir = {folder.parent} holds unfinished samples of another config "
                    f"({difference(key, theirs.get(key), ours.get(key))}): give that config to finish them, "
                    f"delete {folder} to draw anew, or choose another hydra.run.dir"
                )
        return
    folder.mkdir(exist_ok=True)
    write_atomically(record, json.dumps(ours))


def preview(drawn: SampleStore, path: Path, labels: Tensor | None = None) -> None:
    """The first samples as one picture: 64 images, with labels those of a class in a row, or 10,000 points."""
    count = 10_000 if len(drawn.shape) != 3 else 64 if labels is None else 256  # of which the rows are filled
    picture(drawn.first(count), path, labels=None if labels is None else labels[:count])


def write_npz(
    chunks: Iterable[Tensor], count: int, shape: tuple[int, ...], path: Path, labels: Tensor | None = None
) -> None:
    """Samples as one compressed array ``arr_0``, channels last, and their labels as ``arr_1``.

    Args:
        chunks: uint8 ``[b, *shape]``, in order.
        count: how many samples they hold.
        shape: of one sample.
        path: the file.
        labels: int64 ``[count]``, if there are any.
    """
    shape = (*shape[1:], shape[0]) if len(shape) == 3 else shape
    with (
        atomic_write(path) as partial,
        zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        with archive.open("arr_0.npy", "w", force_zip64=True) as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": (count, *shape)}
            np.lib.format.write_array_header_1_0(file, header)
            for chunk in chunks:
                file.write((chunk.movedim(1, -1) if chunk.ndim == 4 else chunk).contiguous().numpy().data)
        if labels is not None:
            with archive.open("arr_1.npy", "w") as file:
                np.lib.format.write_array(file, labels.numpy())


def write_pngs(chunks: Iterable[Tensor], count: int, folder: Path) -> None:
    """Samples as ``000000.png``, ``000001.png``, ...; arguments as in :func:`write_npz`, of images."""
    folder.mkdir(exist_ok=True)
    images = (image for chunk in chunks for image in chunk)
    for i, image in enumerate(tqdm(images, desc="writing", total=count, unit="image", disable=None)):
        picture(image[None], folder / f"{i:06d}.png", scale=1)
