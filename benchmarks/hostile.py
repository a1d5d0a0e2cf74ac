"""Gives commands a stranger's files of many kinds, as a user would, and says which of them got through.

Each case changes a copy of a finished run, or makes a file of data, and runs one command on it in a process of its own,
with limits on time and memory.  The command must end as with intact files, or with one sentence that has a remedy.  A
traceback, a crash, another result, a formula in a table, or any change outside of the command's folder is a finding.
Run it with ``python -m benchmarks.hostile [WORD]``, where a word selects cases by their name; it takes about twenty minutes on
one core.
"""

# ruff: noqa: E501 (one case a line)

from __future__ import annotations

import csv
import json
import os
import re
import resource
import shutil
import signal
import socket
import struct
import sys
import tempfile
import traceback
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from benchmarks.damage import COMMANDS, Outcome, finished, give
from optcov.checkpoint import digest_of
from optcov.cli import tasks  # noqa: F401 (imported once, before processes are forked)
from optcov.cli.main import Task
from optcov.foreign import sealed_json
from optcov.report import gather, write_report  # noqa: F401 (as above)

SECONDS, MEMORY = 60, 12 << 30  # limits of a command; memory includes PyTorch's own address space
FORMULA = re.compile(r"[=+\-@\t\r\N{FULLWIDTH EQUALS SIGN}\N{FULLWIDTH PLUS SIGN}\N{FULLWIDTH COMMERCIAL AT}]")
Change = Callable[[Path], None]


@dataclass(frozen=True)
class Case:
    """One hostile input.

    Args:
        name: what it is.
        command: a name in `COMMANDS`, or ``prepare GROUP`` for a file of data.
        change: makes it in the folder ``run`` of a finished run, or in the folder of the data.
        harmless: it may also be taken for what it is, and change the result.
    """

    name: str
    command: str
    change: Change
    harmless: bool = False


def config(text: str, replace: str | None = None) -> Change:
    """Replace a line of the config by its key, or add a line; without its checksum, as a stranger would."""

    def change(run: Path) -> None:
        path = run / ".hydra" / "config.yaml"
        lines = [line for line in path.read_text().splitlines() if not line.startswith("# sha256")]
        if replace is not None:
            lines = [line for line in lines if not line.startswith(f"{replace}:")]
        path.write_text("\n".join([*lines, text, ""]))

    return change


def inside(key: str, text: str) -> Change:
    """Add a line inside of a group of the config."""

    def change(run: Path) -> None:
        path = run / ".hydra" / "config.yaml"
        text_ = re.sub("^# sha256.*\n", "", path.read_text())
        path.write_text(re.sub(rf"^{key}:\n", lambda found: f"{found[0]}  {text}\n", text_, flags=re.MULTILINE))

    return change


def raw(name: str, content: bytes) -> Change:
    """Replace a file of a run, or make one."""

    def change(run: Path) -> None:
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_bytes(content)

    return change


def results(**facts: Any) -> Change:
    """Change the results, with a checksum that is right."""

    def change(run: Path) -> None:
        found = json.loads((run / "results.json").read_text())
        del found["sha256"]
        (run / "results.json").write_text(sealed_json(found | facts))

    return change


def named(name: str, where: str = "metrics") -> Change:
    """Give the results a metric, an option or a setting of a name."""
    return results(**{where: {name: 1.5} if where == "metrics" else {name: name} if where == "overrides" else name})


def special(name: str, kind: str) -> Change:
    """Replace a file by something that is none."""

    def change(run: Path) -> None:
        path = run / name
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        if kind == "FIFO":
            os.mkfifo(path)
        elif kind == "socket":
            place = os.getcwd()
            os.chdir(path.parent)  # the name of a socket must be short
            with socket.socket(socket.AF_UNIX) as server:
                server.bind(path.name)
            os.chdir(place)
        elif kind == "loop":
            path.symlink_to(path.name)
        elif kind == "link out":
            path.symlink_to(run.parent / "precious")
        elif kind == "hard link":
            path.hardlink_to(run.parent / "precious")

    return change


