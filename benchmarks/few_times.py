"""Measures the loss of `var.num_times` against all times for a run's mean network, in the curve and in bits/dim.

    python train.py model=unet var=beta schedule=linear trainer.max_steps=1150 hydra.run.dir=RUN
    python benchmarks/few_times.py RUN

A pass over few times measures the same values at these times as a pass over all times, so one full pass of each kind
serves all rows, and all kinds see the same network outputs.  The table has the share of times (and pixels) that are
accurate, what the log says about the other half of the measured times, and bits/dim of 100 test images in ten steps,
along the optimal trajectory of each curve and with its C.  These trajectories, and the spectrum of the full curve's
ripple, are printed below the table.
"""

import copy
import math
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from optcov.checkpoint import Checkpoint
from optcov.cli.build import build
from optcov.denoiser import Denoiser
from optcov.keys import Config
from optcov.metric import VariationalNLL
from optcov.run_folder import Saved
from optcov.trajectory import OptimalTrajectory
from optcov.variance.analytic import Analytic, even_in_log_snr, interpolate_in_log_snr, left_out
from optcov.variance.base import Clean

KINDS = {
    "analytic": {},
    "analytic_imperfect": {"imperfect_mean": True},
    "analytic_diag": {"per_pixel": True},
    "analytic_imperfect_diag": {"per_pixel": True, "imperfect_mean": True},
}
COUNTS = (50, 100, 200, 500)


class Replay(nn.Module):
    """A network that computes a sequence of calls once, and repeats the answers from memory after each rewind."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.data_shape, self.feature_channels = network, network.data_shape, network.feature_channels
        self.answers: list[Tensor] = []
        self.position = 0

    def forward(self, x_t: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        if self.position == len(self.answers):
            self.answers.append(self.network(x_t, time)[0])
        self.position += 1
        return self.answers[self.position - 1], x_t


def few_times(full: Analytic, denoiser: Denoiser, count: int) -> tuple[Analytic, float]:
    """Make the strategy that a pass over ``count`` times gives; return it with the accuracy that the log states."""
    cheap, nodes = copy.deepcopy(full), even_in_log_snr(denoiser.schedule, count)
    for table in (cheap.eps_variance, cheap.eps_variance_se):
        table[1:] = interpolate_in_log_snr(denoiser, nodes, table[nodes])
    return cheap, float((left_out(denoiser, nodes, full.eps_variance[nodes]) < 0.01).double().mean())


def ripple(curve: Tensor) -> str:
    """The frequencies, in radians per step, at which the detrended logarithm of a curve is strongest."""
    part = curve[len(curve) // 2 : -4].abs().log()
    n = torch.linspace(-1, 1, len(part), dtype=torch.float64)
    powers = n[:, None] ** torch.arange(8)
    part = part - powers @ torch.linalg.lstsq(powers, part[:, None]).solution[:, 0]
    spectrum = torch.fft.rfft(part * torch.hann_window(len(part), dtype=torch.float64)).abs() ** 2
    frequency = 2 * math.pi * torch.arange(len(spectrum)) / len(part)
    beyond = float(spectrum[frequency > math.pi / 20].sum() / spectrum.sum())
    strongest = ", ".join(f"{float(frequency[i]):.2f}" for i in spectrum.argsort(descending=True)[:6])
    return f"{beyond:.0%} beyond what every twentieth time can follow; strongest at {strongest} radians a step"


def main(run: str, num_images: int = 128) -> None:
    saved = Saved.read(Path(run))
    parts = build(Config.model_validate(saved.values | {"choices": saved.choices}))
    denoiser, data, schedule = parts.denoiser.eval(), parts.data, parts.denoiser.schedule
    denoiser.load_state_dict(Checkpoint.load(Path(run) / "checkpoints" / "mean.safetensors", "mean", "run").weights)
    replay = Replay(denoiser.network)
    replayed = Denoiser(replay, schedule, denoiser.parameterization, denoiser.time_offset)
    clean, _ = parts.calibration(num_images, torch.device("cpu"))
    metric = VariationalNLL(num_images=100)

    def bits(strategy: Analytic) -> tuple[list[int], float]:
        trajectory = OptimalTrajectory()
        trajectory.fit(denoiser, strategy, Clean([]))
        times = trajectory.times(schedule, 10)
        value = metric.measure(denoiser, strategy, times, metric.images(data, denoiser.data_range), 0, 100).value
        return (times * schedule.num_steps).round().long().tolist(), value

    print("| var | times | within 1 % | median | 95 of 100 | worst | within 1 se | log says | bits/dim, K = 10 |")
    print("|---|---|---|---|---|---|---|---|---|")
    notes = []
    for name, arguments in KINDS.items():
        full = Analytic(denoiser, num_images=num_images, **arguments)
        replay.position = 0
        full.calibrate(replayed, [clean])
        exact, error = full.eps_variance[1:], full.eps_variance_se[1:]
        nodes, value = bits(full)
        print(f"| {name} | all | | | | | | | {value:.3f} |", flush=True)
        notes.append(f"{name}, all times: median standard error {float((error / exact.abs()).median()):.1%}; {nodes}")
        if exact.ndim == 1:
            notes.append(f"{name}, ripple: {ripple(exact)}")
        for count in COUNTS:
            cheap, said = few_times(full, denoiser, count)
            miss = (cheap.eps_variance[1:] - exact).abs()
            relative = (miss / exact.abs()).flatten()
            nodes, value = bits(cheap)
            print(
                f"| {name} | {count} | {float((relative < 0.01).double().mean()):.1%} | "
                f"{float(relative.median()):.2%} | "
                f"{float(relative.quantile(0.95)):.1%} | {float(relative.max()):.1%} | "
                f"{float((miss < error).double().mean()):.1%} | {said:.1%} | {value:.3f} |",
                flush=True,
            )
            notes.append(f"{name}, {count} times: {nodes}")
    print("\n" + "\n".join(notes))


if __name__ == "__main__":
    main(sys.argv[1])
