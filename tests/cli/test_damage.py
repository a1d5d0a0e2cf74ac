"""A damaged file of a run is named, and nothing of it is used; `benchmarks.damage` tries every file and the cache."""

from pathlib import Path

import pytest

from benchmarks.damage import DAMAGES, Outcome, expected, finished, problem

CASES = [
    ("train again", "run/results.json", 2),
    ("train again", "run/.hydra/config.yaml", 1),
    ("sample", "run/.hydra/config.yaml", 2),
    ("sample", "run/.hydra/overrides.yaml", 1),
    ("sample", "run/checkpoints/mean.safetensors", 2),
    ("report", "run/results.json", 2),
    ("report", "run/.hydra/config.yaml", 1),
    ("report", "run/samples.png", 1),
    ("report", "run/variance.csv", 1),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished(tmp_path_factory.mktemp("finished"))


@pytest.fixture(scope="module")
def whole(place: Path) -> dict[str, Outcome]:
    return {"report": expected(place, "report")}  # the others are refused


@pytest.mark.parametrize(("command", "file", "damages"), CASES)
def test_a_damaged_file_is_named_or_made_again(
    place: Path, whole: dict[str, Outcome], command: str, file: str, damages: int
):
    for damage in (DAMAGES[0], DAMAGES[-1], *DAMAGES[1:-1])[:damages]:
        assert problem(place, file, damage, command, whole.get(command, Outcome(None, None, ""))) is None, (
            damage.__name__
        )
