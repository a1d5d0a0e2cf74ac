"""The documents keep their word: links resolve, commands compose, and code runs."""

import json
import re
import shlex
import sys
import types
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import get_object
from omegaconf import OmegaConf
from PIL import Image

import optcov
from optcov.cli.main import compose_config, register_resolvers
from optcov.denoiser import Denoiser
from optcov.model import UNet
from optcov.sampler import DDPMSampler, sample
from optcov.schedule import LinearSchedule
from optcov.trajectory import EvenTrajectory
from optcov.variance.fixed import Beta, BetaTilde

ROOT = Path(__file__).parents[1]
CONF = ROOT / "src" / "optcov" / "conf"
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
GROUPS = {path.name for path in CONF.iterdir() if path.is_dir()} - {"hydra"}


def blocks(document: str, language: str) -> list[str]:
    return [code for kind, code in BLOCK.findall((ROOT / document).read_text()) if kind == language]


def prose(text: str) -> str:
    """What is left of a page without code and tables."""
    return re.sub(r"^(\|| {4}).*$", "", BLOCK.sub("", text), flags=re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and MkDocs make them."""
    headings = re.findall(r"^#+ (.*)$", BLOCK.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def commands(page: Path) -> list[str]:
    """The lines of a page's shell blocks, without comments."""
    found = "\n".join(code for kind, code in BLOCK.findall(page.read_text()) if kind == "sh")
    return [line for line in (shlex.join(shlex.split(each, comments=True)) for each in found.splitlines()) if line]


def test_the_readme_has_at_most_800_words():
    assert 300 < len(prose((ROOT / "README.md").read_text()).split()) <= 800


def test_the_first_screen_of_the_readme_has_two_commands_and_a_picture():
    first_screen = "## ".join((ROOT / "README.md").read_text().split("\n## ")[:2])
    shell = [code for kind, code in BLOCK.findall(first_screen) if kind == "sh"]
    assert shell[0].splitlines() == ["make demo", "make test"]
    assert first_screen.index("![") < first_screen.index("```sh")


@pytest.mark.parametrize("target", ["demo", "test"])
def test_make_prints_and_runs_what_the_readme_says(target: str):
    rule = re.search(rf"^{target}: \.venv/\.installed\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert rule is not None
    (line,) = rule[1].splitlines()
    assert not line.startswith("\t@")  # make prints it
    wanted = line.strip().replace("$(bin)", ".venv/bin")
    assert wanted in commands(ROOT / "README.md")  # for those who have no make


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_resolve(page: Path):
    for target in re.findall(r"\]\(([^)\s]+)\)", BLOCK.sub("", page.read_text())):
        if target.startswith(("http://", "https://")):
            continue
        place, _, anchor = target.partition("#")
        linked = (page.parent / place).resolve() if place else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text()
    for path in [*ROOT.glob("docs/**/*.md"), *ROOT.glob("docs/*.ipynb")]:
        assert re.search(rf"[- ]{path.relative_to(ROOT / 'docs')}$", navigation, re.MULTILINE), path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_compiles(page: Path):
    for code in blocks(str(page.relative_to(ROOT)), "python"):
        compile(code, str(page), "exec")


def test_every_training_command_composes():
    """Every ``train.py`` of the documents has keys, options and types that exist."""
    register_resolvers()
    lines = [line for page in PAGES for line in commands(page) if "train.py " in line]
    assert len(lines) > 8
    with initialize_config_dir(str(CONF), version_base="1.3", job_name="train"):
        for line in lines:
            words = shlex.split(line.split("train.py ", 1)[1])
            overrides = [word for word in words if "=" in word and not word.startswith(("hydra/", "hydra."))]
            if "gaussian" in line or "--config-dir" in words:  # options that a reader makes
                continue
            if "-m" in words:
                overrides = [re.sub(r"=([^,\[]*),.*", r"=\1", word) for word in overrides]
            compose_config([word.replace("PATH", ".").replace("DIR", ".") for word in overrides])


def test_every_command_on_a_run_composes():
    """So do those of ``sample.py`` and ``evaluate.py``; a run's own settings are not asked for."""
    register_resolvers()
    composed = set()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        for words in [shlex.split(line) for page in PAGES for line in commands(page)]:
            for task in {"sample", "evaluate"} & {word.removesuffix(".py") for word in words}:
                given = words[words.index(f"{task}.py") + 1 :]
                overrides = [word.strip(";").replace("$", "") for word in given if "=" in word]
                compose("report" if overrides[0].startswith("runs=") else task, overrides)
                composed.add((task, overrides[0].partition("=")[0]))
    assert composed == {("sample", "run"), ("sample", "mean_ckpt"), ("evaluate", "run"), ("evaluate", "runs")}


@pytest.mark.parametrize("document", ["README.md", *(f"docs/{page}.md" for page in ("choices", "runs", "metrics"))])
def test_every_option_that_is_named_exists(document: str):
    named = re.findall(r"(?<![\w./-])(\w+)=([a-z][a-z_0-9,]*)(?![\w.])", (ROOT / document).read_text())
    checked = 0
    for group, options in named:
        for option in options.split(","):
            if group in GROUPS:
                assert (CONF / group / f"{option}.yaml").is_file(), f"{group}={option}"
                checked += 1
    assert checked > 1


@pytest.mark.parametrize("group", sorted(GROUPS))
def test_every_option_that_exists_is_named(group: str):
    page = (ROOT / "docs" / "choices.md").read_text()
    for path in (CONF / group).glob("*.yaml"):
        assert f"`{path.stem}`" in page or f"`{group}={path.stem}`" in page, f"{group}={path.stem}"


def test_every_target_of_the_config_can_be_imported():
    targets = {target for path in CONF.glob("*/*.yaml") for target in re.findall(r"_target_: (\S+)", path.read_text())}
    assert len(targets) > 20
    for target in targets:
        assert callable(get_object(target))


@pytest.mark.filterwarnings("error:the network fits these images better")
def test_the_readme_fits_a_network_of_others(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """On Gaussian data, of which the network is exact."""
    variance, schedule = 0.09, LinearSchedule(1000)

    def network(x: torch.Tensor, n: torch.Tensor) -> torch.Tensor:
        level = schedule.levels(n.double() / 1000)
        share = level.sigma / (variance * level.alpha**2 + level.sigma**2)
        return share.float().reshape(-1, 1, 1, 1) * x

    noise = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * variance**0.5
    project = types.ModuleType("my_project")
    project.network = network  # type: ignore[attr-defined]
    project.images = (noise.clamp(-1, 1) * 127.5 + 127.5).round() / 127.5 - 1  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "my_project", project)
    (code,) = blocks("README.md", "python")
    assert len(code.strip().splitlines()) <= 11
    fit = optcov.fit
    monkeypatch.setattr(optcov, "fit", lambda *given: fit(*given, num_times=10), raising=False)  # of 1000
    namespace: dict[str, object] = {}
    exec(code, namespace)
    assert namespace["samples"].shape == (16, 1, 8, 8)  # type: ignore[attr-defined]
    assert "torch.Size([16, 1, 8, 8])" in capsys.readouterr().out


def test_the_notebook_runs(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """Cell by cell, on the code of this checkout, with a smaller network that is trained for fewer steps."""
    plt.switch_backend("agg")
    monkeypatch.setattr(plt, "subplots", partial(plt.subplots, num="the notebook", clear=True))
    notebook = json.loads((ROOT / "docs" / "own_network.ipynb").read_text())
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(not cell["outputs"] for cell in cells), "clear the outputs before you commit"
    namespace: dict[str, object] = {}
    smaller = {"channels=32, blocks=2": "channels=16, blocks=1", "600": "150", "steps=500": "steps=10"}
    smaller |= {"denoiser, train,": "denoiser, train[:100],", "num_times=50": "num_times=25", "[:100]": "[:50]"}
    code = ["".join(cell["source"]) for cell in cells]
    assert all(any(each in source for source in code) for each in smaller)
    for source in code:
        for found, replacement in smaller.items():
            source = source.replace(found, replacement)
        exec(source, namespace)
    rows = plt.figure("the notebook").axes
    assert [len(axis.images) for axis in rows] == [1] * len(namespace["strategies"])  # type: ignore[arg-type]
    plt.close("the notebook")
    bits = dict(re.findall(r"^(\w+) +([\d.]+) ±", capsys.readouterr().out, re.MULTILINE))
    assert float(bits["analytic_imperfect"]) < float(bits["beta"]) < float(bits["beta_tilde"])


def test_the_notebook_of_the_metrics_scores_samples(capsys: pytest.CaptureFixture[str]):
    (code,) = blocks("docs/metrics.md", "python")
    exec(code.replace("300, 3", "20, 3").replace("200, 3", "10, 3"), {})
    assert float(capsys.readouterr().out) > 0


def test_the_notebook_of_the_guide_to_guidance_draws_images():
    denoiser = Denoiser(UNet((1, 8, 8), channels=8, num_classes=10), LinearSchedule(40))
    namespace: dict[str, object] = {"denoiser": denoiser, "strategy": BetaTilde(denoiser)}
    (code,) = blocks("docs/guidance.md", "python")
    exec(code, namespace)
    assert namespace["images"].shape == (4, 1, 8, 8)  # type: ignore[attr-defined]


def test_the_notebook_of_inverse_problems_restores_images(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    denoiser = Denoiser(UNet((1, 8, 8), channels=8), LinearSchedule(40)).eval()
    namespace: dict[str, object] = {"denoiser": denoiser, "strategy": Beta(denoiser), "images": torch.zeros(2, 1, 8, 8)}
    code, recalibrate = blocks("docs/inverse.md", "python")
    exec(code, namespace)
    exec(recalibrate, namespace | {"held_out": torch.zeros(2, 1, 8, 8)})
    assert namespace["restored"].mean.shape == (2, 1, 8, 8)  # type: ignore[attr-defined]
    with Image.open(tmp_path / "restored.png") as picture:
        assert picture.size == (8 * 9 * 7, 2 * 9 * 7)  # eight images of nine pixels with their lines, seven times


def test_the_strategy_of_the_guide_to_extending_works(monkeypatch: pytest.MonkeyPatch):
    strategy, test = blocks("docs/extending.md", "python")
    (yaml,) = blocks("docs/extending.md", "yaml")
    module = types.ModuleType("optcov.variance.gaussian")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(strategy, module.__dict__)
    namespace: dict[str, object] = {}
    exec(test, namespace)
    namespace["test_it_is_the_posterior_covariance_of_gaussian_data"]()  # type: ignore[operator]
    settings = OmegaConf.create(yaml)
    schedule = LinearSchedule(100)
    denoiser = Denoiser(UNet((1, 8, 8), channels=8), schedule)
    assert settings.pop("_target_") == "optcov.variance.gaussian.Gaussian"
    built = module.Gaussian(denoiser, **settings)
    images = sample(denoiser, built, DDPMSampler(3), EvenTrajectory().times(schedule, 3), count=2, progress=False)
    assert images.isfinite().all()


def test_the_classes_of_the_guide_to_extending_exist():
    text = (ROOT / "docs" / "extending.md").read_text()
    rows = re.findall(r"^\| [\w ]+ \| (`.*?) \| (.*?) \|", text, re.MULTILINE)
    assert len(rows) > 7
    for classes, operations in rows:
        module = re.search(r"\(`(optcov[\w.]*)`\)", classes)
        assert module is not None, classes
        named = re.findall(r"`(\w+)`", classes.split("(`")[0])
        found = [getattr(get_object(module[1]), name) for name in named]
        for operation in re.findall(r"`([a-z]\w*)`", operations):
            assert any(hasattr(each, operation) for each in found), f"{classes}: {operation}"


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


def test_the_picture_of_the_readme_is_drawn_for_every_strategy(tmp_path: Path):
    from benchmarks import picture

    denoiser = Denoiser(UNet((1, 8, 8), channels=8), LinearSchedule(40)).eval()
    samples = picture.draw(denoiser, count=picture.COLUMNS, quick=True)
    assert set(samples) == {(name, calls) for name in picture.NAMES for calls in picture.CALLS}
    assert not torch.equal(samples["beta", 10], samples["beta_tilde", 10])
    picture.save(samples, tmp_path / "samples.png")
    assert (tmp_path / "samples.png").read_bytes().startswith(b"\x89PNG")
