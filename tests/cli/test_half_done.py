"""What is half done never passes for whole: the same command goes on, and ends with what it would have ended with."""

import csv
import errno
import itertools
import logging
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from command_line import CLI, composed, contents, files, results, weights
from test_resume import of, same

from optcov.cli import evaluate, tasks
from optcov.cli.build import assemble
from optcov.errors import ConfigError
from optcov.lock import locked
from optcov.training import Entry, SamplingStage, StageProgressBar
from optcov.training.csv_log import MetricsCSV
from optcov.training.plan import plan_fits

SETTINGS = ["var=npr_dpm", "trainer.max_steps=6", "checkpoint_every=4", "model.dropout=0.3", "num_samples=2"]


class Killed(BaseException):
    """Ends a command where it stands, as SIGKILL does: nothing below handles it."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupts."""
    return CLI(tmp_path_factory.mktemp("whole"))(*SETTINGS)


@pytest.fixture
def at_step(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Does something after a step of a stage, once."""

    def arrange(stage: str, step: int, act: Callable[[Any], None]) -> None:
        def ended(bar: StageProgressBar, trainer: Any, *args: Any) -> None:
            if bar.description.startswith(stage) and trainer.global_step == step:
                monkeypatch.undo()
                act(trainer)

        monkeypatch.setattr(StageProgressBar, "on_train_batch_end", ended)

    return arrange


def stop(trainer: Any) -> None:
    trainer.should_stop = True  # as trainer.max_time and callbacks for early stopping do


def terminate(trainer: Any = None) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def losses(folder: Path) -> list[tuple[str, str, str]]:
    """What was logged of the fits: step, name and value."""
    rows = list(csv.DictReader((folder / "metrics.csv").open()))
    return [(row["step"], key, row[key]) for row in rows for key in sorted(row) if "/" in key and row[key]]


def test_a_fit_that_stops_early_is_not_kept_and_goes_on(run: CLI, whole: Path, at_step: Any, capsys: Any):
    """The mean network by what ends a fit without an exception, then the variance by SIGTERM."""
    for stage, act, status, done in (("1/3", stop, 75, 0), ("2/3", terminate, 143, 1)):
        at_step(stage, 3, act)
        with pytest.raises(SystemExit) as exit_:
            run(*SETTINGS)
        assert exit_.value.code == status
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith(stage)]
        assert line.endswith("stopped at step 3 of 6: repeat the command to go on")
        kept = files(run.folder / "outputs" / "cache")
        assert len([name for name in kept if name.endswith(".safetensors")]) == done
        assert len([name for name in kept if name.endswith("resume.ckpt")]) == 1
    folder = run(*SETTINGS)
    assert same(of(folder), of(whole))
    assert losses(folder) == losses(whole)


SLURM = {
    "SLURM_NTASKS": "1", "SLURM_JOB_NAME": "job", "SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0", "SLURM_JOB_NODELIST": "localhost",
}  # fmt: skip


def test_a_launcher_requeues_a_job_after_the_step_at_hand(run: CLI, whole: Path, at_step: Any):
    """Under SLURM, where Lightning looks into the working folder for checkpoints, which may be of any other fit."""
    requeued: list[int] = []

    def requeue(signum: int, frame: Any) -> None:  # as submitit's
        requeued.append(signum)
        raise SystemExit(144)

    (run.folder / "hpc_ckpt_1.ckpt").write_text("of another fit")
    before = signal.signal(signal.SIGUSR2, requeue)
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in SLURM.items():
                patch.setenv(name, value)
            at_step("1/3", 3, lambda trainer: os.kill(os.getpid(), signal.SIGUSR2))
            with pytest.raises(SystemExit) as exit_:
                run(*SETTINGS)
            assert exit_.value.code == 144
            assert requeued == [signal.SIGUSR2]
            assert signal.getsignal(signal.SIGUSR2) is requeue
            folder = run(*SETTINGS)
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert "resuming from step 3" in (folder / "train.log").read_text()
    assert same(of(folder), of(whole))
    assert {path.name for path in run.folder.iterdir()} == {"hpc_ckpt_1.ckpt", "outputs", "run"}


def test_a_time_limit_is_that_of_each_command(run: CLI, monkeypatch: pytest.MonkeyPatch):
    """A limit that is over after one step: the repeat takes another, and the last network is the same."""
    arguments = ["var=beta", "trainer.max_steps=3", "num_samples=2"]
    clock = SimpleNamespace(monotonic=itertools.count().__next__)  # every look at it takes a second
    monkeypatch.setattr("lightning.pytorch.callbacks.timer.time", clock)
    for _ in range(2):
        with pytest.raises(SystemExit) as exit_:
            run(*arguments, "trainer.max_time='00:00:00:01'")
        assert exit_.value.code == 75
    limited = run(*arguments)  # goes on with the same fit, without the limit
    straight = run(*arguments, "cache_dir=other", "hydra.run.dir=straight")
    assert same(mean(limited), mean(straight))
    assert losses(limited) == losses(straight)


def mean(folder: Path) -> Any:
    return weights(folder / "checkpoints" / "mean.safetensors")


def test_sampling_that_is_terminated_says_so_and_goes_on(run: CLI, trained: Path, monkeypatch: pytest.MonkeyPatch):
    arguments = [f"run={trained}", "num_samples=4", "sample_batch_size=2", "hydra.run.dir=out"]
    draw, calls = SamplingStage._draw, []

    def terminated(stage: SamplingStage, indices: range) -> None:
        calls.append(indices)
        draw(stage, indices)
        if len(calls) == 1:
            terminate()

    monkeypatch.setattr(SamplingStage, "_draw", terminated)
    with pytest.raises(SystemExit) as exit_:
        run(*arguments, task="sample", tiny=False)
    assert exit_.value.code == 143
    assert not (run.folder / "out" / "samples.npz").exists()
    run(*arguments, task="sample", tiny=False)
    assert calls == [range(2), range(2, 4)]


POINTS = {
    "sample": [
        (evaluate, "preview", False), (evaluate, "preview", True), (tasks, "write_npz", True),
        (tasks, "delete_partial_samples", False), (tasks, "delete_partial_samples", True),
    ],
    "evaluate": [
        (tasks, "write_config", False), (evaluate, "_add", True), (tasks, "write_results", False),
        (tasks, "write_results", True), (tasks, "show_run", False),
    ],
}  # fmt: skip


@pytest.mark.parametrize("task", POINTS)
def test_a_command_that_is_killed_can_be_repeated(run: CLI, trained: Path, count_calls: Any, task: str):
    """At every point between two files, one after another; the last repeat leaves what an undisturbed command does."""
    arguments = [f"run={trained}", "num_samples=3", "hydra.run.dir=out"]
    for owner, name, after in POINTS[task]:
        original = getattr(owner, name)

        def killed(*args: Any, original: Any = original, after: bool = after, **kwargs: Any) -> None:
            if after:
                original(*args, **kwargs)
            raise Killed

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(owner, name, killed)
            with pytest.raises(Killed):
                run(*arguments, task=task, tiny=False)
    drawn = count_calls(SamplingStage, "_draw")
    folder = run(*arguments, task=task, tiny=False)
    assert not drawn
    straight = run(*arguments[:-1], "hydra.run.dir=straight", task=task, tiny=False)
    timed = ("results.json", ".hydra")
    first, second = (
        {name: content for name, content in contents(place).items() if not name.startswith(timed)}
        for place in (folder, straight)
    )
    assert first == second
    if task == "evaluate":
        assert results(folder)["metrics"] == results(straight)["metrics"]
    drawn.clear()
    before = contents(folder)
    other = {"sample": "holds other samples", "evaluate": "holds a run with another config"}[task]
    assert other in run.refused(*arguments, "sampler.num_steps=2", task=task, tiny=False)
    assert contents(folder) == before
    assert not drawn


def test_images_that_were_half_written_are_written_whole(run: CLI, trained: Path, monkeypatch: pytest.MonkeyPatch):
    arguments = [f"run={trained}", "num_samples=3", "format=png", "hydra.run.dir=out"]
    monkeypatch.setattr(
        tasks, "write_pngs", lambda drawn, count, place, labels: (place.mkdir(), (_ for _ in ()).throw(Killed))
    )
    with pytest.raises(Killed):
        run(*arguments, task="sample", tiny=False)
    monkeypatch.undo()
    folder = run(*arguments, task="sample", tiny=False)
    assert files(folder / "samples") == {"000000.png", "000001.png", "000002.png"}


def test_a_batch_of_one_draws_the_same_samples(run: CLI, trained: Path):
    drawn = []
    for size in (1, 4):
        folder = run(
            f"run={trained}", "num_samples=4", f"sample_batch_size={size}", f"hydra.run.dir={size}",
            task="sample", tiny=False,
        )  # fmt: skip
        drawn.append(np.load(folder / "samples.npz")["arr_0"])
    assert np.array_equal(*drawn)


def test_who_waits_for_a_lock_is_told_who_holds_it(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.WARNING)
    entered = threading.Event()

    def second() -> None:
        with locked(tmp_path / ".lock", "cache_dir = x"):
            entered.set()

    with locked(tmp_path / ".lock", "cache_dir = x"):
        thread = threading.Thread(target=second)
        thread.start()
        while not caplog.messages:
            assert thread.is_alive()
        assert not entered.is_set()
    thread.join(60)
    assert entered.is_set()
    assert f"cache_dir = x is in use by process {os.getpid()} on " in caplog.messages[0]
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigError, match="folder, where a lock file belongs"), locked(tmp_path / "folder", "x"):
        pass


@pytest.mark.parametrize("place", ["run", "fit"])
def test_a_command_that_is_not_to_wait_says_who_works_there_and_ends(run: CLI, capsys: Any, place: str):
    """With status 75, as schedulers know it: the same command ends well once the other process has."""
    arguments = ["num_samples=2", "wait=false"]
    if place == "run":
        path = run.folder / "run" / ".lock"
    else:
        config, parts = assemble("train", composed("num_samples=2", "output_dir=run"))
        path = Entry(run.folder / "outputs" / "cache", "mean", plan_fits(config, parts).mean).folder / ".lock"
    path.parent.mkdir(parents=True)
    with locked(path, "it"), pytest.raises(SystemExit) as exit_:
        run(*arguments)
    assert exit_.value.code == 75
    (said,) = capsys.readouterr().err.splitlines()
    assert f" is in use by process {os.getpid()} on " in said
    assert said.endswith(": repeat the command when that has ended, or set wait=true")
    assert not (run.folder / "run" / "results.json").exists()


def test_a_lock_outlives_neither_its_process_nor_its_own_message(tmp_path: Path):
    """What a process that was killed left: a lock file, and a word on who held it; or a folder in place of the word."""
    (tmp_path / ".lock").touch()
    holder = tmp_path / ".holder.lock"
    for left in (lambda: holder.write_text('{"host": "x", "process": 1, "since": "yesterday"}'), holder.mkdir):
        left()
        with locked(tmp_path / ".lock", "x", wait=False):
            pass


@pytest.mark.parametrize("number", ["ENOSYS", "ENOLCK", "EOPNOTSUPP"])
def test_a_file_system_without_locks_is_used_without_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: str
):
    def flock(*args: Any) -> None:
        raise OSError(getattr(errno, number), os.strerror(getattr(errno, number)))

    monkeypatch.setattr("fcntl.flock", flock)
    with locked(tmp_path / ".lock", "cache_dir = x"):
        pass
    (said,) = caplog.messages
    assert said == "cache_dir = x has a file system without locks: let no other command write there meanwhile"


def test_a_read_only_cache_gives_what_it_holds_and_refuses_a_fit(run: CLI, trained: Path, monkeypatch: Any):
    """A disk that is mounted read-only, under a cache with all that this run needs; then with another step."""
    cache, opened, mkdir = trained.parent / "outputs" / "cache", os.open, Path.mkdir

    def refuse(path: Any) -> None:
        if Path(os.path.abspath(path)).is_relative_to(cache):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    def read(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        if flags & (os.O_CREAT | os.O_WRONLY | os.O_RDWR):
            refuse(path)
        return opened(path, flags, *args, **kwargs)

    def made(path: Path, *args: Any, **kwargs: Any) -> None:
        if not path.is_dir():
            refuse(path)
        mkdir(path, *args, **kwargs)

    before = contents(cache)
    monkeypatch.setattr(os, "open", read)
    monkeypatch.setattr(Path, "mkdir", made)
    folder = run("var=sn_dpm", f"cache_dir={cache}")
    said = run.refused("var=sn_dpm", "seed=1", f"cache_dir={cache}", "hydra.run.dir=other")
    assert "(Read-only file system): " in said
    monkeypatch.undo()
    assert results(folder)["metrics"] == results(trained)["metrics"]
    assert contents(cache) == before


@pytest.mark.parametrize("damage", ["", "a,b\n1", "step,mean/loss\nx,1\n", "\0\xff"])
def test_a_damaged_log_begins_anew(tmp_path: Path, damage: str):
    path = tmp_path / "metrics.csv"
    path.write_text(damage)
    log = MetricsCSV(str(tmp_path))
    log.resume("mean", 3)
    log.log_metrics({"mean/loss": 1.0}, 3)
    log.save()
    assert list(csv.DictReader(path.open())) == [{"mean/loss": "1.0", "step": "3"}]


def test_only_what_follows_the_point_of_resuming_is_dropped(tmp_path: Path):
    log = MetricsCSV(str(tmp_path))
    for step in range(6):
        log.log_metrics({"mean/loss": step}, step)
    log.log_metrics({"track/mean/fd": 1.0}, 4)
    log.log_metrics({"track/mean/fd": 2.0}, 6)
    log.log_metrics({"variance/loss": 3.0}, 0)
    log.log_metrics({"fd_8": 1.0}, 6)  # the results of the finished run
    log.save()
    again = MetricsCSV(str(tmp_path))
    again.resume("mean", 4)
    again.save()
    rows = [{name: value for name, value in row.items() if value} for row in csv.DictReader(again.path.open())]
    assert [row.get("mean/loss") for row in rows if "mean/loss" in row] == ["0.0", "1.0", "2.0", "3.0"]
    assert [row["track/mean/fd"] for row in rows if "track/mean/fd" in row] == ["1.0"]
    assert sum("variance/loss" in row for row in rows) == 1
    assert not any("fd_8" in row for row in rows)
