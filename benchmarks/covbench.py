r"""covbench: estimators of ``C = Cov[x_0|x_t]`` scored against the exact one.

    python -m benchmarks.covbench                     all tasks and estimators, minutes; then the table in Markdown
    python -m benchmarks.covbench --table             the table from what is there

Tasks are versioned, of 8x8 pixels, on the linear schedule, and have exact posteriors:

    gaussian_field/v1     a Gaussian field, variance 1/4, correlation exp(-distance / 2)
    digits_mixture/v1     ten Gaussians, with the mean and covariance of each class of the training digits
    finite_digits/v1      the 1500 training digits, each blurred by white noise of variance 0.01
    .../planted           the same with a wrong mean: m + 0.3 sqrt(c_0) sin(3 x_t shifted by a pixel), where c_0 is the
                          posterior variance of white data; the truth is then C + delta delta^T, the error of that mean

Estimators never see the exact C, but for those called exact.  Scores, at each of `TIMES`, are means over points:

    diagonal, frobenius   |diag C' - diag C| / |diag C| and |C' - C|_F / |C|_F
    excess                NLL of N(m', C') less that of N(m', C), in nats per dimension, in closed form
    c50 c90 c95           coverage of the intervals of x_0, pixel by pixel, in %
    residual              mean of (x_0 - m')^2 / C'_ii, which is 1 for the exact C
    pit                   histogram of ten bins of Phi((x_0 - m') / sqrt(C'_ii)): all 0.1 if pixels are Gaussian
    ne, seconds           of a covariance with its draw, beside the prediction

``path`` is the divergence of a DDPM chain of T steps from the exact reverse process, in nats, with its slope in log T.

An estimator is a function ``(denoiser, images) -> strategy`` in `ESTIMATORS`.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

import optcov
from benchmarks import posterior
from optcov.covariance import Covariance, DiagonalCovariance, FullCovariance
from optcov.data import DigitsData
from optcov.data_range import DataRange
from optcov.denoiser import Denoiser, Prediction
from optcov.kernel import ReverseKernel
from optcov.oracle import GaussianMixture
from optcov.parameterization import X0
from optcov.sampler import NoiseStream
from optcov.schedule import LinearSchedule, NoiseLevels
from optcov.variance.base import Closed, VarianceStrategy
from optcov.variance.likely import posterior_variance

RESULTS = Path(__file__).parent / "results" / "covbench.json"
SHAPE, DIM = (1, 8, 8), 64
SCHEDULE = LinearSchedule(1000)
TIMES = (0.05, 0.1, 0.2, 0.35, 0.5, 0.75)
STEPS = (8, 16, 32, 64)
LEVELS = {"c50": 0.6744897501960817, "c90": 1.6448536269514722, "c95": 1.959963984540054}


class Truth(Protocol):
    """A distribution of x_0 of 64 dimensions whose diffusion is closed form; arguments as in `GaussianMixture`."""

    def posterior(self, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]: ...
    def posterior_mean(self, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor: ...
    def log_density(self, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor: ...
    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor: ...


class Blurred:
    """Points, each blurred by white noise: a mixture of as many Gaussians, of which none needs a matrix.

    Args:
        points: ``[n, d]``.
        variance: of the blur.
    """

    def __init__(self, points: Tensor, variance: float) -> None:
        self.points, self.variance = points.double(), variance

    def posterior(self, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        share = self._log_joint(x_t, alpha, sigma).softmax(1)
        mean, (total, sigma) = self.posterior_mean(x_t, alpha, sigma), self._total(x_t, alpha, sigma)
        centre = share @ self.points
        spread = torch.stack([(self.points * row[:, None]).T @ self.points for row in share])
        spread = spread - centre[:, :, None] * centre[:, None]
        own = (self.variance * sigma**2 / total)[..., None] * torch.eye(DIM, dtype=torch.float64)
        return mean, (sigma**2 / total)[..., None] ** 2 * spread + own

    def posterior_mean(self, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        centre = self._log_joint(x_t, alpha, sigma).softmax(1) @ self.points
        total, sigma = self._total(x_t, alpha, sigma)
        mean: Tensor = (sigma**2 * centre + alpha.double().expand(len(x_t))[:, None] * self.variance * x_t) / total
        return mean

    def log_density(self, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        total = alpha.double() ** 2 * self.variance + sigma.double() ** 2
        joint = self._log_joint(x_t, alpha, sigma).logsumexp(1) - math.log(len(self.points))
        density: Tensor = joint - DIM / 2 * (2 * math.pi * total).log()
        return density

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        chosen = torch.randint(len(self.points), (count,), generator=generator)
        noise = torch.randn(count, DIM, dtype=torch.float64, generator=generator)
        drawn: Tensor = self.points[chosen] + self.variance**0.5 * noise
        return drawn

    def _total(self, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """The variance of x_t about a point, and sigma, each ``[B, 1]``."""
        wide, narrow = alpha.double().expand(len(x_t))[:, None], sigma.double().expand(len(x_t))[:, None]
        return wide**2 * self.variance + narrow**2, narrow

    def _log_joint(self, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        scale = alpha.double().expand(len(x_t))[:, None]
        far = (x_t**2).sum(1, keepdim=True) - 2 * scale * x_t @ self.points.T + scale**2 * (self.points**2).sum(1)
        exponent: Tensor = -far / (2 * self._total(x_t, alpha, sigma)[0])
        return exponent


class TruthNetwork(nn.Module):
    """The exact mean of a truth, as a network of images that predicts x_0; heads read ``(x_t, output)``."""

    data_shape, feature_channels, default_head = SHAPE, 2, "input"

    def __init__(self, truth: Truth, planted: float) -> None:
        super().__init__()
        self.truth, self.planted = truth, planted

    def forward(self, x_t: Tensor, network_time: Tensor) -> tuple[Tensor, Tensor]:
        level = SCHEDULE.levels(network_time.double() / 1000)
        x = x_t.double().flatten(1)
        mean = self.truth.posterior_mean(x, level.alpha, level.sigma)
        output = (mean.reshape(x_t.shape) + self.error(x_t, level)).to(x_t.dtype)
        return output, torch.cat([x_t, output], 1)

    def error(self, x_t: Tensor, level: NoiseLevels) -> Tensor:
        """delta, what was planted."""
        size = self.planted * posterior_variance(0.25, level).sqrt().reshape(-1, 1, 1, 1)
        return size * torch.sin(3 * x_t.double().roll(1, 3))


class Exact(Closed):
    """The truth, or a part of it: the yardstick."""

    def __init__(self, denoiser: Denoiser, diagonal: bool = False) -> None:
        super().__init__(denoiser)
        self.diagonal = diagonal

    def covariance(self, denoiser: Denoiser, prediction: Prediction) -> Covariance:
        exact = truth_at(denoiser, prediction.x_t, prediction.level).to(prediction.x_t.dtype)
        if self.diagonal:
            return DiagonalCovariance(exact.diagonal(dim1=1, dim2=2).reshape(prediction.x_t.shape))
        return FullCovariance(exact, SHAPE)

    def bounded_covariance(self, denoiser: Denoiser, prediction: Prediction) -> Covariance:
        return self.covariance(denoiser, prediction)


def truth_at(denoiser: Denoiser, x_t: Tensor, level: NoiseLevels) -> Tensor:
    """``C + delta delta^T``, ``[B, d, d]``, float64: what a covariance of x_0 about the network's mean should be."""
    network: TruthNetwork = denoiser.network  # type: ignore[assignment]
    exact = network.truth.posterior(x_t.double().flatten(1), level.alpha, level.sigma)[1]
    delta = network.error(x_t, level).flatten(1)
    return exact + delta[:, :, None] * delta[:, None]


