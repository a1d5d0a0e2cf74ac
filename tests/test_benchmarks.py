"""The arithmetic of the benchmarks: ratios in pairs, goals, and the table; and that each row works, at tiny sizes."""

import io
import json
import math
import re
import subprocess
import sys
import types
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import nn

import optcov
from benchmarks import (
    budget,
    budget_page,
    correlations,
    data_loading,
    denoising_diffusion,
    digit_scores,
    gpu,
    guided_covariance,
    guided_digits,
    restored_cifar10,
    restored_digits,
    roofline,
)
from benchmarks.__main__ import ROWS, listing, main, markdown, measured
from benchmarks.networks import cifar10_network, flops_per_image
from benchmarks.timing import Row, Settings, Times, alternate
from optcov.data import DigitsData
from optcov.denoiser import Denoiser
from optcov.inverse import Mask
from optcov.labels import cycle_labels
from optcov.model import UNet
from optcov.schedule import LinearSchedule

TINY = Settings(
    rounds=1, seconds=0.0, batch_size=1, batch_sizes=(1,), threads=(1,), steps=(2,), precisions=("bf16",), quick=True
)
COUNTS = {
    "sampling": 4, "strategies": 3, "training": 3, "gamma": 1, "trajectory": 1, "frechet": 1, "threads": 1, "sizes": 2
}  # fmt: skip


def test_ratios_are_of_turns_in_the_same_round():
    times = Times({"ours": [1.0, 4.0, 1.0], "peer": [2.0, 4.0, 3.0]}, {"ours": 1.0, "peer": None})
    row = times.row("ours", "peer", "sampling", "fp32", 10, "images/s", ">= 2")
    assert (row.ours, row.peer) == (10.0, pytest.approx(10 / 3))
    assert (row.ratio, row.low, row.high) == (2.0, 1.0, 3.0)  # the median of 2, 1, 3 and not the ratio of medians
    assert row.met is True


@pytest.mark.parametrize(
    ("goal", "ratio", "met"), [(">= 2", 1.99, False), ("<= 0.5", 0.4, True), ("<= 0.5", 0.6, False), ("", 3.0, None)]
)
def test_goals(goal: str, ratio: float, met: bool | None):
    assert Row("", "", ratio=ratio, goal=goal).met is met


@pytest.mark.parametrize(("seconds", "rounds"), [(60.0, 5), (0.0, 3)])
def test_contenders_take_turns_and_three_rounds_are_always_made(seconds: float, rounds: int):
    turns: list[str] = []
    contenders = {name: (lambda name=name: turns.append(name)) for name in "ab"}
    times = alternate(contenders, Settings(rounds=5, seconds=seconds))
    assert "".join(turns) == "ab" + "abbaabbaab"[: 2 * rounds]  # warm-up first
    assert {name: len(each) for name, each in times.seconds.items()} == {"a": rounds, "b": rounds}


def test_the_table_has_a_cell_for_each_column():
    rows = [Row("sampling", "fp32", 1.0, 2.0, "images/s", 0.5, 0.4, 0.6, ">= 1.2", 3.0, None, "note"), Row("bare", "")]
    *_, head, line, first, second = markdown({"cpu": "any"}, rows).splitlines()
    assert head.count("|") == line.count("|") == first.count("|") == second.count("|")
    assert "missed" in first
    assert "missed" not in second
    assert all(name in listing() for name in [*ROWS, "guided_covariance", "guided_digits"])


def sound(row: Row) -> bool:
    """Whether its numbers are numbers; a cost may be below 0, by noise."""
    numbers = [row.ours, row.peer, row.ratio, row.low, row.high]
    return row.ratio is not None and all(each is None or math.isfinite(each) for each in numbers)


@pytest.mark.parametrize(("name", "count"), COUNTS.items())
def test_each_row_is_measured(name: str, count: int):
    failed: list[str] = []
    rows = list(measured(name, TINY, failed))
    assert failed == []
    assert len(rows) == count
    assert all(sound(row) for row in rows)


