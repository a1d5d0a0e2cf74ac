"""The fits of a run, each done once and found again by what determined it."""

from __future__ import annotations

import logging
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch
from hydra.utils import instantiate
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig
from torch import nn

from optcov.cli.build import Parts
from optcov.cli.errors import refusals
from optcov.cli.identity import Plan, load_into
from optcov.cli.trainer import computing, make_callbacks, make_trainer
from optcov.seeds import Stream, derive_seed
from optcov.training import (
    Checkpoint,
    ClassifierStage,
    DataModule,
    Entry,
    MeanStage,
    Stage,
    StageProgressBar,
    VarianceStage,
)
from optcov.training.store import Identity, Kind, rank_zero
from optcov.variance.base import VarianceStrategy

log = logging.getLogger(__name__)


def fit_mean(cfg: DictConfig, parts: Parts, plan: Plan, loggers: list[Logger]) -> Checkpoint | None:
    """Stage 1: put the trained weights into ``parts.denoiser``.

    Returns:
        The checkpoint, or None for a network without weights.
    """

    def train(entry: Entry) -> None:
        optimizer = instantiate(cfg.optimizer)
        stage = MeanStage(parts.denoiser, optimizer, cfg.warmup_steps, cfg.seed, cfg.label_dropout)
        run_stage(cfg, stage, parts, loggers, entry, "1/3 mean network")

    if plan.mean is None or "mean" in plan.given:
        return plan.given.get("mean")
    return _find_or_fit(cfg, "mean", plan.mean, parts.denoiser, train)


def fit_variance(cfg: DictConfig, parts: Parts, plan: Plan, loggers: list[Logger]) -> Checkpoint | None:
    """Stage 2: put what was fitted into ``parts.strategy``, on the mean network that is in ``parts.denoiser``.

    Returns:
        The checkpoint, or None for a strategy with nothing to fit.
    """
    strategy = parts.strategy

    def train(entry: Entry) -> None:
        optimizer = instantiate(cfg.optimizer)
        stage = VarianceStage(parts.denoiser, strategy, optimizer, cfg.warmup_steps, cfg.seed, cfg.label_dropout)
        run_stage(cfg, stage, parts, loggers, entry, f"2/3 variance ({type(strategy).__name__})")

    def calibrate(entry: Entry) -> None:
        with computing(make_trainer(cfg)) as device:
            clean, labels = parts.calibration(strategy.num_images, device)
            batches = torch.split(clean, parts.data.batch_size)
            strategy.calibrate(parts.denoiser.to(device).eval(), batches, cfg.seed, labels)

    if plan.variance is None or "variance" in plan.given:
        return plan.given.get("variance")
    fit = train if strategy.fitting == "train" else calibrate
    return _find_or_fit(cfg, "variance", plan.variance, strategy, fit)


def fit_classifier(cfg: DictConfig, parts: Parts, plan: Plan, loggers: list[Logger]) -> Checkpoint | None:
    """Put a trained classifier into ``parts.guidance``.

    Returns:
        The checkpoint, or None for guidance without one.
    """
    classifier = parts.guidance.classifier if parts.guidance is not None else None

    def train(entry: Entry) -> None:
        assert classifier is not None
        stage = ClassifierStage(parts.denoiser, classifier, instantiate(cfg.optimizer), cfg.warmup_steps, cfg.seed)
        run_stage(cfg, stage, parts, loggers, entry, "classifier")

    if classifier is None or plan.classifier is None or "classifier" in plan.given:
        return plan.given.get("classifier")
    return _find_or_fit(cfg, "classifier", plan.classifier, classifier, train)


def fit_trajectory(cfg: DictConfig, parts: Parts) -> None:
    """Let a trajectory that depends on the fitted model see it; seconds, so that nothing is kept but the times."""
    trajectory = parts.trajectory
    if trajectory.num_images == 0:
        return
    with refusals("trajectory"), computing(make_trainer(cfg)) as device:
        clean, labels = parts.calibration(trajectory.num_images, device)
        trajectory.fit(
            parts.denoiser.to(device).eval(),
            parts.strategy.to(device).eval(),
            list(torch.split(clean, cfg.sample_batch_size)),
            derive_seed(cfg.seed, Stream.TRAJECTORY),
            labels,
        )


def _find_or_fit(
    cfg: DictConfig, kind: Kind, identity: Identity, module: nn.Module, fit: Callable[[Entry], None]
) -> Checkpoint:
    entry = Entry(Path(cfg.cache_dir), kind, identity)
    with entry.lock():
        checkpoint = entry.load()
        if checkpoint is None:
            log.info("%s: fitting (will be kept as %s)", kind, entry.path)
            fit(entry)
            checkpoint = Checkpoint(kind, identity, module.state_dict())
            if rank_zero():
                checkpoint.save(entry.path)
                shutil.rmtree(entry.resume_folder, ignore_errors=True)
            return checkpoint
    log.info("%s: found %s", kind, entry.path)
    is_tracked = kind == "mean" or (isinstance(module, VarianceStrategy) and module.fitting == "train")
    if "tracking" in cfg.callbacks and is_tracked:
        log.info("%s: fitted before, so that there is nothing to track; another cache_dir fits it again", kind)
    return load_into(module, checkpoint, f"cache_dir = {cfg.cache_dir}")


def run_stage(
    cfg: DictConfig, stage: Stage, parts: Parts, loggers: list[Logger], entry: Entry, description: str
) -> None:
    """Train a stage to its last step, from where an interrupted run left it; the averaged weights are in it then."""
    keep = ModelCheckpoint(
        entry.resume_folder, "resume", every_n_train_steps=cfg.checkpoint_every, enable_version_counter=False
    )
    callbacks = make_callbacks(cfg, parts, entry.identity)
    trainer = make_trainer(cfg, logger=loggers, callbacks=[*callbacks, StageProgressBar(description), keep])
    try:
        trainer.fit(
            stage,
            datamodule=DataModule(parts.data, stage.labelled),
            ckpt_path=_resumable(entry.resume_folder),
            weights_only=True,
        )
    except SystemExit:  # how Lightning ends on Ctrl+C
        raise KeyboardInterrupt(f"{description}; the same command continues from the last checkpoint") from None


def _resumable(folder: Path) -> Path | None:
    path = folder / "resume.ckpt"
    if not path.is_file():
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is not None:  # torch.load does not look at checksums
                raise zipfile.BadZipFile
        step = torch.load(path, map_location="cpu", weights_only=True)["global_step"]
    except Exception as error:  # whatever a damaged file makes the reader say
        log.warning("%s can not be read (%s): starting from the first step", path, type(error).__name__)
        return None
    log.info("resuming from step %d", step)
    return path
