"""`pretrained`: the networks that come with the package, and what was fitted to them, for notebooks."""

from __future__ import annotations

from typing import overload

from optcov.adapter.own import open_own, open_own_strategy
from optcov.denoiser import Denoiser
from optcov.reference import folder_of
from optcov.variance.base import VarianceStrategy


@overload
def pretrained(name: str) -> Denoiser: ...


@overload
def pretrained(name: str, strategy: str) -> tuple[Denoiser, VarianceStrategy]: ...


def pretrained(name: str, strategy: str | None = None) -> Denoiser | tuple[Denoiser, VarianceStrategy]:
    """Load a network that comes with the package, and a strategy that was fitted to it.

    Args:
        name: ``cifar10_small``; see `optcov.reference`.
        strategy: the name of a fitted option of ``var``, such as ``sn_dpm``; None for the network alone.
    Returns:
        The denoiser, in eval mode; with a strategy, both.
    Raises:
        ValueError: if there is no such network, or the strategy was not fitted to it; the message lists what exists.
    """
    folder = folder_of(name) / "checkpoints"
    denoiser = open_own(folder / "mean.safetensors").eval()
    if strategy is None:
        return denoiser
    fitted = sorted(path.stem for path in folder.glob("*.safetensors") if path.stem != "mean")
    if strategy not in fitted:
        raise ValueError(
            f"strategy must be one of those that come with {name}, {', '.join(fitted)} (got {strategy!r}): fit others "
            "with optcov.fit"
        )
    return denoiser, open_own_strategy(folder / f"{strategy}.safetensors", denoiser)
