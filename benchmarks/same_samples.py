"""Checks whether two versions of the code draw the same samples: saves those of one, compares those of the other.

    python -m benchmarks.same_samples --save before.npz
    python -m benchmarks.same_samples --compare before.npz

Every pair of ``conf/sampler`` and ``conf/var`` draws from two small networks with seeded random weights (an MLP on
vectors and a U-Net on 1 x 8 x 8 images) over schedules, trajectories and numbers of steps, with classes, with guidance,
and with other parameterizations.  Calibrated strategies see seeded data; heads have seeded weights.  Outputs of the
networks and times of the trajectories are saved with the samples, so that a difference in a sampler's input is not
mistaken for a difference in the sampler.  Samples are drawn on one thread in float32 and compared bit by bit.  Options
that one version does not know are left out of a comparison.

It runs on versions of optcov before and after the redesign of its interfaces; `Version` handles all that differs.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from inspect import signature
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.utils import get_object, instantiate
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

import optcov
from optcov.model import MLP, UNet
from optcov.sampler.noise import NoiseStream

SEED = 20261126
COUNT = 3  # samples of each case
NUM_CLASSES = 3
CALIBRATION_IMAGES = 8
SHAPES: dict[str, tuple[int, ...]] = {"mlp": (6,), "unet": (1, 8, 8)}


class Version:
    """Handles the differences between the interfaces of versions, by what the installed version offers."""

    @staticmethod
    def conf() -> Path:
        """The folder of configs, which is in the package or beside ``src``."""
        package = Path(optcov.__file__).parent
        return package / "conf" if (package / "conf").is_dir() else package.parents[1] / "conf"

    @staticmethod
    def denoiser(network: nn.Module, schedule: Any, parameterization: str, time_offset: int) -> Any:
        """Make a denoiser; parameterizations are objects now, and were names before."""
        made: Any = parameterization
        if find_spec("optcov.parameterization") is not None:
            made = get_object(f"optcov.parameterization.{parameterization.capitalize()}")()  # Eps, X0, V
        return get_object("optcov.denoiser.Denoiser")(network, schedule, made, time_offset).eval()

    @staticmethod
    def is_calibrated(strategy: Any) -> bool:
        """Whether a strategy is calibrated; its class says so now, and a string did before."""
        return strategy.fitting == "calibrate" if hasattr(strategy, "fitting") else hasattr(strategy, "calibrate")

    @staticmethod
    def check(sampler: Any, strategy: Any, schedule: Any) -> None:
        """Check a sampler, which now sees the schedule too."""
        sampler.check(*(strategy, schedule)[: len(signature(sampler.check).parameters)])

    @staticmethod
    def draw(
        sampler: Any, denoiser: Any, strategy: Any, guidance: Any, times: Tensor, noise: NoiseStream, labels: Any
    ) -> Tensor:
        """Draw; guidance and labels are arguments of a sampler now, and were bound to denoiser and strategy before."""
        if "guidance" in signature(sampler.sample).parameters:
            drawn = sampler.sample(denoiser, strategy, times, noise, guidance=guidance, condition=labels)
        else:
            drawn = sampler.sample(*guidance.bind(denoiser, strategy, labels), times, noise)
        return drawn  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Setting:
    """What a pair of sampler and strategy draws from, and at which times.

    Args:
        network: ``mlp`` or ``unet``.
        schedule, num_steps: an option of ``conf/schedule``, and N.
        trajectory, steps: an option of ``conf/trajectory``, and K.
        classes: whether the network knows classes.
        guidance: an option of ``conf/guidance`` with its settings, such as ``classifier_free weight=0``.
        parameterization, time_offset: those of the network.
    """

    network: str
    schedule: str
    num_steps: int
    trajectory: str
    steps: int
    classes: bool = False
    guidance: str = "none"
    parameterization: str = "eps"
    time_offset: int = 0

    def __str__(self) -> str:
        extra = [
            "conditional" if self.classes else "",
            f"guidance={self.guidance}" if self.guidance != "none" else "",
            self.parameterization if self.parameterization != "eps" else "",
            f"time_offset={self.time_offset}" if self.time_offset else "",
        ]
        plain = [self.network, f"{self.schedule}-{self.num_steps}", self.trajectory, f"K={self.steps}"]
        return "/".join([*plain, *filter(None, extra)])


class SeededNetwork(nn.Module):
    """A random network around the exact mean of unit-Gaussian data, so that samples keep the size of data.

    With ``a = cos(pi u / 2)`` and ``s = sin(pi u / 2)`` at network time ``1000 u``, whatever the schedule, and b the
    random network's output, it predicts ``x_0 = a x_t - s^2 b / 2``, or the eps or v that corresponds to this x_0 for
    ``x_t = a x_0 + s eps``.

    Args:
        base: the random network.
        parameterization: ``eps``, ``x0`` or ``v``.
    """

    def __init__(self, base: nn.Module, parameterization: str) -> None:
        super().__init__()
        self.base, self.parameterization = base, parameterization
        self.data_shape, self.feature_channels = base.data_shape, base.feature_channels
        self.num_classes = base.num_classes

    def forward(self, x_t: Tensor, time: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        b, features = self.base(x_t, time) if labels is None else self.base(x_t, time, labels)
        angle = (time * (math.pi / 2000)).reshape((-1,) + (1,) * (x_t.ndim - 1))
        a, s = angle.cos(), angle.sin()
        if self.parameterization == "eps":
            return s * x_t + a * s * b / 2, features
        if self.parameterization == "x0":
            return a * x_t - s**2 * b / 2, features
        return s * b / 2, features


def fill(module: nn.Module, seed: int) -> None:
    """Fill a module with weights that depend only on the seed and on the order of its parts."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for part in module.modules():
            for name, weight in part.named_parameters(recurse=False):
                scale = 0.1 if weight.ndim == 1 else weight[0].numel() ** -0.5
                if isinstance(part, nn.Embedding):
                    scale = 1.0
                centre = 1.0 if isinstance(part, nn.GroupNorm) and name == "weight" else 0.0
                weight.copy_(centre + scale * torch.randn(weight.shape, generator=generator))


