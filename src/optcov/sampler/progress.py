"""A progress bar that counts images, and moves within a batch, too."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from torch import nn
from tqdm.auto import tqdm


class ImageBar:
    """Images per second and time to go; a network call moves it by its share of a batch.

    Args:
        denoiser: whose calls are seen.
        calls: network calls of a batch.
        total: images in all.
        done: those that were there before, which do not count for the speed.
        processes: how many draw as this one does.
        description: what stands in front of the bar.
        disable: show nothing.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        calls: int,
        total: int,
        done: int = 0,
        processes: int = 1,
        description: str = "sampling",
        disable: bool = False,
    ) -> None:
        self.bar = tqdm(total=total, initial=done, desc=description, unit="image", disable=disable, dynamic_ncols=True)
        self._total, self._calls, self._processes = total, calls, processes
        self._start, self._images, self._made = float(done), 0, 0
        self._hook = None if disable else denoiser.register_forward_hook(self._called)

    def begin(self, images: int) -> None:
        """A batch of so many images begins."""
        self._images, self._made = images * self._processes, 0

    def end(self) -> None:
        """The batch is drawn."""
        self._start, self._images = self._start + self._images, 0
        self._move(self._start)

    def close(self) -> None:
        """Leave the bar as it is, and the denoiser as it was."""
        self.bar.close()
        if self._hook is not None:
            self._hook.remove()

    def __enter__(self) -> ImageBar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _called(self, *_: Any) -> None:
        self._made += 1
        self._move(self._start + self._images * min(1.0, self._made / self._calls))

    def _move(self, images: float) -> None:
        self.bar.update(min(int(images), self._total) - self.bar.n)
