"""Weights & Biases without its server: what an offline run's file holds, and when a run is offline."""

import builtins
import csv
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import wandb
from command_line import CLI, TINY, UNET, results
from omegaconf import OmegaConf
from PIL import Image
from wandb.proto.wandb_internal_pb2 import Record

from optcov.cli import tasks
from optcov.training import wandb as module


@dataclass
class Offline:
    """What an offline run's file says."""

    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    axes: dict[str, str] = field(default_factory=dict)
    group: str = ""
    project: str = ""
    name: str = ""
    tags: tuple[str, ...] = ()
    run_id: str = ""
    sweep_id: str = ""
    exit_code: int | None = None
    files: dict[str, Path] = field(default_factory=dict)  # of its artifacts

    def table(self, key: str) -> list[dict[str, Any]]:
        """The rows of a table."""
        table = json.loads(self.files[f"{key}.table.json"].read_text())
        return [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]

    def lines(self, key: str) -> dict[str, dict[float, float]]:
        """The lines of a chart of W&B's own, from its table."""
        chart = self.config["_wandb"]["visualize"][key]["panel_config"]
        assert chart["panelDefId"] == "wandb/lineseries/v0"
        found: dict[str, dict[float, float]] = {}
        for row in self.table(f"{key}_table"):
            found.setdefault(row["lineKey"], {})[row["step"]] = row["lineVal"]
        return found


def records(path: Path) -> Iterator[bytes]:
    """The records of a LevelDB log: 7 bytes of W&B's own, then blocks of 32 KiB, in them chunks with 7-byte headers."""
    data = path.read_bytes()
    position, joined = 7, b""
    while position + 7 <= len(data):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        length, kind = int.from_bytes(data[position + 4 : position + 6], "little"), data[position + 6]
        joined += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield joined
            joined = b""


def values(items: Any, found: dict[str, Any] | None = None) -> dict[str, Any]:
    """Keys and values, those with a path as dictionaries in one another; added to what was found before."""
    found = {} if found is None else found
    for item in items:
        place, (*path, last) = found, list(item.nested_key) or [item.key]
        for key in path:
            place = place.setdefault(key, {})
        place[last] = json.loads(item.value_json)
    return found


def read(folder: Path) -> Offline:
    """The one offline run below a folder of wandb's, once its service has written all."""
    wandb.teardown()
    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    run = Offline()
    for content in records(path):
        record = Record.FromString(content)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run.group, run.project, run.name = record.run.run_group, record.run.project, record.run.display_name
            run.tags, run.run_id, run.sweep_id = tuple(record.run.tags), record.run.run_id, record.run.sweep_id
            values(record.run.config.update, run.config)
        elif kind == "config":
            values(record.config.update, run.config)
        elif kind == "history":
            run.history.append(values(record.history.item))
        elif kind == "metric":
            run.axes[record.metric.glob_name or record.metric.name] = record.metric.step_metric
        elif kind == "summary":
            run.summary |= values(record.summary.update)
        elif kind == "artifact":
            run.files |= {content.path: Path(content.local_path) for content in record.artifact.manifest.contents}
        elif kind == "exit":
            run.exit_code = record.exit.exit_code
    return run