def config(group: str, choice: str) -> DictConfig:
    """Load an option of a group with its settings, such as ``ddim eta=0.5``, as a config."""
    option, *overrides = choice.split()
    loaded = OmegaConf.load(Version.conf() / group / f"{option}.yaml")
    assert isinstance(loaded, DictConfig)
    bases = [config(group, base) for base in loaded.pop("defaults", []) if base != "_self_"]
    return OmegaConf.merge(*bases, loaded, OmegaConf.from_dotlist(overrides))  # type: ignore[return-value]


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (Version.conf() / group).glob("*.yaml"))


@cache
def schedule_of(name: str, num_steps: int) -> Any:
    return instantiate(config("schedule", name), num_steps=num_steps)


@cache
def denoiser_of(
    network: str, schedule: str, num_steps: int, classes: bool, parameterization: str, time_offset: int
) -> Any:
    num_classes = NUM_CLASSES if classes else None
    base = (
        MLP(SHAPES["mlp"], channels=16, num_blocks=2, num_classes=num_classes)
        if network == "mlp"
        else UNet(SHAPES["unet"], channels=8, num_classes=num_classes)
    )
    fill(base, SEED)
    seeded = SeededNetwork(base, parameterization)
    return Version.denoiser(seeded, schedule_of(schedule, num_steps), parameterization, time_offset)


def denoiser(setting: Setting) -> Any:
    s = setting
    return denoiser_of(s.network, s.schedule, s.num_steps, s.classes, s.parameterization, s.time_offset)


