"""Options made by name are those of their yaml files, without Hydra."""

import pytest

from optcov.registry import make, options, settings_of
from optcov.sampler import DDPMSampler


def test_an_option_stands_on_those_it_names():
    """``sampler/ddpm_cosine.yaml`` is ``ddpm`` with another cut."""
    sampler = make("sampler", "ddpm_cosine", num_steps=7)
    assert isinstance(sampler, DDPMSampler)
    assert (sampler.num_steps, sampler.cut, make("sampler", "ddpm").cut) == (7, 1, 2)
    assert settings_of("sampler", "ddpm_cosine") == settings_of("sampler", "ddpm")


@pytest.mark.parametrize("group", ["sampler", "schedule", "trajectory", "parameterization", "head"])
def test_every_option_of_a_group_that_needs_nothing_can_be_made(group: str):
    assert all(make(group, name) is not None for name in options(group))
