"""``model=pretrained``: describes an existing mean network by plain settings."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from optcov.adapter.conventions import Conventions
from optcov.adapter.files import open_source
from optcov.adapter.load import from_diffusers, load
from optcov.checkpoint import digest_of
from optcov.denoiser import Denoiser
from optcov.errors import must
from optcov.parameterization import Parameterization
from optcov.schedule import NoiseSchedule

CODE = re.compile(r"[\w.]+:[\w.]+")  # a source that is imported


class Pretrained:
    """The source of a network, and those of its conventions that no config group states.

    Args:
        source: a folder of diffusers or of a run of optcov, a file of weights, or ``module:name``.
        network: the module to which a file of weights belongs.
        time, data_range, features, learned_sigma, integer_time, null_class, check: as in `optcov.load`; None if the
            source states it.
        sha256: SHA-256 that the weights must have; None for any.
    Raises:
        ValueError: if there is nothing at the source; the message is one sentence.
    """

    def __init__(
        self,
        source: str | None = None,
        network: nn.Module | None = None,
        time: str | None = None,
        data_range: Sequence[float] | str | None = None,
        features: str | None = "auto",
        learned_sigma: bool | None = None,
        integer_time: bool | None = None,
        null_class: int | None = None,
        sha256: str | None = None,
        check: bool = True,
    ) -> None:
        if source is None:
            raise ValueError(
                "source must be given (got none): give model.source= a folder of diffusers or of a run, a file of "
                "weights, or MODULE:NAME"
            )
        if not Path(source).exists() and not CODE.fullmatch(source):
            raise ValueError(f"source = {source} does not exist: give a folder, a file of weights, or MODULE:NAME")
        self.source, self.network = source, network
        self.time, self.data_range, self.features = time, data_range, features
        self.learned_sigma, self.integer_time, self.null_class = learned_sigma, integer_time, null_class
        self.sha256, self.check = sha256, check

    def open(self) -> tuple[Any, Conventions]:
        """Open the network, or the denoiser of a run of optcov, and read the conventions that the source states.

        Raises:
            ValueError: if nothing there can be used; the message is one sentence.
        """
        call, said = open_source(self.source, self.network)
        if isinstance(call, Denoiser):  # from a run of optcov, which states every convention
            if self.time is not None:
                raise must("model.time", "left out for a network of optcov", self.time, "its own run states it")
            known = Conventions(call.data_shape, call.parameterization, call.schedule, num_classes=call.num_classes)
            return call.eval(), known
        if not isinstance(call, nn.Module) and not hasattr(call, "scheduler"):
            raise ValueError(
                f"source must be a torch.nn.Module, whose weights identify it (got {type(call).__name__}): wrap it in "
                "one that holds its weights, or load it in a notebook with optcov.load"
            )
        network, read = from_diffusers(call)
        return network, read if call is not network else said

    def denoiser(
        self,
        call: Any,
        schedule: NoiseSchedule,
        parameterization: Parameterization,
        said: Conventions,
        shape: tuple[int, ...],
        num_classes: int | None,
    ) -> Denoiser:
        """Make the denoiser of an opened network; that of a run of optcov is one already.

        Args:
            call: the network from `open`.
            schedule, parameterization: schedule and parameterization of the network.
            said: the conventions from `open`; its time, range and kind of output apply where this object has none.
            shape: shape of one sample of the data.
            num_classes: number of classes of the network; None if it is unconditional.
        Raises:
            ValueError: if the network does not behave as stated; the message is one sentence.
        """
        if isinstance(call, Denoiser):
            if self.data_range is not None:
                raise ValueError(
                    "data_range must be left out for a network of optcov (got one): its data lie in [-1, 1]"
                )
            return call
        made: Denoiser = load(
            call,
            shape=shape,
            prediction=parameterization,
            schedule=schedule,
            time=self.time or said.time,
            data_range=self.data_range or said.data_range or (-1.0, 1.0),
            features=self.features,
            num_classes=num_classes,
            null_class=said.null_class if self.null_class is None and num_classes is not None else self.null_class,
            learned_sigma=said.learned_sigma if self.learned_sigma is None else self.learned_sigma,
            integer_time=self.integer_time,
            check=False,
        )
        return made


def weights_of(denoiser: Denoiser) -> dict[str, Tensor]:
    """The weights and buffers of a denoiser's network.

    Raises:
        ValueError: if it has none, so that nothing identifies it.
    """
    weights: dict[str, Tensor] = denoiser.network.state_dict()
    if not weights:
        raise ValueError(
            "source must be a network with weights, which identify it (got one without): load it in a notebook with "
            "optcov.load"
        )
    return weights


def sha256_of(denoiser: Denoiser) -> str:
    """SHA-256 over the names and bytes of a network's weights."""
    return digest_of(weights_of(denoiser))