@cache
def strategy_of(var: str, mean: Any) -> Any:
    """Make an option of ``conf/var``; a head (``head=complex``) has seeded weights, a calibration sees seeded data."""
    settings = config("var", var)
    arguments = {}
    if "head" in settings:
        choice = "simple" if str(OmegaConf.to_container(settings)["head"]).startswith("$") else settings.head  # type: ignore[index, call-overload]
        factory = instantiate(config("head", choice))

        def seeded_head(*args: Any, **named: Any) -> Any:
            head = factory(*args, **named)
            fill(head, SEED + 1)
            head.output.bias.data += 0.5  # the target of its regression lies in [0, 1]
            return head

        arguments["head"] = seeded_head
        del settings["head"]
    strategy = instantiate(settings, denoiser=mean, **arguments)
    if Version.is_calibrated(strategy):
        shape, generator = mean.data_shape, torch.Generator().manual_seed(SEED + 2)
        images = torch.rand(CALIBRATION_IMAGES, *shape, generator=generator) * 2 - 1
        labels = None if mean.num_classes is None else torch.arange(CALIBRATION_IMAGES) % NUM_CLASSES
        strategy.calibrate(mean, images.chunk(2), SEED, labels)
    return strategy.eval()


@cache
def guidance_of(choice: str, mean: Any) -> Any:
    guidance = instantiate(config("guidance", choice), denoiser=mean, num_classes=NUM_CLASSES)
    if getattr(guidance, "classifier", None) is not None:
        fill(guidance.classifier, SEED + 3)
    return guidance.eval()


@cache
def times_of(schedule: str, num_steps: int, trajectory: str, steps: int) -> Tensor:
    times: Tensor = instantiate(config("trajectory", trajectory)).times(schedule_of(schedule, num_steps), steps)
    return times


def sampler_of(sampler: str, steps: int) -> Any:
    return instantiate(config("sampler", sampler), num_steps=steps)


def samples(setting: Setting, sampler: str, var: str) -> Tensor:
    """Draw samples ``[COUNT, *event]``."""
    mean = denoiser(setting)
    noise = NoiseStream(SEED, range(COUNT), mean.data_shape)
    knows_labels = setting.classes or setting.guidance != "none"
    return Version.draw(
        sampler_of(sampler, setting.steps),
        mean,
        strategy_of(var, mean),
        guidance_of(setting.guidance, mean),
        times_of(setting.schedule, setting.num_steps, setting.trajectory, setting.steps),
        noise,
        torch.arange(COUNT) % NUM_CLASSES if knows_labels else None,
    )


# Settings of each sampler that takes a fitted variance; the others are solvers, which take only beta_tilde.
ANCESTRAL = (
    "ddpm clip_x0=false",
    "ddpm cut=null",
    "ddim eta=0.5",
    "ddim eta=1.0",
    "ddim clip_x0=false cut=null",
    "predictor_corrector corrector_steps=2 clip_x0=false",
)
SOLVERS = (
    "dpm_solver order=1",
    "dpm_solver order=2",
    "dpm_solver_pp order=1",
    "dpm_solver_pp order=3",
    "dpm_solver_pp clip_x0=true",
    "dpm_solver_pp_sde order=1",
    "dpm_solver_pp_sde order=3 clip_x0=true",
    "unipc order=1",
    "unipc order=3 clip_x0=true",
    "euler churn=4.0 churn_noise=1.007",
    "heun churn=4.0 churn_min=0.05 churn_max=20.0",
    "euler_maruyama clip_x0=true",
)
STRATEGIES = ("iddpm head=complex", "npr_dpm head=complex", "sn_dpm head=complex", "analytic num_times=20")


def settings() -> Iterator[tuple[Setting, list[tuple[str, str]]]]:
    """Yield each setting with its pairs of sampler and strategy, including refused pairs."""
    networks = list(SHAPES)
    pairs = list(product(options("sampler"), options("var")))
    more = [
        *product(ANCESTRAL, options("var")),
        *product(SOLVERS, ["beta_tilde"]),
        *product(["ddim", "ddpm", "predictor_corrector"], STRATEGIES),
    ]
    plain = product(networks, ["linear", "cosine"], [1000, 100], ["even", "quadratic", "log_snr"], [5, 10])
    for network, schedule, num_steps, trajectory, steps in plain:
        yield Setting(network, schedule, num_steps, trajectory, steps), pairs
    for network, (schedule, num_steps, trajectory, steps) in product(
        networks, [("linear", 1000, "even", 10), ("cosine", 100, "log_snr", 5)]
    ):
        place = (network, schedule, num_steps, trajectory, steps)
        yield Setting(*place), more
        for guidance in ("none", "classifier_free", "classifier_free weight=0.0", "classifier"):
            yield Setting(*place, classes=True, guidance=guidance), pairs
        yield Setting(*place, guidance="classifier"), pairs
        for parameterization in ("x0", "v"):
            yield Setting(*place, parameterization=parameterization), pairs
        yield Setting(*place, time_offset=-1), pairs


