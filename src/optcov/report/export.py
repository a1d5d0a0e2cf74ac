"""Writes samples to one array or to an image file each, without holding all of them in memory."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from optcov.files import atomic_write, write_atomically
from optcov.report.picture import tile


def write_npz(
    chunks: Iterable[Tensor],
    count: int,
    shape: tuple[int, ...],
    path: Path,
    labels: Tensor | None = None,
    dtype: torch.dtype = torch.uint8,
) -> None:
    """Write samples as one compressed array ``arr_0``, channels last, and their labels as ``arr_1``.

    Args:
        chunks: uint8 or float32 ``[b, *shape]``, in order.
        count: total number of samples.
        shape: shape of one sample.
        path: the file to write.
        labels: class of each sample, int64 ``[count]``; None for no ``arr_1``.
        dtype: type of the samples.
    """
    shape = (*shape[1:], shape[0]) if len(shape) == 3 else shape
    with (
        atomic_write(path) as partial,
        zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        with archive.open("arr_0.npy", "w", force_zip64=True) as file:
            descr = {torch.uint8: "|u1", torch.float32: "<f4"}[dtype]
            header = {"descr": descr, "fortran_order": False, "shape": (count, *shape)}
            np.lib.format.write_array_header_1_0(file, header)
            for chunk in chunks:
                file.write((chunk.movedim(1, -1) if chunk.ndim == 4 else chunk).contiguous().numpy().data)
        if labels is not None:
            with archive.open("arr_1.npy", "w") as file:
                np.lib.format.write_array(file, labels.numpy())


def write_pngs(chunks: Iterable[Tensor], count: int, folder: Path, labels: Tensor | None = None) -> None:
    """Write images as ``000000.png``, ``000001.png`` and so on, and their labels as ``labels.csv`` beside the folder.

    The arguments are those of `write_npz`.
    """
    folder.mkdir(exist_ok=True)
    images = (image for chunk in chunks for image in chunk)
    for i, image in enumerate(tqdm(images, desc="writing", total=count, unit="image", disable=None)):
        # not synced to disk one by one, which takes longer than to draw them; samples.json comes last
        shown = image if len(image) == 3 else image[:1]
        tile(shown[None, None], scale=1, line=False).save(folder / f"{i:06d}.png")
    if labels is not None:
        rows = [f"{i:06d}.png,{label}" for i, label in enumerate(labels.tolist())]
        write_atomically(folder.with_name("labels.csv"), "\n".join(["file,label", *rows]) + "\n")
