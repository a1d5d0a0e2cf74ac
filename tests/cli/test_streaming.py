"""Samples go to disk batch by batch: an interrupted sampling goes on, and never with samples of another config."""

import json
import multiprocessing
import os
import resource
import signal
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import CLI, contents, files, results
from omegaconf import OmegaConf
from torch import Tensor

from optcov import upgrade
from optcov.foreign import read_json, sealed_json
from optcov.metric import FrechetPixelDistance
from optcov.model import UNet
from optcov.report.export import write_npz
from optcov.training import SampleStore, SamplingStage

COUNT = ["num_samples=14", "sample_batch_size=3"]  # five batches, the last of them beyond the end


def arrays(folder: Path) -> np.ndarray[Any, Any]:
    (images,) = np.load(folder / "samples.npz").values()
    return images


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Presses Ctrl-C, once, when so many batches have been drawn."""

    def after(batches: int) -> None:
        original = SamplingStage.predict_step

        def step(stage: SamplingStage, bounds: Any, batch_idx: int) -> None:
            if batch_idx == batches:
                monkeypatch.setattr(SamplingStage, "predict_step", original)
                raise KeyboardInterrupt
            original(stage, bounds, batch_idx)

        monkeypatch.setattr(SamplingStage, "predict_step", step)

    return after


def drawn(calls: list[tuple[Any, ...]]) -> list[tuple[int, ...]]:
    """The batches drawn, from the recorded calls of a stage."""
    return sorted(tuple(call[1]) for call in calls)


def test_killed_while_a_batch_is_written(run: CLI, untouched: Path, count_calls: Callable[..., list[Any]]):
    """By kill -9, in the middle of the third file."""
    arguments = [f"run={untouched}", *COUNT]

    def killed() -> None:
        savez, saved = np.savez, []

        def half(file: Any, **content: Any) -> None:
            saved.append(savez(file, **content))
            if len(saved) == 3:
                file.flush()
                file.truncate(file.tell() // 2)
                os.kill(os.getpid(), signal.SIGKILL)

        np.savez = half
        run(*arguments, task="sample", tiny=False)

    child = multiprocessing.get_context("fork").Process(target=killed)
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    left = files(run.folder / "sample")
    assert {f".parts/{i:09d}-{i + 3:09d}.npz" for i in (0, 3)} < left
    assert "samples.npz" not in left

    steps = count_calls(SamplingStage, "predict_step")
    folder = run(*arguments, task="sample", tiny=False)
    assert drawn(steps) == [(6, 9), (9, 12), (12, 15)]
    assert files(folder) == {"samples.npz", "samples.png", "samples.json"}
    whole = run(*arguments, "hydra.run.dir=whole", task="sample", tiny=False)
    assert arrays(whole).shape == (14, 8, 8, 1)
    assert (arrays(folder) == arrays(whole)).all()
    assert (folder / "samples.png").read_bytes() == (whole / "samples.png").read_bytes()


def test_ctrl_c_says_how_to_go_on_and_two_processes_do(
    run: CLI, untouched: Path, interrupt: Callable[[int], None], count_calls: Callable[..., list[Any]]
):
    """What one process left, two finish, and no sample differs."""
    arguments = [f"run={untouched}", *COUNT]
    interrupt(2)
    with pytest.raises(SystemExit) as exit_:
        run(*arguments, task="sample", tiny=False)
    assert str(exit_.value.code) == (
        f"stopped: 3/3 sampling; the same command with hydra.run.dir={run.folder / 'sample'} continues there"
    )
    assert len(list((run.folder / "sample" / ".parts").glob("*.npz"))) == 2
    two = ["trainer.accelerator=cpu", "trainer.devices=2", "trainer.strategy=ddp_fork"]
    steps = count_calls(SamplingStage, "predict_step")
    folder = run(*arguments, *two, task="sample", tiny=False)
    assert steps == []  # by this process: its two children do
    whole = run(*arguments, "hydra.run.dir=whole", task="sample", tiny=False)
    assert (arrays(folder) == arrays(whole)).all()


OTHERS = {
    "sampler.num_steps=2": "sampler.num_steps = 3, not 2",
    "sampler=ddim": "sampler._target_",
    "trainer.precision=bf16-mixed": "trainer.precision",
    "compile=true": "compile = False, not True",
    "seed=1": "seed = 0, not 1",
    "var=beta": "var._target_",
}


def test_samples_of_another_config_are_not_taken_for_its_own(
    run: CLI, untouched: Path, interrupt: Callable[[int], None], count_calls: Callable[..., list[Any]]
):
    arguments = [f"run={untouched}", *COUNT]
    interrupt(1)
    with pytest.raises(SystemExit):
        run(*arguments, task="evaluate", tiny=False)
    before = contents(run.folder)
    for other, named in OTHERS.items():
        sentence = run.refused(*arguments, other, task="evaluate", tiny=False)
        for part in (named, "output_dir = ", "hydra.run.dir", "evaluate/.parts to draw anew"):
            assert part in sentence
        assert "\n" not in sentence
        assert contents(run.folder) == before
    steps = count_calls(SamplingStage, "predict_step")
    run(f"run={untouched}", "num_samples=7", "sample_batch_size=2", task="evaluate", tiny=False)
    assert drawn(steps) == [(2, 4), (4, 6), (6, 8)]  # these two have no influence on a sample


def test_other_weights_make_other_samples(run: CLI, trained: Path, interrupt: Callable[[int], None]):
    """Also where the configs are the same: the weights themselves are compared."""
    again = run("var=sn_dpm", "trainer.max_steps=3", "hydra.run.dir=again")
    for name in (".hydra/config.yaml", ".hydra/overrides.yaml"):
        (again / name).write_bytes((trained / name).read_bytes())
    interrupt(1)
    with pytest.raises(SystemExit):
        run(f"run={trained}", *COUNT, task="sample", tiny=False)
    assert "weights" in run.refused(f"run={again}", *COUNT, task="sample", tiny=False)


def test_a_metric_that_fails_does_not_cost_the_samples(
    run: CLI, monkeypatch: pytest.MonkeyPatch, count_calls: Callable[..., list[Any]]
):
    def fail(metric: FrechetPixelDistance) -> float:
        raise ValueError("the reference is nan: give another")

    monkeypatch.setattr(FrechetPixelDistance, "compute", fail)
    assert "the reference is nan" in run.refused("var=beta", *COUNT)
    assert not (run.folder / "run" / "results.json").exists()
    assert len(list((run.folder / "run" / ".parts").glob("*.npz"))) == 5
    monkeypatch.undo()
    steps = count_calls(SamplingStage, "predict_step")
    again = run("var=beta", *COUNT)
    assert steps == []
    whole = run("var=beta", *COUNT, "hydra.run.dir=whole")
    assert results(again)["metrics"] == results(whole)["metrics"]
    assert results(again)["throughput_images_per_s"] > 0
    assert not (again / ".parts").exists()


def test_an_unfinished_run_may_change_what_its_samples_do_not_depend_on(
    run: CLI, interrupt: Callable[[int], None], count_calls: Callable[..., list[Any]]
):
    """The number of samples, their batches and the metrics, as after too little memory; nothing else."""
    interrupt(3)
    with pytest.raises(SystemExit):
        run("var=beta", *COUNT)
    before = contents(run.folder)
    assert "another config" in run.refused("var=beta", *COUNT, "sampler.num_steps=2")
    assert contents(run.folder) == before
    steps = count_calls(SamplingStage, "predict_step")
    changed = ["num_samples=11", "sample_batch_size=1", "metric=[fd_pixel,nll]", "metric.nll.num_images=4"]
    folder = run("var=beta", *changed)
    assert drawn(steps) == [(8, 10), (10, 12)]  # a batch is at least 2: alone, a sample would be rounded otherwise
    assert sorted(results(folder)["metrics"]) == ["fd_pixel_11", "nll_test_4"]
    assert "num_samples=11" in (folder / ".hydra" / "overrides.yaml").read_text()
    assert "another config" in run.refused("var=beta", "num_samples=12")  # it has ended


def test_what_an_earlier_version_began_is_finished(
    run: CLI, interrupt: Callable[[int], None], count_calls: Callable[..., list[Any]]
):
    """The run's config has neither the keys that were added since nor the choices."""
    arguments = ["var=beta", *COUNT]
    interrupt(3)
    with pytest.raises(SystemExit):
        run(*arguments)
    path = run.folder / "run" / ".hydra" / "config.yaml"
    config: Any = OmegaConf.to_container(OmegaConf.create(path.read_text()))
    for key in ("choices", *upgrade.CONFIG):
        del config[key]
    del config["optimizer"]["fused"]
    path.write_text(json.dumps(config))  # which is YAML as well
    for later in ("conditional=true", "sample_precision=bf16-mixed"):
        assert "another config" in run.refused(*arguments, later)
    steps = count_calls(SamplingStage, "predict_step")
    folder = run(*arguments, "num_threads=1")
    assert drawn(steps) == [(9, 12), (12, 15)]
    assert list(results(folder)["metrics"]) == ["fd_pixel_14"]


