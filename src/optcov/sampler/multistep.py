r"""Multistep solvers: a step from ``t`` to ``s`` makes one network call and reuses data predictions of earlier steps.

In ``lambda = log(alpha / sigma)``, with ``h = lambda_s - lambda_t``, the probability-flow ODE (H = h) and the reverse
SDE (H = 2 h, exact noise) have the solution

    x_s = sigma_s / sigma_t e^{h - H} x_t + alpha_s int_0^1 H e^{-(1 - u) H} m(lambda_t + u h) du + noise
    noise ~ N(0, sigma_s^2 (1 - e^{-2 (H - h)}) I)

(DPM-Solver++, arXiv:2211.01095, Prop. 4.1 and Sec. 5).  A polynomial through predictions ``m_j`` at ``u_j`` turns the
integral into ``sum_j w_j m_j``.  The w_j solve ``sum_j w_j u_j^k = M_k`` with the moments

    M_0 = 1 - e^{-H},   M_k = int_0^1 u^k H e^{-(1 - u) H} du = 1 - k M_{k-1} / H

With two predictions the published methods replace M_1 by ``M_0 / 2``, which has the same order of accuracy.  The step
to ``sigma_0 = 0``, where H is infinite, has order 1 and returns m.

Methods in the noise prediction, such as iPNDM, combine past ``e_j`` instead and start from the newest m:

    x_s = alpha_s m_0 + sum_j w_j e_j,      sum_j w_j = sigma_s

In either form ``sum_j w_j`` is the weight of the step of order 1, which is DDIM's; the rest extrapolates.  What noise
a step may add to this mean is in `optcov.sampler.share`.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from optcov.covariance.base import Noise
from optcov.denoiser import Denoiser, Prediction
from optcov.guidance.base import Guidance
from optcov.kernel import ReverseKernel
from optcov.ranges import HighOrder, NonNegative, Steps
from optcov.sampler.base import Model, Sampler, State, last_variance_bound, order_within
from optcov.sampler.noise import NoiseStream
from optcov.sampler.share import FITTED, FIXED, Marginals, NoiseChoice, Shares, StepChains
from optcov.schedule.base import NoiseSchedule
from optcov.schedule.levels import NoiseLevels, per_sample
from optcov.seeds import Stream, derive_seed
from optcov.variance.base import Clean, VarianceStrategy


@dataclass(frozen=True)
class LinearPlan:
    """Steps ``x_s = keep b + sum_j weights_j h_j + noise z``, in the order in which they are taken; float64.

    Here b and h_j are x_t and predictions of x_0, or, for methods in the noise prediction, m and predictions of eps.

    Args:
        levels: the level at the start of each step, ``[K]``.
        keep, noise: ``[K]``.
        weights: ``[K, order]``, newest prediction first.
        correction: ``[K, order + 2]``, or None for no correction.  Before every step except the first, ``x_t`` becomes
            ``c_0 x + sum_j c_{j+1} m_j``, where x is the start of the previous step and m_0 the newest prediction.
        kernels: DDIM's kernel of every step but the last, whose covariance the steps add in a share; None for none.
        shares: of that covariance in each step, ``[K]``; numbers of the host, so that a step without draws nothing.
    """

    levels: NoiseLevels
    keep: Tensor
    weights: Tensor
    noise: Tensor
    correction: Tensor | None = None
    kernels: ReverseKernel | None = None
    shares: tuple[float, ...] = ()

    def __len__(self) -> int:
        return len(self.levels)

    def to(self, device: torch.device) -> LinearPlan:
        """The same plan on another device."""
        return LinearPlan(
            self.levels.to(device),
            self.keep.to(device),
            self.weights.to(device),
            self.noise.to(device),
            None if self.correction is None else self.correction.to(device),
            None if self.kernels is None else self.kernels.to(device),
            self.shares,
        )

    def extrapolation(self, i: int, history: Iterable[Tensor]) -> Tensor | float:
        """What step ``i`` adds to the step of order 1, from the predictions that it uses, newest first."""
        newest, *past = history
        total: Tensor | float = 0.0
        for j, each in enumerate(past[: self.weights.shape[1] - 1], 1):
            total = total + per_sample(self.weights[i, j], each) * (each - newest)
        return total


class LinearSampler(Sampler):
    """Runs steps that are linear in x and in the predictions of the last steps.

    Args:
        num_steps: K, the number of steps; each makes one network call.
        order: how many predictions a step uses; the first steps have fewer, and the last steps use fewer.
        stochastic: whether steps add noise of their own.
        clip_x0: clamp the predicted x_0 to the data's range.
        highest: the highest order of the method.
    Raises:
        ValueError: if the order is not in 1..highest, or above K.
    """

    uses_variance = False

    def __init__(self, num_steps: int, order: int, stochastic: bool, clip_x0: bool, highest: int = 3) -> None:
        super().__init__(num_steps)
        self.order = order_within(order, num_steps, highest)
        self.stochastic, self.clip_x0 = stochastic, clip_x0

    @abstractmethod
    def plan(self, schedule: NoiseSchedule, levels: NoiseLevels) -> LinearPlan:
        """Compute the coefficients of the steps from each level to the next, and from the last level to 0."""

    def parts(self, x: Tensor, x0: Tensor, prediction: Prediction) -> tuple[Tensor, Tensor]:
        """What a step keeps, b, and the newest of what it combines, h_0, each ``[B, *event]``."""
        return x, x0

    def step(self, model: Model, plan: LinearPlan, state: State) -> State:
        return self.mean_step(model, plan, state)

    def mean_step(self, model: Model, plan: LinearPlan, state: State) -> State:
        """A step without noise of a variance strategy."""
        i, x = state.i, state.x
        prediction = model.predict(x, plan.levels[i])
        x0 = model.denoiser.data_range.clip(prediction.x0) if self.clip_x0 else prediction.x0
        start, *past = state.memory or (x,)
        if i == len(plan) - 1:
            return State(i + 1, x0, prediction)
        history = [self.parts(x, x0, prediction)[1], *past][: self.order + 1]
        if plan.correction is not None and i > 0:
            x = per_sample(plan.correction[i, 0], x) * start
            for j, m in enumerate(history):
                x += per_sample(plan.correction[i, j + 1], m) * m
        start, kept = x, self.parts(x, x0, prediction)[0]
        x = per_sample(plan.keep[i], kept) * kept
        for j, each in enumerate(history[: self.order]):
            x += per_sample(plan.weights[i, j], each) * each
        if self.stochastic:
            x += per_sample(plan.noise[i], x) * model.noise.draw()
        return State(i + 1, x, prediction, (start, *history))


class MultistepSampler(LinearSampler):
    """A multistep solver of the ODE, to whose steps any strategy's covariance may be added in a share.

    Args:
        num_steps, order, stochastic, clip_x0, highest: as in `LinearSampler`.
        noise: the share: ``none``, ``full``, or ``matched``, ``balanced`` or ``shaped``, which `fit` measures: see
            `optcov.sampler.share`.
        cut: bound on the noise of the last stochastic step, in grey levels, as in `KernelSampler`.
    Raises:
        ValueError: if an argument is out of range, or ``noise`` is not ``none`` where steps add noise of their own.
    """

    variance_remedy = "sampler.noise=matched, sampler=ddpm or sampler=ddim"

    def __init__(
        self,
        num_steps: int,
        order: int,
        stochastic: bool,
        clip_x0: bool,
        noise: NoiseChoice = "none",
        cut: float | None = 1.0,
        highest: int = 3,
    ) -> None:
        super().__init__(num_steps, order, stochastic, clip_x0, highest)
        if noise not in FIXED and noise not in FITTED:
            known = ", ".join([*FIXED, *FITTED])
            raise ValueError(f"sampler.noise must be one of {known} (got {noise!r}): give none for the solver alone")
        if stochastic and noise != "none":
            raise ValueError(
                f"sampler.noise must be none for sampler.sde=true, which prescribes its noise (got {noise!r}): set "
                "sampler.sde=false"
            )
        if cut is not None and not 0 <= cut < math.inf:
            raise ValueError(f"sampler.cut must not be negative (got {cut}): give 1, 2, or null for no cut")
        self.noise, self.cut = noise, cut
        self.uses_variance = noise != "none"
        self.num_images = 512 if noise in FITTED else 0
        self.fitted: tuple[Tensor, Shares] | None = None

    @abstractmethod
    def mean_plan(self, schedule: NoiseSchedule, levels: NoiseLevels) -> LinearPlan:
        """The coefficients of the steps of the solver alone."""

    def check(self, strategy: VarianceStrategy, schedule: NoiseSchedule) -> None:
        super().check(strategy, schedule)
        if self.uses_variance:
            strategy.check_step(0.0)

    def plan(self, schedule: NoiseSchedule, levels: NoiseLevels) -> LinearPlan:
        plan = self._with_kernels(schedule, levels)
        if self.noise in FIXED:
            return replace(plan, shares=(FIXED[self.noise],) * len(levels))
        if self.fitted is None or not torch.equal(self.fitted[0], levels.t.flip(0)):
            raise ValueError(
                f"sampler must be fitted to these times for sampler.noise={self.noise} (got "
                f"{'other times' if self.fitted else 'no fit'}): call its fit, or give images to optcov.sample"
            )
        shares = self.fitted[1]
        theta = plan.weights.new_tensor(shares.extrapolation)[:, None]
        damped = theta * plan.weights
        damped[:, 0] = damped[:, 0] + ((1 - theta) * plan.weights).sum(1)
        return replace(plan, weights=damped, shares=shares.noise)

    def step(self, model: Model, plan: LinearPlan, state: State) -> State:
        after = self.mean_step(model, plan, state)
        if state.i == len(plan) - 1 or plan.shares[state.i] == 0:
            return after
        return self._noisy(plan, after, math.sqrt(plan.shares[state.i]) * self._drawn(model, plan, after))

    def fit(self, denoiser: Denoiser, strategy: VarianceStrategy, times: Tensor, clean: Clean) -> None:
        if self.noise not in FITTED:
            return
        x_0 = torch.cat(list(clean.batches))
        if len(x_0) < 2:
            raise ValueError(f"images must be at least two to fit sampler.noise={self.noise} (got {len(x_0)})")
        seed = derive_seed(clean.seed, Stream.SHARES)
        noise = NoiseStream(seed, range(len(x_0)), x_0.shape[1:], x_0.device, x_0.dtype)
        self.match(denoiser, strategy, times, noise, Marginals.of(x_0), clean.labels)

    def measured(self) -> dict[str, Tensor]:
        if self.fitted is None:
            return {}
        shares = self.fitted[1]
        return {
            "noise_shares": torch.tensor(shares.noise, dtype=torch.float64),
            "extrapolations": torch.tensor(shares.extrapolation, dtype=torch.float64),
        }

    @torch.no_grad()
    def match(
        self,
        denoiser: Denoiser,
        strategy: VarianceStrategy,
        times: Tensor,
        noise: Noise,
        marginals: Marginals,
        labels: Tensor | None = None,
    ) -> None:
        """Measure the shares on a chain, step by step; `fit` calls this.

        Args:
            denoiser, strategy, times, labels: as in `fit`.
            noise: of the chain.
            marginals: of clean data.
        """
        self.check(strategy, denoiser.schedule)
        levels = denoiser.levels(times.cpu()).flip()
        plan, start = self._with_kernels(denoiser.schedule, levels), noise.draw()
        std = denoiser.schedule.prior_std(levels[0])
        model = Model(denoiser, strategy, Guidance(), labels, noise)
        device_plan, state = plan.to(start.device), State(0, per_sample(std, start) * start)
        shares, expected = Shares((), ()), float(std) ** 2 * marginals.dim  # tr Cov[x_t] of the chain
        for i in range(len(levels) - 1):
            after = self.mean_step(model, device_plan, state)
            drawn = self._drawn(model, device_plan, after)
            extrapolated = device_plan.extrapolation(i, after.memory[1:])
            if isinstance(extrapolated, float):  # of order 1
                extrapolated = torch.zeros_like(drawn)
            chains = StepChains(state.x, after.x, extrapolated, drawn, expected, marginals, levels[i + 1])
            found = FITTED[self.noise](chains)
            shares, expected = shares.then(found.share, found.theta), found.trace
            after = replace(after, x=after.x - (1 - found.theta) * extrapolated)
            state = self._noisy(device_plan, after, math.sqrt(found.share) * drawn)
        self.fitted = times.cpu(), shares.then(0.0, 1.0)

    def _with_kernels(self, schedule: NoiseSchedule, levels: NoiseLevels) -> LinearPlan:
        plan = self.mean_plan(schedule, levels)
        return replace(plan, kernels=ReverseKernel.from_levels(levels[1:], levels[:-1], 0.0))

    def _drawn(self, model: Model, plan: LinearPlan, after: State) -> Tensor:
        """A draw from the covariance of DDIM's step that ended in this state, cut if it is the last such step."""
        assert plan.kernels is not None
        assert after.prediction is not None
        covariance = model.transition(plan.kernels[after.i - 1], after.prediction)
        if after.i == len(plan) - 1 and model.strategy.cut_last:
            covariance = covariance.bounded(last_variance_bound(self.cut, model.denoiser.data_range))
        return covariance.draw(model.noise)

    def _noisy(self, plan: LinearPlan, after: State, added: Tensor) -> State:
        """The state after a step with noise; a correction, which repeats the step, then keeps the noise."""
        memory = after.memory
        if plan.correction is not None:
            memory = (memory[0] + added / per_sample(plan.keep[after.i - 1], added), *memory[1:])
        return replace(after, x=after.x + added, memory=memory)


