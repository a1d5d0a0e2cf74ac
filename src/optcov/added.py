"""Keys that configs did not always have, so that runs of before and after an upgrade go on, mix and compare."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

# the value of each that means what was done before there was the key
CONFIG: dict[str, Any] = {
    "guidance": {"_target_": "optcov.guidance.Guidance"},
    "conditional": False,
    "label_dropout": 0.1,
    "labels": None,
    "classifier_ckpt": None,
    "num_threads": "auto",
    "channels_last": "auto",
    "sample_precision": None,
    "optimizer.fused": True,  # the same steps, sooner
}
CHOICES = {"guidance": "none"}  # the same of options, which results.json names


def with_added(config: Mapping[Any, Any]) -> dict[str, Any]:
    """A saved config, resolved, with the keys that were added since it was written."""
    whole = {str(key): value for key, value in deepcopy(dict(config)).items()}
    for key, value in deepcopy(CONFIG).items():
        group, _, name = key.rpartition(".")
        node = whole.get(group) if group else whole
        if isinstance(node, dict):
            node.setdefault(name, value)
    return whole
