"""Upgrades configs of earlier versions, so that old runs can be continued and compared with new ones."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

# for each key added later, the value that reproduces the earlier behaviour
CONFIG: dict[str, Any] = {
    "guidance": {"_target_": "optcov.guidance.Guidance"},
    "conditional": False,
    "label_dropout": 0.1,
    "labels": None,
    "classifier_ckpt": None,
    "num_threads": "auto",
    "channels_last": "auto",
    "sample_precision": None,
    "wait": True,
}
CHOICES = {"guidance": "none"}  # the same for the options named in results.json
MOVED = {  # where classes and functions that configs name stood before
    "optcov.cli.dashboard.wandb_logger": "optcov.training.wandb.wandb_logger",
    "optcov.cli.wandb.wandb_logger": "optcov.training.wandb.wandb_logger",
    "optcov.cli.tracking.Tracking": "optcov.training.tracking.Tracking",
    "optcov.cli.modes.ImageInterpolation": "optcov.report.modes.ImageInterpolation",
    "optcov.cli.modes.Interpolation": "optcov.report.modes.Interpolation",
    "optcov.cli.modes.TrajectoryPicture": "optcov.report.modes.TrajectoryPicture",
}


def upgrade(config: Mapping[Any, Any]) -> dict[str, Any]:
    """Add to a saved config the keys introduced since it was written, and name what has moved by its place today."""
    return deepcopy(CONFIG) | {str(key): _renamed(value) for key, value in config.items()}


def _renamed(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: MOVED.get(each, each) if key == "_target_" and isinstance(each, str) else _renamed(each)
            for key, each in value.items()
        }
    return [_renamed(each) for each in value] if isinstance(value, list) else value
