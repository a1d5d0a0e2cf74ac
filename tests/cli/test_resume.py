"""A stage that was interrupted goes on where it stopped; what is damaged is trained anew; the mean is left alone."""

import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import CLI, composed, files, weights
from torch import Tensor

from optcov.cli import fit
from optcov.cli.build import build
from optcov.training import StageProgressBar, VarianceStage
from optcov.training.plan import plan_fits
from optcov.training.store import identity_key

LONGER = [
    "var=npr_dpm", "trainer.max_steps=6", "checkpoint_every=2", "warmup_steps=4", "model.dropout=0.3",
    "data.batch_size=16",
]  # fmt: skip


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int], Any]:
    """Presses Ctrl-C after a number of steps of a stage, once; returns a call that waits for it."""

    def at(stage: str, step: int) -> None:
        def pressed(bar: StageProgressBar, trainer: Any, *args: Any) -> None:
            if bar.description.startswith(stage) and trainer.global_step == step:
                monkeypatch.undo()
                raise KeyboardInterrupt

        monkeypatch.setattr(StageProgressBar, "on_train_batch_end", pressed)

    return at


def of(folder: Path) -> dict[str, Tensor]:
    return {
        f"{kind}.{name}": value
        for kind in ("mean", "variance")
        for name, value in weights(folder / "checkpoints" / f"{kind}.safetensors").items()
    }


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    assert first.keys() == second.keys()
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """Mean and variance of a run that nothing interrupts."""
    return of(CLI(tmp_path_factory.mktemp("whole"))(*LONGER))


@pytest.mark.parametrize("other", [[], ["~callbacks.ema", "trainer.accumulate_grad_batches=2", "optimizer=muon"]])
def test_interrupted_stages_end_with_the_same_weights(
    run: CLI, interrupt: Callable[[str, int], Any], capsys, request: pytest.FixtureRequest, other: list[str]
):
    """Both stages, each stopped at step 5 of 6: with dropout, warm-up and averages; by Muon without averages."""
    for stage, done in (("1/3", 0), ("2/3", 1)):
        interrupt(stage, 5)
        with pytest.raises(SystemExit) as exit_:
            run(*LONGER, *other)
        assert "the same command continues" in str(exit_.value.code)
        assert not (run.folder / "run" / "results.json").exists()
        kept = files(run.folder / "outputs" / "cache")
        assert len([name for name in kept if name.endswith("resume.ckpt")]) == 1
        assert len([name for name in kept if name.endswith(".safetensors")]) == done
    folder = run(*LONGER, *other)
    assert "".join(capsys.readouterr()).count("resuming from step 4") == 2
    assert not [name for name in files(run.folder / "outputs" / "cache") if "resume" in name]
    if other:
        expected = of(run(*LONGER, *other, "hydra.run.dir=whole", "cache_dir=whole_cache"))
    else:
        expected = request.getfixturevalue("whole")
    assert same(of(folder), expected)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def replaced(path: Path) -> None:
    path.write_bytes(b"\x89PNG\r\n" * 100)


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def test_more_steps_go_on_from_the_fit_of_fewer(run: CLI, capsys):
    """From its last step before the cooldown, up to which the learning rates are the same, to the same weights."""
    few = ["var=beta", "warmup_steps=3", "callbacks.ema.decay=0.9", "data.batch_size=16", "cooldown=0.25"]
    run(*few, "trainer.max_steps=4")
    longer = run(*few, "trainer.max_steps=9", "hydra.run.dir=longer")
    said = "".join(capsys.readouterr())
    assert "mean: going on from the fit of 4 steps in the cache" in said
    assert "resuming from step 3" in said
    anew = run(*few, "trainer.max_steps=9", "hydra.run.dir=anew", "cache_dir=other_cache")
    assert "resuming" not in "".join(capsys.readouterr())
    first, second = (weights(folder / "checkpoints" / "mean.safetensors") for folder in (longer, anew))
    assert same(first, second)


def test_a_fit_whose_rate_falls_from_the_first_step_on_is_not_gone_on_from(run: CLI, capsys):
    run("var=beta", "cooldown=1", "trainer.max_steps=2")
    run("var=beta", "cooldown=1", "trainer.max_steps=3", "hydra.run.dir=longer")
    said = "".join(capsys.readouterr())
    assert "mean: starting anew, not from the fit of 2 steps in the cache" in said
    assert "resuming" not in said


@pytest.mark.parametrize("damage", [cut, empty, replaced, flipped])
def test_a_damaged_point_to_resume_from_is_not_used(
    run: CLI, interrupt: Callable[[str, int], Any], damage: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
):
    settings = ["var=beta", "trainer.max_steps=2", "checkpoint_every=1", "model.dropout=0.3"]
    interrupt("1/3", 2)
    with pytest.raises(SystemExit):
        run(*settings)
    (path,) = (run.folder / "outputs" / "cache").rglob("resume.ckpt")
    damage(path)
    folder = run(*settings)
    assert "resuming" not in "".join(capsys.readouterr())
    assert same(weights(folder / "checkpoints" / "mean.safetensors"), undisturbed(*settings))


