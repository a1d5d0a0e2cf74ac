"""CelebA (Liu et al. 2015), aligned and cropped as published for diffusion models.

The 128 x 128 square centred at x = 89, y = 121 is cut out of the 178 x 218 image and resized to 64 x 64 with an
antialiased bilinear filter, as in DDIM (arXiv:2010.02502) and Analytic-DPM (arXiv:2201.06503).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from optcov.data.base import Split
from optcov.data.decode import Box, crop_and_resize, decode
from optcov.data.encoded import check_side
from optcov.data.files import Files, file_fingerprint, files_in, is_image
from optcov.data.images import ImageData
from optcov.data.records import CorruptImageError, Pixels, Records

WIDTH, HEIGHT = 178, 218  # pixels of an official image
CENTRE_X, CENTRE_Y, SIDE = 89, 121, 128
SPLITS: tuple[Split, ...] = ("train", "val", "test")  # 0, 1, 2 in list_eval_partition.txt
FIRST_VAL, FIRST_TEST, LAST = 162_771, 182_638, 202_599  # the same partition by image number
PARTITIONS = ("list_eval_partition.txt", "list_eval_partition.csv")
HOW = (
    "get img_align_celeba.zip and list_eval_partition.txt from mmlab.ie.cuhk.edu.hk/projects/CelebA.html "
    "and set data.root or OPTCOV_DATA to their folder"
)


@dataclass(eq=False)
class CelebAData(ImageData):
    """Faces ``(3, image_size, image_size)``.

    The partition file decides the split of each image; without one, the official numbers in the file names do.

    Args:
        root: ``img_align_celeba.zip``, the folder of its images, or a folder that holds either.
        image_size: side of the result in pixels, 64 as published.
        cache_dir, limit, skip_corrupt, batch_size, seed, random_flip: as in `ImageData`.
    Raises:
        ValueError: if ``image_size`` or ``limit`` is below 1.
    """

    name = "celeba"

    _: KW_ONLY
    image_size: int = 64
    batch_size: int = 128
    random_flip: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_side("image_size", self.image_size)

    @property
    def shape(self) -> tuple[int, int, int]:
        return (3, self.image_size, self.image_size)

    @cached_property
    def _origin(self) -> Path:
        return _find(self.path)

    def origin(self) -> Path:
        return self._origin

    def fingerprint(self, split: Split) -> dict[str, Any]:
        origin = self.origin()
        partition = self._partition_path()
        return {
            "files": files_in(origin).fingerprint(),
            "partition": None if partition is None else file_fingerprint(partition),
        }

    def preprocessing(self) -> dict[str, Any]:
        crop = {"centre": [CENTRE_X, CENTRE_Y], "side": SIDE, "of": [WIDTH, HEIGHT]}
        return {"crop": crop, "image_size": self.image_size, "resample": "bilinear"}

    def records(self, split: Split) -> Records:
        files = files_in(self.origin())
        names = files.images()
        path = self._partition_path()
        inside = [name for name in files.names() if PurePosixPath(name).name in PARTITIONS]
        if path is not None:
            partition = read_partition(path.read_bytes(), str(path))
        elif inside:
            partition = read_partition(files.read(inside[0]), f"{inside[0]} in {self.origin()}")
        else:
            numbered = {PurePosixPath(name).name: official_split(name) for name in names}
            partition = {name: part for name, part in numbered.items() if part is not None}
        chosen = [name for name in names if partition.get(PurePosixPath(name).name) == split]
        if not chosen:
            raise ValueError(
                f"data.root = {self.path} has {len(names)} images, none from the {split} split of CelebA: {HOW}"
            )
        return AlignedFaces(files, chosen, self.image_size)

    def _partition_path(self) -> Path | None:
        """The partition file beside or above the images."""
        origin = self.origin()
        places = [folder / name for folder in (origin, origin.parent) for name in PARTITIONS]
        return next((place for place in places if place.is_file()), None)


class AlignedFaces(Records):
    """The published square of each aligned image.

    Args:
        files: the folder or archive.
        names: the images to use.
        image_size: side of the result in pixels.
    """

    def __init__(self, files: Files, names: Sequence[str], image_size: int) -> None:
        self.files, self.names, self.image_size = files, names, image_size

    def __len__(self) -> int:
        return len(self.names)

    def image(self, index: int) -> Pixels:
        name = f"{self.names[index]} in {self.files.place}"
        image = decode(self.files.read(self.names[index]), name)
        return crop_and_resize(
            image, published_box(image.width, image.height, name), (self.image_size, self.image_size), "bilinear"
        )


def published_box(width: int, height: int, name: str = "the image") -> Box:
    """The published square, (25, 57, 153, 185) of 178 x 218 pixels; scaled to other sizes and rounded to whole pixels.

    Args:
        width, height: size of an aligned image in pixels.
        name: name of the image, for messages.
    Raises:
        CorruptImageError: if the aspect ratio is not that of the aligned images.
    """
    scale = width / WIDTH
    if abs(height - scale * HEIGHT) > 2:
        raise CorruptImageError(
            f"{name} must have the aspect ratio of an aligned image, {WIDTH} x {HEIGHT} (got {width} x {height}): "
            "use data=image_folder for other faces"
        )
    side = max(1, round(SIDE * scale))
    left, top = round(CENTRE_X * scale - side / 2), round(CENTRE_Y * scale - side / 2)
    return left, top, left + side, top + side


def official_split(name: str) -> Split | None:
    """The split of an image named by its number, ``000001.jpg`` to ``202599.jpg``; None for other names."""
    stem = PurePosixPath(name).stem
    if not re.fullmatch(r"\d{6}", stem) or not 1 <= int(stem) <= LAST:
        return None
    return SPLITS[(int(stem) >= FIRST_VAL) + (int(stem) >= FIRST_TEST)]


def read_partition(content: bytes, name: str) -> dict[str, Split]:
    """Parse a partition file, either official (``000001.jpg 0``) or CSV with a header.

    Returns:
        The split of each image, by file name.
    Raises:
        ValueError: naming the first line that cannot be parsed.
    """
    partition: dict[str, Split] = {}
    for number, line in enumerate(content.decode(errors="replace").splitlines(), 1):
        fields = line.replace(",", " ").split()
        if len(fields) == 2 and fields[1] in ("0", "1", "2"):
            partition[fields[0]] = SPLITS[int(fields[1])]
        elif fields and number > 1:
            raise ValueError(f"data.root: line {number} of {name} must be an image and 0, 1 or 2 (got {line!r}): {HOW}")
    return partition


def _find(root: Path) -> Path:
    """The archive or folder that holds the images."""
    if root.is_file():
        return root
    archives = sorted(root.glob("img_align_celeba*.zip"))
    if len(archives) > 1:
        names = " and ".join(archive.name for archive in archives)
        raise ValueError(f"data.root = {root} must hold one archive (it has {names}): give one of them")
    folders = [root / "img_align_celeba", root / "celeba" / "img_align_celeba"]
    found = [*archives, *(folder for folder in folders if folder.is_dir())]
    if not found and root.is_dir() and any(is_image(path.name) for path in root.iterdir()):
        found = [root]
    if not found:
        raise ValueError(
            f"data.root = {root} does not contain CelebA (looked in {root.absolute()} for img_align_celeba*.zip, "
            f"img_align_celeba/, celeba/img_align_celeba/ and *.jpg): {HOW}"
        )
    return found[0]
