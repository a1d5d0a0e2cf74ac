"""Measure, print a table, and write JSON: ``python -m benchmarks [--rows sampling training ...]``."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

if __name__ == "__main__":  # before PyTorch and tqdm read them
    os.environ["TQDM_DISABLE"] = "1"
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # for all contenders, as optcov.cli.main sets it for runs

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import data_loading, mathematics, sampling, scaling, startup, training
from benchmarks.timing import Row, Settings

ROWS: dict[str, Callable[[Settings], Iterator[Row]]] = {
    "sampling": sampling.sampling,
    "defaults": sampling.defaults,
    "strategies": sampling.strategies,
    "training": training.training,
    "gamma": mathematics.gamma,
    "trajectory": mathematics.trajectory,
    "frechet": mathematics.frechet,
    "data": data_loading.data_loading,
    "startup": startup.startup,
    "threads": scaling.threads,
    "sizes": scaling.sizes,
    "gpu": sampling.cuda,
}
COLUMNS = ("", "setting", "ours", "peer", "unit", "ratio (low to high)", "goal", "MiB ours, peer", "note")


def machine() -> dict[str, object]:
    """What the numbers were measured on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    cpu = next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "bfloat16": [name for name in ("avx512_bf16", "amx_bf16") if capabilities.get(name)],
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
        "load": os.getloadavg(),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in ("torch", "diffusers", "lightning", "scipy")},
    }


def number(value: float | None) -> str:
    return "" if value is None else f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"


def cells(row: Row) -> list[str]:
    """A row as text."""
    ratio = "" if row.ratio is None else f"{row.ratio:.3g} ({number(row.low)} to {number(row.high)})"
    goal = row.goal + {True: ": met", False: ": missed", None: ""}[row.met]
    peaks = ", ".join("?" if peak is None else f"{peak:.0f}" for peak in (row.peak_ours, row.peak_peer))
    memory = "" if row.peak_ours is None and row.peak_peer is None else peaks
    return [row.name, row.setting, number(row.ours), number(row.peer), row.unit, ratio, goal, memory, row.note]


def markdown(found: dict[str, object], rows: list[Row]) -> str:
    """The table as Markdown, the machine above it."""
    lines = [", ".join(f"{key} {value}" for key, value in found.items()), ""]
    lines += ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    return "\n".join(lines + ["| " + " | ".join(cells(row)) + " |" for row in rows]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks", description=__doc__)
    default = Settings()
    add = parser.add_argument
    add(
        "--rows",
        nargs="+",
        choices=ROWS,
        default=list(ROWS),
        help="what to measure; all of it takes about half an hour",
    )
    add("--rounds", type=int, default=default.rounds, help="turns of each contender, at least 3")
    add("--seconds", type=float, default=default.seconds, help="after these a row begins no round beyond its third")
    add("--num-threads", type=int, help="of all rows but those on scaling; PyTorch's choice where left out")
    add("--batch-size", type=int, default=default.batch_size)
    add("--batch-sizes", type=int, nargs="+", default=default.batch_sizes, help="of the rows on threads")
    add("--threads", type=int, nargs="+", help="of the rows on threads; 1 and all where left out")
    add("--steps", type=int, nargs="+", default=default.steps, help="of sampling")
    add("--precisions", nargs="+", choices=("fp32", "bf16"), default=default.precisions)
    add("--device", choices=("cpu", "cuda"), default=default.device)
    add("--compile", action="store_true", help="on a GPU, also torch.compile and CUDA graphs")
    add("--data", type=Path, default=os.environ.get("OPTCOV_DATA"), help="folder of cifar10 and celeba; OPTCOV_DATA")
    add("--output", type=Path, default=Path("outputs/benchmarks"), help="folder of table.md and table.json")
    arguments = parser.parse_args()
    if arguments.rounds < 3:
        parser.error(f"--rounds = {arguments.rounds} has no median worth the name: give at least 3")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device = cuda finds no GPU: give cpu")
    if arguments.num_threads:
        torch.set_num_threads(arguments.num_threads)
        os.environ["OMP_NUM_THREADS"] = str(arguments.num_threads)  # of the rows that start processes
    settings = Settings(
        arguments.device,
        arguments.rounds,
        arguments.seconds,
        arguments.batch_size,
        tuple(arguments.batch_sizes),
        tuple(arguments.threads or sorted({1, torch.get_num_threads()})),
        tuple(arguments.steps),
        tuple(arguments.precisions),
        Path(arguments.data) if arguments.data else None,
        arguments.compile,
    )
    found, rows = machine(), []
    console = Console()
    console.print(", ".join(f"{key} {value}" for key, value in found.items()), highlight=False)
    arguments.output.mkdir(parents=True, exist_ok=True)
    for name in arguments.rows:
        for row in ROWS[name](settings):
            rows.append(row)
            console.print(" | ".join(filter(None, cells(row))), highlight=False, soft_wrap=True)
            told = {
                "machine": found,
                "settings": asdict(settings),
                "rows": [asdict(row) | {"met": row.met} for row in rows],
            }
            (arguments.output / "table.json").write_text(json.dumps(told, indent=1, default=str) + "\n")
            (arguments.output / "table.md").write_text(markdown(found, rows))
    table = Table(*COLUMNS[:-1])
    for row in rows:
        table.add_row(*cells(row)[:-1])
    Console(width=max(console.width, 170)).print(table)
    console.print(str(arguments.output / "table.md"), highlight=False)


if __name__ == "__main__":
    main()
