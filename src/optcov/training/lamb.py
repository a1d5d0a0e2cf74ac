"""LAMB, Adam with a learning rate for each layer, from a library that need not be installed (arXiv:1904.00962)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from optcov.ranges import BelowOne, NonNegative


def lamb(
    params: Iterable[nn.Parameter],
    lr: NonNegative = 1e-3,
    betas: tuple[BelowOne, BelowOne] = (0.9, 0.999),
    eps: NonNegative = 1e-6,
    weight_decay: NonNegative = 0.0,
) -> torch.optim.Optimizer:
    """Make the LAMB optimizer of pytorch_optimizer: each weight's step is as long as ``lr`` times the weight.

    Args:
        params: parameters, or groups of them.
        lr: learning rate.
        betas: decay of the averages of gradients and of their squares.
        eps: added to the denominator.
        weight_decay: decoupled weight decay.
    Raises:
        ValueError: if the library is not installed.
    """
    try:
        from pytorch_optimizer import Lamb
    except ImportError as error:
        raise ValueError(
            "optimizer = lamb needs the package pytorch_optimizer (got none): pip install 'optcov[lamb]'"
        ) from error
    # the trust ratio makes bias correction superfluous; without this, the first step would be ten times as long
    optimizer: torch.optim.Optimizer = Lamb(
        params, lr=lr, betas=tuple(betas), eps=eps, weight_decay=weight_decay, adam_debias=True
    )
    optimizer.clamp = float("inf")  # type: ignore[attr-defined]  # the library's is 10, which wide layers exceed
    return optimizer
