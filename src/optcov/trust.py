"""Lists the classes that a config from a stranger may name: for each place in it, only those that belong there."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase

from optcov.signatures import Signature

OURS = re.compile(r"[A-Za-z]\w*(\.[A-Za-z]\w*)+")
# the first pattern that matches a key counts; a name that ends in a dot allows everything below it
ALLOWED: dict[str, tuple[str, ...]] = {
    "model": ("optcov.model.", "optcov.oracle.OracleNetwork", "optcov.adapter.Pretrained"),
    "*.mixture": ("optcov.oracle.GaussianMixture",),
    "model.schedule": ("optcov.schedule.",),
    "model.parameterization": ("optcov.parameterization.",),
    "model.*": ("optcov.model.",),
    "schedule": ("optcov.schedule.",),
    "parameterization": ("optcov.parameterization.",),
    "data": ("optcov.data.",),
    "data.*": ("optcov.data.",),
    "optimizer": ("torch.optim.", "optcov.training.muon.Muon"),
    "callbacks.*": ("optcov.training.EMA", "optcov.training.tracking.Tracking", "lightning.pytorch.callbacks."),
    "trainer": ("lightning.Trainer", "lightning.pytorch.Trainer"),
    "logger.*": (
        "lightning.pytorch.loggers.",
        "optcov.training.csv_log.MetricsCSV",
        "optcov.training.wandb.wandb_logger",
    ),  # a logger is never made for a received run
    "head": ("optcov.model.",),
    "var": ("optcov.variance.",),
    "var.head": ("optcov.model.",),
    "guidance": ("optcov.guidance.", "optcov.measurement.from_file"),
    "guidance.classifier": ("optcov.model.",),
    "guidance.operator": ("optcov.measurement.", "optcov.inverse."),
    "sampler": ("optcov.sampler.",),
    "trajectory": ("optcov.trajectory.",),
    "metric.*.log_mass": ("optcov.likelihood.",),
    "metric.*": ("optcov.metric.",),
}
FUNCTIONS = (  # our functions that a config may name; everything else must be a class
    "optcov.likelihood.pixel_log_mass",
    "optcov.likelihood.pixel_log_mass_tanh",
    "optcov.measurement.from_file",
    "optcov.measurement.inpaint",
    "optcov.training.wandb.wandb_logger",
)


def is_allowed(key: str, target: str) -> bool:
    """Whether a received config may name a class at a given place.

    Args:
        key: the full name of the node, such as ``model.time_embedding``.
        target: its ``_target_``.
    """
    allowed = next((names for pattern, names in ALLOWED.items() if fnmatchcase(key, pattern)), ())
    if not OURS.fullmatch(target) or not any(_covers(name, target) for name in allowed):
        return False
    signature = Signature.read(target)
    return signature is not None and (signature.is_class or target in FUNCTIONS)


def _covers(name: str, target: str) -> bool:
    return target.startswith(name) if name.endswith(".") else target == name
