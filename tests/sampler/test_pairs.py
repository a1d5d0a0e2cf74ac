"""Samplers with every trajectory, path, target and variance that there is: finite samples, or a sentence.

The factors of a run meet two by two: `covering` makes a few runs in which every pair of options occurs.  Options
that exclude each other are listed, and refused in a sentence.  The full product is kept of samplers and variances.
"""

from functools import cache
from itertools import combinations, product

import pytest
import torch
from torch import Tensor, nn

from optcov.denoiser import Denoiser
from optcov.guidance import ClassifierFreeGuidance
from optcov.model import MLP
from optcov.registry import make, options, settings_of
from optcov.sampler import Sampler, sample
from optcov.schedule import NoiseSchedule, VPSchedule
from optcov.trajectory import ListTrajectory, LogSNRTrajectory, Trajectory
from optcov.variance.base import Calibrated, Clean, VarianceStrategy
from optcov.variance.fixed import BetaTilde

SCHEDULES: dict[str, NoiseSchedule] = {name: make("schedule", name, num_steps=40) for name in options("schedule")}
FACTORS = {
    "sampler": options("sampler"),
    "trajectory": options("trajectory"),
    "schedule": list(SCHEDULES),
    "parameterization": options("parameterization"),
    "num_steps": ["1", "2", "3", "8"],
    "guidance": ["none", "labels", "classifier_free"],
}
OTHER_PATHS = [name for name, schedule in SCHEDULES.items() if not isinstance(schedule, VPSchedule)]
EXCLUDED = {
    *(frozenset({("sampler", "euler_maruyama"), ("schedule", path)}) for path in OTHER_PATHS),
    *(frozenset({("parameterization", "v"), ("schedule", path)}) for path in OTHER_PATHS),
    # of the noise, which says nothing of x_0 where no signal is left
    *(frozenset({("parameterization", name), ("schedule", "flow")}) for name in ("eps", "score")),
    *(frozenset({("trajectory", name), ("schedule", "flow")}) for name in ("karras", "log_snr")),  # of infinite SNR
}

Case = dict[str, str]


def pairs_of(case: Case) -> set[frozenset]:
    return {frozenset(pair) for pair in combinations(case.items(), 2)}


def covering(factors: dict[str, list[str]], excluded: set[frozenset]) -> list[Case]:
    """Cases in which every pair of options of two factors occurs, but for those that exclude each other.

    Each case starts from the first pair that is missing, and gives every other factor the option that adds most pairs.
    """
    missing = {
        frozenset({(first, a), (second, b)}): None  # a set, in order
        for first, second in combinations(factors, 2)
        for a, b in product(factors[first], factors[second])
        if frozenset({(first, a), (second, b)}) not in excluded
    }
    cases = []
    while missing:
        case = dict(sorted(next(iter(missing))))
        for name in factors:
            if name not in case:
                allowed = [option for option in factors[name] if not pairs_of({**case, name: option}) & excluded]
                case[name] = max(allowed, key=lambda option: len(pairs_of({**case, name: option}) & missing.keys()))
        cases.append(case)
        for pair in pairs_of(case):
            missing.pop(pair, None)
    return cases


CASES = covering(FACTORS, EXCLUDED)


def test_every_pair_occurs_in_a_few_cases():
    covered = set().union(*map(pairs_of, CASES))
    every = {
        frozenset({(first, a), (second, b)})
        for first, second in combinations(FACTORS, 2)
        for a in FACTORS[first]
        for b in FACTORS[second]
    }
    assert covered == every - EXCLUDED
    *_, second, first = sorted(map(len, FACTORS.values()))
    assert len(CASES) <= 1.2 * first * second  # no design has fewer than the product


@cache
def denoiser_of(schedule: str, parameterization: str, guidance: str) -> Denoiser:
    """A small network with random weights, none of whose outputs is 0."""
    torch.manual_seed(0)
    network = MLP((3,), channels=8, num_blocks=1, num_classes=None if guidance == "none" else 4)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    return Denoiser(network, SCHEDULES[schedule], make("parameterization", parameterization))