class AdamsSampler(MultistepSampler):
    """The exponential multistep methods described in this module's docstring; arguments as in `MultistepSampler`.

    Step i of K has order ``min(order, i, K + 1 - i)``, i = 1..K (DPM-Solver++'s ``lower_order_final``).
    """

    def mean_plan(self, schedule: NoiseSchedule, levels: NoiseLevels) -> LinearPlan:
        count = len(levels)
        lam, alpha, sigma = half_log_snr(levels), levels.alpha, levels.sigma
        keep, noise, weights = lam.new_zeros(count), lam.new_zeros(count), lam.new_zeros(count, self.order)
        for i in range(count - 1):
            order = min(self.order, i + 1, count - i)
            h = lam[i + 1] - lam[i]
            added = h if self.stochastic else torch.zeros_like(h)  # H - h
            keep[i] = sigma[i + 1] / sigma[i] * torch.exp(-added)
            noise[i] = sigma[i + 1] * (-torch.expm1(-2 * added)).sqrt()
            nodes = (lam[i + 1 - order : i + 1].flip(0) - lam[i]) / h
            weights[i, :order] = alpha[i + 1] * adams_weights(nodes, h + added)
        return LinearPlan(levels, keep, weights, noise)


class EpsSampler(MultistepSampler):
    """Multistep methods in the noise prediction.

    Step i of K has order ``min(order, i)``, i = 1..K; the last returns m.

    Args:
        num_steps: K, the number of steps; each makes one network call.
        order: the number of predictions that a step combines, 1 (DDIM) to 4; at most K.
        clip_x0: clamp the predicted x_0 to the data's range; the noise predictions stay as they are, as in DDIM.
        noise, cut: as in `MultistepSampler`.
    Raises:
        ValueError: if the order is none of these, or above K.
    """

    def __init__(
        self,
        num_steps: Steps = 50,
        order: HighOrder = 3,
        clip_x0: bool = False,
        noise: NoiseChoice = "none",
        cut: NonNegative | None = 1.0,
    ) -> None:
        super().__init__(num_steps, order, False, clip_x0, noise, cut, highest=4)

    @abstractmethod
    def eps_weights(self, schedule: NoiseSchedule, past: NoiseLevels, s: NoiseLevels) -> list[float]:
        """The weights of the noise predictions at the levels ``past``, newest first, in the step to ``s``."""

    def parts(self, x: Tensor, x0: Tensor, prediction: Prediction) -> tuple[Tensor, Tensor]:
        return x0, prediction.eps

    def mean_plan(self, schedule: NoiseSchedule, levels: NoiseLevels) -> LinearPlan:
        weights = levels.t.new_zeros(len(levels), self.order)
        for i in range(len(levels) - 1):
            order = min(self.order, i + 1)
            past = levels[i + 1 - order : i + 1].flip()
            weights[i, :order] = weights.new_tensor(self.eps_weights(schedule, past, levels[i + 1]))
        keep = torch.cat([levels.alpha[1:], levels.alpha.new_ones(1)])
        return LinearPlan(levels, keep, weights, torch.zeros_like(keep))


