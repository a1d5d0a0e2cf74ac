"""What configs of earlier versions meant, so that runs from before and after an upgrade continue and compare."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

# for each key added since, the value that means what was done before there was the key
CONFIG: dict[str, Any] = {
    "guidance": {"_target_": "optcov.guidance.Guidance"},
    "conditional": False,
    "label_dropout": 0.1,
    "labels": None,
    "classifier_ckpt": None,
    "num_threads": "auto",
    "channels_last": "auto",
    "sample_precision": None,
}
CHOICES = {"guidance": "none"}  # the same for the options that results.json names


def upgrade(config: Mapping[Any, Any]) -> dict[str, Any]:
    """A saved config with the keys that were added since it was written."""
    return deepcopy(CONFIG) | {str(key): value for key, value in config.items()}