@cache
def undisturbed(*settings: str) -> dict[str, Tensor]:
    """The mean network of a run that nothing interrupts."""
    with tempfile.TemporaryDirectory() as folder:
        return weights(CLI(Path(folder))(*settings) / "checkpoints" / "mean.safetensors")


def swapped(path: Path) -> None:
    """The network of another seed, as if it were this one's."""
    (other,) = path.parents[3].glob("whole_cache/mean/*/mean.safetensors")
    path.write_bytes(other.read_bytes())


@pytest.mark.parametrize("damage", [cut, empty, replaced, flipped, swapped])
def test_a_damaged_entry_of_the_cache_is_trained_anew(
    run: CLI, trained: Path, damage: Callable[[Path], None], count_calls: Callable[[Any, str], list[Any]]
):
    shutil.copytree(trained.parent / "outputs" / "cache", run.folder / "outputs" / "cache")
    if damage is swapped:
        run("var=beta", "seed=1", "cache_dir=outputs/whole_cache", "hydra.run.dir=other")
    (path,) = (run.folder / "outputs" / "cache").glob("mean/*/mean.safetensors")
    before = weights(path)
    damage(path)
    stages = count_calls(fit, "run_stage")
    folder = run("var=beta")
    assert len(stages) == 1
    assert same(weights(path), before)
    assert same(weights(folder / "checkpoints" / "mean.safetensors"), before)


@cache
def key(*arguments: str) -> str:
    """Under which the mean network that a command line asks for is kept."""
    cfg = composed(*arguments)
    return identity_key(plan_fits(cfg, build(cfg)).mean)


@pytest.mark.parametrize(
    "setting",
    ["seed=1", "trainer.max_steps=3", "trainer.precision=bf16-mixed", "trainer.gradient_clip_val=2", "optimizer=adam",
     "optimizer.lr=0.01", "warmup_steps=3", "data.batch_size=32", "callbacks.ema.decay=0.5", "~callbacks.ema",
     "model.dropout=0.1", "model=unet_keras_ddpm", "schedule=linear", "schedule.num_steps=40", "parameterization=v",
     "time_offset=-1", "trainer.accumulate_grad_batches=2", "trainer.devices=2"],
)  # fmt: skip
def test_a_network_is_found_again_only_by_what_determined_it(setting: str):
    assert key(setting) != key()


def test_and_not_by_what_did_not():
    cfg = composed(
        "var=npr_dpm", "head=complex", "sampler.num_steps=2", "num_samples=9", "sampler=ddim", "trajectory=quadratic",
        "sample_batch_size=4", "cache_dir=x", "output_dir=y", "checkpoint_every=3", "logger=wandb", "trainer=auto",
        "trainer.log_every_n_steps=7", "callbacks=tracking",
    )  # fmt: skip
    plain = composed()
    assert plan_fits(cfg, build(cfg)).mean == plan_fits(plain, build(plain)).mean


def test_where_the_data_lie_is_no_part_of_what_they_are():
    cfg = composed()
    moved = cfg.model_copy(update={"data": cfg.data | {"root": "/elsewhere", "cache_dir": "/fast"}})
    assert plan_fits(moved, build(cfg)).mean == plan_fits(cfg, build(cfg)).mean


@pytest.mark.parametrize("var", ["sn_dpm", "npr_dpm", "iddpm"])
def test_the_second_stage_leaves_the_mean_alone(run: CLI, monkeypatch: pytest.MonkeyPatch, var: str):
    """Bitwise unchanged, and in eval mode at every step: dropout is off."""
    stage_step, modes = VarianceStage.training_step, []
    run_stage, states = fit.run_stage, []

    def step(stage: VarianceStage, *args: Any) -> Tensor:
        modes.append({module.training for module in stage.denoiser.modules()})
        assert all(module.training for module in stage.strategy.modules())
        return stage_step(stage, *args)

    def recorded(job: Any, stage: Any, *args: Any) -> None:
        network = stage.denoiser
        before = {name: value.clone() for name, value in network.state_dict().items()}
        run_stage(job, stage, *args)
        states.append((before, network.state_dict()))

    monkeypatch.setattr(VarianceStage, "training_step", step)
    monkeypatch.setattr(fit, "run_stage", recorded)
    run(f"var={var}", "model.dropout=0.5", "trainer.max_steps=3")
    assert modes == [{False}] * 3
    (mean_before, mean_after), (before, after) = states
    assert not same(mean_before, mean_after)  # stage 1 did train
    assert same(before, after)