@pytest.fixture(autouse=True)
def _stranger(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A user who never logged in, on a machine whose keyboard no one sits at."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    home = tmp_path_factory.mktemp("home")
    monkeypatch.chdir(home)  # where runs keep their ids
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("NETRC", str(home / "none"))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # the discard port: nothing listens

    def asked(*args: Any) -> None:
        raise AssertionError("the user was asked")

    monkeypatch.setattr(builtins, "input", asked)


def logged(history: list[dict[str, Any]], key: str) -> list[Any]:
    return [row[key] for row in history if key in row]


@pytest.fixture
def curves(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[float]]:
    """The variance over t that every run leaves in its folder."""
    curve = {"t": [0.25, 0.5, 1.0], "mean": [0.1, 0.4, 0.9], "upper": [0.2, 1.0, 1.0]}
    evaluated_run = tasks.evaluate_run

    def evaluated(run: Any) -> Any:
        pd.DataFrame(curve | {"s": 0.1}).to_csv(run.folder / "variance.csv", index=False)
        return evaluated_run(run)

    monkeypatch.setattr(tasks, "evaluate_run", evaluated)
    return curve


def test_an_offline_run_holds_config_scores_pictures_and_charts(run: CLI, curves: dict[str, list[float]]):
    """Of a user who is not logged in, without a network and without a question."""
    tracking = ["callbacks=tracking", "callbacks.tracking.every_n_steps=1", "callbacks.tracking.num_samples=5"]
    guidance = ["guidance=classifier", "guidance.classifier.channels=8"]
    folder = run("var=sn_dpm", "logger=wandb", "logger.wandb.tags=[mine]", *tracking, *guidance)
    found = read(folder)
    assert found.exit_code == 0  # finished, not cut off
    assert found.project == "optcov"
    assert found.name == "run"
    assert set(found.tags) == {"mine", "sn_dpm", "ddpm", "digits", "cosine", "classifier"}

    config = OmegaConf.to_container(OmegaConf.load(folder / ".hydra" / "config.yaml"))
    assert isinstance(config, dict)
    for key, value in config.items():
        assert found.config[key] == value, key
    ours = results(folder)
    choices = found.config["choices"]
    for group in (
        "data",
        "model",
        "schedule",
        "var",
        "sampler",
        "trajectory",
        "metric",
        "trainer",
        "logger",
        "callbacks",
    ):
        assert choices[group] == ours.get(group, "fd_pixel")
    assert choices["var"] == "sn_dpm"

    score = ours["metrics"]["fd_pixel_8"]
    assert logged(found.history, "fd_pixel_8") == [score]
    assert found.summary["fd_pixel_8"] == score
    for stage in ("mean", "variance", "classifier"):
        assert len(logged(found.history, f"{stage}/loss")) == 2
        assert found.axes[f"{stage}/*"] == module.STEP
    rows = list(csv.DictReader((folder / "metrics.csv").open()))
    for stage in ("mean", "variance"):
        name = f"track/{stage}/fd_pixel_5"
        tracked = [(int(row["step"]), float(row[name])) for row in rows if row[name]]
        assert [(row["trainer/global_step"], row[name]) for row in found.history if name in row] == tracked
        assert [step for step, _ in tracked] == [1, 2]
        scores = [value for _, value in tracked]
        assert found.summary[name] == {"min": min(scores), "max": max(scores), "last": scores[-1]}
        assert len(logged(found.history, f"track/{stage}/samples")) == 2

    media = next(folder.glob("wandb/offline-run-*/files/media"))
    (samples,) = logged(found.history, "samples")
    assert samples["_type"] == "image-file"
    assert Image.open(media.parent / samples["path"]).tobytes() == Image.open(folder / "samples.png").tobytes()
    (row,) = found.table("results")
    assert (row["var"], row["guidance"], row["num_steps"], row["fd_pixel_8"]) == ("sn_dpm", "classifier", 3, score)
    assert row["samples"]["_type"] == "image-file"
    assert found.files[row["samples"]["path"]].read_bytes() == (folder / "samples.png").read_bytes()
    assert found.lines("variance") == {
        name: dict(zip(curves["t"], curves[name], strict=True)) for name in ("mean", "upper")
    }
    assert all(path.is_relative_to(folder) for path in found.files.values())  # until they are sent


def test_the_runs_of_a_sweep_are_apart_and_share_its_group(run: CLI, curves: dict[str, list[float]]):
    steps = ["sampler.num_steps=2,3", *(argument for argument in TINY if not argument.startswith("sampler.num_steps"))]
    run.raw("-m", *steps, *UNET, "logger=wandb", "var=beta,beta_tilde", "hydra.sweep.dir=my_sweep")
    sweep = run.folder / "my_sweep"
    jobs = sorted(path.parent for path in sweep.glob("*/results.json"))
    found = [read(path) for path in jobs]
    assert len(found) == 4
    assert {each.config["choices"]["var"] for each in found} == {"beta", "beta_tilde"}
    assert len({each.run_id for each in found}) == 4
    assert {each.exit_code for each in found} == {0}
    assert {each.group for each in found} == {"my_sweep"}
    assert len({each.name for each in found}) == 4
    scores: dict[str, dict[float, float]] = {}
    for each, path in zip(found, jobs, strict=True):
        ours = results(path)
        assert set(each.tags) == {ours["var"], "ddpm", "digits", "cosine"}
        scores.setdefault(ours["var"], {})[ours["num_steps"]] = ours["metrics"]["fd_pixel_8"]
        assert logged(each.history, "fd_pixel_8") == [ours["metrics"]["fd_pixel_8"]]

    summary = read(sweep)  # of all jobs
    assert (summary.group, summary.name, summary.tags) == ("my_sweep", "my_sweep", ("table",))
    assert summary.exit_code == 0
    assert logged(summary.history, "fd_pixel_8")[0]["_type"] == "image-file"  # the plot, with its bars
    assert summary.lines("fd_pixel_8_against_steps") == scores
    assert summary.lines("variance").keys() == scores.keys()
    rows = summary.table("table")
    assert [row["fd_pixel_8"] for row in rows] == [scores[row["var"]][row["num_steps"]] for row in rows]
    assert len(rows) == 4
    for path, row in zip(jobs, rows, strict=True):
        assert summary.files[row["samples"]["path"]].read_bytes() == (path / "samples.png").read_bytes()


def started(**settings: Any) -> dict[str, Any]:
    """What ``wandb.init`` is called with."""
    calls: list[dict[str, Any]] = []

    class Refuse(Exception):
        pass

    def init(**arguments: Any) -> None:
        calls.append(arguments)
        raise Refuse

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wandb, "init", init)
        with pytest.raises(Refuse):
            module.wandb_logger(**{"project": "optcov", "save_dir": "run"} | settings).experiment  # noqa: B018
    return calls[0]


