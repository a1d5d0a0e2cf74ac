"""Muon: against its definition, and against PyTorch's Adam for what is no matrix."""

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from optcov.training.muon import Muon, orthogonalized


def test_orthogonalized_keeps_the_singular_vectors_and_levels_the_values():
    u, _ = torch.linalg.qr(torch.randn(3, 20, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    v, _ = torch.linalg.qr(torch.randn(3, 50, 20, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    values = torch.logspace(-1.5, 0, 20, dtype=torch.float64)
    core = u.mT @ orthogonalized(u * values @ v.mT) @ v
    diagonal = core.diagonal(dim1=1, dim2=2)
    assert_close(core, torch.diag_embed(diagonal), rtol=0, atol=1e-10)
    assert diagonal.min() > 0.6
    assert diagonal.max() < 1.25


def test_the_gram_matrix_gives_what_the_iteration_on_the_matrix_gives():
    x = torch.randn(2, 17, 33, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = x / x.norm(dim=(1, 2), keepdim=True)
    for _ in range(5):
        gram = expected @ expected.mT
        expected = 3.4445 * expected - 4.7750 * gram @ expected + 2.0315 * gram @ gram @ expected
    assert_close(orthogonalized(x), expected)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3), nn.GroupNorm(1, 16), nn.Conv2d(16, 32, 1), nn.SiLU(), nn.Conv2d(32, 16, 3),
        nn.Conv2d(16, 1, 3), nn.Linear(3, 20), nn.Linear(20, 20),
    )  # fmt: skip


def train(module: nn.Module, *optimizers: torch.optim.Optimizer, steps: int = 3, start: int = 0) -> None:
    for step in range(start, start + steps):
        x = torch.randn(4, 1, 9, 9, generator=torch.Generator().manual_seed(step))
        module.zero_grad()
        (module(x) ** 2).sum().backward()
        for optimizer in optimizers:
            optimizer.step()


def test_what_is_no_matrix_takes_the_steps_of_adam():
    ours = network()
    theirs = copy.deepcopy(ours)
    matrices = {"2.weight", "4.weight"}
    train(ours, Muon(ours.parameters(), lr=1e-2, rate=0))
    train(theirs, torch.optim.Adam([p for name, p in theirs.named_parameters() if name not in matrices], lr=1e-2))
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert_close(mine, other, msg=name)
    assert not torch.equal(ours[0].weight, network()[0].weight)


@pytest.mark.parametrize("name", ["2.weight", "4.weight"])  # tall, and wide
def test_the_first_step_of_a_matrix_is_its_orthogonalized_gradient(name: str):
    module = network()
    before, weight = network().get_parameter(name), module.get_parameter(name)
    train(module, Muon(module.parameters(), lr=1e-2, rate=2.0), steps=1)
    step = ((weight - before) / -1e-2).flatten(1).double()
    gradient = weight.grad.flatten(1).double()
    wide, other = (step, gradient) if step.shape[0] <= step.shape[1] else (step.mT, gradient.mT)
    assert_close(wide, 0.4 * wide.shape[1] ** 0.5 * orthogonalized(other[None])[0], rtol=0, atol=1e-3)


def test_a_resumed_run_takes_the_same_steps():
    whole, first = network(), network()
    optimizer = Muon(whole.parameters())
    train(whole, optimizer, steps=5)
    begun = Muon(first.parameters())
    train(first, begun, steps=2)
    resumed = Muon(first.parameters())
    resumed.load_state_dict(begun.state_dict())
    train(first, resumed, steps=3, start=2)
    for mine, other in zip(first.parameters(), whole.parameters(), strict=True):
        assert torch.equal(mine, other)


@pytest.mark.parametrize(("key", "value"), [("lr", -1.0), ("rate", -1.0), ("momentum", 1.0), ("betas", (0.9, 1.0))])
def test_a_setting_out_of_range_is_named(key: str, value: object):
    with pytest.raises(ValueError, match=rf"optimizer\.{key} must be"):
        Muon(network().parameters(), **{key: value})
