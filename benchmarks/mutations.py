"""Checks whether the tests notice a broken line: breaks random lines of the mathematics one at a time, then tests.

    python -m benchmarks.mutations --revision HEAD --out mutations.md

A revision is unpacked into a scratch folder.  Twenty lines of its core (`CORE`) are drawn with a seed, among all lines
that have an operator, a sign, a comparison, a number or a truth value to swap, and one such swap is made on each.  Then
the tests run in one process until the first failure, beginning with those named like the broken module.  The result is
a table of what was broken and which test noticed it.  Code that only reports or asserts (raised errors, logs, progress
bars, annotations, ``strict=True``) is not broken.

Not every survivor is a gap, because a swap may leave the meaning unchanged (``<`` for ``<=`` where equality cannot
happen); survivors must be read.  The tests of the command line and of the benchmarks are skipped by default
(``--skip``), because they are slow and use the same mathematics.
"""

from __future__ import annotations

import argparse
import ast
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

CORE = (
    "kernel",
    "denoiser",
    "parameterization",
    "covariance",
    "schedule",
    "variance",
    "sampler",
    "guidance",
    "likelihood",
    "bound",  # this and the next are names from before the redesign
    "flow",
    "trajectory",
)
NOT_CORE = ("sampler/progress.py",)  # it only reports
SKIP = ("tests/cli", "tests/test_benchmarks.py", "tests/data", "tests/report", "tests/test_docs.py")
SPEAKING = {"info", "warning", "debug", "tqdm", "warn"}

