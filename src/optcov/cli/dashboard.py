"""Weights & Biases: online when the user is logged in and the server answers, otherwise offline; it never asks."""

from __future__ import annotations

import logging
import netrc
import os
import urllib.error
import urllib.request
from pathlib import Path
from typing import Literal, get_args
from urllib.parse import urlparse

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning.pytorch.loggers import WandbLogger

log = logging.getLogger(__name__)

Mode = Literal["auto", "online", "offline", "disabled"]


def wandb_logger(
    project: str,
    save_dir: str,
    entity: str | None = None,
    group: str | None = None,
    tags: list[str] | None = None,
    mode: Mode = "auto",
) -> WandbLogger:
    """Start a run that has the folder's name, as a Lightning logger.

    Args:
        project, entity, tags: as in ``wandb.init``.
        save_dir: the run's folder.
        group: joins runs in the dashboard; the name of the sweep, in a sweep, where None.
        mode: ``auto``, ``online``, ``offline`` or ``disabled``; the environment's WANDB_MODE goes first.
    Raises:
        ValueError: if the mode is none of these.
    """
    import wandb  # a good part of a second, for those who log to it

    chosen = os.environ.get("WANDB_MODE", mode)
    if chosen not in get_args(Mode):
        raise ValueError(f"logger.wandb.mode = {chosen} is unknown: give one of {', '.join(get_args(Mode))}")
    if chosen == "auto":
        chosen = "online" if _logged_in() and _reachable() else "offline"
    sweep = sweep_folder()
    name = Path(save_dir).name
    run = wandb.init(
        project=project,
        entity=entity,
        name=name if sweep is None else f"{sweep.name}/{name}",
        group=group or (None if sweep is None else sweep.name),
        tags=tags,
        dir=save_dir,
        mode=chosen,  # type: ignore[arg-type]
        settings=wandb.Settings(silent=True, console="off"),  # a run says where it is when it ends
    )
    return WandbLogger(experiment=run)


def sweep_folder() -> Path | None:
    """The folder of the multirun this process belongs to, or None outside of one."""
    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return None
    return Path(HydraConfig.get().sweep.dir)


def _server() -> str:
    return os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")


def _logged_in() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(urlparse(_server()).hostname or "") is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _reachable() -> bool:
    try:
        urllib.request.urlopen(_server(), timeout=3)
    except urllib.error.HTTPError:
        return True
    except OSError:
        log.warning(
            "W&B: logged in, but %s does not answer: logging offline, send it later with `wandb sync`", _server()
        )
        return False
    return True
