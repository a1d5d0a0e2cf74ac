"""Training: the stages as Lightning modules, callbacks, and stores for weights and samples."""

from optcov.training.callbacks import EMA, PiecewiseRate, ResumePoint, StageProgressBar
from optcov.training.data import DataModule
from optcov.training.modules import ClassifierStage, MeanStage, SamplingStage, Stage, StageSettings, VarianceStage
from optcov.training.sample_store import SampleStore
from optcov.training.store import Checkpoint, CheckpointError, Entry

__all__ = [
    "EMA",
    "Checkpoint",
    "CheckpointError",
    "ClassifierStage",
    "DataModule",
    "Entry",
    "MeanStage",
    "PiecewiseRate",
    "ResumePoint",
    "SampleStore",
    "SamplingStage",
    "Stage",
    "StageProgressBar",
    "StageSettings",
    "VarianceStage",
]