@dataclass
class Drawn:
    """Arrays by name, with samples named ``SETTING|SAMPLER|VAR``, and the pairs that were refused."""

    arrays: dict[str, NDArray[Any]] = field(default_factory=dict)
    refused: set[str] = field(default_factory=set)  # SAMPLER|VAR
    about: dict[str, object] = field(default_factory=dict)

    def pairs(self) -> set[str]:
        """All pairs ``SAMPLER|VAR``, including refused ones."""
        drawn = {name.partition("|")[2] for name in self.arrays if name.count("|") == 2}
        return drawn | self.refused

    def save(self, path: Path) -> None:
        about = json.dumps({**self.about, "refused": sorted(self.refused)})
        np.savez_compressed(path, about=np.array(about), **self.arrays)  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: Path) -> Drawn:
        with np.load(path) as saved:
            arrays = {name: saved[name] for name in saved.files}
        about = json.loads(str(arrays.pop("about")))
        return cls(arrays, set(about.pop("refused")), about)


def conditions() -> dict[str, object]:
    """What equality to the last bit depends on besides the code."""
    return {
        "seed": SEED,
        "samples": COUNT,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "vectors": torch.backends.cpu.get_cpu_capability(),
    }


def draw_all(wanted: Callable[[str], bool], log: Callable[[str], object]) -> Drawn:
    """Draw all samples whose name is wanted."""
    drawn = Drawn(about=conditions())
    for setting, pairs in settings():
        start, count = time.monotonic(), 0
        for sampler, var in pairs:
            if not wanted(f"{setting}|{sampler}|{var}"):
                continue
            mean = denoiser(setting)
            if f"{sampler}|{var}" not in drawn.refused:
                try:
                    Version.check(sampler_of(sampler, setting.steps), strategy_of(var, mean), mean.schedule)
                except ValueError:
                    drawn.refused.add(f"{sampler}|{var}")
            if f"{sampler}|{var}" in drawn.refused:
                continue
            drawn.arrays[f"{setting}|{sampler}|{var}"] = samples(setting, sampler, var).numpy()
            count += 1
        if count:
            drawn.arrays.update({name: value for name, value in parts(setting) if name not in drawn.arrays})
            log(f"{setting}: {count} pairs, {time.monotonic() - start:.1f} s")
    return drawn


def parts(setting: Setting) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield the inputs of the samplers: the network's output on seeded noise, and the times."""
    mean = denoiser(setting)
    x = torch.randn(COUNT, *mean.data_shape, generator=torch.Generator().manual_seed(SEED + 4))
    labels = (torch.arange(COUNT) % NUM_CLASSES,) if setting.classes else ()
    with torch.no_grad():
        output, _ = mean.network(x, torch.linspace(1, 1000, COUNT), *labels)
    kind = f"{setting.network} {setting.parameterization}" + (" conditional" if setting.classes else "")
    yield f"network|{kind}", output.numpy()
    s = setting
    times = times_of(s.schedule, s.num_steps, s.trajectory, s.steps)
    yield f"times|{s.schedule}-{s.num_steps} {s.trajectory} K={s.steps}", times.numpy()


