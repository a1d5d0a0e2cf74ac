"""Pictures of samples: a grid for one run, and a grid of grids for several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional

from optcov.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PICTURED = 64  # number of images in a picture
MAX_PIXELS = 1 << 26  # pixels of the largest picture that is read


def picture(
    images: Tensor, path: Path, count: int = PICTURED, scale: int | None = None, labels: Tensor | None = None
) -> None:
    """Draw the first samples as a PNG: a grid of images, or vectors as points.

    Args:
        images: uint8 ``[n, C, H, W]``, of which only the first channel is drawn unless there are 3, or ``[n, D]`` with
            D at least 2.
        path: the PNG to write.
        count: number of images to draw.
        scale: enlargement factor; None to enlarge small images automatically.
        labels: the class of each sample, int64 ``[n]``; each class becomes a row of images or a colour of points.
    """
    if images.ndim == 2:
        _scatter(images, path, labels)
        return
    images = images if images.shape[1] == 3 else images[:, :1]
    if labels is not None:
        save_png(tile(by_class(images, labels, count), scale), path)
        return
    images = images[:count]
    columns = max(1, int(len(images) ** 0.5))
    images = images[: len(images) // columns * columns]
    save_png(tile(images.reshape(-1, columns, *images.shape[1:]), scale, line=columns > 1), path)


def save_png(drawn: Image.Image | Figure, path: Path, dpi: int = 150) -> None:
    """Write a picture or a figure as a PNG file, completely or not at all.

    Args:
        drawn: the picture, or a figure of matplotlib.
        path: the file.
        dpi: pixels per inch of a figure.
    """
    with atomic_write(path) as partial:
        if isinstance(drawn, Image.Image):
            drawn.save(partial, format="PNG")
        else:
            drawn.savefig(partial, format="png", dpi=dpi)


def by_class(images: Tensor, labels: Tensor, count: int = PICTURED) -> Tensor:
    """Arrange the first images of each class that occurs in one row per class, padded with black.

    Args:
        images: uint8 ``[n, C, H, W]``.
        labels: class of each image, int64 ``[n]``.
        count: maximum number of images; if there are more classes, one image for each of the first ``count``.
    Returns:
        ``[rows, columns, C, H, W]``.
    """
    frequency = labels.bincount()
    classes = frequency.nonzero().flatten()[:count]
    columns = min(max(1, count // len(classes)), int(frequency.max()))
    table = images.new_zeros(len(classes), columns, *images.shape[1:])
    for row, label in zip(table, classes, strict=True):
        found = images[labels == label][:columns]
        row[: len(found)] = found
    return table


def tile(images: Tensor, scale: int | None = None, line: bool = True) -> Image.Image:
    """Tile images into one picture.

    Args:
        images: uint8 ``[rows, columns, C, H, W]`` with 1 or 3 channels.
        scale: enlargement factor; None to enlarge small images automatically.
        line: separate images by lines.
    """
    if line:
        images = functional.pad(images, (0, 1, 0, 1), value=96)
    rows, columns, channels, height, width = images.shape
    pixels = images.permute(0, 3, 1, 4, 2).reshape(rows * height, columns * width, channels)
    picture = Image.fromarray((pixels[..., 0] if channels == 1 else pixels).contiguous().cpu().numpy())
    scale = scale or _scale(height)
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)


def _scale(height: int) -> int:
    """The enlargement factor for images of this height."""
    return max(1, 64 // height)


def _scatter(vectors: Tensor, path: Path, labels: Tensor | None) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 5))
    axes = figure.subplots()
    x, y = (vectors[:, i].double() / 127.5 - 1 for i in (0, -1))
    axes.scatter(x, y, s=2, c=labels, cmap=None if labels is None else "tab10")
    axes.set(xlim=(-1, 1), ylim=(-1, 1), title=f"{len(vectors)} samples", aspect="equal")
    save_png(figure, path, dpi=120)


def first_samples(
    path: Path | IO[bytes], shape: Sequence[int] | None, side: int = 4, labelled: bool = False
) -> Image.Image:
    """Cut the upper left corner out of a file that `picture` wrote.

    Args:
        path: the picture, which may be a stranger's.
        shape: shape of a sample; pictures of vectors, and of samples of unknown shape (None), are returned whole.
        side: maximum number of images per row and column.
        labelled: whether rows are classes; all of them are then kept.
    Raises:
        OSError, ValueError, SyntaxError: if it is damaged, not a PNG, or too large.
    """
    with Image.open(path, formats=["PNG"]) as opened:  # without formats, Pillow runs Ghostscript on PostScript
        if opened.width * opened.height > MAX_PIXELS:
            raise ValueError(f"{opened.width} x {opened.height} pixels are too many")
        full = opened.convert("RGB")
    if shape is None or len(shape) != 3:
        return full
    _, height, width = shape
    right, below = ((pixels + 1) * _scale(height + 1) * side for pixels in (width, height))  # with lines between
    return full.crop((0, 0, min(full.width, right), full.height if labelled else min(full.height, below)))


def sample_grid(cells: Mapping[tuple[str, int], Image.Image], side: int = 240) -> Image.Image:
    """Put samples of several runs side by side.

    Args:
        cells: pictures by label (rows, in order of appearance) and number of steps (columns, ascending).
        side: the longer side of a cell, in pixels.
    """
    gap, size = 12, 20
    font = ImageFont.load_default(size)
    rows, columns = list(dict.fromkeys(row for row, _ in cells)), sorted({column for _, column in cells})
    left = max(max(int(font.getlength(line)) for line in _lines(row)) for row in rows) + 2 * gap
    fitted = {place: _fit(image, side) for place, image in cells.items()}
    widths = [max(image.width for (_, c), image in fitted.items() if c == column) for column in columns]
    heights = [max(image.height for (r, _), image in fitted.items() if r == row) for row in rows]
    canvas = Image.new(
        "RGB", (left + sum(widths) + gap * len(widths), size + 2 * gap + sum(heights) + gap * len(rows)), "white"
    )
    draw = ImageDraw.Draw(canvas)
    x = left
    for column, width in zip(columns, widths, strict=True):
        draw.text((x + width / 2, gap + size / 2), f"{column} steps", "black", font, anchor="mm")
        x += width + gap
    y = size + 2 * gap
    for row, height in zip(rows, heights, strict=True):
        draw.multiline_text((gap, y + height / 2), "\n".join(_lines(row)), "black", font, anchor="lm")
        x = left
        for column, width in zip(columns, widths, strict=True):
            if (row, column) in fitted:
                canvas.paste(fitted[row, column], (x, y))
            x += width + gap
        y += height + gap
    return canvas


def _lines(label: str) -> list[str]:
    """Break a label into short lines."""
    return label.replace(" (", ", (").split(", ")


def _fit(image: Image.Image, side: int) -> Image.Image:
    """Resize an image so that its longer side is about ``side``, enlarging by a whole factor or averaging down."""
    longest = max(image.size)
    if longest <= side:
        factor = side // longest
        return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    size = round(image.width * side / longest), round(image.height * side / longest)
    return image.resize(size, Image.Resampling.LANCZOS)
