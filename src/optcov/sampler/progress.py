"""A progress bar that counts images, and moves within a batch, too."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TypeVar

from tqdm.auto import tqdm

Item = TypeVar("Item")


class ImageBar:
    """Images per second and time to go; each step of a chain moves it by its share of a batch.

    Args:
        steps: of a batch.
        total: images in all.
        done: those that were there before, which do not count for the speed.
        processes: how many draw as this one does.
        description: what stands in front of the bar.
        disable: show nothing.
    """

    def __init__(
        self,
        steps: int,
        total: int,
        done: int = 0,
        processes: int = 1,
        description: str = "sampling",
        disable: bool = False,
    ) -> None:
        self.bar = tqdm(total=total, initial=done, desc=description, unit="image", disable=disable, dynamic_ncols=True)
        self._steps, self._total, self._processes, self._done = steps, total, processes, done

    def watch(self, states: Iterable[Item], images: int) -> Iterator[Item]:
        """The states of one batch of so many images, each of which moves the bar."""
        images *= self._processes
        for step, state in enumerate(states, 1):
            self._move(self._done + images * min(1.0, step / self._steps))
            yield state
        self._done += images
        self._move(self._done)

    def close(self) -> None:
        """Leave the bar as it is."""
        self.bar.close()

    def __enter__(self) -> ImageBar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _move(self, images: float) -> None:
        self.bar.update(min(int(images), self._total) - self.bar.n)