Estimator = Callable[[Denoiser, Tensor], VarianceStrategy]


def fitted(name: str, **settings: Any) -> Estimator:
    """An estimator by the name of its option."""

    def make(denoiser: Denoiser, images: Tensor) -> VarianceStrategy:
        return optcov.fit(name, denoiser, images, progress=False, **settings)

    return make


TRAINED = {"steps": 300}
ESTIMATORS: dict[str, Estimator] = {
    "exact": lambda denoiser, images: Exact(denoiser),
    "exact_diagonal": lambda denoiser, images: Exact(denoiser, True),
    "beta": fitted("beta"),
    "data_cov": fitted("data_cov"),
    "analytic": fitted("analytic", num_times=50),
    "analytic_diag": fitted("analytic_diag", num_times=50),
    "analytic_imperfect": fitted("analytic_imperfect", num_times=50),
    "dct": fitted("dct", num_times=50),
    "npr_dpm": fitted("npr_dpm", **TRAINED),
    "sn_dpm": fitted("sn_dpm", **TRAINED),
    "nll": fitted("nll", **TRAINED),
    "ocm": fitted("ocm", **TRAINED),
    "low_rank": fitted("low_rank", rank=8, **TRAINED),
    "kdct": fitted("kdct", **TRAINED),
    "jacobian": fitted("jacobian"),
    "jacobian_corrected": fitted("jacobian_corrected", **TRAINED),
    "lgs": fitted("lgs"),
}