def weights(alter: Callable[[dict[str, torch.Tensor], dict[str, str]], None], name: str = "mean") -> Change:
    """Change weights and metadata of a checkpoint, with a checksum that is right unless it was altered."""

    def change(run: Path) -> None:
        path = run / "checkpoints" / f"{name}.safetensors"
        with safe_open(path, framework="pt") as file:
            told = dict(file.metadata())
        found = {key: value.clone() for key, value in load_file(path).items()}
        before = told["sha256"]
        alter(found, told)
        if told["sha256"] == before:
            told["sha256"] = digest_of(found)
        save_file(found, path, told)

    return change


def header(alter: Callable[[dict[str, Any]], Any]) -> Change:
    """Change the header of the checkpoint of the mean, which is its length and JSON."""

    def change(run: Path) -> None:
        path = run / "checkpoints" / "mean.safetensors"
        content = path.read_bytes()
        length = struct.unpack("<Q", content[:8])[0]
        told = json.loads(content[8 : 8 + length])
        told = alter(told) or told
        text = told if isinstance(told, bytes) else json.dumps(told).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])

    return change


def each(change: Callable[[Any], None]) -> Callable[[dict[str, torch.Tensor], dict[str, str]], None]:
    def alter(found: dict[str, torch.Tensor], told: dict[str, str]) -> None:
        for value in found.values():
            change(value)

    return alter


def cast(dtype: torch.dtype) -> Callable[[dict[str, torch.Tensor], dict[str, str]], None]:
    return lambda found, told: found.update({name: value.to(dtype) for name, value in found.items()})


def swapped(*names: str) -> Change:
    """Take files from another run, of another seed, that is as whole as this one."""

    def change(run: Path) -> None:
        for name in names:
            shutil.copy(run.parent / "another" / name, run / name)

    return change


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(*extra: bytes, size: tuple[int, int] = (8, 8), rows: bytes | None = None) -> bytes:
    """A PNG file with further chunks between its header and its pixels."""
    pixels = zlib.compress(bytes(9) * 8 if rows is None else rows, 9)
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", *size, 8, 0, 0, 0, 0))
    return start + b"".join(extra) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def images(content: bytes) -> Change:
    """A folder of four images, of which one is hostile."""

    def change(folder: Path) -> None:
        for split in ("train", "val", "test"):
            (folder / split).mkdir(parents=True)
            for number in range(2):
                (folder / split / f"{number}.png").write_bytes(png())
        (folder / "train" / "hostile.png").write_bytes(content)

    return change


def npy(told: str) -> bytes:
    """The header of an array as it is told, and 64 bytes."""
    text = told.encode().ljust(118) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + bytes(64)


