"""One list of keys: everything that depends on the meaning of a key is derived from its declaration."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from optcov.keys import (
    GIVEN,
    KEYS,
    NETWORK,
    PLACE,
    SAMPLES,
    SCORE,
    TRAINING,
    VARIANCE,
    Config,
    determines,
    difference,
    is_fixed,
    is_label,
    select,
)

CONF = Path(__file__).parents[1] / "src" / "optcov" / "conf"


def composed(name: str) -> dict[str, Any]:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        plain = OmegaConf.to_container(compose(name))
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def inside(group: str) -> Iterator[str]:
    """The names that options of a group have below it, at any depth, groups of several parts aside."""

    def names(node: Any, prefix: str) -> Iterator[str]:
        for name, value in node.items() if isinstance(node, dict) else ():
            yield f"{prefix}{name}"
            yield from names(value, f"{prefix}{name}.")

    for path in (CONF / group).glob("*.yaml"):
        node = OmegaConf.to_container(OmegaConf.load(path))
        assert isinstance(node, dict)
        yield from names(node.get(group, node), "")  # a global option holds its group by name


@pytest.mark.parametrize("name", ["config", "sample", "evaluate"])
def test_every_key_of_a_config_is_declared_and_every_declared_key_is_in_a_config(name: str):
    found = composed(name).keys()
    assert found <= KEYS.keys()
    assert {key for key, info in Config.model_fields.items() if info.is_required()} <= found
    assert found >= {"config": set(), "sample": {"run", "trust", "format"}, "evaluate": {"run", "trust"}}[name]


def test_a_declared_key_determines_one_thing_at_least():
    assert all(key.determines for key in KEYS.values())
    assert all(what for key in KEYS.values() for what in key.inside.values())


def test_every_pattern_inside_a_group_stands_for_a_key_of_an_option():
    """A pattern that nothing matches is a name that was changed, whose key then means what its group does."""
    accepted = {"foreach", "tracking*", "*"}  # of PyTorch, and of callbacks that may follow
    for group, key in KEYS.items():
        names = set(inside(group)) if (CONF / group).is_dir() else set()
        for pattern in key.inside:
            plain = pattern.strip("*").removeprefix(".")
            assert pattern in accepted or any(name.split(".")[-1] == plain for name in names), f"{group}: {pattern}"


def test_a_new_key_is_one_line(monkeypatch: pytest.MonkeyPatch):
    """Declared once, it is in the identity of a fit or of samples, in a resume check and in labels, or it is not."""
    config = {"new": 1, "model": {"_target_": "a.B"}}
    for what, network, samples, label in (
        (TRAINING, True, True, True),
        (SAMPLES, False, True, True),
        (SCORE, False, False, True),
        (PLACE, False, False, False),
    ):
        monkeypatch.setitem(KEYS, "new", type(KEYS["seed"])(what))
        assert ("new" in select(config, lambda each: each & (NETWORK | TRAINING))) == network
        assert ("new" in select(config, lambda each: each & (NETWORK | TRAINING | VARIANCE | SAMPLES))) == samples
        assert is_label("new") == label
        assert is_fixed(determines("new")) == network


@pytest.mark.parametrize(
    ("key", "what"),
    [
        ("data.root", GIVEN),
        ("data.checksums.cifar-10-python.tar.gz", PLACE),
        ("data.batch_size", TRAINING),
        ("optimizer.fused", PLACE),
        ("optimizer.lr", TRAINING),
        ("trainer.accelerator", PLACE),
        ("trainer.devices", TRAINING | PLACE),
        ("trainer.precision", TRAINING | SAMPLES),
        ("trainer.limit_train_batches", TRAINING),  # what is not named may change the weights
        ("callbacks.ema.decay", TRAINING),
        ("callbacks.tracking.num_samples", PLACE),
        ("metric.fid.features.batch_size", PLACE),
        ("metric.fid.features.weights", GIVEN),
        ("model.channels", NETWORK),
        ("logger.wandb.project", PLACE),
    ],
)
def test_keys_inside_groups(key: str, what: Any):
    assert determines(key) == what


def test_a_selection_keeps_the_shape_and_drops_what_is_empty():
    config = {"data": {"root": "x", "seed": 1, "mirrors": ["a"]}, "logger": {"csv": {"name": ""}}, "seed": 2}
    assert select(config, lambda what: what & TRAINING) == {"data": {"seed": 1}, "seed": 2}
    assert select(config, lambda what: what == PLACE) == {"data": {"mirrors": ["a"]}, "logger": {"csv": {"name": ""}}}


def test_a_difference_is_named_by_its_first_key():
    assert difference("model", {"a": {"b": 1}, "c": 2}, {"a": {"b": 3}, "c": 4}) == "model.a.b = 1, not 3"
