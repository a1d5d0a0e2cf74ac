"""Features for heads, labels, null classes and bound keywords of networks of others."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import optcov

SHAPE = (1, 4, 4)
STATED: dict[str, Any] = {
    "shape": SHAPE, "prediction": "eps", "schedule": "linear", "time": "n", "data_range": (-1, 1), "check": False
}  # fmt: skip
IMAGES = (torch.rand(8, *SHAPE, generator=torch.Generator().manual_seed(0)) * 255).round() / 127.5 - 1


class Backbone(nn.Module):
    """A map of 8 channels; then `tail`, whose last layer is a projection."""

    def __init__(self, *tail: nn.Module) -> None:
        super().__init__()
        self.body, self.tail = nn.Conv2d(1, 8, 3, padding=1), nn.Sequential(*tail)

    def forward(self, x: Tensor, n: Tensor) -> Tensor:
        return self.tail(self.body(x))


class Linear(nn.Module):
    """Pixels to channels and back by linear layers, as transformers do: no map of the image's size."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(16, 5), nn.Linear(5, 16)

    def forward(self, x: Tensor, n: Tensor) -> Tensor:
        return self.outer(self.inner(x.flatten(1)).relu()).reshape(x.shape)


def last() -> nn.Module:
    return nn.Conv2d(8, 1, 1)


FOUND: dict[str, tuple[nn.Module, str | None, int]] = {
    "the projection": (Backbone(last()), "tail.0", 8),
    "norm and activation before it": (Backbone(nn.GroupNorm(2, 8), nn.SiLU(), last()), "tail.0", 8),
    "dropout among them": (Backbone(nn.GroupNorm(2, 8), nn.SiLU(), nn.Dropout(), last()), "tail.0", 8),
    "no map": (Linear(), None, 2),
}


@pytest.mark.parametrize("name", FOUND)
def test_heads_read_the_last_feature_map(name: str):
    network, place, channels = FOUND[name]
    denoiser = optcov.load(network, **STATED)
    assert (denoiser.network.features, denoiser.feature_channels) == (place, channels)
    with torch.no_grad():
        found = denoiser(IMAGES, denoiser.levels(torch.tensor(0.3)))
        wanted = network.body(IMAGES) if place else torch.cat([IMAGES, found.output], 1)
    assert_close(found.features, wanted)


@pytest.mark.parametrize("features", ["auto", "tail.1", None])
@pytest.mark.parametrize("name", ["npr_dpm", "sn_dpm"])
def test_a_head_is_fitted_with_and_without_features(features: str | None, name: str):
    network = Backbone(nn.GroupNorm(2, 8), nn.SiLU(), last())
    denoiser = optcov.load(network, **STATED, features=features)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    strategy = optcov.fit(name, denoiser, IMAGES, 3, progress=False)
    assert optcov.sample(denoiser, strategy, 3, 2, progress=False).isfinite().all()
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())  # it is frozen
    assert type(strategy.head).__name__ == ("InputHead" if features is None else "SimpleHead")


def conditional(x: Tensor, n: Tensor, labels: Tensor) -> Tensor:
    """Says of its labels, of which 9 is the null class."""
    return x * 0 + labels.reshape(-1, 1, 1, 1) / 10


def test_labels_and_the_null_class():
    denoiser = optcov.load(conditional, **STATED, num_classes=3, null_class=9)
    level = denoiser.levels(torch.tensor(0.5))
    found = denoiser(IMAGES[:4], level, torch.tensor([0, 1, 2, 3])).output[:, 0, 0, 0]
    assert_close(found, torch.tensor([0.0, 0.1, 0.2, 0.9]))  # 3 stands for no label
    assert_close(denoiser(IMAGES[:1], level).output[0, 0, 0, 0], torch.tensor(0.9))
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
    strategy = optcov.fit("npr_dpm", denoiser, IMAGES, 2, labels=labels, progress=False)
    plain = optcov.sample(denoiser, strategy, 2, 2, labels=[0, 2], progress=False)
    guided = optcov.sample(denoiser, strategy, 2, 2, labels=[0, 2], guidance="classifier_free", progress=False)
    assert not torch.equal(plain, guided)
    assert optcov.bits_per_dim(denoiser, strategy, IMAGES, 2, labels=labels, progress=False).value > 0
    with pytest.raises(ValueError, match=r"labels must lie between 0 and 2, or be 3, the null label \(got 0 to 7\)"):
        optcov.sample(denoiser, strategy, 2, 2, labels=[0, 7], progress=False)
    with pytest.raises(ValueError, match=r"labels must be one per sample, \[2\] \(got \[3\]\)"):
        optcov.sample(denoiser, strategy, 2, 2, labels=[0, 1, 2], progress=False)


