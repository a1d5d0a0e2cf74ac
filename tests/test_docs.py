"""The code in README.md and CONTRIBUTING.md does what they say."""

import json
import re
import sys
import types
from pathlib import Path

import pytest
import torch
from hydra.utils import get_object
from omegaconf import OmegaConf

from optcov.denoiser import Denoiser
from optcov.model import UNet
from optcov.sampler import DDPMSampler, sample
from optcov.schedule import LinearSchedule
from optcov.trajectory import EvenTrajectory
from optcov.variance.fixed import BetaTilde

ROOT = Path(__file__).parents[1]


def blocks(document: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / document).read_text(), re.DOTALL)


def test_the_notebook_of_the_readme_draws_images():
    (code,) = blocks("README.md", "python")
    namespace: dict[str, object] = {}
    exec(code.replace("LinearSchedule(1000)", "LinearSchedule(40)"), namespace)
    assert namespace["images"].shape == (4, 1, 8, 8)


def test_the_notebook_of_the_metrics_scores_samples(capsys: pytest.CaptureFixture[str]):
    (code,) = blocks("docs/metrics.md", "python")
    exec(code.replace("300, 3", "20, 3").replace("200, 3", "10, 3"), {})
    assert float(capsys.readouterr().out) > 0


def test_the_strategy_of_contributing_works(monkeypatch: pytest.MonkeyPatch):
    strategy, test = blocks("CONTRIBUTING.md", "python")
    (yaml,) = blocks("CONTRIBUTING.md", "yaml")
    module = types.ModuleType("optcov.variance.gaussian")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(strategy, module.__dict__)
    namespace: dict[str, object] = {}
    exec(test, namespace)
    namespace["test_it_is_the_posterior_covariance_of_gaussian_data"]()
    settings = OmegaConf.create(yaml)
    schedule = LinearSchedule(100)
    denoiser = Denoiser(UNet((1, 8, 8), channels=8), schedule)
    assert settings.pop("_target_") == "optcov.variance.gaussian.Gaussian"
    built = module.Gaussian(denoiser, **settings)
    images = sample(denoiser, built, DDPMSampler(3), EvenTrajectory().times(schedule, 3), count=2, progress=False)
    assert images.isfinite().all()


def test_the_workspace_of_the_page_on_wandb_shows_what_runs_log(monkeypatch: pytest.MonkeyPatch):
    from wandb_workspaces.workspaces import Workspace

    saved: list[Workspace] = []
    monkeypatch.setattr(Workspace, "save", lambda workspace: saved.append(workspace))
    (code,) = blocks("docs/wandb.md", "python")
    exec(code, {})
    (workspace,) = saved
    spec = json.loads(workspace._to_model().spec.model_dump_json(by_alias=True, exclude_none=True))
    sections = {section["name"]: section["panels"] for section in spec["section"]["panelBankConfig"]["sections"]}
    assert list(sections) == [
        "samples", "scores against steps", "variance over t", "scores during training", "training losses",
    ]  # fmt: skip
    shown = json.dumps(sections)
    for name in (
        "track/mean/samples", "fd_pixel_2k_against_steps_table", "variance_table", "summary:num_steps",
        "^(mean|variance|classifier)/loss$", "trainer/global_step", "wandb/lineseries/v0",
    ):  # fmt: skip
        assert name in shown, name


@pytest.mark.parametrize("document", ["README.md", "conf/config.yaml", "docs/metrics.md"])
def test_every_group_option_named_in_the_readme_exists(document: str):
    named = re.findall(r"(?<![\w./-])(\w+)=([a-z][a-z_0-9,]*)(?![\w.])", (ROOT / document).read_text())
    groups = {path.name for path in (ROOT / "conf").iterdir() if path.is_dir()}
    checked = 0
    for group, options in named:
        for option in options.split(","):
            if group in groups and option != "launcher":
                assert (ROOT / "conf" / group / f"{option}.yaml").is_file(), f"{group}={option}"
                checked += 1
    assert checked > 1


def test_every_target_of_the_config_can_be_imported():
    paths = list((ROOT / "conf").glob("*/*.yaml"))
    targets = {target for path in paths for target in re.findall(r"_target_: (\S+)", path.read_text())}
    assert len(targets) > 20
    for target in targets:
        assert callable(get_object(target))


def test_the_notebook_of_the_guide_to_guidance_draws_images():
    schedule = LinearSchedule(40)
    denoiser = Denoiser(UNet((1, 8, 8), channels=8, num_classes=10), schedule)
    given = {"denoiser": denoiser, "strategy": BetaTilde(denoiser), "sampler": DDPMSampler(3), "sample": sample}
    namespace: dict[str, object] = given | {"times": EvenTrajectory().times(schedule, 3), "torch": torch}
    (code,) = blocks("docs/guidance.md", "python")
    exec(code, namespace)
    assert namespace["images"].shape == (4, 1, 8, 8)
