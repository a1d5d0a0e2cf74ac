r"""Restores real held-out digits with a learned network, by fitted strategies and by samplers that use products.

    python -m benchmarks.restored_digits [RUN]       CSV; RUN as in benchmarks.picture
    python -m benchmarks.restored_digits --strategies data_cov --rivals --picture docs/images/restored.png

The lower half of 8 x 8 digits is missing, and the noise is 0.1.  All methods take ten quadratic DDPM steps with x_0
clipped (except DiffPIR, which does not clip) and see the same measurements.  The missing pixels are scored; see
`optcov.posterior.scores` for the scores and for NE.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

import optcov
from benchmarks.correlations import STRATEGIES, fitted
from benchmarks.picture import newest_run
from optcov.data import DigitsData
from optcov.denoiser import Denoiser
from optcov.inverse import Mask, Operator
from optcov.posterior import rivals
from optcov.posterior.rivals import Method, Step
from optcov.posterior.scores import against
from optcov.trajectory import QuadraticTrajectory

NOISE, CALLS = 0.1, 10
PICTURED = [1, 4, 10, 15]  # test digits
RIVALS: dict[str, Method] = {  # conjugate gradients break down on a learned Jacobian, which is not symmetric
    "pi_gdm": rivals.pi_gdm,
    "mmps_exact": rivals.mmps(None),
    "diffpir": rivals.diffpir(8.0, 1.0),
}


def theirs(
    denoiser: Denoiser,
    operator: Operator,
    y: Tensor,
    method: Method,
    count: int,
    steps: int = CALLS,
    seed: int = 0,
    noise: float = NOISE,
) -> Tensor:
    """Draw samples ``[n, count, *event]`` with a rival, whose products are backward passes.

    Args:
        denoiser: its data lie between a number and its negative.
        operator: A, with ``A A^T`` a multiple of the identity.
        y: measurements, ``[n, *measurement]``.
        method: the rival.
        count, steps, seed: number of samples for each measurement, of steps, and the seed.
        noise: standard deviation of the noise in y.
    """
    high = denoiser.data_range.high
    assert isinstance(high, float)
    times = QuadraticTrajectory().times(denoiser.schedule, steps)
    levels, data = denoiser.levels(times).flip(), denoiser.levels(times.new_zeros(()))
    generator, rows = torch.Generator().manual_seed(seed), y.flatten(1).repeat_interleave(count, 0)
    x = torch.randn(len(rows), *denoiser.data_shape, generator=generator)
    matrix, shape = operator.matrix(x), x.shape
    gram = float(matrix[0].square().sum())
    for i in range(len(times)):
        last = i == len(times) - 1
        t, s = levels[i], data if last else levels[i + 1]
        with torch.no_grad():
            prediction = denoiser(x, t)

        def product(v: Tensor, prediction: object = prediction, t: object = t) -> Tensor:
            image: Tensor = denoiser.vjp(prediction, v.reshape(shape))  # type: ignore[arg-type]
            return float(t.sigma**2 / t.alpha) * image.flatten(1)  # type: ignore[attr-defined]

        step = Step(
            x.flatten(1), prediction.x0.flatten(1), product, t, s, last, matrix, gram, rows, noise, generator, high
        )
        x = method(step).reshape(shape).float()
    return x.reshape(len(y), count, *denoiser.data_shape)


def scores(truth: Tensor, samples: Tensor, operator: Mask) -> Iterator[str]:
    """Score the missing pixels: RMSE of the mean, then 90 % coverage and CRPS, each with its standard error."""
    hidden = operator.adjoint(torch.ones(1, *operator.measurement_shape))[0].flatten() == 0
    truth, samples = truth.flatten(1)[:, hidden], samples.flatten(2)[..., hidden]
    yield f"{float(((samples.mean(1) - truth) ** 2).mean().sqrt()):.3f}"
    found = against(truth, samples)
    for key in ("c90", "crps"):
        yield f"{float(found[key].mean()):.3f}"
        yield f"{float(found[key].std() / len(truth) ** 0.5):.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", type=Path, help="folder of a run, or a mean.safetensors")
    parser.add_argument(
        "--strategies", nargs="*", default=["npr_dpm", "low_rank", "data_cov"], choices=list(STRATEGIES)
    )
    parser.add_argument("--rivals", nargs="*", default=list(RIVALS), choices=list(RIVALS))
    parser.add_argument("--measurements", type=int, default=64)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--fit-steps", type=int, default=600, help="gradient steps of a trained strategy")
    parser.add_argument("--picture", type=Path, help="PNG to write for the first strategy")
    args = parser.parse_args()
    denoiser = optcov.load(args.run or newest_run(Path("outputs/train"))).eval()
    data = DigitsData()
    truth = data.normalize(data.load("test")[: args.measurements])
    operator = Mask(denoiser.data_shape, torch.arange(64).reshape(8, 8) < 32)
    y = operator(truth)
    y = y + NOISE * torch.randn(y.shape, generator=torch.Generator().manual_seed(0))
    print("method,ne,rmse,c90,c90_se,crps,crps_se")
    for label, strategy in fitted(args.strategies, denoiser, args.fit_steps).items():
        denoiser.cost.reset()
        found = optcov.restore(
            denoiser, strategy, y, operator, NOISE, args.samples, CALLS, batch_size=512, progress=False
        )
        calls = denoiser.cost.ne / (len(y) * args.samples)
        print(",".join([label, f"{calls:.0f}", *scores(truth, found.samples, operator)]), flush=True)
        if args.picture is not None and label == args.strategies[0]:
            images = data.normalize(data.load("test")[PICTURED])
            seen = operator(images)
            seen = seen + NOISE * torch.randn(seen.shape, generator=torch.Generator().manual_seed(0))
            restored = optcov.restore(denoiser, strategy, seen, operator, NOISE, 12, CALLS, progress=False)
            restored.picture(args.picture, truth=images)
    for label in args.rivals:
        denoiser.cost.reset()
        samples = theirs(denoiser, operator, y, RIVALS[label], args.samples)
        calls = (denoiser.cost.ne - denoiser.cost.nfe + CALLS * len(y) * args.samples) / (len(y) * args.samples)
        print(",".join([label, f"{calls:.0f}", *scores(truth, samples, operator)]), flush=True)


if __name__ == "__main__":
    main()