@pytest.mark.parametrize("name", ["analytic", "sn_dpm"])
def test_a_network_without_a_null_class_is_never_asked_for_one(name: str):
    def network(x: Tensor, n: Tensor, labels: Tensor) -> Tensor:
        return torch.eye(3)[labels].mean(1).reshape(-1, 1, 1, 1) * x

    denoiser = optcov.load(network, **STATED, num_classes=3)
    labels = torch.arange(8) % 3
    settings: dict[str, Any] = (
        {"num_times": 4} if name == "analytic" else {"steps": 20}
    )  # in which some would be hidden
    strategy = optcov.fit(name, denoiser, IMAGES, labels=labels, progress=False, **settings)
    for each in (1, torch.tensor(1), labels[:2]):
        assert optcov.sample(denoiser, strategy, 2, 2, labels=each, progress=False).isfinite().all()
    assert optcov.bits_per_dim(denoiser, strategy, IMAGES, 2, labels=labels, progress=False).value > 0


def test_labels_go_by_their_name():
    """Where the third argument is another."""

    def network(x: Tensor, n: Tensor, text: Any = None, y: Tensor | None = None) -> Tensor:
        assert text is None
        assert y is not None
        return x * 0 + y.reshape(-1, 1, 1, 1)

    denoiser = optcov.load(network, **STATED, num_classes=3)
    found = denoiser(IMAGES[:2], denoiser.levels(torch.tensor(0.5)), torch.tensor([1, 2])).output[:, 0, 0, 0]
    assert_close(found, torch.tensor([1.0, 2.0]))


def test_dictionaries_are_bound_in_the_precision_of_the_weights():
    class Network(Backbone):
        def forward(self, x: Tensor, n: Tensor, more: dict[str, Tensor] | None = None) -> Tensor:
            assert more is not None
            return super().forward(x, n) + more["a"][:, :, None, None]

    denoiser = optcov.load(Network(last()).bfloat16(), **STATED, bind={"more": {"a": torch.ones(1, 1)}})
    assert denoiser(IMAGES, denoiser.levels(torch.tensor(0.5))).output.shape == IMAGES.shape


@pytest.mark.parametrize("dims", [1, 3])
def test_heads_fit_sequences_and_volumes(dims: int):
    kind, shape = {1: (nn.Conv1d, (2, 8)), 3: (nn.Conv3d, (2, 4, 4, 4))}[dims]

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.last = kind(2, 8, 3, padding=1), kind(8, 2, 3, padding=1)

        def forward(self, x: Tensor, n: Tensor) -> Tensor:
            return self.last(self.body(x))

    denoiser = optcov.load(Network(), **STATED | {"shape": shape, "data_range": "unbounded"})
    assert denoiser.network.features == "last"
    strategy = optcov.fit("npr_dpm", denoiser, torch.randn(8, *shape), 2, progress=False)
    assert optcov.sample(denoiser, strategy, 2, 2, progress=False).isfinite().all()


def test_keywords_are_bound():
    def network(x: Tensor, n: Tensor, text: Tensor, scale: float) -> Tensor:
        assert len(text) == len(x)
        return x * 0 + text.reshape(-1, 1, 1, 1) * scale

    bound = {"text": torch.full((1, 1), 0.5), "scale": 2.0}
    denoiser = optcov.load(network, **STATED, bind=bound)
    level = denoiser.levels(torch.tensor(0.5))
    assert_close(denoiser(IMAGES, level).output, torch.ones(8, *SHAPE))
    guided = optcov.load(network, **STATED, bind=bound, null_bind={"text": torch.zeros(1, 1)})
    assert guided.num_classes == 1
    found = guided(IMAGES[:2], level, torch.tensor([0, 1])).output[:, 0, 0, 0]
    assert_close(found, torch.tensor([1.0, 0.0]))


def test_the_half_that_is_a_learned_variance_is_taken_as_it_is():
    def network(x: Tensor, n: Tensor) -> Tensor:
        return torch.cat([x / 2, torch.full_like(x, 0.5)], 1)  # 2 v - 1 = 0.5

    denoiser = optcov.load(network, **STATED, learned_sigma=True)
    assert denoiser(IMAGES, denoiser.levels(torch.tensor(0.3))).output.shape == IMAGES.shape
    strategy = optcov.fit("iddpm", denoiser)
    assert not list(strategy.parameters())
    times = denoiser.levels(torch.tensor([0.2, 0.3]))
    from optcov.kernel import ReverseKernel

    kernel = ReverseKernel.from_levels(times[0], times[1])
    variance = strategy.transition(kernel, denoiser, denoiser(IMAGES, times[1])).diagonal()
    expected = (0.75 * kernel.beta.log() + 0.25 * kernel.lambda_sq.log()).exp()  # Improved DDPM, Eq. 15
    assert_close(variance, expected.float().expand(variance.shape))
