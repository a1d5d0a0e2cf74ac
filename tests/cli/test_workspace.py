"""The workspace that is saved at W&B: every panel of it shows something that runs log."""

import json
import sys
from pathlib import Path

import pytest

from optcov.cli import workspace


@pytest.fixture(autouse=True)
def _stranger(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # the discard port: nothing listens


def test_without_its_package_one_sentence_says_what_is_missing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    with pytest.raises(SystemExit, match=r"wandb-workspaces is missing: pip install"):
        workspace.main(["--entity", "us"])


def test_it_is_built_from_what_runs_log():
    pytest.importorskip("wandb_workspaces")
    built = workspace.build("us", "optcov", ["fd_pixel_2k", "fd_pixel_50k"])
    model = json.loads(built._to_model().spec.model_dump_json(by_alias=True, exclude_none=True))
    sections = {section["name"]: section["panels"] for section in model["section"]["panelBankConfig"]["sections"]}
    assert list(sections) == [
        "samples", "scores against steps", "variance over t", "scores during training", "training losses",
    ]  # fmt: skip
    shown = json.dumps(sections)
    for name in (
        "track/mean/samples", "fd_pixel_2k_against_steps_table", "fd_pixel_50k_against_steps_table", "variance_table",
        "^(mean|variance|classifier)/loss$", "trainer/global_step", "summary:num_steps", "wandb/lineseries/v0",
    ):  # fmt: skip
        assert name in shown, name


def test_a_built_workspace_that_can_not_be_saved_is_said_to_be_so(monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("wandb_workspaces")
    with pytest.raises(SystemExit, match=r"built, but .* `wandb login`"):
        workspace.main(["--entity", "us"])
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    with pytest.raises(SystemExit, match=r"built, but http://127\.0\.0\.1:9 does not answer"):
        workspace.main(["--entity", "us"])
