"""From images to noise and back, and the way between two noises."""

import math
from itertools import pairwise

import pytest
import torch
from scripted import Scripted, white
from torch.testing import assert_close

from optcov.oracle import GaussianMixture
from optcov.sampler import DDIMSampler, EulerSampler, NoiseStream, invert, slerp
from optcov.schedule import CosineSchedule, LinearSchedule, NoiseSchedule, VESchedule, VPSDESchedule
from optcov.trajectory import EvenTrajectory, LogSNRTrajectory
from optcov.variance.fixed import BetaTilde


def there_and_back(denoiser, x_0: torch.Tensor, num_steps: int, corrections: int) -> float:
    times = LogSNRTrajectory().times(denoiser.schedule, num_steps)
    x = invert(denoiser, x_0, times, corrections)
    back = EulerSampler(num_steps).sample(denoiser, BetaTilde(denoiser), times, Scripted([]), start=x)
    return float((back - x_0).abs().mean())


@pytest.mark.parametrize("path", [CosineSchedule(1000), VESchedule(1000)])
def test_corrections_converge_to_the_exact_inverse(mixture: GaussianMixture, make_oracle, path: NoiseSchedule):
    denoiser = make_oracle(mixture, path)
    x_0 = mixture.sample(20, torch.Generator().manual_seed(0))
    errors = [there_and_back(denoiser, x_0, 15, corrections) for corrections in (0, 2, 5, 20)]
    assert all(after < before for before, after in pairwise(errors))
    assert errors[-1] < 1e-5


def test_encoding_is_of_first_order(mixture: GaussianMixture, make_oracle):
    denoiser = make_oracle(mixture, VPSDESchedule(1000))
    x_0 = mixture.sample(20, torch.Generator().manual_seed(0))
    errors = [there_and_back(denoiser, x_0, num_steps, 0) for num_steps in (25, 50, 100)]
    slopes = [math.log2(before / after) for before, after in pairwise(errors)]
    assert slopes == pytest.approx([1, 1], abs=0.1)


@pytest.mark.parametrize("corrections", [0, 2])
def test_each_step_asks_where_it_starts_and_then_where_it_ends(mixture: GaussianMixture, make_oracle, corrections: int):
    """DDIM's encoding asks at (x_s, s), but for the first step: no network has seen clean images."""
    denoiser, asked = make_oracle(mixture, LinearSchedule(100)), []
    denoiser.network.register_forward_pre_hook(lambda module, inputs: asked.append(inputs[1][0].item() / 10))
    invert(denoiser, white(1, 3, 2)[0], torch.tensor([5, 40, 100]).double() / 100, corrections)
    again = [[n] * corrections for n in (5, 40, 100)]
    assert asked == pytest.approx([5, *again[0], 5, *again[1], 40, *again[2]])


def test_encoded_data_are_white(make_oracle):
    """The flow takes N(mu, V) to N(alpha mu, alpha^2 V + sigma^2) at t = 1 by one affine map."""
    schedule = VPSDESchedule(1000)
    denoiser = make_oracle(GaussianMixture([[0.3]], [0.25]), schedule)
    z = white(1, 50, 1)[0]
    half, whole = (invert(denoiser, 0.3 + 0.5 * z, LogSNRTrajectory().times(schedule, k)) for k in (100, 200))
    assert_close(2 * whole - half, z, rtol=0, atol=0.01)  # alpha_1 = 7e-3; the error of first order cancels


@pytest.mark.parametrize("num_steps", [1, 2, 3])
def test_finite_on_every_schedule(mixture: GaussianMixture, make_oracle, schedule: NoiseSchedule, num_steps: int):
    denoiser = make_oracle(mixture, schedule)
    times = EvenTrajectory().times(schedule, num_steps)
    x_0 = mixture.sample(5, torch.Generator().manual_seed(0)).float()
    assert torch.isfinite(invert(denoiser, x_0, times, corrections=2)).all()


def test_negative_corrections_are_refused(mixture: GaussianMixture, make_oracle):
    with pytest.raises(ValueError, match=r"mode\.corrections must not be negative \(got -1\)"):
        invert(make_oracle(mixture, CosineSchedule(10)), white(1, 2, 2)[0], torch.ones(1).double(), -1)


def test_slerp_by_hand():
    a, b = torch.tensor([[2.0, 0.0], [1.0, 1.0]]), torch.tensor([[0.0, 2.0], [1.0, 1.0]])
    assert_close(slerp(a, b, 0.5), torch.tensor([[2**0.5, 2**0.5], [1.0, 1.0]]))
    assert_close(slerp(a, b, 1 / 3)[0], torch.tensor([2 * math.cos(math.pi / 6), 2 * math.sin(math.pi / 6)]))
    assert torch.equal(slerp(a, b, 0.0), a)
    assert torch.equal(slerp(a, b, 1.0), b)
    assert torch.isfinite(slerp(a, -a, 0.5)).all()


def test_slerp_keeps_the_length_of_noise():
    a, b = white(2, 4, 3000)
    for share in (0.1, 0.5, 0.8):
        assert_close(slerp(a, b, share).norm(dim=1), a.norm(dim=1), rtol=0.03, atol=0)


def test_a_sampler_starts_where_it_is_told(mixture: GaussianMixture, make_oracle):
    denoiser = make_oracle(mixture, CosineSchedule(100))
    times, start = EvenTrajectory().times(denoiser.schedule, 5), white(1, 3, 2)[0]

    def draw(x: torch.Tensor, seed: int) -> torch.Tensor:
        noise = NoiseStream(seed, range(3), (2,), dtype=torch.float64)
        return DDIMSampler(5, eta=1.0).sample(denoiser, BetaTilde(denoiser), times, noise, start=x)

    assert torch.equal(draw(start, 0), draw(start, 0))
    assert not torch.equal(draw(start, 0), draw(start, 1))
    assert not torch.equal(draw(start, 0), draw(-start, 0))


def test_the_prior_is_the_noise_that_a_sampler_starts_from_else(mixture: GaussianMixture, make_oracle):
    """White on a variance-preserving path, of deviation sigma_T elsewhere: the first draw of the stream, scaled."""
    for path, deviation in ((CosineSchedule(100), 1.0), (VESchedule(100), 80.0)):
        denoiser = make_oracle(mixture, path)
        times = EvenTrajectory().times(path, 5)
        state = next(DDIMSampler(5).steps(denoiser, BetaTilde(denoiser), times, Scripted(white(2, 3, 2))))
        assert_close(state.prediction.x_t, deviation * white(2, 3, 2)[0], rtol=1e-12, atol=0)
