"""Analytic-DPM: the best covariance that does not depend on x_t, estimated in one Monte Carlo pass.

    analytic              C = r (1 - E||e||^2 / d)         Analytic-DPM (arXiv:2201.06503), Eq. 8 and 9
    analytic_diag         C = r (1 - E[e^2])               Extended-Analytic-DPM (arXiv:2206.07309), Sec. 3
    analytic_imperfect    C = r E||eps - e||^2 / d         the same, for a mean that is not exact
    ..._imperfect_diag    C = r E[(eps - e)^2]

They are for a network that predicts eps, with ``r = c_out^2 = sigma_t^2 / alpha_t^2``; for another target f they become
``r E[f^2 - f_net^2]`` and ``r E[(f - f_net)^2]``.  Expectations are over data and noise, at each time n = 1..N or at
some of them.  A class-conditional network is measured twice: with the labels of the data, and with the null label.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from tqdm.auto import tqdm

from optcov.covariance import Covariance, DiagonalCovariance, IsotropicCovariance
from optcov.denoiser import Denoiser, Prediction, not_finite
from optcov.ranges import Batch, PositiveCount
from optcov.schedule.base import NoiseSchedule
from optcov.seeds import Stream, derive_seed
from optcov.variance.base import Calibrated

log = logging.getLogger(__name__)


class ControlledMean:
    """Running mean of random values, sharpened by a control variate of known mean 0 (regression estimator).

    At large t, e is nearly eps, and ``1 - E[e^2]`` is a small difference that ``r`` enlarges a thousandfold.  With
    ``eps^2 - 1`` as the control variate its error shrinks by orders of magnitude, while the expectation is unchanged.
    Moments are float64 and merged batch by batch (Chan, Golub and LeVeque 1983), so the result does not depend on how
    the data are split into batches.
    """

    def __init__(self) -> None:
        self.count = 0
        self._value = self._control = torch.zeros((), dtype=torch.float64)  # means
        self._vv = self._vc = self._cc = torch.zeros((), dtype=torch.float64)  # centred sums of products

    def update(self, values: Tensor, control: Tensor) -> None:
        """Add float64 values and controls, each ``[B, ...]``."""
        added, total = len(values), self.count + len(values)
        value, control_mean = values.mean(0), control.mean(0)
        v, c = values - value, control - control_mean
        dv, dc = value - self._value, control_mean - self._control
        between = self.count * added / total
        self._vv = self._vv + (v * v).sum(0) + dv * dv * between
        self._vc = self._vc + (v * c).sum(0) + dv * dc * between
        self._cc = self._cc + (c * c).sum(0) + dc * dc * between
        self._value, self._control = self._value + dv * added / total, self._control + dc * added / total
        self.count = total

    def result(self) -> tuple[Tensor, Tensor]:
        """The mean and its standard error, each ``[...]``; needs at least 3 values."""
        slope = self._vc / self._cc
        residual = (self._vv - slope * self._vc).clamp(min=0)
        return self._value - slope * self._control, (residual / (self.count - 2) / self.count).sqrt()


class Analytic(Calibrated):
    """``C = r Cov[f]``, with the variance of the network's target f (eps) measured once per time and kept as a buffer.

    Args:
        denoiser: the mean network, used only for its shapes.
        per_pixel: one variance for each pixel instead of one for all.
        imperfect_mean: measure ``E[(eps - e)^2]``, which is the optimal variance even if the mean network is not exact,
            instead of ``1 - E[e^2]``, which equals it only for an exact network.
        num_images: M, the number of images of the pass.  Each keeps the same noise at all times, so the curve is as
            smooth in t as the network: errors at neighbouring times are alike.
        num_times: measure at most this many times, evenly spaced in log SNR, and interpolate the others; None for all.
            The accuracy depends only on the network.  Its time embedding has sines with periods of 6 steps and more,
            which make its predictions ripple, and no curve through every twentieth time can follow this.  The ripple is
            a first-order error in ``1 - E[e^2]`` and a second-order one in ``E[(eps - e)^2]``.  Calibration logs how
            well one half of the measured times predicts the other half; docs/few_times.md has numbers.
        batch_size: (image, time) pairs per network call; the noise does not depend on it.
    Raises:
        ValueError: if an argument is out of range.

    Buffers (float64, index n = 0..N, [N + 1] or [N + 1, *event]):
        eps_variance: the estimate of Cov[f | x_t], averaged over x_t; 1 - Gamma_n in Analytic-DPM's notation.
        eps_variance_se: its standard error, interpolated between measured times without the error of interpolation.
        null_eps_variance, null_eps_variance_se: the same for the null label; only for class-conditional networks.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        per_pixel: bool = False,
        imperfect_mean: bool = False,
        num_images: PositiveCount = 128,
        num_times: PositiveCount | None = None,
        batch_size: Batch = 512,
    ) -> None:
        super().__init__(denoiser)
        if num_images < 3:
            raise ValueError(
                f"var.num_images must be at least 3 (got {num_images}): the standard error is undefined below that"
            )
        if num_times is not None and num_times < 4:
            raise ValueError(f"var.num_times must be at least 4 (got {num_times}): give more, or null for all times")
        if batch_size < 1:
            raise ValueError(f"var.batch_size must be at least 1 (got {batch_size}): give the size of a network call")
        self.per_pixel, self.imperfect_mean, self.num_images = per_pixel, imperfect_mean, num_images
        self.num_times, self.batch_size = num_times, batch_size
        shape = (denoiser.schedule.num_steps + 1, *(denoiser.data_shape if per_pixel else ()))
        self.eps_variance: Tensor
        self.eps_variance_se: Tensor
        self.null_eps_variance: Tensor
        self.null_eps_variance_se: Tensor
        prefixes = [""] if denoiser.num_classes is None else ["", "null_"]
        for name in (f"{prefix}{table}" for prefix in prefixes for table in ("eps_variance", "eps_variance_se")):
            self.register_buffer(name, torch.full(shape, torch.nan, dtype=torch.float64))

    @torch.no_grad()
    def calibrate(
        self, denoiser: Denoiser, batches: Iterable[Tensor], seed: int = 0, labels: Tensor | None = None
    ) -> None:
        clean = torch.cat(list(batches))
        if len(clean) < 3:
            raise ValueError(
                f"images must be at least 3 (got {len(clean)}): the standard error is undefined below that"
            )
        self.to(clean.device)
        if denoiser.num_classes is not None and labels is None:
            raise ValueError(
                "labels must be given (got None): the denoiser is class-conditional, so give the labels of the data"
            )
        self._fill(self.eps_variance, self.eps_variance_se, denoiser, clean, seed, labels)
        if denoiser.num_classes is not None and denoiser.has_null_label:
            self._fill(self.null_eps_variance, self.null_eps_variance_se, denoiser, clean, seed, None)
        elif denoiser.num_classes is not None:  # it is never asked without a class
            self.null_eps_variance.copy_(self.eps_variance)
            self.null_eps_variance_se.copy_(self.eps_variance_se)

    def _fill(
        self, variance: Tensor, error: Tensor, denoiser: Denoiser, clean: Tensor, seed: int, labels: Tensor | None
    ) -> None:
        """Make one pass and write estimates of Cov[f] and their standard errors into two tables."""
        schedule = denoiser.schedule
        nodes = even_in_log_snr(schedule, self.num_times or schedule.num_steps)
        times = (nodes.double() / schedule.num_steps).to(clean.device)
        generator = torch.Generator(clean.device).manual_seed(derive_seed(seed, Stream.CALIBRATION))
        noise = torch.randn(clean.shape, dtype=clean.dtype, device=clean.device, generator=generator)
        moments: dict[int, ControlledMean] = {}  # for the times within the current call
        results = []
        starts = range(0, len(nodes) * len(clean), self.batch_size)
        for start in tqdm(starts, desc="2/3 variance: one pass", leave=False, disable=not self.progress):
            pieces = list(self._pieces(start, len(nodes), len(clean)))
            moments = {k: moments.get(k, ControlledMean()) for k, _ in pieces}
            x_0 = torch.cat([clean[images] for _, images in pieces])
            eps = torch.cat([noise[images] for _, images in pieces])
            sizes = [images.stop - images.start for _, images in pieces]
            t = torch.cat([times[k].expand(size) for (k, _), size in zip(pieces, sizes, strict=True)])
            known = None if labels is None else torch.cat([labels[images] for _, images in pieces])
            drawn = (torch.split(values, sizes) for values in self._measure(denoiser, x_0, eps, t, known))
            for (k, _), measured, control in zip(pieces, *drawn, strict=True):
                moments[k].update(measured, control)
                if moments[k].count == len(clean):
                    results.append(moments[k].result())
        tables = [torch.stack(values) for values in zip(*results, strict=True)]
        finite = tables[0].isfinite().reshape(len(tables[0]), -1).all(1)
        if not finite.all():
            raise not_finite(float(times[int((~finite).nonzero()[0])]))
        if len(nodes) < schedule.num_steps:
            miss = left_out(denoiser, nodes, tables[0])
            log.info(
                "var.num_times = %d: the curve through half of the measured times meets %.0f %% of the other half "
                "within 1 %%, and all of it within %.2g %%",
                self.num_times,
                100 * (miss < 0.01).double().mean(),
                100 * miss.max(),
            )
        variance[1:], error[1:] = (interpolate_in_log_snr(denoiser, nodes, table) for table in tables)
        # used only between 0 and the first time: x_0 itself says nothing about the noise, so C -> sigma^2 / alpha^2
        first = schedule.levels(schedule.grid()[0] * 1e-6)
        variance[0], error[0] = first.noise_variance / denoiser.parameterization.c_out_sq(first), 0.0

    def _pieces(self, start: int, num_nodes: int, num_images: int) -> Iterator[tuple[int, slice]]:
        """The pairs of one call, from a stream that goes through all images at one time, then all at the next."""
        stop = min(start + self.batch_size, num_nodes * num_images)
        while start < stop:
            node, first = divmod(start, num_images)
            last = min(num_images, first + stop - start)
            yield node, slice(first, last)
            start += last - first

    def _measure(
        self, denoiser: Denoiser, x_0: Tensor, eps: Tensor, t: Tensor, labels: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The estimate from each sample, and its control variate of mean 0; ``[B]`` or ``[B, *event]``."""
        level = denoiser.levels(t)
        output = denoiser(denoiser.diffuse(x_0, eps, level), level, labels).output.double()
        target = denoiser.target(x_0, eps, level).double()
        output, target, eps = self.coordinates(output), self.coordinates(target), self.coordinates(eps.double())
        if self.imperfect_mean:
            measured = (target - output) ** 2
        else:
            measured = denoiser.parameterization.expected_square(target) - output**2
        control = eps**2 - 1
        return (measured, control) if self.per_pixel else (measured.flatten(1).mean(1), control.flatten(1).mean(1))

    def covariance(self, denoiser: Denoiser, prediction: Prediction) -> Covariance:
        x_t, level = prediction.x_t, prediction.level
        variance = denoiser.schedule.interpolate(self.eps_variance, level.t)
        if prediction.condition is not None:
            is_null = prediction.condition.eq(denoiser.num_classes or 0)  # [B]
            is_null = is_null.reshape((-1,) + (1,) * (self.eps_variance.ndim - 1))
            variance = torch.where(is_null, denoiser.schedule.interpolate(self.null_eps_variance, level.t), variance)
        r = denoiser.parameterization.c_out_sq(level)
        if not self.per_pixel:
            return IsotropicCovariance((r * variance).to(x_t.dtype).expand(len(x_t)), x_t.shape[1:])
        r = r.reshape(r.shape + (1,) * (x_t.ndim - 1))
        return self.structured((r * variance).to(x_t.dtype).expand(x_t.shape))

    def coordinates(self, x: Tensor) -> Tensor:
        """The numbers whose variances are measured, ``[B, *event]``: here the pixels."""
        return x

    def structured(self, variance: Tensor) -> Covariance:
        """The covariance of independent coordinates, ``[B, *event]``."""
        return DiagonalCovariance(variance)


SMALLEST_LOG_SNR = -40.0  # replaces -inf, the log SNR at the end of a path without signal


def _log_snr(schedule: NoiseSchedule, t: Tensor) -> Tensor:
    return schedule.log_snr(t).clamp(min=SMALLEST_LOG_SNR)


def even_in_log_snr(schedule: NoiseSchedule, count: int) -> Tensor:
    """Choose at most ``count`` of the integers 1..N, including both ends, as evenly in log SNR as the grid allows.

    Where the grid is coarser than the spacing (at small n, and at the end of a cosine schedule), all its times are
    taken; the spacing is then narrowed until ``count`` is nearly reached.
    """
    grid = schedule.grid()
    if count >= len(grid):
        return torch.arange(1, len(grid) + 1)
    first, last = _log_snr(schedule, grid[[0, -1]]).tolist()
    nodes = torch.tensor([1, len(grid)])
    for attempt in range(count, 3 * count):
        times = schedule.time(torch.linspace(first, last, attempt, dtype=torch.float64))[1:-1]
        inner = (times * len(grid)).round().long().clamp(1, len(grid))
        finer = torch.cat([inner, torch.tensor([1, len(grid)])]).unique()  # type: ignore[no-untyped-call]
        if len(finer) > count:
            break
        nodes = finer
    return nodes


def interpolate_in_log_snr(denoiser: Denoiser, nodes: Tensor, table: Tensor) -> Tensor:
    """Interpolate Cov[f] from some times to all times, by monotone cubics in log SNR (Fritsch and Carlson 1980).

    The interpolated quantity is ``C / sigma^2 = c_out^2 Cov[f] / sigma^2``, which has the same magnitude at all times,
    while C and Cov[eps] each fall by orders of magnitude towards one end.  Values below 0 do no harm.

    Args:
        denoiser: the denoiser; its schedule has N steps.
        nodes: ascending integers in 1..N, including 1 and N.
        table: float64 ``[len(nodes), ...]``.
    Returns:
        float64 ``[N, ...]``, on the device of ``table``; equal to ``table`` at the nodes.
    """
    schedule = denoiser.schedule
    grid = schedule.grid()
    if len(nodes) == len(grid):
        return table
    from scipy.interpolate import PchipInterpolator

    levels = schedule.levels(grid)
    scale = denoiser.parameterization.c_out_sq(levels) / levels.sigma**2
    scale = scale.reshape(-1, *[1] * (table.ndim - 1))
    position = -_log_snr(schedule, grid).numpy()
    curve = PchipInterpolator(position[nodes - 1], (table.cpu() * scale[nodes - 1]).numpy(), axis=0)
    return (torch.from_numpy(curve(position)) / scale).to(table.device)


def left_out(denoiser: Denoiser, nodes: Tensor, table: Tensor) -> Tensor:
    """The relative distance of every other measured value from the curve through the remaining values.

    It tells a smooth curve from a rippled one at no cost.  The remaining values lie twice as far apart as the nodes, so
    this overstates the error of a smooth curve; for a rippled curve it is representative.

    Args:
        denoiser, nodes, table: as in `interpolate_in_log_snr`; at least 3 nodes.
    Returns:
        float64 ``[(len(nodes) - 1) // 2, ...]``, on the CPU.
    """
    rest = torch.ones(len(nodes), dtype=torch.bool)
    rest[1:-1:2] = False
    table = table.cpu()
    predicted = interpolate_in_log_snr(denoiser, nodes[rest], table[rest])[nodes[~rest] - 1]
    return (predicted / table[~rest] - 1).abs()
