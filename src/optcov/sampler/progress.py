"""A progress bar that counts images and also moves within a batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TypeVar

from tqdm.auto import tqdm

Item = TypeVar("Item")


class ImageBar:
    """Shows images per second and the time left; each step of a chain advances it by a fraction of the batch.

    Args:
        steps: the number of steps for a batch.
        total: the final number of images.
        done: images drawn earlier; they do not count towards the speed.
        processes: the number of processes, this one included, that draw at the same pace.
        description: the text in front of the bar.
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
        """Yield the states of a batch of ``images`` images unchanged, advancing the bar at each."""
        images *= self._processes
        for step, state in enumerate(states, 1):
            self._move(self._done + images * min(1.0, step / self._steps))
            yield state
        self._done += images
        self._move(self._done)

    def close(self) -> None:
        """Stop the bar and leave it on the screen."""
        self.bar.close()

    def __enter__(self) -> ImageBar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _move(self, images: float) -> None:
        self.bar.update(min(int(images), self._total) - self.bar.n)
