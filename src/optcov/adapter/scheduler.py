"""Fitted covariances inside of pipelines of diffusers: a scheduler that takes our steps.  diffusers is an extra.

Strategies that are tables over time work in any loop of ``unet(x, t)`` and ``scheduler.step``.  Heads on a feature map
need the network's last call, which `OptCovScheduler.attach` watches; heads on ``(x_t, output)`` need nothing.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import SchedulerMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.utils.outputs import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor, nn

from optcov.adapter.diffusers_schedule import schedule_of
from optcov.adapter.time import time_feed
from optcov.data_range import DataRange
from optcov.denoiser import Denoiser, Prediction
from optcov.guidance import Guidance
from optcov.parameterization import X0, Eps, Parameterization, V
from optcov.sampler import DDIMSampler, DDPMSampler
from optcov.sampler.ancestral import KernelPlan, KernelSampler
from optcov.sampler.base import Model, State
from optcov.schedule.levels import per_sample
from optcov.schedule.vp import VPSchedule
from optcov.trajectory import (
    LeadingTrajectory,
    LinspaceTrajectory,
    ListTrajectory,
    TrailingTrajectory,
    Trajectory,
)
from optcov.variance.base import VarianceStrategy
from optcov.variance.fixed import BetaTilde
from optcov.variance.iddpm import LearnedRange
from optcov.variance.saved import CONFIG, WEIGHTS, check_fits, load_strategy

MEANINGS: dict[str, type[Parameterization]] = {"epsilon": Eps, "sample": X0, "v_prediction": V}


@dataclass
class OptCovSchedulerOutput(BaseOutput):
    """What a step ends with: ``prev_sample``, and the network's (unclipped) ``pred_original_sample``."""

    prev_sample: Tensor
    pred_original_sample: Tensor | None = None


class _Answered(Guidance):
    """A prediction that the pipeline's loop has made already."""

    def __init__(self, prediction: Prediction) -> None:
        super().__init__()
        self.prediction = prediction

    def predict(self, *asked: Any) -> Prediction:
        return self.prediction


class _Noise:
    """White noise from the pipeline's generators, in float32."""

    def __init__(self, like: Tensor, generator: Any) -> None:
        self.like, self.generator = like, generator

    def draw(self, shape: tuple[int, ...] | None = None) -> Tensor:
        event = tuple(self.like.shape[1:]) if shape is None else shape
        drawn: Tensor = randn_tensor(
            (len(self.like), *event), generator=self.generator, device=self.like.device, dtype=self.like.dtype
        )
        return drawn


class _Elsewhere(nn.Module):
    """Stands for the network, which the pipeline asks."""

    num_classes = None

    def __init__(self, data_shape: Sequence[int], feature_channels: int, learned_sigma: bool) -> None:
        super().__init__()
        self.data_shape, self.feature_channels = tuple(data_shape), feature_channels
        self.learned_sigma = learned_sigma


