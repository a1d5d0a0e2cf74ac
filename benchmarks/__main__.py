"""Measures how fast this project is compared with its peers; prints a table and writes it as Markdown and JSON."""

from __future__ import annotations

import argparse
import difflib
import importlib.metadata
import json
import logging
import os
import platform
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

if __name__ == "__main__":  # set these before PyTorch and tqdm read them
    os.environ["TQDM_DISABLE"] = "1"
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # for all contenders; optcov.cli.main sets it for runs

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import (
    budget,
    data_loading,
    denoising_diffusion,
    foreign,
    gpu,
    guided_covariance,
    guided_digits,
    mathematics,
    metrics,
    precision,
    reference,
    roofline,
    sampling,
    scaling,
    startup,
    training,
)
from benchmarks.timing import Row, Settings

ROWS: dict[str, Callable[[Settings], Iterator[Row]]] = {
    "sampling": sampling.sampling,
    "denoising_diffusion_pytorch": denoising_diffusion.denoising_diffusion_pytorch,
    "defaults": sampling.defaults,
    "strategies": sampling.strategies,
    "training": training.training,
    "gamma": mathematics.gamma,
    "trajectory": mathematics.trajectory,
    "frechet": mathematics.frechet,
    "data": data_loading.data_loading,
    "metrics": metrics.metrics,
    "startup": startup.startup,
    "threads": scaling.threads,
    "sizes": scaling.sizes,
    "gpu": gpu.gpu,
    "roofline": roofline.roofline,
}
ALONE = {
    "budget oracle|RUN": budget,
    "foreign FOLDER": foreign,
    "guided_covariance": guided_covariance,
    "guided_digits FILE ...": guided_digits,
    "precision": precision,
    "reference measure|write": reference,
}
COLUMNS = ("", "setting", "ours", "peer", "unit", "ratio (low to high)", "goal", "MiB ours, peer", "note")


