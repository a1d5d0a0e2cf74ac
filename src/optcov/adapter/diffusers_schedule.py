"""Reads the configs of diffusers' schedulers: the path, what the network predicts, and the time that it is fed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from optcov.parameterization import EDM
from optcov.schedule import (
    BetaSchedule,
    CosineSchedule,
    FlowSchedule,
    FunctionSchedule,
    NoiseLevels,
    NoiseSchedule,
    VESchedule,
)

OTHERS = ("CMStochastic", "DDPMWuerstchen", "VQDiffusion", "Amused", "Karras")  # paths of their own
OF_UNIT_TIME = (  # flows that are fed t, where others are fed 1000 t
    "AuraFlow", "BriaFibo2", "Chroma", "Flux", "Krea2", "LongCatImage", "NucleusMoE", "Ovis", "PRX", "QwenImage"
)  # fmt: skip
BACKWARDS = ("Lumina", "Mochi", "ZImage")  # flows whose time runs from noise to data
PREDICTIONS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v", "flow_prediction": "velocity"}


def of_scheduler(config: dict[str, Any], network: dict[str, Any]) -> dict[str, Any]:
    """The schedule, prediction and time feed that a scheduler_config.json states for a network with a config."""
    name, kind = str(config.get("_class_name", "")), config.get("prediction_type", "epsilon")
    schedule, user = schedule_of(config), str(network.get("_class_name", ""))
    if isinstance(schedule, FlowSchedule):
        if user.startswith(BACKWARDS) or config.get("invert_sigmas"):
            raise ValueError(
                f"source must be a network whose time runs from data to noise (got {user}, where it runs back): give "
                'lambda x, t: -network(x, 1 - t) with time="t", prediction="velocity" and schedule="flow"'
            )
        time = "t" if user.startswith(OF_UNIT_TIME) else "1000t"
        return {"schedule": schedule, "prediction": "velocity", "time": time}
    if name.startswith("IPNDM"):
        return {"schedule": schedule, "prediction": "v", "time": "t"}
    if name.startswith("ScoreSdeVe"):
        return {"schedule": schedule, "prediction": "score", "time": _sigma}
    if isinstance(schedule, VESchedule):
        if kind != "epsilon":
            raise ValueError(
                f"prediction_type of {name} must be epsilon, EDM's F (got {kind}): give the network with prediction=, "
                "schedule= and time="
            )
        return {"schedule": schedule, "prediction": EDM(float(config.get("sigma_data", 0.5))), "time": "edm"}
    if kind not in PREDICTIONS:
        raise ValueError(f"prediction_type of {name} must be one of {', '.join(PREDICTIONS)} (got {kind})")
    if config.get("timestep_type") == "continuous":
        raise ValueError(
            f"timestep_type of {name} must be discrete (got continuous): give the network with prediction=, schedule= "
            "and time="
        )
    return {"schedule": schedule, "prediction": PREDICTIONS[kind], "time": "n-1"}


def _sigma(level: NoiseLevels) -> Tensor:
    """The time of exploding score SDEs."""
    return level.sigma


def _cosine(t: Tensor) -> Tensor:
    """The signal of Dance Diffusion."""
    return (t * torch.pi / 2).cos()


def _sine(t: Tensor) -> Tensor:
    """The noise of Dance Diffusion."""
    return (t * torch.pi / 2).sin()


def schedule_of(config: dict[str, Any]) -> NoiseSchedule:
    """Make the schedule of a scheduler's config.

    Raises:
        ValueError: if its kind is not known.
    """
    name, count = str(config.get("_class_name", "")), int(config.get("num_train_timesteps", 1000))
    if "FlowMatch" in name or config.get("use_flow_sigmas") or config.get("prediction_type") == "flow_prediction":
        return FlowSchedule(count)
    if name.startswith(("EDM", "ScoreSdeVe")):
        return VESchedule(count, float(config["sigma_min"]), float(config["sigma_max"]))
    if name.startswith("IPNDM") and config.get("trained_betas") is None:
        return FunctionSchedule(_cosine, _sine, count)
    if name.startswith(OTHERS) or not {"beta_schedule", "trained_betas"} & config.keys():
        raise ValueError(
            f"scheduler must state betas, or be of flow matching or EDM (got {name or 'one of another kind'}): give "
            "the network with prediction=, schedule= and time="
        )
    start, end = float(config.get("beta_start", 1e-4)), float(config.get("beta_end", 0.02))
    kind = config.get("beta_schedule", "linear")
    if config.get("trained_betas") is not None:
        betas = torch.as_tensor(config["trained_betas"], dtype=torch.float64)
    elif kind == "linear":
        betas = torch.linspace(start, end, count, dtype=torch.float64)
    elif kind == "scaled_linear":
        betas = torch.linspace(start**0.5, end**0.5, count, dtype=torch.float64) ** 2
    elif kind == "sigmoid":
        betas = torch.sigmoid(torch.linspace(-6, 6, count, dtype=torch.float64)) * (end - start) + start
    elif kind == "squaredcos_cap_v2":
        if not config.get("rescale_betas_zero_snr"):
            return CosineSchedule(count)
        betas = _betas_of(CosineSchedule(count))
    else:
        raise ValueError(
            f"beta_schedule of {name or 'the scheduler'} must be linear, scaled_linear, sigmoid or squaredcos_cap_v2 "
            f"(got {kind}): give schedule= a list of betas"
        )
    return _zero_snr(betas) if config.get("rescale_betas_zero_snr") else BetaSchedule(betas)


def _betas_of(schedule: NoiseSchedule) -> Tensor:
    grid = torch.cat([torch.zeros(1, dtype=torch.float64), schedule.grid()])
    return schedule.variance_between(grid[:-1], grid[1:])


def _zero_snr(betas: Tensor) -> BetaSchedule:
    """Betas shifted and scaled so that no signal is left after the last (arXiv:2305.08891, Algorithm 1)."""
    alpha = (1 - betas).cumprod(0).sqrt()
    alpha = (alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])
    alpha_sq = alpha**2
    ratio = torch.cat([alpha_sq[:1], alpha_sq[1:] / alpha_sq[:-1]])
    return BetaSchedule(1 - ratio)
