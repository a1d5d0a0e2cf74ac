"""A strategy on disk and back: every option of ``var``, to the last bit, and nothing that is not of optcov."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import optcov
from optcov.denoiser import Denoiser
from optcov.model import UNet
from optcov.parameterization import X0
from optcov.registry import options, resolve, settings_of
from optcov.schedule import CosineSchedule, LinearSchedule
from optcov.variance.base import Calibrated, VarianceStrategy
from optcov.variance.saved import load_strategy

SHAPE = (1, 4, 4)


def denoiser_of(seed: int = 0, channels: int = 8, **arguments: Any) -> Denoiser:
    torch.manual_seed(seed)
    network = UNet(SHAPE, channels=channels, channel_mult=[1, 1], attention_resolutions=[])
    nn.init.normal_(network.output.weight, std=0.3)
    return Denoiser(network, arguments.pop("schedule", LinearSchedule(30)), **arguments).eval()


@pytest.fixture(scope="module")
def denoiser() -> Denoiser:
    return denoiser_of()


def strategy_of(name: str, denoiser: Denoiser, **settings: Any) -> VarianceStrategy:
    """A strategy with numbers of its own."""
    few = {"num_images": 4} if "num_images" in settings_of("var", name) else {}
    strategy: VarianceStrategy = resolve("var", name, denoiser=denoiser, **few, **settings)
    if isinstance(strategy, Calibrated):
        strategy.calibrate(denoiser, [torch.zeros(4, *SHAPE)])
    for parameter in strategy.parameters():
        nn.init.normal_(parameter, std=0.1)
    return strategy.eval()


CASES = [(name, {}) for name in options("var")] + [
    ("npr_dpm", {"head": "complex"}),
    ("sn_dpm", {"head": "input"}),
]


@pytest.mark.parametrize(
    ("name", "heads"), CASES, ids=lambda value: "-".join(value.values()) if isinstance(value, dict) else value
)
def test_every_strategy_comes_back_to_the_last_bit(
    name: str, heads: dict[str, str], denoiser: Denoiser, tmp_path: Path
):
    heads = {key: resolve("head", head) for key, head in heads.items()}
    strategy = strategy_of(name, denoiser, **heads)
    strategy.save_pretrained(tmp_path / "new", denoiser)
    again = optcov.load_strategy(tmp_path / "new", denoiser)
    assert type(again) is type(strategy)
    ours, theirs = strategy.state_dict(), again.state_dict()
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        assert_close(theirs[key], value, rtol=0, atol=0)
    how = {"num_steps": 2, "count": 2, "progress": False}  # one step draws; a Jacobian takes 16 products in it
    assert torch.equal(optcov.sample(denoiser, again, **how), optcov.sample(denoiser, strategy, **how))


def test_a_denoiser_that_does_not_fit_is_refused_where_it_is_used(denoiser: Denoiser, tmp_path: Path):
    strategy_of("npr_dpm", denoiser).save_pretrained(tmp_path, denoiser)
    strategy = load_strategy(tmp_path)
    others = {
        "num_steps": denoiser_of(schedule=LinearSchedule(60)),
        "log_snr": denoiser_of(schedule=CosineSchedule(30)),
        "parameterization": denoiser_of(parameterization=X0()),
        "feature_channels": denoiser_of(channels=16),
    }
    for name, other in others.items():
        with pytest.raises(ValueError, match=rf"denoiser must have the {name} that the strategy was made for"):
            optcov.sample(other, strategy, 3, 2, progress=False)
    with pytest.raises(ValueError, match=r"denoiser must have the weights that the strategy in .* was fitted to"):
        load_strategy(tmp_path, denoiser_of(1))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("strategy.class", "os.system"),
        ("strategy.class", "optcov.files.Path"),
        ("strategy.class", "optcov.variance.npr_dpm.CovarianceModel"),
        ("strategy.class", "optcov.variance.saved.os.system"),
        ("strategy.class", "optcov.nowhere.Strategy"),
        ("strategy.settings.head.class", "torch.nn.Linear"),
        ("strategy.settings.head.class", "optcov.variance.npr_dpm.NPR"),
        ("strategy.settings", {"command": "x"}),
        ("made_for.data_shape", [1, 4, 9, 9, 9]),
        ("made_for.feature_channels", 24),
        ("made_for.data_shape", [10**6, 10**6, 1]),  # more memory than there is
        ("weights_sha256", "0"),
        ("format", 2),
        ("strategy", None),
    ],
)
def test_a_folder_from_a_stranger_is_data(denoiser: Denoiser, tmp_path: Path, key: str, value: Any):
    strategy_of("npr_dpm", denoiser).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "strategy.json").read_text())
    node, (*groups, name) = config, key.split(".")
    for group in groups:
        node = node[group]
    node[name] = value
    (tmp_path / "strategy.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"must (hold a strategy|be the json)") as refusal:
        load_strategy(tmp_path)
    assert "\n" not in str(refusal.value)


def test_what_cannot_be_saved_is_said(denoiser: Denoiser, tmp_path: Path):
    class Mine(VarianceStrategy):
        transition = None

    with pytest.raises(ValueError, match="must be fitted before it is saved"):
        resolve("var", "analytic", denoiser=denoiser).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="Mine must be a class of optcov to be saved"):
        Mine(denoiser).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"must be the json of a strategy"):
        load_strategy(tmp_path / "nowhere")
