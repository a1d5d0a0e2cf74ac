"""Every option of ``var`` that models C conditions on a measurement, whatever the kind of its covariance."""

import pytest
import torch

import optcov
from optcov.denoiser import Denoiser
from optcov.inverse import Mask
from optcov.model import UNet
from optcov.registry import options, settings_of
from optcov.schedule import LinearSchedule

WITHOUT = {"beta_tilde", "iddpm"}  # have no C
ALIKE = {"analytic_diag", "analytic_imperfect", "analytic_imperfect_diag", "nll", "ocm", "sn_dpm"}  # as npr_dpm
NAMES = [name for name in options("var") if name not in WITHOUT | ALIKE]
IMAGES = torch.rand(8, 1, 4, 4, generator=torch.Generator().manual_seed(0)) - 0.5


@pytest.fixture(scope="module")
def denoiser() -> Denoiser:
    torch.manual_seed(0)
    network = UNet((1, 4, 4), channels=8, channel_mult=(1,), num_blocks=1)
    for parameter in network.parameters():  # the last layer starts at zero
        torch.nn.init.normal_(parameter, std=0.1) if parameter.ndim > 1 else None
    return Denoiser(network, LinearSchedule(50)).eval()


@pytest.mark.filterwarnings("ignore")  # of an untrained network
@pytest.mark.parametrize("name", NAMES)
def test_it_conditions(denoiser: Denoiser, name: str):
    known = settings_of("var", name)
    settings = {"num_times": 5} if "num_times" in known else {}
    steps = 1 if "head" in known else None
    strategy = optcov.fit(name, denoiser, IMAGES, steps, progress=False, **settings)
    operator = Mask((1, 4, 4), torch.arange(4) < 1)
    found = optcov.restore(denoiser, strategy, 0.2 * torch.ones(4), operator, 0.05, 2, 2, progress=False)
    assert found.samples.isfinite().all()
    assert float(found.samples.std(0).max()) > 0