def npz(*members: tuple[str, bytes], alter: Callable[[bytes], bytes] = lambda content: content) -> Change:
    def change(folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(folder / "images.npz", "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in members:
                archive.writestr(zipfile.ZipInfo(name), content)
        path = folder / "images.npz"
        path.write_bytes(alter(path.read_bytes()))

    return change


def array(shape: tuple[int, ...] = (4, 8, 8, 1), dtype: Any = np.uint8) -> bytes:
    file = BytesIO()
    np.save(file, np.zeros(shape, dtype))
    return file.getvalue()


def parquet(alter: Callable[[bytearray], Any], rows: int = 4, content: bytes | None = None) -> Change:
    def change(folder: Path) -> None:
        (folder / "data").mkdir(parents=True)
        column = [{"bytes": content or png(), "path": None}] * rows
        for split in ("train", "test"):
            pq.write_table(pa.table({"image": column}), folder / "data" / f"{split}-00000-of-00001.parquet")
        path = folder / "data" / "train-00000-of-00001.parquet"
        file = bytearray(path.read_bytes())
        alter(file)
        path.write_bytes(file)

    return change


def overwrite(place: int, content: bytes) -> Callable[[bytearray], Any]:
    return lambda file: file.__setitem__(slice(place, place + len(content) or None), content)


def cut(name: str, share: float) -> Change:
    def change(run: Path) -> None:
        content = (run / name).read_bytes()
        (run / name).write_bytes(content[: int(len(content) * share)])

    return change


def configs() -> Iterator[Case]:
    """Configs of a run that someone else made."""
    told: dict[str, Change] = {
        "a tag that calls": config('x: !!python/object/apply:os.system ["touch canary"]'),
        "a tag for bytes": config("seed: !!binary aGVsbG8=", "seed"),
        "a tag for a set": config("labels: !!set {1, 2}", "labels"),
        "an ordered map": config("labels: !!omap [a: 1]", "labels"),
        "a merge key": config("<<: {seed: 5}"),
        "a merge of lists": config("<<: [{seed: 5}, {num_samples: 3}]"),
        "an alias of itself": config("labels: &a [*a]", "labels"),
        "an integer of 5,000 digits": config("seed: " + "9" * 5000, "seed"),
        "an integer of 5,000 hexadecimal digits": config("seed: 0x" + "f" * 5000, "seed"),
        "an integer of 5,000 binary digits": config("sample_batch_size: 0b" + "1" * 20000, "sample_batch_size"),
        "a number by sixties": config("num_samples: 190:20:30", "num_samples"),
        "an octal number": config("num_samples: 010", "num_samples"),
        "a float beyond infinity": config("variance_lr: 1e999", "variance_lr"),
        "not a number": config("variance_lr: .nan", "variance_lr"),
        "a date": config("seed: 2026-01-01", "seed"),
        "a key twice": config("seed: 7"),
        "a key of look-alike letters": config("s\u0435\u0435d: 1"),
        "a key that turns the writing": config("'\u202edees': 1"),
        "a key that is a list": config("? [1, 2]\n: 3"),
        "a key that is null": config("~: 3"),
        "a key of a surrogate": config('"\\ud800": 1'),
        "two documents": config("---\nseed: 3"),
        "a file in UTF-16": raw(".hydra/config.yaml", "seed: 1".encode("utf-16")),
        "zeros": raw(".hydra/config.yaml", bytes(1000)),
        "a list": raw(".hydra/config.yaml", b"[1, 2]\n"),
        "5,000 empty lists in a line": config("labels: [" + "[]," * 5000 + "]", "labels"),
        "50,000 keys": config("labels: {" + ",".join(f"a{i}: 1" for i in range(50000)) + "}", "labels"),
        "an interpolation of the environment": inside("sampler", "eta: ${oc.env:HOME}"),
        "an interpolation that decodes": inside("sampler", "clip_x0: ${oc.decode:'1'}"),
        "an interpolation behind a backslash": inside("sampler", "eta: \\${oc.env:HOME}"),
        "an interpolation in a key": inside("sampler", "'${oc.env:HOME}': 1"),
        "an interpolation that creates": inside("trajectory", "x: ${oc.create:{_target_: os.system}}"),
        "a defaults list inside": inside("sampler", "defaults: [/var: beta]"),
        "a package directive": raw(".hydra/config.yaml", b"# @package _global_\nsampler: {}\n"),
        "_args_": inside("sampler", "_args_: [1]"),
        "_recursive_": inside("sampler", "_recursive_: false"),
        "_convert_": inside("sampler", "_convert_: all"),
        "a partial sampler": inside("sampler", "_partial_: true"),
        "a partial var": inside("var", "_partial_: true"),
        "a partial model": inside("model", "_partial_: true"),
        "a partial schedule": inside("schedule", "_partial_: true"),
        "a partial trajectory": inside("trajectory", "_partial_: true"),
        "a partial data set": inside("data", "_partial_: true"),
        "a partial trainer": inside("trainer", "_partial_: true"),
        "a class of another group": inside("sampler", "num_steps: {_target_: optcov.data.DigitsData}"),
        "a network for a schedule": config(
            "schedule: {_target_: optcov.schedule.VPSDESchedule, num_steps: {_target_: os.getcwd}}", "schedule"
        ),
        "no sampler": config("sampler: null", "sampler"),
        "a sampler that is a word": config("sampler: ddpm", "sampler"),
        "data that is a number": config("data: 7", "data"),
        "a profiler that writes": inside("trainer", "profiler: simple"),
        "a folder of the trainer's": inside("trainer", "default_root_dir: ../outside"),
        "callbacks of the trainer": inside(
            "trainer", "callbacks: [{_target_: lightning.pytorch.callbacks.ModelCheckpoint, dirpath: ../outside}]"
        ),
        "plugins of the trainer": inside("trainer", "plugins: [{_target_: os.system}]"),
        "a callback that writes": config(
            "callbacks: {x: {_target_: lightning.pytorch.callbacks.ModelCheckpoint, dirpath: ../outside}}", "callbacks"
        ),
        "a metric with a path for a name": inside("metric", "../../x: {_target_: optcov.metric.FrechetPixel}"),
        "a cache outside": config("cache_dir: ../outside", "cache_dir"),
        "a choice with a path": config("choices: {var: ../../x}", "choices"),
        "a choice of a group of Hydra's": config("choices: {hydra/launcher: submitit_slurm}", "choices"),
        "overrides that are a map": raw(".hydra/overrides.yaml", b"{a: 1}\n"),
        "overrides with escapes": raw(
            ".hydra/overrides.yaml", b'["x=\\e]0;owned\\a", "+callbacks.x._target_=os.system"]\n'
        ),
        "overrides with numbers": raw(".hydra/overrides.yaml", b"[1, null, [2]]\n"),
        "channels by the billion": inside("model", "channels: 1000000000"),
        "steps by the billion": inside("schedule", "num_steps: 4000000000"),
    }
    harmless = {"a merge key", "a merge of lists", "a number by sixties", "an octal number", "a key twice"}
    for name, change in told.items():
        yield Case(f"config: {name}", "sample", change, name in harmless)


def checkpoints() -> Iterator[Case]:
    """Checkpoints with lying headers, and weights of another kind."""

    def of_first(alter: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], Any]:
        return lambda told: alter(told[next(key for key in told if key != "__metadata__")])

    told: dict[str, tuple[Change, bool]] = {
        "overlapping tensors": (
            header(lambda told: {key: value | ({"data_offsets": [0, value["data_offsets"][1] - value["data_offsets"][0]]}
            if key != "__metadata__" else {}) for key, value in told.items()}), False),
        "offsets beyond the file": (header(of_first(lambda x: x.update(data_offsets=[0, 2**62]))), False),
        "offsets that run backwards": (header(of_first(lambda x: x.update(data_offsets=[64, 0]))), False),
        "negative offsets": (header(of_first(lambda x: x.update(data_offsets=[-64, 0]))), False),
        "a shape that overflows": (header(of_first(lambda x: x.update(shape=[2**40, 2**40]))), False),
        "a type that does not exist": (header(of_first(lambda x: x.update(dtype="X9"))), False),
        "a type of another size": (header(of_first(lambda x: x.update(dtype="F64"))), False),
        "metadata that is a list": (header(lambda told: told | {"__metadata__": [1]}), False),
        "metadata of numbers": (header(lambda told: told | {"__metadata__": {"kind": 1}}), False),
        "no metadata": (header(lambda told: {key: x for key, x in told.items() if key != "__metadata__"}), False),
        "a header nested 50,000 deep": (header(lambda told: b'{"a":' * 50000 + b"1" + b"}" * 50000), False),
        "a header that is longer than its file": (raw("checkpoints/mean.safetensors", struct.pack("<Q", 2**60)), False),
        "an identity nested deeply": (weights(lambda found, told: told.update(identity='{"a":' * 9000 + "1" + "}" * 9000)), False),
        "an identity of another form": (weights(lambda found, told: told.update(identity="[[1, 2]]")), False),
        "an identity of digits": (weights(lambda found, told: told.update(identity='{"seed": ' + "9" * 5000 + "}")), False),
        "a kind with escapes": (weights(lambda found, told: told.update(kind="\x1b[2J")), False),
        "weights of another sum": (weights(lambda found, told: told.update(sha256="0" * 64)), False),
        "weights of NaN": (weights(each(lambda value: value.fill_(float("nan")))), False),
        "weights of infinity": (weights(each(lambda value: value.fill_(float("inf")))), False),
        "weights of 1e38": (weights(each(lambda value: value.fill_(1e38))), False),
        "weights in double precision": (weights(cast(torch.float64)), False),
        "weights in half precision": (weights(cast(torch.float16)), False),
        "weights of whole numbers": (weights(cast(torch.int64)), False),
        "complex weights": (weights(cast(torch.complex64)), False),
        "a weight too many": (weights(lambda found, told: found.update(x=torch.zeros(2))), False),
        "a weight too few": (weights(lambda found, told: found.popitem() and None), False),
        "no weights": (weights(lambda found, told: found.clear()), False),
        "NaN in the variance": (weights(each(lambda value: value.fill_(float("nan"))), "variance"), False),
        "the mean of another run": (swapped("checkpoints/mean.safetensors"), False),
        "the variance of another run": (swapped("checkpoints/variance.safetensors"), False),
        "mean and variance of another run": (swapped("checkpoints/mean.safetensors", "checkpoints/variance.safetensors"), False),
        "the config of another run": (swapped(".hydra/config.yaml"), False),
    }  # fmt: skip
    for name, (change, harmless) in told.items():
        yield Case(f"checkpoint: {name}", "sample", change, harmless)
    for number in range(10):
        yield Case(f"checkpoint: cut at {number}/10", "sample", cut("checkpoints/mean.safetensors", number / 10))
        yield Case(f"config: cut at {number}/10", "sample", cut(".hydra/config.yaml", number / 10))
        yield Case(f"results: cut at {number}/10", "report", cut("results.json", number / 10))
    for name in (
        "checkpoints/mean.safetensors",
        ".hydra/config.yaml",
        ".hydra/overrides.yaml",
        ".hydra",
        "checkpoints",
    ):
        for kind in ("FIFO", "socket", "loop", "link out"):
            yield Case(f"{name}: {kind}", "sample", special(name, kind))


NAMES = {
    "a formula": "=cmd|' /C calc'!A0",
    "a formula by plus": "+1+cmd|' /C calc'!A0",
    "a formula by minus": "-2+3+cmd|' /C calc'!A0",
    "a formula by at": "@SUM(1+1)",
    "a formula by tab": "\t=1+1",
    "a formula by return": "\r=1+1",
    "a formula of wide letters": "\uff1d1+1",
    "a formula of a wide plus": "\uff0b1+1",
    "a formula of a wide at": "\uff20SUM(1)",
    "a formula behind a blank": "\u200b=1+1",
    "a formula behind an unbreakable blank": "\u00a0=1+1",
    "TeX that reads": "\\input{/etc/passwd}",
    "TeX by another way": "^^5cinput{/etc/passwd}",
    "TeX that ends a line": "a\\\\ \\hline & b % c",
    "HTML": "<script>alert(1)</script>",
    "an attribute": '" onmouseover="alert(1)',
    "Markdown with an image": "![x](https://evil.example/x.png)",
    "Markdown with an address": "https://evil.example/?x",
    "Markdown with www": "www.evil.example",
    "Markdown by HTML's names": "&lt;b&gt;",
    "markup of rich": "[red]x[/] [/b",
    "an escape": "\x1b]0;owned\x07",
    "another direction": "\u202egnp.exe",
    "isolates": "\u2066abc\u2069",
    "a surrogate": "\ud800",
    "a soft hyphen": "fi\u00add",
    "letters on letters": "z" + "\u0351" * 2000,
    "a line break": "a\nb",
    "another line break": "a\u2028b\x85c",
    "a null": "a\x00b",
    "a path": "../../x",
    "a long name": "x" * 100_000,
    "nothing": "",
    "a dollar": "$x^2_$ \\frac",
}


def reports() -> Iterator[Case]:
    """Results and other files of a run that reach a report."""
    for name, text in NAMES.items():
        yield Case(f"name of a metric: {name}", "report", named(text), True)
        yield Case(f"name of var: {name}", "report", named(text, "var"), True)
        yield Case(f"name of a setting: {name}", "report", named(text, "overrides"), True)
    told: dict[str, Change] = {
        "metrics of NaN": results(metrics={"a": float("nan")}),
        "metrics of infinity": results(metrics={"a": float("inf")}),
        "a metric of 1e308": results(metrics={"a": 1e308, "b": -1e308}),
        "steps of 10^9": results(num_steps=10**9),
        "no calls": results(nfe=0),
        "a negative seed": results(seed=-1),
        "a seed of 5,000 digits": raw("results.json", b'{"seed": ' + b"9" * 5000 + b"}"),
        "a seed of 4,000 digits": results(seed=10**4000),
        "calls of 4,000 digits": results(nfe=10**4000),
        "a shape of a million": results(data_shape=[3, 10**6, 10**6]),
        "versions with HTML": results(versions={"<b>": "</b>"}),
        "times of NaN": results(wall_time_s={"total": float("nan"), "<x>": 1.0}),
        "a device with escapes": results(device="\x1b[2J\ud800"),
        "keys twice": raw("results.json", b'{"metrics": {}, "metrics": {"a": 1}}'),
        "a reference of HTML": results(reference={"fd_pixel_8": "<img src=x>"}),
        "an output folder elsewhere": results(output_dir="/etc/passwd"),
        "results of another run": swapped("results.json"),
        "a picture of another run": swapped("samples.png"),
        "a curve of another run": swapped("variance.csv"),
        "a curve of formulas": raw("variance.csv", b"t,mean,q05,q95,upper\n=1+1,=1+1,1,1,1\n"),
        "a curve without columns": raw("variance.csv", b"\n\n"),
        "a curve of 100,000 columns": raw("variance.csv", ",".join(f"c{i}" for i in range(100_000)).encode() + b"\n"),
        "a curve with an open quote": raw("variance.csv", b't,mean\n"0.5,1\n'),
        "a picture of 2^31 rows": raw("samples.png", png(size=(8, 2**31 - 1))),
        "a picture of text": raw("samples.png", b"%!PS-Adobe-3.0\nshowpage\n"),
        "a log of escapes": raw("train.log", b"\x1b]0;owned\x07\x1b[2J" * 9),
        "a log of bytes": raw("train.log", bytes(range(256)) * 9),
    }
    for name, change in told.items():
        yield Case(f"report: {name}", "report", change, True)
    for name in ("results.json", "samples.png", "variance.csv", "train.log", ".hydra", ".hydra/config.yaml"):
        for kind in ("FIFO", "socket", "loop", "link out"):
            yield Case(f"report, {name}: {kind}", "report", special(name, kind), True)


def own_folders() -> Iterator[Case]:
    """A received folder in which the user repeats the command of the run."""
    for name in (".holder.lock", ".lock", "metrics.csv", "variance.csv", "samples.png", "results.json", "variance.png",
                 "checkpoints/mean.safetensors", ".hydra/config.yaml", ".hydra/overrides.yaml", "train.log", ".parts",
                 ".hydra", "checkpoints"):  # fmt: skip
        for kind in ("link out", "hard link", "FIFO"):

            def change(run: Path, name: str = name, kind: str = kind) -> None:
                (run / "results.json").unlink()
                special(name, kind)(run)

            yield Case(f"repeated with {name}: {kind}", "train again", change, True)
    for name in ("results.json", ".hydra/config.yaml"):
        yield Case(f"repeated with {name} of another run", "train again", swapped(name))

    def of_another(run: Path) -> None:
        for mine in (run.parent / "outputs" / "cache" / "mean").glob("*/mean.safetensors"):
            shutil.copy(run.parent / "another" / "checkpoints" / "mean.safetensors", mine)
        shutil.rmtree(run)

    yield Case("a cache entry of another identity", "train again", of_another)


def data() -> Iterator[Case]:
    """Files of images."""
    bomb = zlib.compress(bytes(1 << 30), 9)
    told: dict[str, tuple[str, Change]] = {
        "a PNG of 2^31 columns": ("image_folder", images(png(size=(2**31 - 1, 8)))),
        "a PNG of 100,000 x 100,000": ("image_folder", images(png(size=(100_000, 100_000)))),
        "a PNG of no size": ("image_folder", images(png(size=(0, 8)))),
        "a PNG with a text of 1 GiB": ("image_folder", images(png(chunk(b"zTXt", b"x\0\0" + bomb)))),
        "a PNG with an international text of 1 GiB": ("image_folder", images(png(chunk(b"iTXt", b"x\0\1\0\0\0" + bomb)))),
        "a PNG with a profile of 1 GiB": ("image_folder", images(png(chunk(b"iCCP", b"x\0\0" + bomb)))),
        "a PNG with 1 GiB of pixels": ("image_folder", images(png(rows=bytes(1 << 30)))),
        "a PNG with a chunk of a lying length": ("image_folder", images(png(struct.pack(">I", 2**31 - 1) + b"tEXtab"))),
        "a PNG with a chunk of a lying sum": ("image_folder", images(png(b"\0\0\0\1gAMAx\0\0\0\0"))),
        "a PNG with two headers": ("image_folder", images(png(chunk(b"IHDR", struct.pack(">IIBBBBB", 9999, 9999, 8, 0, 0, 0, 0))))),
        "a PNG without pixels": ("image_folder", images(png()[:33] + chunk(b"IEND", b""))),
        "a PNG with an unknown critical chunk": ("image_folder", images(png(chunk(b"XXXX", b"x")))),
        "a PNG of 10^6 frames": ("image_folder", images(png(chunk(b"acTL", struct.pack(">II", 10**6, 0))))),
        "a PNG with a palette of nothing": ("image_folder", images(png()[:25] + b"\x03" + png()[26:])),
        "an SVG": ("image_folder", images(b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>')),
        "half a PNG": ("image_folder", images(png()[:40])),
        "an array of structures that overlap": ("arrays", npz(("images.npy", npy("{'descr': [('a', '<u8'), ('b', '<u8')], 'fortran_order': False, 'shape': (4,)}")))),
        "an array of objects": ("arrays", npz(("images.npy", npy("{'descr': '|O', 'fortran_order': False, 'shape': (8,)}")))),
        "an array of 2^47 rows of nothing": ("arrays", npz(("images.npy", npy("{'descr': '|u1', 'fortran_order': False, 'shape': (140737488355328, 0)}")))),
        "an array of negative size": ("arrays", npz(("images.npy", npy("{'descr': '|u1', 'fortran_order': False, 'shape': (-1, -64)}")))),
        "an array of true rows": ("arrays", npz(("images.npy", npy("{'descr': '|u1', 'fortran_order': False, 'shape': (True, 8, 8, 1)}")))),
        "an array of void": ("arrays", npz(("images.npy", npy("{'descr': '|V64', 'fortran_order': False, 'shape': (1,)}")))),
        "an array of huge elements": ("arrays", npz(("images.npy", npy("{'descr': '|V9999999999', 'fortran_order': False, 'shape': (1,)}")))),
        "an array with a call for a header": ("arrays", npz(("images.npy", npy("__import__('os').system('touch canary')")))),
        "an array with a nested header": ("arrays", npz(("images.npy", npy("(" * 118)))),
        "an array of half precision": ("arrays", npz(("images.npy", array(dtype=np.float16)))),
        "an array of complex numbers": ("arrays", npz(("images.npy", array(dtype=np.complex64)))),
        "an array of no rows": ("arrays", npz(("images.npy", array((0, 8, 8, 1))))),
        "a zip with a path": ("arrays", npz(("../../../outside.npy", array()), ("images.npy", array()))),
        "a zip with a member twice": ("arrays", npz(("images.npy", array()), ("images.npy", array((8, 8, 8, 1))))),
        "a zip with an encrypted member": ("arrays", npz(("images.npy", array()), alter=lambda c: c.replace(b"PK\x01\x02\x14\x03\x14\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x01"))),
        "a zip that lies about the size of its member": ("arrays", npz(("images.npy", array()), alter=lambda c: c.replace(struct.pack("<I", len(array())), struct.pack("<I", 2**31)))),
        "a zip whose member begins elsewhere": ("arrays", npz(("images.npy", array()), alter=lambda c: c[:-22] + c[-22:-6] + struct.pack("<I", 7) + c[-2:])),
        "a zip in pieces": ("arrays", npz(("images.npy", array()), alter=lambda c: c.replace(b"PK\x05\x06\0\0\0\0", b"PK\x05\x06\3\0\3\0"))),
        "an empty file": ("arrays", raw("images.npz", b"")),
        "a parquet file that ends early": ("huggingface", parquet(lambda file: file.__delitem__(slice(len(file) // 2, None)))),
        "a parquet file with a huge footer": ("huggingface", parquet(overwrite(-8, struct.pack("<I", 2**31 - 1)))),
        "a parquet file with a negative footer": ("huggingface", parquet(overwrite(-8, struct.pack("<i", -1)))),
        "a parquet file of zeros": ("huggingface", parquet(lambda file: file.__setitem__(slice(None), bytes(len(file))))),
        "a parquet file of empty images": ("huggingface", parquet(lambda file: None, content=b"\0")),
        "a parquet file of 1 GiB images": ("huggingface", parquet(lambda file: None, content=png(chunk(b"zTXt", b"x\0\0" + bomb)))),
    }  # fmt: skip
    for name, (group, change) in told.items():
        yield Case(f"data: {name}", f"prepare {group}", change, True)
    for number in range(20):
        flip = lambda file, number=number: file.__setitem__(-9 - 17 * number, file[-9 - 17 * number] ^ 0x5A)  # noqa: E731
        yield Case(
            f"data: a parquet file with byte {number} of its footer changed", "prepare huggingface", parquet(flip), True
        )


def outside(place: Path) -> dict[str, bytes]:
    """What a command must leave alone: all but the folders that it is given to write to."""
    return {
        str(path.relative_to(place)): path.read_bytes() if path.is_file() and not path.is_symlink() else b""
        for path in sorted(place.rglob("*"))
        if path.relative_to(place).parts[0] not in ("run", "outputs", "sampled", "scored", "report", "new", "data")
    }


def formulas(folder: Path) -> list[str]:
    """Cells of tables that a spreadsheet would compute."""
    found = []
    for path in folder.glob("table.csv"):
        with path.open(newline="") as file:
            cells = [cell for row in csv.reader(file) for cell in row]
        found += [
            cell for cell in cells if FORMULA.match(cell) and not re.fullmatch(r"[+-]?[\d.]+(e[+-]?\d+)?|-?inf", cell)
        ]
    return found


def problem(place: Path, case: Case, whole: dict[str, Outcome]) -> str | None:
    """What is wrong with the way in which a command ends; None if nothing is."""
    if case.command.startswith("prepare"):
        case.change(place / "data")
        group = case.command.split()[1]
        size = [] if group == "arrays" else ["data.image_size=8", "data.channels=1"]
        task: Task = "prepare"
        arguments, result = [f"data={group}", f"data.root={place}/data", "cache_dir=outputs/cache", *size], "words"
        (place / "words").touch()
    else:
        case.change(place / "run")
        task, arguments, result = COMMANDS[case.command]
    before = outside(place)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    signal.alarm(SECONDS)
    outcome = give(place, task, *arguments, result=result)
    signal.alarm(0)
    if re.search(
        r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", outcome.words + str(outcome.said)
    ):
        return "control characters reach the terminal"
    if "Traceback" in outcome.words:
        return f"a traceback: {outcome.words[-200:]!r}"
    if outside(place) != before:
        return "files outside have changed"
    if found := formulas(place / "report"):
        return f"a formula: {found[0]!r}"
    if outcome.said is not None:
        return None if ": " in outcome.said.removeprefix("error: ") else f"no remedy: {outcome.said}"
    if not case.harmless and outcome.result != whole[case.command].result:
        return "another result"
    return None


def tried(base: Path, case: Case, whole: dict[str, Outcome]) -> str | None:
    """Try a case in a copy of a folder, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder, "place")
        shutil.copytree(base, place)
        reader, writer = os.pipe()
        sys.stdout.flush()
        if (process := os.fork()) == 0:
            try:
                said = problem(place, case, whole)
            except AssertionError as error:
                said = f"not one sentence with a remedy: {str(error)[:300]}"
            except BaseException as error:
                said = f"{type(error).__name__}: {str(error)[:200]} at {traceback.extract_tb(error.__traceback__)[-1]}"
            os.write(writer, (said or "").encode(errors="replace")[:4000])
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as pipe:
            said = pipe.read()
        status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    return f"ends with {status}" if status else said or None


def run(word: str = "") -> int:
    """Print each finding and the number of cases; returns the number of findings."""
    with tempfile.TemporaryDirectory() as folder:
        base, findings, cases = Path(folder, "base"), 0, 0
        base.mkdir()
        finished(base)
        (base / "precious").write_text("precious")
        task, arguments, result = COMMANDS["train again"]
        other = [each for each in arguments if not each.startswith("hydra.run.dir")] + [
            "seed=1",
            "hydra.run.dir=another",
        ]
        assert give(base, task, *other, result="another/results.json").said is None
        shutil.rmtree(base / "outputs" / "cache" / "data", ignore_errors=True)
        whole = {}
        for name in ("sample", "report", "train again"):
            copy = Path(folder, "whole")
            shutil.copytree(base, copy)
            task, arguments, result = COMMANDS[name]
            whole[name] = give(copy, task, *arguments, result=result)
            shutil.rmtree(copy)
        for case in (*configs(), *checkpoints(), *reports(), *own_folders(), *data()):
            if word in case.name:
                cases += 1
                if found := tried(base, case, whole):
                    findings += 1
                    print(f"{case.name}: {found}", flush=True)
    print(f"{cases} cases, {cases - findings} passed")
    return findings


if __name__ == "__main__":
    sys.exit(run(*sys.argv[1:2]) > 0)
