"""Training: Lightning modules of the stages, callbacks, and the store of fitted weights."""

from optcov.training.callbacks import EMA, StageProgressBar
from optcov.training.modules import ClassifierStage, MeanStage, SamplingStage, Stage, VarianceStage
from optcov.training.store import Checkpoint, CheckpointError, Entry

__all__ = [
    "EMA",
    "Checkpoint",
    "CheckpointError",
    "ClassifierStage",
    "Entry",
    "MeanStage",
    "SamplingStage",
    "Stage",
    "StageProgressBar",
    "VarianceStage",
]
