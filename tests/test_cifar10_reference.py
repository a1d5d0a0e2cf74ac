"""The network that comes with the package: its names, its weights, and the document about it."""

import hashlib
import json
import re
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import optcov
from benchmarks import reference_page
from optcov.cli.reference import by_name
from optcov.errors import ConfigError
from optcov.reference import EXPERIMENTS, folder_of

ROOT = Path(__file__).parents[1]
CHECKPOINTS = folder_of("cifar10") / "checkpoints"
RESULTS = ROOT / "benchmarks" / "results" / "cifar10_reference.json"


def test_both_names_are_of_one_file():
    weights = CHECKPOINTS / "mean.safetensors"
    assert folder_of("cifar10_small") == folder_of("reference/cifar10") == CHECKPOINTS.parent
    assert by_name("train", ["var=beta", "mean_ckpt=reference/cifar10"]) == [
        "var=beta",
        "experiment=cifar10_small",
        f"mean_ckpt={weights}",
    ]
    run, folder = by_name("sample", ["mean_ckpt=reference/cifar10"])
    assert run == f"run={CHECKPOINTS.parent}"
    assert folder.startswith("hydra.run.dir=outputs/sample/cifar10_")  # and not in the package
    assert by_name("sample", ["mean_ckpt=mine.safetensors"]) == ["mean_ckpt=mine.safetensors"]
    for refused in ("reference/cifar100", "reference/../cifar10"):
        with pytest.raises(ConfigError, match=r"mean_ckpt must be .*reference/cifar10"):
            by_name("train", [f"mean_ckpt={refused}"])


def test_weights_are_small_and_in_16_bits():
    assert sum(path.stat().st_size for path in CHECKPOINTS.iterdir()) <= 20_000_000
    with safe_open(CHECKPOINTS / "mean.safetensors", "pt") as file:
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"F16"}  # noqa: SIM118 (not a dict)


@pytest.mark.parametrize("name", EXPERIMENTS.values())
def test_network_and_heads_load_and_draw(name: str):
    denoiser, strategy = optcov.pretrained(name, "sn_dpm")
    assert denoiser.data_shape == (3, 32, 32)
    first, again = (optcov.sample(denoiser, strategy, 2, 2, progress=False) for _ in range(2))
    assert torch.equal(first, again)
    assert 0.05 < first.std() < 1
    with pytest.raises(ValueError, match=r"strategy must be one of .*sn_dpm"):
        optcov.pretrained(name, "analytic_diag")
    with pytest.raises(ValueError, match="name must be a network that comes with optcov"):
        optcov.pretrained("celeba")


def test_the_document_has_the_numbers_of_the_results():
    entries, page = reference_page.read(RESULTS), reference_page.PAGE.read_text()
    made = reference_page.tables(entries)
    assert all(f"<!-- {name} -->\n" in page for name in made)
    assert reference_page.filled(page, made) == page
    changed = [entry | {"value": entry["value"] + 1} for entry in entries]
    assert reference_page.filled(page, reference_page.tables(changed)) != page


def test_the_document_and_the_results_are_of_these_weights():
    digest = hashlib.sha256((CHECKPOINTS / "mean.safetensors").read_bytes()).hexdigest()
    assert json.loads(RESULTS.read_text())["network"]["sha256"] == digest
    for page in (reference_page.PAGE, CHECKPOINTS.parent / "README.md"):
        assert re.findall(r"\b[0-9a-f]{64}\b", page.read_text()) == [digest]