IMAGES = torch.rand(8, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1
LABELS = torch.arange(8) % 4


@cache
def fitted(trajectory: str, num_steps: int, schedule: str, parameterization: str, guidance: str) -> Trajectory:
    """A trajectory, fitted where it has something to fit."""
    if trajectory == "list":
        return ListTrajectory([(i + 1) / num_steps for i in range(num_steps)])
    few = {"num_candidates": 12} if "num_candidates" in settings_of("trajectory", trajectory) else {}
    made: Trajectory = make("trajectory", trajectory, **few)
    if made.num_images:
        denoiser = denoiser_of(schedule, parameterization, guidance)
        made.fit(denoiser, BetaTilde(denoiser), Clean([IMAGES], labels=None if guidance == "none" else LABELS))
    return made


def run(case: Case) -> Tensor:
    """Two samples with these options."""
    given = case["schedule"], case["parameterization"], case["guidance"]
    denoiser, num_steps = denoiser_of(*given), int(case["num_steps"])
    low = {"order": min(2, num_steps)} if "order" in settings_of("sampler", case["sampler"]) else {}
    sampler: Sampler = make("sampler", case["sampler"], num_steps=num_steps, **low)
    times = fitted(case["trajectory"], num_steps, *given).times(denoiser.schedule, num_steps)
    guidance = ClassifierFreeGuidance(denoiser, 4, 2.0) if case["guidance"] == "classifier_free" else None
    labels = None if case["guidance"] == "none" else LABELS[:2]
    return sample(denoiser, BetaTilde(denoiser), sampler, times, 2, progress=False, labels=labels, guidance=guidance)


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(case[name] for name in FACTORS))
def test_every_pair_of_options_gives_samples(case: Case):
    x = run(case)
    assert x.shape == (2, 3)
    assert torch.isfinite(x).all()


@pytest.mark.parametrize("pair", sorted(map(sorted, EXCLUDED)), ids=lambda pair: "-".join(option for _, option in pair))
def test_options_that_exclude_each_other_are_refused_in_a_sentence(pair: list[tuple[str, str]]):
    others = {"sampler": "ddim", "trajectory": "even", "parameterization": "x0", "num_steps": "5", "guidance": "none"}
    with pytest.raises(ValueError, match=r"^\w[\w.]* must [^\n]* \(got [^\n]*\)[^\n]*: [^\n]*set [^\n]*$"):
        run({**others, **dict(pair)})


@cache
def strategy_of(var: str) -> VarianceStrategy:
    """A strategy for the denoiser of the next test, calibrated where there is something to calibrate."""
    denoiser = denoiser_of("cosine", "eps", "none")
    small = {"rank": 2} if "rank" in settings_of("var", var) else {}  # of three dimensions
    strategy: VarianceStrategy = make("var", var, denoiser=denoiser, **small)
    if isinstance(strategy, Calibrated):
        strategy.calibrate(denoiser, [IMAGES])
    return strategy


@pytest.mark.parametrize("var", options("var"))
@pytest.mark.parametrize("name", options("sampler"))
def test_every_sampler_takes_a_variance_or_says_why_not(name: str, var: str):
    """On times between the nodes of the schedule, where tables of fitted variances are interpolated."""
    denoiser, strategy = denoiser_of("cosine", "eps", "none"), strategy_of(var)
    sampler: Sampler = make("sampler", name, num_steps=5)
    times = LogSNRTrajectory().times(denoiser.schedule, 5)
    if (not sampler.uses_variance and var != "beta_tilde") or (name, var) == ("ddim", "iddpm"):
        with pytest.raises(ValueError, match=r"^[^\n]* must be [^\n]* \(got [^\n]*set (var=beta_tilde|sampler=ddpm)"):
            sample(denoiser, strategy, sampler, times, 2, progress=False)
        return
    assert torch.isfinite(sample(denoiser, strategy, sampler, times, 2, progress=False)).all()