def gaussian_field() -> GaussianMixture:
    """See `TASKS`."""
    place = torch.cartesian_prod(torch.arange(8.0), torch.arange(8.0)).double()
    return GaussianMixture(torch.zeros(1, DIM), 0.25 * torch.exp(-torch.cdist(place, place) / 2)[None])


def finite_digits() -> Blurred:
    """See `TASKS`."""
    data = DigitsData()
    return Blurred(data.normalize(data.load("train")).flatten(1), 0.01)


TASKS: dict[str, tuple[Callable[[], Truth], float]] = {
    f"{name}{suffix}": (made, planted)
    for name, made in (
        ("gaussian_field/v1", gaussian_field),
        ("digits_mixture/v1", posterior.digits),
        ("finite_digits/v1", finite_digits),
    )
    for suffix, planted in (("", 0.0), ("/planted", 0.3))
}


@dataclass
class Bench:
    """A task made: its denoiser, images to fit to, and the points at which estimators are scored."""

    denoiser: Denoiser
    images: Tensor
    x_0: Tensor  # [n, *SHAPE]
    eps: Tensor

    @classmethod
    def of(cls, task: str, points: int, seed: int = 0) -> Bench:
        made, planted = TASKS[task]
        truth = made()
        if isinstance(truth, posterior.OneLevelMixture):  # batches of one level are its own affair
            truth = GaussianMixture(truth.means, truth.covariances, truth.weights)
        network = TruthNetwork(truth, planted)
        denoiser = Denoiser(network, SCHEDULE, X0(), data_range=DataRange(None, None)).eval()
        generator = torch.Generator().manual_seed(seed)
        images = truth.sample(4000, generator).reshape(-1, *SHAPE).float()
        x_0 = truth.sample(points, generator).reshape(-1, *SHAPE)
        return cls(denoiser, images, x_0, torch.randn(x_0.shape, dtype=torch.float64, generator=generator))

    @torch.no_grad()
    def scores(self, strategy: VarianceStrategy) -> Iterator[dict[str, Any]]:
        """The scores at each time."""
        strategy.double().eval()
        for t in TIMES:
            level = self.denoiser.levels(torch.tensor(t, dtype=torch.float64))
            x_t = self.denoiser.diffuse(self.x_0, self.eps, level)
            prediction: Prediction = self.denoiser(x_t, level)
            noise = NoiseStream(0, range(len(x_t)), SHAPE, dtype=torch.float64)
            before, began = self.denoiser.cost.ne, time.process_time()
            model = strategy.bounded_covariance(self.denoiser, prediction)  # type: ignore[operator]
            model.draw(noise)
            seconds, ne = time.process_time() - began, (self.denoiser.cost.ne - before) / len(x_t)
            found = model.dense().double()
            yield {
                "t": t,
                **compared(found, truth_at(self.denoiser, x_t, level)),
                **calibration((self.x_0 - prediction.x0).flatten(1), found.diagonal(dim1=1, dim2=2)),
                "ne": ne,
                "seconds": seconds / len(x_t),
            }

    @torch.no_grad()
    def path(self, strategy: VarianceStrategy, steps: int) -> tuple[float, float]:
        """Divergence of the path of K steps even in log SNR from t = 1 to 0.01, in nats, and its standard error."""
        strategy.double().eval()
        low, high = SCHEDULE.log_snr(torch.tensor([0.01, 1.0], dtype=torch.float64)).tolist()
        levels = SCHEDULE.levels(SCHEDULE.time(torch.linspace(low, high, steps + 1, dtype=torch.float64)))
        truth: Truth = self.denoiser.network.truth  # type: ignore[assignment]
        total = torch.zeros(len(self.x_0), dtype=torch.float64)
        generator = torch.Generator().manual_seed(1)
        x_s = self.denoiser.diffuse(self.x_0, self.eps, levels[0])
        log_s = truth.log_density(x_s.flatten(1), levels[0].alpha, levels[0].sigma)
        for i in range(steps):  # the chain of the data forward in time
            s, t = levels[i], levels[i + 1]
            kernel = ReverseKernel.from_levels(s, t, 1.0)
            forward = torch.randn(x_s.shape, dtype=torch.float64, generator=generator)
            x_t = t.alpha / s.alpha * x_s + kernel.beta.sqrt() * forward
            log_t = truth.log_density(x_t.flatten(1), t.alpha, t.sigma)
            noising = -(forward**2).flatten(1).sum(1) / 2 - DIM / 2 * torch.log(2 * math.pi * kernel.beta)
            prediction = self.denoiser(x_t, t)
            step = strategy.transition(kernel, self.denoiser, prediction)
            off = x_s - kernel.mean(prediction.x0, prediction.eps)
            modelled = -(step.inv_quad(off) + step.logdet() + DIM * math.log(2 * math.pi)) / 2
            total += log_s + noising - log_t - modelled
            x_s, log_s = x_t, log_t
        return float(total.mean()), float(total.std() / len(total) ** 0.5)


