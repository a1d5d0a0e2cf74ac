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


def upgrade(config: Mapping[Any, Any]) -> dict[str, Any]:
    """Add to a saved config the keys introduced since it was written."""
    return deepcopy(CONFIG) | {str(key): value for key, value in config.items()}
