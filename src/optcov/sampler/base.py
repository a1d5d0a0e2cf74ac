"""The sampling loop that every sampler shares: denoiser, variance strategy and times in, samples out, step by step."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from optcov.covariance import Covariance
from optcov.covariance.base import Noise
from optcov.data_range import DataRange
from optcov.denoiser import Denoiser, Prediction
from optcov.guidance.base import Guidance
from optcov.kernel import ReverseKernel
from optcov.sampler.noise import NoiseStream
from optcov.sampler.progress import ImageBar
from optcov.schedule.base import NoiseSchedule
from optcov.schedule.levels import NoiseLevels, per_sample
from optcov.schedule.vp import VPSchedule
from optcov.variance.base import Clean, VarianceStrategy
from optcov.variance.fixed import BetaTilde


@dataclass(frozen=True)
class Model:
    """Everything a step may use for one batch: the mean, the covariance of a step, and noise."""

    denoiser: Denoiser
    strategy: VarianceStrategy
    guidance: Guidance
    condition: Tensor | None
    noise: Noise

    def predict(self, x_t: Tensor, level: NoiseLevels) -> Prediction:
        """Predict at ``x_t``, with guidance if there is any."""
        return self.guidance.predict(self.denoiser, self.strategy, x_t, level, self.condition)

    def transition(self, kernel: ReverseKernel, prediction: Prediction) -> Covariance:
        """``Cov[x_s | x_t]`` of the step that ``kernel`` describes."""
        return self.guidance.transition(kernel, self.denoiser, self.strategy, prediction)


@dataclass(frozen=True)
class State:
    """The state of a sampling chain.

    Args:
        i: the number of steps taken so far.
        x: the batch after these steps, ``[B, *event]``.
        prediction: the record of the last network call, including its inputs ``x_t`` and ``level``.
        memory: tensors that the method keeps for its next step.
    """

    i: int
    x: Tensor
    prediction: Prediction | None = None
    memory: tuple[Tensor, ...] = ()


class Sampler(ABC):
    """An update rule: `plan` computes everything that depends only on time, `step` takes one step.

    Args:
        num_steps: K, the number of times visited; at least 1.
    Attributes:
        uses_variance: whether steps draw from the strategy's covariance.  ODE solvers add no noise, and SDE solvers
            prescribe their own.
        variance_remedy: what else to set for a strategy that the sampler cannot use.
        num_images: how many images `fit` needs; 0 if there is nothing to fit.
        schedules: the kind of path for which the method is derived.
    Raises:
        ValueError: if ``num_steps`` is below 1.
    """

    uses_variance: bool = True
    variance_remedy: ClassVar[str] = "sampler=ddpm or sampler=ddim"
    num_images: int = 0
    schedules: ClassVar[type[NoiseSchedule]] = NoiseSchedule  # type: ignore[type-abstract]

    def __init__(self, num_steps: int) -> None:
        if num_steps < 1:
            raise ValueError(f"sampler.num_steps must be at least 1 (got {num_steps}): give a number from 1 to N")
        self.num_steps = num_steps

    def check(self, strategy: VarianceStrategy, schedule: NoiseSchedule) -> None:
        """Refuse a strategy that this sampler would ignore, or a path for which it is not derived.

        Raises:
            ValueError: if either is the case; the message names the pair and the alternatives.
        """
        name = type(self).__name__
        if not self.uses_variance and not isinstance(strategy, BetaTilde):
            raise ValueError(
                f"var must be beta_tilde for sampler = {name}, which cannot use a fitted variance (got "
                f"{type(strategy).__name__}): set var=beta_tilde, or {self.variance_remedy}"
            )
        if not isinstance(schedule, self.schedules):
            kind = "variance-preserving" if self.schedules is VPSchedule else self.schedules.__name__
            raise ValueError(
                f"schedule must be {kind} for sampler = {name} (got {type(schedule).__name__}): "
                "set sampler=ddpm, ddim, dpm_solver_pp, unipc, euler or heun, or schedule=linear"
            )

    def fit(self, denoiser: Denoiser, strategy: VarianceStrategy, times: Tensor, clean: Clean) -> None:
        """Measure on a fitted model what the steps depend on; the default does nothing.

        Args:
            denoiser, strategy: in eval mode, on the device of the data.
            times: ascending float64 ``[K]``, the times of the steps.
            clean: `num_images` data, or fewer if there are fewer.
        """
        return

    def measured(self) -> dict[str, Tensor]:
        """What `fit` found, by name, float64 ``[K]``; empty if there is nothing to fit."""
        return {}

    @abstractmethod
    def plan(self, schedule: NoiseSchedule, levels: NoiseLevels) -> Any:
        """Compute the coefficients of all steps.

        Args:
            schedule: the denoiser's schedule.
            levels: noise levels in the order in which they are visited, ``[K]``, on the CPU.
        Returns:
            A plan; its ``len`` is the number of steps, and ``to(device)`` moves it.
        """

    @abstractmethod
    def step(self, model: Model, plan: Any, state: State) -> State:
        """Take step ``state.i`` of the plan; the last step ends at x_0."""

    @torch.no_grad()
    def steps(
        self,
        denoiser: Denoiser,
        strategy: VarianceStrategy,
        times: Tensor,
        noise: Noise,
        *,
        guidance: Guidance | None = None,
        condition: Tensor | None = None,
        start: Tensor | None = None,
    ) -> Iterator[State]:
        """Draw one batch of x_0, yielding the state after each step; the last state's ``x`` is x_0, ``[B, *event]``.

        Gradients are off; a strategy may turn them on with `torch.enable_grad`.

        Args:
            denoiser, strategy: in eval mode, on the device of ``noise``.
            times: ascending float64 ``[K]`` in (0, 1], from a trajectory.
            noise: one stream per sample.
            guidance: how to steer samples towards their labels; None for no guidance.
            condition: labels, int64 ``[B]``; None for no labels.
            start: x at ``times[-1]``, ``[B, *event]``; None to draw it from the prior.
        Raises:
            ValueError: if ``times`` is empty, or the sampler cannot use the strategy or the schedule.
        """
        self.check(strategy, denoiser.schedule)
        guidance = guidance or Guidance()
        guidance.check(strategy)
        if self.num_images and guidance.steers:
            raise ValueError(
                f"guidance must be none for a sampler fitted to the data (got {type(guidance).__name__}): set "
                "sampler.noise=none or full"
            )
        if len(times) == 0:
            raise ValueError("times must hold at least one time (got none): give the times of a trajectory")
        levels = denoiser.levels(times.cpu()).flip()
        if start is None:
            start = noise.draw()
            start = per_sample(denoiser.schedule.prior_std(levels[0]), start) * start
        model = Model(denoiser, strategy, guidance, condition, noise)
        plan = self.plan(denoiser.schedule, levels)
        count, plan = len(plan), plan.to(start.device)
        state = State(0, start)
        for _ in range(count - 1):
            state = self.step(model, plan, state)
            yield state
        state = self.step(model, plan, state)
        assert state.prediction is not None
        yield replace(state, x=guidance.finish(state.x, state.prediction, noise))

    def sample(
        self,
        denoiser: Denoiser,
        strategy: VarianceStrategy,
        times: Tensor,
        noise: Noise,
        *,
        guidance: Guidance | None = None,
        condition: Tensor | None = None,
        start: Tensor | None = None,
    ) -> Tensor:
        """Draw one batch of x_0, ``[B, *event]``; arguments as in `steps`."""
        states = self.steps(denoiser, strategy, times, noise, guidance=guidance, condition=condition, start=start)
        for state in states:
            last = state
        return last.x

    def num_updates(self, schedule: NoiseSchedule, times: Tensor) -> int:
        """How many states `steps` yields for ascending times ``[K]``: one each, unless a step takes several calls."""
        return len(self.plan(schedule, schedule.levels(times.cpu()).flip()))


def order_within(order: int, num_steps: int, highest: int = 3) -> int:
    """Check the order of a solver and return it.

    Raises:
        ValueError: if it is not in 1..highest, or exceeds the number of steps.
    """
    if order not in range(1, highest + 1):
        orders = f"{', '.join(map(str, range(1, highest)))} or {highest}"
        raise ValueError(f"sampler.order must be {orders} (got {order}): give one of these")
    if order > num_steps:
        raise ValueError(
            f"sampler.order must be at most sampler.num_steps = {num_steps} (got {order}): lower it, or use more steps"
        )
    return order


def last_variance_bound(cut: float | None, data_range: DataRange) -> float | None:
    """The largest variance that a cut, in grey levels, allows in the last stochastic step; None for no bound.

    That is ``(cut * grey_level)^2 pi / 2`` (Analytic-DPM, arXiv:2201.06503, Sec. 3.1 and Appendix H.1).
    """
    if cut is None or data_range.grey_level is None:
        return None
    return (cut * data_range.grey_level) ** 2 * math.pi / 2


def batches(count: int, batch_size: int) -> list[range]:
    """Split the indices 0..count - 1 into as few batches as possible, all of the same size, which is at least 2.

    Every network call then has the same shape, so a compiled network is compiled once and its arithmetic does not
    change.  That of a single sample would: libraries multiply by a vector in another order than by a matrix.  The last
    batch may extend beyond ``count``, by fewer indices than there are batches, or by one.

    Args:
        count: the number of indices.
        batch_size: the largest allowed size of a batch; 1 counts as 2.
    Raises:
        ValueError: if either is below 1.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1 (got {count}): give the number of samples")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1 (got {batch_size}): give how many samples to draw at once")
    size = max(2, math.ceil(count / math.ceil(count / batch_size)))
    return [range(start, start + size) for start in range(0, count, size)]