def compared(found: Tensor, exact: Tensor) -> dict[str, float]:
    """How far covariances are from exact ones, both ``[B, d, d]``."""
    own, other = found.diagonal(dim1=1, dim2=2), exact.diagonal(dim1=1, dim2=2)
    root, failed = torch.linalg.cholesky_ex(found)
    whole = torch.linalg.cholesky(exact)
    half = torch.linalg.solve_triangular(root, whole, upper=False)
    logdets = [2 * each.diagonal(dim1=1, dim2=2).log().sum(1) for each in (root, whole)]
    excess = ((half**2).sum((1, 2)) - DIM + logdets[0] - logdets[1]) / (2 * DIM)
    excess = torch.where(failed == 0, excess, torch.inf)
    return {
        "diagonal": float(((own - other).norm(dim=1) / other.norm(dim=1)).mean()),
        "frobenius": float(((found - exact).flatten(1).norm(dim=1) / exact.flatten(1).norm(dim=1)).mean()),
        "excess": float(excess.mean()),
    }


def calibration(residual: Tensor, variance: Tensor) -> dict[str, Any]:
    """Coverage, residuals and PIT of residuals for variances, both ``[B, d]``."""
    z = residual / variance.clamp(min=1e-300).sqrt()
    pit = torch.special.ndtr(z)
    return {
        **{name: float(100 * (z.abs() <= bound).double().mean()) for name, bound in LEVELS.items()},
        "residual": float((z**2).mean()),
        "pit": [round(float(each), 4) for each in torch.histc(pit, 10, 0, 1) / pit.numel()],
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: for each task, a row an estimator, with means over times."""
    lines = []
    columns = ("diagonal", "frobenius", "excess", "c50", "c90", "c95", "residual", "ne")
    for task in dict.fromkeys(row["task"] for row in rows):
        lines += [f"### {task}", "", "| C | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
        own = [row for row in rows if row["task"] == task]
        for row in own:
            means = [sum(each[name] for each in row["times"]) / len(row["times"]) for name in columns]
            lines.append(f"| `{row['estimator']}` | " + " | ".join(f"{value:.3g}" for value in means) + " |")
        lines.append("")
    return "\n".join(lines)


def slope(path: dict[str, list[float]]) -> float:
    """Of log divergence in log T, between the two longest chains."""
    (few, one), (many, other) = sorted((int(steps), value[0]) for steps, value in path.items())[-2:]
    return math.log(other / one) / math.log(many / few) if min(one, other) > 0 else math.nan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="*", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--estimators", nargs="*", default=list(ESTIMATORS), choices=list(ESTIMATORS))
    parser.add_argument("--points", type=int, default=32)
    parser.add_argument("--paths", nargs="*", default=["exact", "exact_diagonal", "data_cov"])
    parser.add_argument("--path-points", type=int, default=128)
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="print what is there, and measure nothing")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = json.loads(args.output.read_text())["rows"] if args.output.exists() else []
    for task in () if args.table else args.tasks:
        made = partial(Bench.of, task)
        for name in args.estimators:
            if any((row["task"], row["estimator"]) == (task, name) for row in rows):
                continue
            bench = made(args.points)
            began = time.process_time()
            strategy = ESTIMATORS[name](bench.denoiser, bench.images)
            row = {"task": task, "estimator": name, "points": args.points, "fit_seconds": time.process_time() - began}
            row["times"] = list(bench.scores(strategy))
            if name in args.paths and "planted" not in task:
                longer = made(args.path_points)
                path = {str(steps): list(longer.path(strategy, steps)) for steps in STEPS}
                row |= {"path": path, "slope": slope(path)}
            rows.append(row)
            args.output.parent.mkdir(parents=True, exist_ok=True)
            args.output.write_text(json.dumps({"torch": torch.__version__, "rows": rows}, indent=1) + "\n")
            mean = sum(each["excess"] for each in row["times"]) / len(TIMES)
            print(f"{task:28} {name:20} excess {mean:.4g} slope {row.get('slope', math.nan):.3g}", flush=True)
    print(table(rows))


if __name__ == "__main__":
    main()