def machine() -> dict[str, object]:
    """Describe the machine on which the numbers are measured."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    cpu = next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "bfloat16": [name for name in ("avx512_bf16", "amx_bf16") if capabilities.get(name)],
        **graphics(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in ("torch", "diffusers", "lightning", "scipy")},
    }


def graphics() -> dict[str, object]:
    """Describe the GPU, and whether PyTorch rounds float32 to TF32 on it."""
    if not torch.cuda.is_available():
        return {"gpu": None}
    return {
        "gpu": torch.cuda.get_device_name(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
        "tf32": f"convolutions {torch.backends.cudnn.allow_tf32}, products {torch.backends.cuda.matmul.allow_tf32}",
    }


def number(value: float | None) -> str:
    return "" if value is None else f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"


def cells(row: Row) -> list[str]:
    """Format a row as text."""
    ratio = "" if row.ratio is None else f"{row.ratio:.3g} ({number(row.low)} to {number(row.high)})"
    goal = row.goal + {True: ": met", False: ": missed", None: ""}[row.met]
    peaks = ", ".join("?" if peak is None else f"{peak:.0f}" for peak in (row.peak_ours, row.peak_peer))
    memory = "" if row.peak_ours is None and row.peak_peer is None else peaks
    return [row.name, row.setting, number(row.ours), number(row.peer), row.unit, ratio, goal, memory, row.note]


def markdown(found: dict[str, object], rows: list[Row]) -> str:
    """Format the table as Markdown, preceded by the machine."""
    lines = [", ".join(f"{key} {value}" for key, value in found.items()), ""]
    lines += ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    return "\n".join(lines + ["| " + " | ".join(cells(row)) + " |" for row in rows]) + "\n"


def first_line(documented: object) -> str:
    return (documented.__doc__ or "").partition("\n")[0]


def listing() -> str:
    """List everything that can be measured, for --help."""
    lines = ["rows:", *(f"  {name:28} {first_line(rows)}" for name, rows in ROWS.items())]
    lines += ["", "programs that measure quality instead of speed:"]
    lines += [f"  python -m benchmarks.{name}\n{'':31}{first_line(module)}" for name, module in ALONE.items()]
    return "\n".join(lines)


def row_name(given: str) -> str:
    if given not in ROWS:
        near = difflib.get_close_matches(given, ROWS, 1)
        raise argparse.ArgumentTypeError(
            f"ROW must be one of {', '.join(ROWS)} (got {given}): give {(near or ['one'])[0]}"
        )
    return given


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m benchmarks",
        description=__doc__,
        epilog=listing(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    default, add = Settings(), parser.add_argument
    add("rows", nargs="*", type=row_name, metavar="ROW", help="which of the rows below to measure; default: all")
    add("--quick", action="store_true", help="check in two minutes that every row works, with one small round")
    add("--rounds", type=int, default=default.rounds, help="number of turns of each contender, at least 3")
    add("--seconds", type=float, default=default.seconds, help="no round after the third begins later than this")
    add("--num-threads", type=int, help="threads of all rows except those on scaling; default: PyTorch's choice")
    add("--batch-size", type=int, help="images per batch; default: 8, or 128 on a GPU")
    add("--batch-sizes", type=int, nargs="+", help="for the rows on threads; default: 1 4 16 64, up to 1024 on a GPU")
    add("--threads", type=int, nargs="+", help="for the rows on threads; default: 1 and all")
    add("--steps", type=int, nargs="+", default=default.steps, help="numbers of sampling steps")
    add("--precisions", nargs="+", choices=("fp32", "bf16"), default=default.precisions)
    add("--device", choices=("cpu", "cuda"), default=default.device)
    add("--compile", action=argparse.BooleanOptionalAction, default=True, help="on a GPU: torch.compile, CUDA graphs")
    add("--peak-tflops", type=float, help="bf16 peak of the GPU, for MFU; default: looked up by name")
    add("--data", type=Path, default=os.environ.get("OPTCOV_DATA"), help="folder with cifar10, celeba; OPTCOV_DATA")
    add("--output", type=Path, help="folder for table.md and table.json; default: outputs/benchmarks")
    arguments = parser.parse_args()
    if arguments.rounds < 3:
        parser.error(f"--rounds must be at least 3 for a median (got {arguments.rounds}): give 3 or more")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device must be cpu on a machine without a GPU (got cuda): give cpu")
    return arguments


def chosen(arguments: argparse.Namespace) -> Settings:
    """Fill in the settings that the command line left out, which depend on the device."""
    on_gpu = arguments.device == "cuda"
    peak = gpu.peak_flops(torch.cuda.get_device_name()) if on_gpu else None
    settings = Settings(
        arguments.device,
        arguments.rounds,
        arguments.seconds,
        arguments.batch_size or (128 if on_gpu else 8),
        tuple(arguments.batch_sizes or ((1, 16, 64, 256, 1024) if on_gpu else (1, 4, 16, 64))),
        tuple(arguments.threads or sorted({1, torch.get_num_threads()})),
        tuple(arguments.steps),
        tuple(arguments.precisions),
        Path(arguments.data) if arguments.data else None,
        on_gpu and arguments.compile,
        1e12 * arguments.peak_tflops if arguments.peak_tflops else peak,
    )
    if not arguments.quick:
        return settings
    return replace(settings, quick=True, rounds=1, seconds=3.0, batch_size=2, batch_sizes=(1, 2), steps=(2,))


def main() -> None:
    arguments = parsed()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    if arguments.num_threads:
        torch.set_num_threads(arguments.num_threads)
        os.environ["OMP_NUM_THREADS"] = str(arguments.num_threads)  # for the rows that start processes
    settings = chosen(arguments)
    output = arguments.output or Path("outputs/benchmarks/quick" if settings.quick else "outputs/benchmarks")
    rows: list[Row] = []
    failed: list[str] = []
    found = machine()
    if settings.quick:
        found["quick"] = "small networks, one round: the numbers say nothing about speed"
    console = Console()
    console.print(", ".join(f"{key} {value}" for key, value in found.items()), highlight=False)
    output.mkdir(parents=True, exist_ok=True)
    for name in arguments.rows or ROWS:
        for row in measured(name, settings, failed):
            rows.append(row)
            console.print(" | ".join(filter(None, cells(row))), highlight=False, soft_wrap=True)
            told = {
                "machine": found,
                "settings": asdict(settings),
                "rows": [asdict(row) | {"met": row.met} for row in rows],
            }
            (output / "table.json").write_text(json.dumps(told, indent=1, default=str) + "\n")
            (output / "table.md").write_text(markdown(found, rows))
    table = Table(*COLUMNS[:-1])
    for row in rows:
        table.add_row(*cells(row)[:-1])
    Console(width=max(console.width, 170)).print(table)
    console.print(str(output / "table.md"), highlight=False)
    if failed:
        sys.exit(f"failed, see above: {' '.join(failed)}")


def measured(name: str, settings: Settings, failed: list[str]) -> Iterator[Row]:
    """Measure the rows of a group; if it fails, yield a row that says so and go on with the others."""
    try:
        for row in ROWS[name](settings):
            if settings.quick:
                row.goal = ""
            yield row
    except Exception as error:
        traceback.print_exc()
        if isinstance(error, subprocess.CalledProcessError):
            print(error.stderr, file=sys.stderr)
        failed.append(name)
        yield Row.left_out(name, f"failed: {type(error).__name__}: {str(error).partition(chr(10))[0]}")


if __name__ == "__main__":
    main()
