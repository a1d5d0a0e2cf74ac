"""`optcov.restore` on Gaussian data, whose posterior is known."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import optcov
from optcov.covariance import Covariance, FullCovariance
from optcov.denoiser import Denoiser, Prediction
from optcov.inverse import Mask, MatrixOperator
from optcov.oracle import GaussianMixture, OracleNetwork
from optcov.schedule import LinearSchedule
from optcov.variance.base import Closed

CORRELATED = torch.tensor([[0.09, 0.07, 0.02], [0.07, 0.08, 0.03], [0.02, 0.03, 0.05]], dtype=torch.float64)
DATA = GaussianMixture([[0.1, -0.2, 0.0]], CORRELATED[None])
MASK = Mask((3,), torch.tensor([1, 0, 0]))
NOISE = 0.1


class Exact(Closed):
    def covariance(self, denoiser: Denoiser, prediction: Prediction) -> Covariance:
        level = prediction.level
        return FullCovariance(
            denoiser.network.mixture.posterior(prediction.x_t, level.alpha, level.sigma)[1].float(), (3,)
        )


@pytest.fixture(scope="module")
def denoiser() -> Denoiser:
    schedule = LinearSchedule(1000)
    return Denoiser(OracleNetwork((3,), DATA, schedule), schedule).eval()


def test_samples_are_those_of_the_posterior_of_each_measurement(denoiser: Denoiser):
    y = torch.tensor([[0.5], [-0.3]])
    found = optcov.restore(denoiser, Exact(denoiser), y, MASK, NOISE, count=500, num_steps=4, progress=False)
    assert found.samples.shape == (2, 500, 3)
    for one, row in zip(found.samples.double(), y, strict=True):
        posterior = DATA.measured(MASK.matrix(one), row, NOISE)
        # five standard errors of 500 samples of a deviation of 0.22
        assert_close(one.mean(0), posterior.mean(), rtol=0, atol=0.05)
        assert_close(one.T.cov(), posterior.covariance(), rtol=0, atol=0.02)
    assert_close(found.std[0], found.samples[0].std(0))
    assert found.mean.shape == (2, 3)


def test_a_sample_depends_on_its_index_alone_and_one_measurement_has_no_axis(denoiser: Denoiser):
    def drawn(y: Tensor, batch_size: int = 256, estimate: str = "sample") -> Tensor:
        return optcov.restore(
            denoiser, Exact(denoiser), y, MASK, NOISE, 3, 4, batch_size=batch_size, estimate=estimate, progress=False
        ).samples

    y = torch.tensor([[0.5], [-0.3]])
    together = drawn(y)
    assert_close(drawn(y, batch_size=4), together)  # of which the last has two beyond the end
    assert drawn(y[0]).shape == (3, 3)
    assert_close(drawn(y[0]), together[0])
    assert_close(drawn(torch.tensor([0.5, 7.0, 7.0])), together[0])  # an image, of which the mask hides two values
    assert float((drawn(y[0], estimate="mean") - together[0]).abs().max()) > 1e-3


def test_an_operator_may_be_made_for_the_shape_and_bad_input_is_refused(denoiser: Denoiser):
    found = optcov.restore(
        denoiser, "beta", torch.zeros(2), lambda shape: MatrixOperator.random(shape, 2), count=2, num_steps=2,
        sampler="ddim", progress=False, eta=0.5,
    )  # fmt: skip
    assert found.samples.shape == (2, 3)
    for change, message in (
        ({"count": 0}, r"count must be at least 1 \(got 0\)"),
        ({"strategy": "beta_tilde"}, r"var must model Cov\[x_0\|x_t\] for guidance=measurement"),
        ({"strategy": "iddpm"}, r"strategy must be fitted \(got the name 'iddpm'\)"),
        ({"sampler": "heun"}, r"var must be beta_tilde for sampler = HeunSampler"),
        ({"noise": 0}, "noise must be above 0"),
        ({"y": torch.zeros(2)}, r"y must have shape \(1,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            optcov.restore(**{"denoiser": denoiser, "strategy": "beta", "y": torch.zeros(1), "operator": MASK} | change)
