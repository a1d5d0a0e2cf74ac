"""Tensors of any shape from a file, such as latents or physical quantities of a known range.

If their range is known, they are modelled on [-1, 1], otherwise unchanged; samples are floats in the unit of the file.
Scores and pictures use 256 levels, over the known range or four standard deviations around each channel's mean.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from optcov.data.array_file import ArrayFile
from optcov.data.base import DataSource, Split
from optcov.data.encoded import check_value_range
from optcov.data.images import held_out
from optcov.data.pixels import to_uint8
from optcov.data.untrusted import read_npz
from optcov.data_range import DataRange
from optcov.wording import first_line

HOW = "give a .pt, .safetensors, .npy or .npz file of numbers [n, ...]"
LABELS = ("labels", "label", "y")
CHUNK = 4096  # rows
SPREAD = 4.0  # standard deviations on either side of the mean that pictures cover


@dataclass(eq=False)
class TensorData(DataSource):
    """A tensor ``[n, *event]`` in a file.

    Args:
        root: a ``.pt`` (read with ``weights_only``), ``.safetensors``, ``.npy`` or ``.npz`` file.
        tensor: name of the tensor in the file; None for the only one besides the labels.
        label: name of the classes, int64 ``[n]``; None for ``labels``, ``label`` or ``y`` if there is one.
        value_range: lowest and highest value of the data; None if the support is unknown, as for latents.
        num_levels: number of evenly spaced values in the range, such as 65,536 for 16-bit data; None for continuous
            data.
        val_size, test_size: number of samples held out for validation and testing; the random choice is fixed.
        batch_size, seed, random_flip: as in `DataSource`.
    Raises:
        ValueError: if a setting is invalid.
    """

    root: str
    _: KW_ONLY
    tensor: str | None = None
    label: str | None = None
    value_range: Sequence[float] | None = None
    num_levels: int | None = None
    val_size: int = 0
    test_size: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.ends = check_value_range(self.value_range)
        if self.num_levels is not None and (self.ends is None or self.num_levels < 2):
            raise ValueError(
                f"data.num_levels must be at least 2, of data with a value_range (got {self.num_levels} and "
                f"{self.value_range}): give both, or neither"
            )

    @property
    def data_range(self) -> DataRange:
        return DataRange(None, None, None) if self.ends is None else DataRange(num_levels=self.num_levels)

    @property
    def sample_dtype(self) -> torch.dtype:
        return torch.float32

    def load(self, split: Split) -> Tensor:
        return self._rows(self._checked, split)

    def labels(self, split: Split) -> Tensor:
        if self._labels is None:
            return super().labels(split)
        return self._rows(self._labels, split)

    def identity(self) -> dict[str, Any]:
        digest = hashlib.sha256(f"{self.train.dtype} {list(self.train.shape)}".encode())
        for chunk in torch.split(self.train, CHUNK):
            digest.update(chunk.contiguous().view(torch.uint8).numpy().data)
        return {"train_sha256": digest.hexdigest()}

    def normalize(self, batch: Tensor) -> Tensor:
        x = batch.to(torch.float32)
        return x if self.ends is None else (x - self.ends[0]) * (2 / (self.ends[1] - self.ends[0])) - 1

    def finish(self, x_0: Tensor) -> Tensor:
        if not x_0.isfinite().all():
            to_uint8(x_0)  # raises the error that says so
        x_0 = x_0.to(torch.float32)
        if self.ends is None:
            return x_0
        return ((x_0.clamp(-1, 1) + 1) * ((self.ends[1] - self.ends[0]) / 2) + self.ends[0]).clamp(*self.ends)

    def levels(self, samples: Tensor) -> Tensor:
        low, high = self._shown
        chunks = torch.split(samples, CHUNK)  # as floats, the whole may be larger than memory
        return torch.cat([to_uint8((each.float() - low) / (high - low) * 2 - 1) for each in chunks])

    @cached_property
    def _shown(self) -> tuple[Tensor, Tensor]:
        """The values shown as black and as white in each channel, broadcastable to ``[n, *event]``."""
        if self.ends is not None:
            return torch.tensor(self.ends[0]), torch.tensor(self.ends[1])
        some = self.train[:CHUNK].float()
        dims = [0, *range(2, some.ndim)]
        spread = SPREAD * some.std(dims, correction=0, keepdim=True).clamp(min=1e-12)
        mean = some.mean(dims, keepdim=True)
        return mean - spread, mean + spread

    @cached_property
    def _contents(self) -> dict[str, Tensor]:
        path = Path(self.root).expanduser()
        if not path.is_file():
            raise ValueError(f"data.root = {path} does not exist (looked for {path.absolute()}): {HOW}")
        found = read_tensors(path)
        for name in (self.tensor, self.label):
            if name is not None and name not in found:
                raise ValueError(f"data.root: {path} has no tensor {name}: it has {', '.join(found)}")
        return found

    @cached_property
    def _label(self) -> str | None:
        return self.label or next((name for name in LABELS if name in self._contents and len(self._contents) > 1), None)

    @cached_property
    def _checked(self) -> Tensor:
        """All samples, after a check of their shape, type and values."""
        contents = self._contents
        names = [self.tensor] if self.tensor else [name for name in contents if name != self._label]
        if len(names) != 1:
            raise ValueError(f"data.root: {self.root} has the tensors {', '.join(contents)}: give data.tensor=NAME")
        data = contents[names[0]]
        if data.ndim < 2 or 0 in data.shape:
            raise ValueError(f"data.root: {self.root} must hold samples [n, ...] (got {list(data.shape)}): {HOW}")
        if self.ends is None and not data.is_floating_point():
            raise ValueError(
                f"data.root: {self.root} holds {str(data.dtype).removeprefix('torch.')}: say what it spans, such as "
                "data.value_range=[0,255] data.num_levels=256"
            )
        low, high = self.ends or (-torch.inf, torch.inf)
        for first, chunk in zip(range(0, len(data), CHUNK), torch.split(data, CHUNK), strict=True):
            values = chunk.flatten(1).double()
            wrong = ~(values.isfinite() & (values >= low) & (values <= high)).all(1)
            if wrong.any():
                row = int(wrong.nonzero()[0])
                raise ValueError(
                    f"data.root: row {first + row} of {self.root} has values from {float(values[row].min()):g} to "
                    f"{float(values[row].max()):g}, but they must be finite"
                    + ("" if self.ends is None else f" and from {low:g} to {high:g}, as data.value_range says")
                )
        return data

    @cached_property
    def _labels(self) -> Tensor | None:
        if self._label is None:
            return None
        labels = self._contents[self._label]
        if labels.shape != (len(self._checked),) or labels.is_floating_point() or int(labels.min()) < 0:
            raise ValueError(
                f"data.label: {self._label} in {self.root} must be the class 0, 1, ... of each sample "
                f"(got {str(labels.dtype).removeprefix('torch.')} {list(labels.shape)}): give another name"
            )
        return labels.long()

    def _rows(self, values: Tensor, split: Split) -> Tensor:
        rows = held_out(len(values), self.val_size, self.test_size, split)
        if not rows:
            raise ValueError(f"data=tensors has no {split} split: give data.{split}_size")
        return values if len(rows) == len(values) else values[rows]


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a file, memory-mapped if its format allows; nothing in the file is run.

    Raises:
        ValueError: naming the file, if it is of an unknown kind, damaged, or holds anything but tensors.
    """
    readers = {".pt": _of_torch, ".pth": _of_torch, ".safetensors": _of_safetensors, ".npy": _of_npy, ".npz": _of_npz}
    if path.suffix not in readers:
        raise ValueError(f"data.root: {path} is of an unknown kind: {HOW}")
    try:
        found = readers[path.suffix](path)
    except Exception as error:  # damaged files make readers raise almost anything
        problem = first_line(error)
        raise ValueError(f"data.root: {path} is damaged, or holds more than tensors ({problem}): {HOW}") from error
    size = path.stat().st_size
    for name, tensor in found.items():
        if path.suffix != ".npz" and tensor.numel() * tensor.element_size() > size:  # an expanded view of few numbers
            raise ValueError(f"data.root: {name} in {path} declares more data than the file has: save a clone() of it")
    return found


def _of_torch(path: Path) -> dict[str, Tensor]:
    zipped = path.open("rb").read(2) == b"PK"
    content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    named = content if isinstance(content, dict) else {"tensor": content}
    found = {str(name): value for name, value in named.items() if isinstance(value, Tensor)}
    if not found:
        raise ValueError(f"it holds a {type(content).__name__} without tensors")
    return {name: value.detach() for name, value in found.items()}


def _of_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


def _of_npy(path: Path) -> dict[str, Tensor]:
    ArrayFile(path).header()  # checks what it declares
    return {"tensor": _tensor(np.load(path, mmap_mode="c", allow_pickle=False))}


def _of_npz(path: Path) -> dict[str, Tensor]:
    return {name: _tensor(array) for name, array in read_npz(path).items()}


def _tensor(array: np.ndarray[Any, np.dtype[Any]]) -> Tensor:
    native = array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))
    return torch.from_numpy(native)