def test_samples_of_another_kind_of_device_are_not_taken_for_its_own(
    run: CLI, untouched: Path, interrupt: Callable[[int], None]
):
    interrupt(1)
    with pytest.raises(SystemExit):
        run(f"run={untouched}", *COUNT, task="sample", tiny=False)
    record = run.folder / "sample" / ".parts" / "identity.json"
    record.write_text(sealed_json(read_json(record) | {"device": "cuda"}))
    assert "device = cuda, not cpu" in run.refused(f"run={untouched}", *COUNT, task="sample", tiny=False)


def test_one_sample_is_a_picture_but_no_score(run: CLI, untouched: Path):
    assert arrays(run(f"run={untouched}", "num_samples=1", task="sample", tiny=False)).shape == (1, 8, 8, 1)
    sentence = run.refused(f"run={untouched}", "num_samples=1", task="evaluate", tiny=False)
    assert sentence.startswith("metric.fd_pixel: num_samples must be at least 2 (got 1)")


@pytest.mark.parametrize("task", ["sample", "evaluate"])
def test_precision_is_that_of_the_trainer(run: CLI, untouched: Path, monkeypatch: pytest.MonkeyPatch, task: str):
    forward, seen = UNet.forward, []

    def watched(network: UNet, x_t: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        output, features = forward(network, x_t, time)
        seen.append((x_t.dtype, output.dtype))
        return output, features

    monkeypatch.setattr(UNet, "forward", watched)
    for precision, inside in (("32-true", torch.float32), ("bf16-mixed", torch.bfloat16)):
        run(f"run={untouched}", f"trainer.precision={precision}", f"hydra.run.dir={precision}", task=task, tiny=False)
        assert set(seen) == {(torch.float32, inside)}
        seen.clear()
    if task == "sample":
        mode = ["mode=trajectory", "sample_precision=bf16-mixed", "hydra.run.dir=mode"]
        run(f"run={untouched}", *mode, task=task, tiny=False)
        assert set(seen) == {(torch.float32, torch.bfloat16)}


def test_no_more_than_two_batches_are_in_memory(run: CLI, untouched: Path, monkeypatch: pytest.MonkeyPatch):
    """While samples are drawn, and while they are read for the file: however many they are."""
    seen: dict[str, list[weakref.ref[Tensor]]] = {"write": [], "read": []}
    most = {"write": 0, "read": 0}

    def count(images: Tensor, where: str) -> None:
        assert len(images) <= 2
        seen[where].append(weakref.ref(images))
        most[where] = max(most[where], sum(each() is not None for each in seen[where]))

    write, read = SampleStore.write, SampleStore.__iter__

    def counted_write(self: SampleStore, indices: range, images: Tensor, *others: Any) -> None:
        count(images, "write")
        write(self, indices, images, *others)

    def counted_read(self: SampleStore) -> Any:
        for chunk in read(self):
            count(chunk, "read")
            yield chunk

    monkeypatch.setattr(SampleStore, "write", counted_write)
    monkeypatch.setattr(SampleStore, "__iter__", counted_read)
    monkeypatch.setattr("optcov.cli.evaluate.preview", lambda *_: None)
    run(f"run={untouched}", "num_samples=20", "sample_batch_size=2", task="sample", tiny=False)
    assert (len(seen["write"]), len(seen["read"])) == (10, 10)
    assert most["write"] <= 2
    assert most["read"] <= 2


def test_finished_samples_are_not_drawn_over(run: CLI, untouched: Path):
    for format_ in ("npz", "png"):
        arguments = [f"run={untouched}", "num_samples=3", f"format={format_}", f"hydra.run.dir={format_}"]
        before = contents(run(*arguments, task="sample", tiny=False))
        run(*arguments, task="sample", tiny=False)
        sentence = run.refused(*arguments, "num_samples=4", task="sample", tiny=False)
        assert sentence == f"output_dir = {run.folder / format_} holds other samples: choose another hydra.run.dir"
        assert contents(run.folder / format_) == before


def test_a_disk_that_is_full_when_the_file_is_written(tmp_path: Path):
    """A real write that fails half way: nothing is left, and the error names the file."""
    chunks = torch.randint(0, 256, (10, 50, 1, 8, 8), dtype=torch.uint8)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limit[1]))
    try:
        with pytest.raises(OSError, match=r"samples\.npz"):
            write_npz(chunks, 500, (1, 8, 8), tmp_path / "samples.npz")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert list(tmp_path.iterdir()) == []
    write_npz(chunks, 500, (1, 8, 8), tmp_path / "samples.npz")
    assert (arrays(tmp_path) == chunks.flatten(0, 1).movedim(1, -1).numpy()).all()