class OptCovScheduler(SchedulerMixin, ConfigMixin):
    """DDPM's and DDIM's steps with a fitted covariance; make it with `of`, or load it with ``from_pretrained``.

    Args:
        num_train_timesteps, beta_start, beta_end, beta_schedule, trained_betas, prediction_type,
            rescale_betas_zero_snr, timestep_spacing, steps_offset: as in ``diffusers.DDPMScheduler``.
        clip_sample: clamp the predicted x_0 to the data's range.
        data_range: of the network's data; None for latents and other data of unknown support.
        eta: 1 for DDPM's steps, 0 for DDIM's; a pipeline that gives ``eta`` to each step overrides it.
        cut: bound on the last noise, in grey levels, of fitted covariances; None for none.
        features: the module of the network whose input a head reads; None where no head needs it.
    """

    _compatibles = ["DDPMScheduler", "DDIMScheduler", "PNDMScheduler", "DPMSolverMultistepScheduler"]  # noqa: RUF012
    order = 1
    init_noise_sigma = 1.0

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: list[float] | None = None,
        prediction_type: str = "epsilon",
        rescale_betas_zero_snr: bool = False,
        timestep_spacing: str = "linspace",
        steps_offset: int = 0,
        clip_sample: bool = True,
        data_range: tuple[float, float] | None = (-1.0, 1.0),
        eta: float = 1.0,
        cut: float | None = 2.0,
        features: str | None = None,
    ) -> None:
        config = dict(self.config)
        self._denoiser: Denoiser | None = None
        self.schedule = schedule_of(config)
        if prediction_type not in MEANINGS:
            raise ValueError(f"prediction_type must be one of {', '.join(MEANINGS)} (got {prediction_type})")
        spacings: dict[str, Trajectory] = {
            "linspace": LinspaceTrajectory(),
            "leading": LeadingTrajectory(steps_offset),
            "trailing": TrailingTrajectory(),
        }
        if timestep_spacing not in spacings:
            raise ValueError(f"timestep_spacing must be one of {', '.join(spacings)} (got {timestep_spacing})")
        self._spacing = spacings[timestep_spacing]
        self.strategy: VarianceStrategy | None = None
        self._seen: Tensor | None = None
        self._plans: dict[float, KernelPlan] = {}
        self.set_timesteps(num_train_timesteps)

    @classmethod
    def of(cls, denoiser: Denoiser, strategy: VarianceStrategy, **settings: Any) -> OptCovScheduler:
        """The scheduler of a denoiser from `optcov.load` and a strategy from `optcov.fit`.

        Args:
            denoiser: on a variance-preserving path, fed n - 1, as the networks of diffusers are.
            strategy: fitted to it.
            settings: of the constructor, such as ``timestep_spacing="trailing"`` or ``eta=0``.
        Raises:
            ValueError: in one sentence, if diffusers has no such network.
        """
        check_fits(denoiser, strategy)
        schedule, meaning = denoiser.schedule, type(denoiser.parameterization)
        level = schedule.levels(schedule.grid())
        if not isinstance(schedule, VPSchedule) or meaning not in MEANINGS.values():
            raise ValueError(
                f"denoiser must predict eps, x0 or v on a variance-preserving schedule (got {meaning.__name__} on "
                f"{type(schedule).__name__}): sample with optcov.sample"
            )
        if not torch.allclose(denoiser.network_time(level), level.t * schedule.num_steps - 1):
            raise ValueError('denoiser must be fed n - 1, as by pipelines (got another time): load it with time="n-1"')
        if denoiser.num_classes is not None:
            raise ValueError(
                "denoiser must know no classes (got some), for a pipeline does not tell its scheduler which: sample "
                "with optcov.sample"
            )
        grid = torch.cat([torch.zeros(1, dtype=torch.float64), schedule.grid()])
        low, high = denoiser.data_range.low, denoiser.data_range.high
        features = getattr(denoiser.network, "features", None)
        known: dict[str, Any] = {
            "num_train_timesteps": schedule.num_steps,
            "trained_betas": schedule.variance_between(grid[:-1], grid[1:]).tolist(),
            "prediction_type": next(name for name, each in MEANINGS.items() if each is meaning),
            "data_range": None if low is None or high is None else [low, high],
            "clip_sample": denoiser.data_range.is_bounded,
            "features": None if features is None else str(features).removeprefix("network."),
        }
        made: OptCovScheduler = cls(**known | settings)
        made.strategy = strategy
        return made

    @property
    def _settings(self) -> Any:
        """The config by attribute."""
        return self.config

    def attach(self, network: nn.Module) -> OptCovScheduler:
        """Let a head on a feature map read what the pipeline's network computes: a hook on ``config.features``.

        Raises:
            ValueError: if the network has no such module.
        """
        name = self._settings.features
        modules = dict(network.named_modules())
        if name is None:
            return self
        if name not in modules:
            raise ValueError(f"network must have the module {name}, whose input the head reads: attach the unet itself")

        def keep(module: nn.Module, arguments: tuple[Any, ...]) -> None:
            self._seen = arguments[0]

        modules[name].register_forward_pre_hook(keep)
        return self

    def set_timesteps(
        self, num_inference_steps: int | None = None, device: Any = None, timesteps: Sequence[int] | None = None
    ) -> None:
        """Choose the steps: so many, spaced as ``timestep_spacing`` says, or those given, descending in 0..N-1."""
        total = self.schedule.num_steps
        if timesteps is not None:
            nodes = [int(step) + 1 for step in reversed(list(timesteps))]
            times = ListTrajectory(nodes=nodes).times(self.schedule, len(nodes))
        else:
            assert num_inference_steps is not None
            times = self._spacing.times(self.schedule, num_inference_steps)
        self._times = times
        self.num_inference_steps = len(times)
        self._steps = (times * total).round().long().flip(0).sub(1).tolist()
        self.timesteps = torch.tensor(self._steps, device=device)
        self._plans = {}

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """The sample as it is."""
        return sample

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        eta: float | None = None,
        use_clipped_model_output: bool = False,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
    ) -> OptCovSchedulerOutput | tuple[Tensor, Tensor]:
        """One step of the chain that `set_timesteps` chose.

        Args:
            model_output: of the network, ``[B, C, ...]``, or ``[B, 2C, ...]`` with Improved DDPM's variance.
            timestep: one of ``timesteps``.
            sample: x_t, ``[B, C, ...]``.
            eta: of this step; None for that of the config.
            use_clipped_model_output: DDPM's mean from the clipped x_0 at any eta; else DDIM's where eta is below 1.
            generator: of the noise; one a sample, or one for all.
            return_dict: whether to answer with an object.
        Raises:
            ValueError: if the head has not seen the network's call, or the timestep is not of the chain.
        """
        if int(timestep) not in self._steps:
            raise ValueError(f"timestep must be one of scheduler.timesteps (got {int(timestep)}): call set_timesteps")
        as_ddpm = use_clipped_model_output or (eta is None and self._settings.eta == 1)
        eta = float(self._settings.eta if eta is None else eta)
        x_t, output = sample.float(), model_output.float()
        variance = None
        if output.shape[1] == 2 * x_t.shape[1]:
            output, variance = output.chunk(2, 1)
        denoiser, strategy = self._parts(x_t)
        sampler = self._sampler(eta, as_ddpm)
        if eta not in self._plans:
            sampler.check(strategy, self.schedule)
            plan = sampler.plan(self.schedule, self.schedule.levels(self._times).flip())
            self._plans[eta] = plan.to(x_t.device)
        plan, i = self._plans[eta], self._steps.index(int(timestep))
        features = self._features(strategy, x_t, output, variance)
        prediction = denoiser.prediction(x_t, plan.levels[i], output, features, None)
        model = Model(denoiser, strategy, _Answered(prediction), None, _Noise(x_t, generator))
        with torch.no_grad():
            x_s = sampler.step(model, plan, State(i, x_t)).x.to(sample.dtype)
        x_0 = prediction.x0.to(sample.dtype)
        return OptCovSchedulerOutput(x_s, x_0) if return_dict else (x_s, x_0)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """``x_t`` of clean data and noise at timesteps ``[B]``, as pipelines that start from an image want it."""
        level = self.schedule.levels((timesteps.double() + 1) / self.schedule.num_steps)
        return per_sample(level.alpha, original_samples) * original_samples + per_sample(level.sigma, noise) * noise

    def save_pretrained(self, save_directory: str | os.PathLike[str], push_to_hub: bool = False, **kwargs: Any) -> None:
        """Write ``scheduler_config.json`` and, beside it, the strategy; arguments as in diffusers."""
        if self.strategy is not None:
            self.strategy.save_pretrained(Path(save_directory))
        super().save_pretrained(save_directory, push_to_hub, **kwargs)  # type: ignore[misc]

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: Any = None, subfolder: str | None = None, **kwargs: Any
    ) -> OptCovScheduler:
        """From a folder or a repository of the Hub that `save_pretrained` wrote; arguments as in diffusers."""
        made = super().from_pretrained(pretrained_model_name_or_path, subfolder, **kwargs)  # type: ignore[no-untyped-call]
        scheduler: OptCovScheduler = made[0] if isinstance(made, tuple) else made
        folder = Path(pretrained_model_name_or_path) / (subfolder or "")
        if not folder.is_dir():
            from huggingface_hub import snapshot_download

            inside = f"{subfolder}/" if subfolder else ""
            names = ("revision", "cache_dir", "token", "local_files_only", "force_download")
            repository = snapshot_download(
                pretrained_model_name_or_path,
                allow_patterns=[f"{inside}{CONFIG}", f"{inside}{WEIGHTS}"],
                **{name: kwargs[name] for name in names if name in kwargs},
            )
            folder = Path(repository) / inside
        if (folder / CONFIG).is_file():
            scheduler.strategy = load_strategy(folder)
        return made  # type: ignore[no-any-return]

    def __len__(self) -> int:
        return int(self._settings.num_train_timesteps)

    def _sampler(self, eta: float, as_ddpm: bool) -> KernelSampler:
        """The update rule; ``as_ddpm``, with the mean that DDPM takes from a clipped x_0, at any eta."""
        count, clip, cut = len(self._steps), self._settings.clip_sample, self._settings.cut
        sampler = DDPMSampler(count, clip, cut) if as_ddpm else DDIMSampler(count, eta, clip, cut)
        sampler.eta = eta
        return sampler

    def _parts(self, x_t: Tensor) -> tuple[Denoiser, VarianceStrategy]:
        """What a step asks of a denoiser, and the strategy on the sample's device."""
        if self._denoiser is None or self._denoiser.data_shape != tuple(x_t.shape[1:]):
            ends = self._settings.data_range
            data_range = DataRange(None, None, None) if ends is None else DataRange(*ends)
            channels = 0 if self.strategy is None else self.strategy.made_for.feature_channels
            network = _Elsewhere(x_t.shape[1:], channels, isinstance(self.strategy, LearnedRange))
            meaning, feed = MEANINGS[self._settings.prediction_type](), time_feed("n-1", self.schedule)
            self._denoiser = Denoiser(network, self.schedule, meaning, data_range=data_range, time=feed).eval()
            if self.strategy is None:
                self.strategy = BetaTilde(self._denoiser)
        assert self.strategy is not None
        self.strategy.to(x_t.device).eval()
        return self._denoiser, self.strategy

    def _features(self, strategy: VarianceStrategy, x_t: Tensor, output: Tensor, variance: Tensor | None) -> Tensor:
        """What a head reads, from the network's last call or from what the step was given."""
        seen, self._seen = self._seen, None
        if not any(True for _ in strategy.parameters()):
            return x_t if variance is None else variance
        if self._settings.features is None:
            parts = [x_t, output]
        elif seen is None:
            raise ValueError(
                f"scheduler must see the input of {self._settings.features}, which the head reads (got no call of the "
                "network): call scheduler.attach(pipeline.unet) once"
            )
        elif len(seen) != len(x_t):
            raise ValueError(
                f"the network must be asked once a step with {len(x_t)} samples for a head on its features (got "
                f"{len(seen)}, as with classifier-free guidance): take a strategy without a head, such as analytic"
            )
        else:
            parts = [seen.float()]
        return torch.cat([*parts, *([] if variance is None else [variance])], 1)