BINARY: dict[type[ast.operator], tuple[str, str]] = {
    ast.Add: ("+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: ("*", "/"),
    ast.Div: ("/", "*"),
    ast.Pow: ("**", "*"),
    ast.FloorDiv: ("//", "*"),
    ast.Mod: ("%", "//"),
}
COMPARISON: dict[type[ast.cmpop], tuple[str, str]] = {
    ast.Lt: ("<", "<="),
    ast.LtE: ("<=", "<"),
    ast.Gt: (">", ">="),
    ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="),
    ast.Is: ("is", "is not"),
    ast.IsNot: ("is not", "is"),
    ast.In: ("in", "not in"),
    ast.NotIn: ("not in", "in"),
}


@dataclass(frozen=True, order=True)
class Swap:
    """A piece of a file, given by byte offsets, and what to write in its place."""

    path: str
    line: int
    start: int
    stop: int
    new: str


class Swaps(ast.NodeVisitor):
    """Collects all possible swaps in one file."""

    def __init__(self, path: str, source: bytes) -> None:
        self.path, self.source = path, source
        self.line_starts = [0]
        for line in source.splitlines(keepends=True):
            self.line_starts.append(self.line_starts[-1] + len(line))
        self.found: list[Swap] = []
        self.visit(ast.parse(source))

    def start(self, node: ast.expr) -> int:
        return self.line_starts[node.lineno - 1] + node.col_offset

    def stop(self, node: ast.expr) -> int:
        return self.line_starts[(node.end_lineno or node.lineno) - 1] + (node.end_col_offset or 0)

    def add(self, start: int, stop: int, new: str) -> None:
        line = self.source.count(b"\n", 0, start) + 1
        self.found.append(Swap(self.path, line, start, stop, new))

    def between(self, left: ast.expr, right: ast.expr, old: str, new: str) -> None:
        """Swap the operator that stands between two operands."""
        first, last = self.stop(left), self.start(right)
        if match := re.match(rb"[\s)]*(" + re.escape(old.encode()) + rb")", self.source[first:last]):
            self.add(first + match.start(1), first + match.end(1), new)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        if type(node.op) in BINARY:
            self.between(node.left, node.right, *BINARY[type(node.op)])
        self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> None:
        for left, op, right in zip([node.left, *node.comparators], node.ops, node.comparators, strict=False):
            if type(op) in COMPARISON:
                self.between(left, right, *COMPARISON[type(op)])
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        words = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
        self.between(node.values[0], node.values[1], *words)
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        if isinstance(node.op, ast.USub | ast.Not):
            self.add(self.start(node), self.start(node.operand), "")
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        value = node.value
        if isinstance(value, bool):
            self.add(self.start(node), self.stop(node), str(not value))
        elif isinstance(value, int):
            self.add(self.start(node), self.stop(node), str(value + 1))
        elif isinstance(value, float):
            self.add(self.start(node), self.stop(node), repr(2 * value if value else 1.0))

    def visit_Call(self, node: ast.Call) -> None:
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name not in SPEAKING:
            self.each([node.func, *node.args, *(each.value for each in node.keywords if each.arg != "strict")])

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self.each(node.body)  # leave decorators and bases alone

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self.each([*node.args.defaults, *filter(None, node.args.kw_defaults), *node.body])

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self.each([node.value] if node.value else [])

    def visit_Raise(self, node: ast.Raise) -> None:
        pass

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        pass

    def each(self, nodes: Sequence[ast.AST]) -> None:
        for node in nodes:
            self.visit(node)


def core_files(tree: Path) -> Iterator[Path]:
    """Yield the files of the mathematics, in order."""
    package = tree / "src" / "optcov"
    for name in CORE:
        for path in [package / f"{name}.py", *sorted((package / name).glob("*.py"))]:
            if path.is_file() and path.relative_to(package).as_posix() not in NOT_CORE:
                yield path


def drawn(tree: Path, count: int, seed: int) -> list[Swap]:
    """Draw ``count`` lines with the seed, and one swap on each."""
    by_line: dict[tuple[str, int], list[Swap]] = {}
    for path in core_files(tree):
        for swap in Swaps(path.relative_to(tree).as_posix(), path.read_bytes()).found:
            by_line.setdefault((swap.path, swap.line), []).append(swap)
    generator = random.Random(seed)
    lines = generator.sample(sorted(by_line), count)
    return [generator.choice(sorted(by_line[line])) for line in lines]


def test_files(tree: Path, swap: Swap | None, skip: Sequence[str]) -> list[str]:
    """The test files to run, beginning with those named like the broken module or its folder."""
    names = [path.relative_to(tree).as_posix() for path in sorted((tree / "tests").rglob("test_*.py"))]
    names = [name for name in names if not any(name == each or name.startswith(each + "/") for each in skip)]
    if swap is None:
        return names
    module = Path(swap.path).relative_to("src/optcov")
    stem, folder = module.stem, module.parent.name

    def distance(name: str) -> int:
        words = set(re.split(r"[/_.]", name))
        if stem in words or stem in name:
            return 0
        return 1 if folder and folder in words else 2

    return sorted(names, key=distance)


@dataclass
class Outcome:
    """The verdict of the tests on a tree.

    Args:
        verdict: ``caught``, ``survived`` or ``timed out``.
        by: the first test that failed.
    """

    verdict: str
    by: str
    seconds: float


def run_tests(tree: Path, files: Sequence[str], timeout: float) -> Outcome:
    """Run tests until the first failure, on one thread, leaving no files in the tree."""
    paths = [str(tree / "src"), str(tree)]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONDONTWRITEBYTECODE": "1",  # a swap may keep size and second, by which stale bytecode is recognized
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "pytest", "-x", "-n", "0", "-q", "--durations=0", "--durations-min=1e9"]
    command += ["-p", "no:cacheprovider", "--tb=no", *files]
    start = time.monotonic()
    try:
        done = subprocess.run(
            command, cwd=tree, env=environment, capture_output=True, text=True, timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired:
        return Outcome("timed out", "", time.monotonic() - start)
    seconds = time.monotonic() - start
    if done.returncode == 0:
        return Outcome("survived", "", seconds)
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
    if done.returncode not in (1, 2) or failed is None:
        raise RuntimeError(f"pytest ended with {done.returncode}:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return Outcome("caught", failed[1], seconds)


def unpack(revision: str, folder: Path) -> None:
    """Unpack the files of a revision, without anything that git does not track."""
    archive = subprocess.run(["git", "archive", revision], capture_output=True, check=True).stdout
    subprocess.run(["tar", "x", "-C", folder], input=archive, check=True)
    found = subprocess.run(
        [sys.executable, "-c", "import optcov; print(optcov.__file__)"],
        cwd=folder, env=os.environ | {"PYTHONPATH": str(folder / "src")}, capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    if not Path(found).is_relative_to(folder):
        raise RuntimeError(f"the tests would import {found}, not the copy in {folder}")


def broken(source: bytes, swap: Swap) -> bytes:
    """Apply a swap to a file."""
    return source[: swap.start] + swap.new.encode() + source[swap.stop :]


def line_of(source: bytes, number: int) -> str:
    return source.splitlines()[number - 1].decode().strip()


def table(about: str, rows: Sequence[tuple[Swap, str, str, Outcome]]) -> str:
    """Format a line for each swap, and the number that were caught, as Markdown."""
    lines = [about, "", "| | where | was | became | verdict | by | s |", "|" + "---|" * 7]
    for number, (swap, was, became, outcome) in enumerate(rows, 1):
        where = f"{swap.path.removeprefix('src/optcov/')}:{swap.line}"
        code = ["`" + text.replace("|", "\\|") + "`" for text in (was, became)]
        cells = [str(number), where, *code, outcome.verdict, outcome.by, f"{outcome.seconds:.0f}"]
        lines.append("| " + " | ".join(cells) + " |")
    counts = {
        verdict: sum(row[3].verdict == verdict for row in rows) for verdict in ("caught", "survived", "timed out")
    }
    told = ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)
    return "\n".join([*lines, "", f"{len(rows)} broken lines: {told}."]) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.mutations", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--revision", default="HEAD", help="git revision to break (default: HEAD)")
    parser.add_argument("--count", type=int, default=20, help="number of lines to break (default: 20)")
    parser.add_argument("--seed", type=int, default=11, help="seed that draws the lines (default: 11)")
    parser.add_argument("--timeout", type=float, default=900, help="seconds for the tests of one line (default: 900)")
    parser.add_argument("--skip", nargs="*", default=SKIP, help="test files and folders to leave out")
    parser.add_argument("--out", type=Path, help="file to which the table is written after each line")
    parser.add_argument("--list", action="store_true", help="only list what would be broken")
    chosen = parser.parse_args(arguments)
    rows: list[tuple[Swap, str, str, Outcome]] = []
    with tempfile.TemporaryDirectory() as name:
        tree = Path(name).resolve()
        unpack(chosen.revision, tree)
        swaps = drawn(tree, chosen.count, chosen.seed)
        if not chosen.list:
            whole = run_tests(tree, test_files(tree, None, chosen.skip), chosen.timeout)
            print(f"without a broken line: {whole.verdict} {whole.by} ({whole.seconds:.0f} s)", flush=True)
            if whole.verdict != "survived":
                return 1
        for swap in swaps:
            source = (tree / swap.path).read_bytes()
            changed = broken(source, swap)
            was, became = line_of(source, swap.line), line_of(changed, swap.line)
            print(f"{swap.path}:{swap.line}\n  {was}\n  {became}", flush=True)
            if chosen.list:
                continue
            (tree / swap.path).write_bytes(changed)
            outcome = run_tests(tree, test_files(tree, swap, chosen.skip), chosen.timeout)
            (tree / swap.path).write_bytes(source)
            print(f"  {outcome.verdict} {outcome.by} ({outcome.seconds:.0f} s)", flush=True)
            rows.append((swap, was, became, outcome))
            if chosen.out:
                about = f"Revision {chosen.revision}, seed {chosen.seed}; left out: {', '.join(chosen.skip)}."
                chosen.out.write_text(table(about, rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