@dataclass
class Row:
    """A line of the comparison: all cases of one pair.

    Args:
        cases, equal: number of cases, and of those that are equal to the last bit.
        largest: the largest absolute difference; NaN if only one side has a value that is not finite.
        relative: the largest difference in a case, relative to the largest absolute value in it.
        where: the case with the largest relative difference.
    """

    cases: int = 0
    equal: int = 0
    largest: float = 0.0
    relative: float = 0.0
    where: str = ""

    def add(self, name: str, before: NDArray[Any], now: NDArray[Any]) -> None:
        self.cases += 1
        if before.shape != now.shape:
            self.largest, self.relative, self.where = math.inf, math.inf, f"{name}: {before.shape} to {now.shape}"
        elif before.dtype == now.dtype and before.tobytes() == now.tobytes():
            self.equal += 1
        else:
            with np.errstate(invalid="ignore"):
                largest = float(np.abs(now.astype(np.float64) - before).max())
            relative = largest / max(float(np.abs(before).max()), 1e-30)
            self.largest = max(self.largest, largest)
            if not relative <= self.relative:  # also true for NaN
                self.relative, self.where = relative, name


def compare(before: Drawn, now: Drawn) -> tuple[str, bool]:
    """Return the table, and whether everything is equal."""
    rows: dict[str, Row] = {}
    details = []
    for name in sorted(before.arrays.keys() & now.arrays.keys()):
        place, _, pair = name.partition("|")
        key = place if place in ("network", "times") else pair.replace("|", " x ")
        row = rows.setdefault(key, Row())
        equal = row.equal
        row.add(pair if place == key else place, before.arrays[name], now.arrays[name])
        if row.equal == equal:
            details.append(name)
    lines = ["| sampler x var | cases | equal bit by bit | largest difference | relative | where |", "|" + "---|" * 6]
    for key, row in sorted(rows.items(), key=lambda item: (item[0] not in ("network", "times"), item[0])):
        same = row.equal == row.cases
        found = ("", "", "") if same else (f"{row.largest:.3g}", f"{row.relative:.3g}", row.where)
        lines.append("| " + " | ".join([key, str(row.cases), "all" if same else str(row.equal), *found]) + " |")
    told = {
        "drawn before alone": sorted(before.arrays.keys() - now.arrays.keys()),
        "drawn now alone": sorted(now.arrays.keys() - before.arrays.keys()),
        "refused before alone": sorted(before.refused - now.refused),
        "refused now alone": sorted(now.refused - before.refused),
    }
    lines += ["", f"{sum(row.equal for row in rows.values())} of {sum(row.cases for row in rows.values())} are equal"]
    for what, names in told.items():
        if names:
            lines.append(f"{what} ({len(names)}): {'; '.join(names[:10])}{'; ...' if len(names) > 10 else ''}")
    for name in sorted(before.about.keys() | now.about.keys()):
        if before.about.get(name) != now.about.get(name):
            lines.append(f"{name}: {before.about.get(name)} before, {now.about.get(name)} now")
    return "\n".join(lines), not details and not any(told.values())


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.same_samples", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--save", type=Path, metavar="FILE.npz", help="save the samples of this version")
    what.add_argument("--compare", type=Path, metavar="FILE.npz", help="compare with saved samples")
    parser.add_argument("--only", default="", metavar="REGEX", help="draw only cases whose name matches")
    parser.add_argument("--quiet", action="store_true", help="do not print a line for each setting")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    pattern = re.compile(chosen.only)
    log = (lambda line: None) if chosen.quiet else (lambda line: print(line, file=sys.stderr, flush=True))
    before = None if chosen.save else Drawn.load(chosen.compare)
    pairs = None if before is None else before.pairs()

    def wanted(name: str) -> bool:
        return pattern.search(name) is not None and (pairs is None or name.partition("|")[2] in pairs)

    now = draw_all(wanted, log)
    if before is None:
        now.save(chosen.save)
        print(f"{len(now.arrays)} arrays in {chosen.save}; refused pairs: {len(now.refused)}")
        return 0
    if chosen.only:
        before.arrays = {name: value for name, value in before.arrays.items() if name in now.arrays}
        before.refused &= now.refused
    table, equal = compare(before, now)
    print(table)
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
