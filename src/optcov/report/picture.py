"""Pictures of samples: a grid of one run's, and one of all runs'."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional

PICTURED = 64  # images of a picture


def picture(
    images: Tensor, path: Path, count: int = PICTURED, scale: int | None = None, labels: Tensor | None = None
) -> None:
    """The first samples as a PNG: a grid of images, or the points of vectors.

    Args:
        images: uint8 ``[n, C, H, W]`` with 1 or 3 channels, or ``[n, D]`` with D at least 2.
        path: the file.
        count: how many images.
        scale: enlargement; small images are enlarged where None.
        labels: the class of each, int64 ``[n]``: images then have a row for each class, points a colour.
    """
    if images.ndim == 2:
        _scatter(images, path, labels)
        return
    if labels is not None:
        tile(by_class(images, labels, count), scale).save(path)
        return
    images = images[:count]
    columns = max(1, int(len(images) ** 0.5))
    images = images[: len(images) // columns * columns]
    tile(images.reshape(-1, columns, *images.shape[1:]), scale, line=columns > 1).save(path)


def by_class(images: Tensor, labels: Tensor, count: int = PICTURED) -> Tensor:
    """The first images of each class that there is, a row each, black where one has fewer than another.

    Args:
        images: uint8 ``[n, C, H, W]``.
        labels: int64 ``[n]``.
        count: how many images at most, unless there are more classes: the first of them, then, one image each.
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
    """A table of images as one picture, small ones enlarged.

    Args:
        images: uint8 ``[rows, columns, C, H, W]`` with 1 or 3 channels.
        scale: enlargement; small images are enlarged where None.
        line: draw one right of and below each image.
    """
    if line:
        images = functional.pad(images, (0, 1, 0, 1), value=96)
    rows, columns, channels, height, width = images.shape
    pixels = images.permute(0, 3, 1, 4, 2).reshape(rows * height, columns * width, channels)
    picture = Image.fromarray((pixels[..., 0] if channels == 1 else pixels).contiguous().cpu().numpy())
    scale = scale or _scale(height)
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)


def _scale(height: int) -> int:
    """How much images of this height are enlarged."""
    return max(1, 64 // height)


def _scatter(vectors: Tensor, path: Path, labels: Tensor | None) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 5))
    axes = figure.subplots()
    x, y = (vectors[:, i].double() / 127.5 - 1 for i in (0, -1))
    axes.scatter(x, y, s=2, c=labels, cmap=None if labels is None else "tab10")
    axes.set(xlim=(-1, 1), ylim=(-1, 1), title=f"{len(vectors)} samples", aspect="equal")
    figure.savefig(path, dpi=120)


def first_samples(path: Path, shape: Sequence[int] | None, side: int = 4, labelled: bool = False) -> Image.Image:
    """The corner of a file that :func:`picture` wrote.

    Args:
        path: the file.
        shape: of a sample; all points of vectors are kept, and all of a picture of what is not known.
        side: images in a row and in a column, at most.
        labelled: the picture has a row for each class, and all rows are kept.
    """
    with Image.open(path) as opened:
        whole = opened.convert("RGB")
    if shape is None or len(shape) != 3:
        return whole
    _, height, width = shape
    right, below = ((pixels + 1) * _scale(height + 1) * side for pixels in (width, height))  # with lines between images
    return whole.crop((0, 0, min(whole.width, right), whole.height if labelled else min(whole.height, below)))


def sample_grid(cells: Mapping[tuple[str, int], Image.Image], side: int = 240) -> Image.Image:
    """Samples of several runs side by side.

    Args:
        cells: pictures by label and number of steps: rows and columns, in order of appearance and of size.
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
    """A label in short lines."""
    return label.replace(" (", ", (").split(", ")


def _fit(image: Image.Image, side: int) -> Image.Image:
    """The picture with a longer side of about ``side``: pixels whole where it is smaller, averaged where larger."""
    longest = max(image.size)
    if longest <= side:
        factor = side // longest
        return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    size = round(image.width * side / longest), round(image.height * side / longest)
    return image.resize(size, Image.Resampling.LANCZOS)