def half_log_snr(levels: NoiseLevels) -> Tensor:
    """``lambda = log(alpha / sigma)``; -inf becomes -40, which gives the same weights up to rounding."""
    return (levels.log_snr / 2).clamp(min=-40.0)


def adams_weights(nodes: Tensor, H: Tensor) -> Tensor:
    """The weights ``w_j`` in this module's docstring.

    Args:
        nodes: the ``u_j`` at which predictions are known; float64 ``[n]``, distinct.
        H: 0-dimensional, positive.
    Returns:
        float64 ``[n]``.
    """
    moments = adams_moments(len(nodes), H)
    if len(nodes) == 2:
        moments[1] = moments[0] / 2
    powers = nodes[None] ** torch.arange(len(nodes), dtype=torch.float64)[:, None]
    weights: Tensor = torch.linalg.solve(powers, torch.stack(moments))
    return weights


def adams_moments(count: int, H: Tensor) -> list[Tensor]:
    """``M_0 .. M_{count - 1}`` in this module's docstring, by its recursion in the direction in which errors shrink.

    Args:
        count: at most 4.
        H: 0-dimensional, positive.
    """
    moments = [-torch.expm1(-H)]
    if H >= 1:
        for k in range(1, count):
            moments.append(1 - k * moments[-1] / H)
        return moments
    # upwards, 1 - k M / H cancels; downwards, an error shrinks by H / k, so that the starting value does not matter
    falling = [H / (count + 21)]
    for k in range(count + 20, 1, -1):
        falling.append(H * (1 - falling[-1]) / k)
    return (moments + falling[::-1])[:count]