def sample(
    denoiser: Denoiser,
    strategy: VarianceStrategy,
    sampler: Sampler,
    times: Tensor,
    count: int,
    seed: int = 0,
    batch_size: int = 256,
    device: torch.device | str = "cpu",
    progress: bool = True,
    labels: Tensor | None = None,
    guidance: Guidance | None = None,
) -> Tensor:
    """Draw samples in batches, with a progress bar.

    Args:
        denoiser, strategy: a mean network and its (fitted) variance; moved to ``device`` and put in eval mode.
        sampler, times: the update rule, and the times it visits (``trajectory.times(schedule, num_steps)``).
        count: the number of samples.
        seed: sample i depends on (seed, i) only, not on the batch size.
        batch_size: the largest number of samples drawn at once.
        device: the device to compute on.
        progress: whether to show the bar.
        labels: the class of each sample, int64 ``[count]`` in 0..K-1; only for class-conditional denoisers or guidance.
            None for no labels; a class-conditional denoiser then gets the null label.
        guidance: how to steer samples towards the labels; moved and put in eval mode like the denoiser.  None for no
            guidance.
    Returns:
        float32 ``[count, *event]``, nominally in the denoiser's range, on the CPU.
    Raises:
        ValueError: if ``count`` or ``batch_size`` is below 1, the sampler cannot use the strategy or the schedule,
            the number of labels is not ``count``, or guidance has no labels or no null class.
    """
    sampler.check(strategy, denoiser.schedule)
    parts = batches(count, batch_size)
    denoiser.to(device).eval()
    strategy.to(device).eval()
    if guidance is not None:
        guidance.check(strategy)
        guidance.check_count(count)
    if labels is None and guidance is not None and guidance.needs_labels:
        raise ValueError("labels must be given with guidance (got None): give the class of each sample")
    if guidance is not None and guidance.uses_null_label and not denoiser.has_null_label:
        raise ValueError(
            "guidance must do without a null class for a network that has none (got one that asks for it): give "
            "null_class= to optcov.load, or guidance=classifier"
        )
    if labels is not None and len(labels) != count:
        raise ValueError(f"labels must be one for each of {count} samples (got {len(labels)}): give {count} labels")
    if labels is not None:  # the last batch may extend beyond count
        labels = torch.cat([labels, labels.new_zeros(parts[-1].stop - count)]).to(device)
    guidance = (guidance or Guidance(denoiser)).to(device).eval()

    def chain(indices: range) -> Iterator[State]:
        noise = NoiseStream(seed, indices, denoiser.data_shape, device)
        condition = None if labels is None else labels[indices.start : indices.stop]
        return sampler.steps(denoiser, strategy, times, noise, guidance=guidance.of(indices), condition=condition)

    updates = sampler.num_updates(denoiser.schedule, times)
    return drawn_in_batches(chain, parts, updates, (count, *denoiser.data_shape), progress)


def drawn_in_batches(
    chain: Callable[[range], Iterator[State]],
    parts: Sequence[range],
    updates: int,
    shape: Sequence[int],
    progress: bool,
) -> Tensor:
    """Run a chain for each batch, with a progress bar, and collect the last states.

    Args:
        chain: starts the chain of the samples with these indices.
        parts: from `batches`.
        updates: states of a chain: see `Sampler.num_updates`.
        shape: of all samples, ``[count, *event]``.
        progress: whether to show the bar.
    Returns:
        float32, on the CPU.
    Raises:
        ValueError: if a sample is not finite.
    """
    images = torch.empty(*shape)
    count = len(images)
    with ImageBar(updates, count, disable=not progress) as bar:
        for indices in parts:
            for state in bar.watch(chain(indices), len(indices)):
                drawn = state.x
            images[indices.start : indices.stop] = drawn[: count - indices.start]
            if not images[indices.start : indices.stop].isfinite().all():
                raise ValueError(
                    "samples must be finite (got NaN or infinity): look at the network's answers at these times, or "
                    "limit its predictions by clip_x0=True"
                )
    return images