@pytest.mark.parametrize("name", ["data", "metrics", "gpu"])
def test_a_row_that_can_not_be_measured_says_what_it_needs(name: str):
    (row,) = measured(name, TINY, [])
    assert row.note.startswith("needs --")


def test_a_group_that_fails_says_so_and_leaves_the_others_alone(monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setitem(ROWS, "gamma", lambda settings: iter([Row("first", ""), Row("", 1 / 0)]))  # type: ignore[arg-type]
    failed: list[str] = []
    rows = list(measured("gamma", TINY, failed))
    assert failed == ["gamma"]
    assert rows[-1].note == "failed: ZeroDivisionError: division by zero"
    assert "Traceback" in capsys.readouterr().err


def test_the_table_is_kept_and_a_failure_ends_with_status_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setitem(ROWS, "gamma", lambda settings: iter([Row("", 1 / 0)]))  # type: ignore[arg-type]
    monkeypatch.setitem(ROWS, "frechet", lambda settings: iter([Row("last", "", goal=">= 2")]))
    command = ["benchmarks", "frechet", "gamma", "--quick", "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["benchmarks", "frechets"])
    with pytest.raises(SystemExit):
        main()
    assert "(got frechets): give frechet" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit, match="failed, see above: gamma"):
        main()
    table = (tmp_path / "table.md").read_text()
    assert [line.split(" | ")[0] for line in table.splitlines()[-2:]] == ["| last", "| gamma"]
    told = json.loads((tmp_path / "table.json").read_text())
    assert [row["name"] for row in told["rows"]] == ["last", "gamma"]
    monkeypatch.setattr(sys, "argv", [*command[:2], *command[3:]])
    main()  # returns: status 0


def test_the_roofline_knows_every_layer_and_computes_the_same_in_every_form():
    network = cifar10_network(32).eval()
    layers = roofline.layers_of(network)
    sums = sum(layer.flops * count for layer, count in layers.items())
    assert 0.98 < sums / flops_per_image(network) <= 1  # the rest are linear layers of the time
    norms = sum(count for layer, count in layers.items() if layer.kind == "norm")
    attentions = sum(count for layer, count in layers.items() if layer.kind == "attention")
    assert norms + attentions == sum(isinstance(each, nn.GroupNorm) for each in network.modules())
    for layer in layers:
        with torch.no_grad():
            made = [form() for form in layer.forms(1, torch.float32, False).values()]
        assert all(torch.allclose(each, made[0], atol=1e-4) for each in made[1:]), layer


def test_the_networks_share_of_its_roofline():
    network = cifar10_network(32).eval()
    (row,) = roofline.network_rows(network, TINY, "fp32", 1, 0.0, Counter({"prepacked": 3}), 1e9, False)
    assert row.ratio == 0.0
    assert row.met is False
    assert "3 prepacked" in row.note


def test_rows_that_start_processes(monkeypatch: pytest.MonkeyPatch, capsys):
    told: list[str] = []

    def run(command: list[str], **_: object) -> types.SimpleNamespace:
        if "-c" in command:
            exec(command[-1], {})
            told.append(capsys.readouterr().out)
        else:
            told.append(json.dumps({"seconds": 5.0, "peak": 1.0}))
        return types.SimpleNamespace(stdout=told[-1])

    monkeypatch.setattr(subprocess, "run", run)
    for name in ("defaults", "startup"):
        (row,) = ROWS[name](TINY)
        assert sound(row)
    assert len(told) == 3


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose ``cifar10`` is a batch of noise, as the hub keeps it."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "cifar10").mkdir()
    rows = []
    for image in np.random.default_rng(0).integers(0, 256, (data_loading.BATCH, 32, 32, 3), np.uint8):
        Image.fromarray(image).save(file := io.BytesIO(), "png")
        rows.append({"bytes": file.getvalue(), "path": None})
    for split in ("train", "test"):
        table = pa.table({"img": rows, "label": [0] * len(rows)})
        pq.write_table(table, folder / "cifar10" / f"{split}-00000-of-00001.parquet")
    return folder


@pytest.mark.parametrize("installed", [True, False])
def test_loaders_take_their_turns(installed: bool, data: Path, monkeypatch: pytest.MonkeyPatch):
    def hugging_face(encoded: list[bytes], *_: object) -> object:
        return data_loading.PillowDataset(encoded, data_loading.plain) if installed else None

    monkeypatch.setattr(data_loading, "hugging_face", hugging_face)
    *rows, last = ROWS["data"](replace(TINY, data=data))
    assert last.note == "--data has no folder celeba"
    settings = [row.setting.partition(",")[0] for row in rows]
    assert settings == ["Pillow Dataset"] * 2 + (["Hugging Face datasets"] * 2 if installed else ["not measured"])
    assert all(sound(row) for row in rows[: 4 if installed else 2])


def test_metrics_are_timed(data: Path):
    names = [row.name for row in ROWS["metrics"](replace(TINY, data=data)) if row.ours is not None]
    of = ": statistics of the training images"
    assert names == ["hash of the training images", f"fd_pixel{of}", "fd_pixel", f"fd_cifar{of}", "fd_cifar"]


class Loop(nn.Module):
    def __init__(self, network: nn.Module, sampling_timesteps: int, **_: object) -> None:
        super().__init__()
        self.network, self.calls = network, sampling_timesteps

    @torch.no_grad()
    def sample(self, batch: int) -> None:
        for _ in range(self.calls):
            assert self.network(torch.zeros(batch, 3, 32, 32), torch.ones(batch).long()).shape == (batch, 3, 32, 32)


def test_two_networks_are_compared_by_their_operations(monkeypatch: pytest.MonkeyPatch):
    class Small(nn.Conv2d):
        def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
            return super().forward(x)

    package = types.SimpleNamespace(Unet=lambda channels, dim_mults: Small(3, 3, 1), GaussianDiffusion=Loop)
    monkeypatch.setattr(denoising_diffusion, "peer_package", lambda: package)
    monkeypatch.setattr(
        denoising_diffusion, "alternate", lambda turns, _: [turn() for turn in turns.values()] and TIMES
    )
    loop, unet = denoising_diffusion.denoising_diffusion_pytorch(TINY)
    gflop, its_gflop = flops_per_image(cifar10_network(32)) / 1e9, 2 * 3 * 3 * 32 * 32 / 1e9
    assert loop.ratio == 2.0
    assert (unet.ours, unet.peer) == (pytest.approx(2 * gflop), pytest.approx(2 * its_gflop / 4))
    assert unet.ratio == pytest.approx(4 * gflop / its_gflop)


TIMES = Times({"ours": [1.0], "loop": [2.0], "own": [4.0]}, {"ours": None, "loop": None, "own": None})


def test_without_the_peer_the_row_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(denoising_diffusion, "peer_package", lambda: None)
    (row,) = denoising_diffusion.denoising_diffusion_pytorch(TINY)
    assert "pip install --no-deps denoising-diffusion-pytorch" in row.note


def test_the_ways_of_a_gpu(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(gpu, "host_waits", lambda turn: turn() is not None and 3)
    first, second = gpu.modes(TINY, rate=1e9)
    assert (first.name, second.name) == ("GPU: eager", "GPU: eager, channels last")
    assert sound(first)
    assert "MFU unknown" in first.note
    assert "3 and 3" in first.note


@pytest.mark.parametrize(
    ("card", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA H100 PCIe", 756e12), ("NVIDIA H200", 989e12),
        ("NVIDIA H200 NVL", 835e12), ("NVIDIA GH200 480GB", 989e12), ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L40S", 362e12), ("NVIDIA L4", 121e12), ("NVIDIA A10G", None), ("NVIDIA RTX A4000", None),
    ],
)  # fmt: skip
def test_peaks_of_cards(card: str, peak: float | None):
    assert gpu.peak_flops(card) == peak
    mfu = "unknown (give --peak-tflops)" if peak is None else f"{100e12 / peak:.1%}"
    said = gpu.utilisation(100e12, Settings(peak=peak), rate=200e12)
    assert said == f"MFU {mfu}, 50.0% of a bf16 matrix product's rate"


def test_real_digits_are_recognised_as_the_page_on_guidance_says(tmp_path: Path, capsys):
    data = DigitsData()
    np.savez(tmp_path / "real.npz", data.load("test").movedim(1, -1).numpy(), data.labels("test").numpy())
    guided_digits.main([str(tmp_path / "real.npz")])
    real, samples = capsys.readouterr().out.splitlines()
    assert real.split()[-1] == "93.3%"
    assert " 93.3% ± 1.5%" in samples


def test_guided_steps_need_the_guided_covariance(monkeypatch: pytest.MonkeyPatch, capsys):
    """The table of the page on guidance, of fewer samples and beside fewer steps."""
    monkeypatch.setattr(guided_covariance, "COUNT", 1000)
    monkeypatch.setattr(guided_covariance, "LABELS", cycle_labels([0, 1, 2], 3, 1000))
    draw = guided_covariance.draw
    monkeypatch.setattr(guided_covariance, "draw", lambda strategy, steps, seed: draw(strategy, min(steps, 30), seed))
    guided_covariance.main()
    ten = capsys.readouterr().out.splitlines()[1]
    distances = [float(each) for each in re.findall(r" (\d+\.\d)(?: |$)", ten)]
    assert len(distances) == 4
    assert distances == sorted(distances)  # guided, of the class, of no class, none


def test_a_rival_with_backward_passes_keeps_what_is_measured():
    denoiser = Denoiser(UNet((1, 8, 8), channels=8), LinearSchedule(40)).eval()
    operator = Mask((1, 8, 8), torch.arange(64).reshape(8, 8) < 32)
    methods = restored_digits.RIVALS
    assert restored_digits.theirs(denoiser, operator, torch.zeros(1, 32), methods["pi_gdm"][0], 1).isfinite().all()
    diffpir = restored_digits.DIFFPIR["8 1"]
    samples = restored_digits.theirs(denoiser, operator, torch.zeros(2, 32), diffpir, 2)
    assert samples.shape == (2, 2, 1, 8, 8)
    assert float(samples[..., :4, :].abs().mean()) < float(samples[..., 4:, :].abs().mean()) / 2
    assert set(restored_digits.scores(torch.zeros(2, 1, 8, 8), samples, operator)) == {"rmse", "c90", "crps"}


def test_restored_photographs_are_scored_by_what_is_missing():
    """Intervals of 8 samples of the truth's own law contain it in 90 %, and a budget holds whole steps."""
    generator = torch.Generator().manual_seed(0)
    images, samples = (torch.randn(*shape, 3, 32, 32, generator=generator) for shape in ((16,), (16, 8)))
    task = restored_cifar10.Task.made("inpaint", images, 0)
    scores = task.scores(samples)
    assert int(task.scored.sum()) == 3 * 16 * 16
    assert scores["c90"][0] == pytest.approx(90, abs=0.9)  # three standard errors
    assert scores["crps"][0] == pytest.approx(1 / math.sqrt(math.pi), abs=0.03)
    assert scores["psnr"][0] == pytest.approx(-10 * math.log10((1 + 1 / 8) / 4), abs=0.1)  # truth and mean of eight
    samples[:, :, :, 8:24, 8:24] = images[:, None, :, 8:24, 8:24]
    assert task.scores(samples)["crps"][0] == pytest.approx(0, abs=1e-6)
    costs = restored_cifar10.OURS | {name: each[1] for name, each in restored_cifar10.RIVALS.items()}
    steps = {(budget, name): steps for _, budget, name, steps in restored_cifar10.cells()}
    assert steps[10, "npr_dpm"] == 10
    assert steps[25, "pi_gdm"] == 8
    assert all(2 * costs[name] <= steps[budget, name] * costs[name] <= budget for budget, name in steps)


@pytest.mark.parametrize("task", ["inpaint", "superres"])
def test_the_tables_of_restored_photographs_are_those_of_the_results(task: str):
    known, page = json.loads(restored_cifar10.RESULTS.read_text()), restored_cifar10.PAGE.read_text()
    assert f"<!-- cifar10 {task} -->\n{restored_cifar10.table(known, task)}\n<!-- end -->" in page


def test_the_table_of_restored_digits_is_that_of_the_results():
    known, page = json.loads(restored_digits.RESULTS.read_text()), restored_digits.PAGE.read_text()
    assert f"<!-- restored digits -->\n{restored_digits.table(known)}\n<!-- end -->" in page


def test_what_correlations_are_worth_is_measured():
    """Strategies trained side by side, in the loop's own steps, and scored."""
    denoiser = Denoiser(UNet((1, 8, 8), channels=8), LinearSchedule(40)).eval()
    strategies = correlations.fitted(["beta_tilde", "nll", "low_rank"], denoiser, steps=2, batch_size=4)
    assert [type(each).__name__ for each in strategies.values()] == ["BetaTilde", "NLL", "LowRank"]
    found = {label: dict(correlations.bits(denoiser, each, 2, 3)) for label, each in strategies.items()}
    assert found["nll"]["bits 3"] != found["low_rank"]["bits 3"]
    assert all(values["bits 3 se"] > 0 for values in found.values())


def test_the_budget_war_goes_on_where_it_was_and_ranks_methods(monkeypatch):
    """Cells are tuned once; more seeds add to them; K is the most within the budget; noise takes its solver's times."""
    untrained = digit_scores.Digits().eval().requires_grad_(False)
    monkeypatch.setattr(digit_scores, "classifier", lambda: untrained)
    images = torch.rand(40, 1, 8, 8) * 2 - 1
    denoiser = Denoiser(UNet((1, 8, 8), channels=8, channel_mult=[1]), LinearSchedule(100)).eval()
    compared = budget.methods(["data_cov"], {"lgs": 3})
    war = budget.War(
        "tiny", denoiser, images, digit_scores.Reference(images),
        lambda name: optcov.fit(name, denoiser, None if name == "beta_tilde" else images, progress=False), compared,
        trajectories=("quadratic", "even"),
    )  # fmt: skip
    assert [compared[name].steps(10) for name in ("2M", "Heun", "DDIM + lgs")] == [10, 5, 3]
    cells = {}
    for name, tuned in (("2M", 4), ("2M shaped + data_cov", 1)):
        for seeds in (1, 2):
            *_, cell = war.cell(compared[name], 4, cells, cells.get(f"{name} @ 4", {}), seeds, 16)
            cells[f"{name} @ 4"] = json.loads(json.dumps(cell))
        assert (cell["ne"], cell["steps"], list(cell["scores"]), len(cell["tuning"])) == (4, 4, ["0", "1"], tuned)
    chosen = [(each["trajectory"], each["clipped"]) for each in cells.values()]
    assert chosen[0] == chosen[1]
    assert list(war.cell(compared["2M"], 4, cells, cells["2M @ 4"], 2, 16)) == []
    assert [budget.priority(name, 4) for name in ("UniPC", "2M shaped + low_rank", "DDIM + lgs")] == [1, 1, 0]
    assert budget.priority("DDIM + lgs", 5) == 2
    assert budget_page.interval([1.0, 2.0, 3.0]) == (2.0, pytest.approx(2.484, abs=1e-3))