def log_in(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    if how == "key":
        monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    else:
        netrc = Path(os.environ["HOME"]) / "netrc"
        netrc.write_text(f"machine 127.0.0.1\n  login user\n  password {'k' * 40}\n")
        netrc.chmod(0o600)
        monkeypatch.setenv("NETRC", str(netrc))


@pytest.mark.parametrize("how", ["key", "netrc"])
def test_online_where_logged_in(monkeypatch: pytest.MonkeyPatch, how: str):
    assert started()["mode"] == "offline"
    log_in(monkeypatch, how)
    found = started()
    assert found["mode"] == "online"
    assert (found["settings"].init_timeout, found["settings"].finish_timeout) == (
        module.START_LIMIT,
        module.UPLOAD_LIMIT,
    )


def test_offline_where_logged_in_and_not_answered(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    log_in(monkeypatch, "key")
    monkeypatch.setattr(module, "START_LIMIT", 0.5)
    run = module.wandb_logger(project="optcov", save_dir=str(tmp_path))
    assert run.experiment.offline
    assert "wandb sync" in caplog.text
    run.close()
    monkeypatch.setattr(module, "START_LIMIT", 0.5)
    with pytest.raises(ValueError, match=r"logger\.wandb\.mode must .*\(got online\)") as error:
        module.wandb_logger(project="optcov", save_dir=str(tmp_path), mode="online")
    assert "\n" not in str(error.value)


def test_a_damaged_netrc_is_no_login(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    (tmp_path / "netrc").write_text("what is this")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert started()["mode"] == "offline"


@pytest.mark.parametrize("mode", ["online", "offline", "disabled"])
def test_what_the_user_says_goes_first(monkeypatch: pytest.MonkeyPatch, mode: str):
    assert started(mode=mode)["mode"] == mode
    monkeypatch.setenv("WANDB_MODE", mode)
    assert started()["mode"] == mode


def test_a_folder_has_one_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    first = started(save_dir=str(tmp_path))
    assert started(save_dir=str(tmp_path))["id"] == first["id"]
    assert started(save_dir=str(tmp_path / "another"))["id"] != first["id"]
    assert first["resume"] is None  # offline, each start has a file of its own
    log_in(monkeypatch, "key")
    again = started(save_dir=str(tmp_path))
    assert (again["id"], again["resume"]) == (first["id"], "allow")
    (tmp_path / "wandb" / "run_id").write_text("../../elsewhere")
    assert re.fullmatch("[0-9a-f]{8}", started(save_dir=str(tmp_path))["id"])
    monkeypatch.setenv("WANDB_RUN_ID", "ofagents")
    assert started(save_dir=str(tmp_path))["id"] == "ofagents"


def test_an_agent_of_a_sweep_runs_as_the_sweep_says(run: CLI, monkeypatch: pytest.MonkeyPatch):
    """With the arguments and the environment that `wandb agent` makes of a parameter's values."""
    from wandb.sdk.launch.sweeps.utils import create_sweep_command_args  # takes two seconds

    chosen = {"var": "beta", "sampler.num_steps": 2, "optimizer.lr": 1e-05, "conditional": False}
    command = {"args": {name: {"value": value} for name, value in chosen.items()}}
    monkeypatch.setenv("WANDB_SWEEP_ID", "thesweep")
    monkeypatch.setenv("WANDB_RUN_ID", "ofagents")
    monkeypatch.setenv("WANDB_PROJECT", "theirs")
    (run.folder / "parameters.yaml").write_text(
        "wandb_version: 1\n" + "".join(f"{name}:\n  value: {value}\n" for name, value in chosen.items())
    )
    monkeypatch.setenv("WANDB_SWEEP_PARAM_PATH", str(run.folder / "parameters.yaml"))
    folder = run("logger=wandb", *create_sweep_command_args(command)["args_no_hyphens"])
    found, ours = read(folder), results(folder)
    assert (found.run_id, found.sweep_id, found.project, found.exit_code) == ("ofagents", "thesweep", "theirs", 0)
    assert (ours["var"], ours["num_steps"]) == ("beta", 2)
    assert found.summary["fd_pixel_8"] == ours["metrics"]["fd_pixel_8"]  # what the sweep compares
    assert found.config["sampler.num_steps"] == 2
    assert found.config["optimizer"]["lr"] == 1e-05


def test_settings_reach_the_run():
    given = started(entity="us", group="g", tags=["a", "b"], mode="offline")
    assert (given["entity"], given["group"], given["tags"], given["project"]) == ("us", "g", ["a", "b"], "optcov")


def test_a_failed_run_is_finished_as_failed(run: CLI, monkeypatch: pytest.MonkeyPatch):
    """The next job of a multirun starts with no run left open."""

    def fails(*args: Any) -> None:
        raise OSError(28, "No space left on device", "somewhere")

    monkeypatch.setattr(tasks, "evaluate_run", fails)
    run.refused("var=beta", "logger=wandb")
    assert wandb.run is None
    assert read(run.folder / "run").exit_code not in (None, 0)


def test_no_failure_of_wandb_costs_a_run_anything(run: CLI, monkeypatch: pytest.MonkeyPatch):
    """As where its service is killed: it can neither log nor finish; that is said once, and the next run logs again."""

    def gone(*args: Any, **kwargs: Any) -> None:
        raise ConnectionResetError("Connection lost")

    with monkeypatch.context() as patch:
        patch.setattr(wandb.Run, "log", gone)
        patch.setattr(wandb.Run, "finish", gone)
        folder = run("var=beta", "logger=wandb", "callbacks=tracking")
    assert results(folder)["metrics"]["fd_pixel_8"] > 0
    assert (folder / "train.log").read_text().count("W&B failed (ConnectionResetError: Connection lost)") == 1
    assert "WANDB_DATA_DIR" not in os.environ
    after = run("var=beta", "logger=wandb", "hydra.run.dir=after")
    assert logged(read(after).history, "fd_pixel_8") == [results(after)["metrics"]["fd_pixel_8"]]
