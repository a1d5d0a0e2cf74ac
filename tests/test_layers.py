"""The direction of imports: mathematics at the bottom, Lightning above it, Hydra at the top; and no circles."""

import ast
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src"
MODULES = {
    ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(SOURCE.rglob("*.py"))
}
# From the bottom up: the parts of optcov on each floor, and the packages that they may import. A part may import those
# on its own floor and below; a package that is allowed on one floor is allowed above it.
FLOORS = [
    ("wording files ranges data_range schedule parameterization covariance inverse kernel oracle", "torch"),
    (
        "seeds denoiser model variance sampler guidance trajectory likelihood checkpoint",
        "numpy scipy sklearn torchdiffeq tqdm safetensors",
    ),
    (
        "data labels metric report keys parts upgrade signatures targets trust foreign errors lock registry adapter "
        "deepinv fitting covbench posterior reference measurement restoring run_folder run_log signals uncertainties "
        "verbs",
        "diffusers huggingface_hub filelock PIL pooch pyarrow requests torchmetrics jinja2 matplotlib omegaconf pandas "
        "pydantic rich yaml",
    ),
    ("training", "joblib lightning pytorch_optimizer wandb"),
    ("cli __main__", "hydra"),
]
NOTEBOOK = 2  # the highest floor that needs neither Lightning nor Hydra


def floor_of(module: str) -> int:
    """The floor of ``optcov.PART...``."""
    part = module.split(".")[1]
    found = [floor for floor, (parts, _) in enumerate(FLOORS) if part in parts.split()]
    assert found, f"optcov.{part} has no floor: put it on one in FLOORS"
    return found[0]


def packages_of(floor: int) -> set[str]:
    """The packages that a floor may import."""
    return {package for _, packages in FLOORS[: floor + 1] for package in packages.split()}


def imported(node: ast.AST, lazily: bool) -> Iterator[str]:
    """Full names that a module imports; ``lazily``, also inside functions."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, "relative imports are not used here"
            yield from (f"{child.module}.{alias.name}" for alias in child.names)
        elif lazily or not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield from imported(child, lazily)


def imports_of(module: str, lazily: bool) -> set[str]:
    """The modules of ours that a module imports, and the names of other packages."""
    found = set()
    for name in imported(ast.parse(MODULES[module].read_text()), lazily):
        if name.split(".")[0] != "optcov":
            found.add(name.split(".")[0])
            continue
        while name not in MODULES:  # a function or class of a module
            name = name.rpartition(".")[0]
        found.add(name)
    return found - set(sys.stdlib_module_names)


@pytest.mark.parametrize("module", MODULES)
def test_no_import_points_up(module: str) -> None:
    """Nor does the package itself, which a notebook imports, import Lightning or Hydra, even inside functions."""
    floor = NOTEBOOK if module == "optcov" else floor_of(module)
    for name in imports_of(module, lazily=True) - {"optcov"}:
        if name.startswith("optcov."):
            assert floor_of(name) <= floor, f"{module} imports {name}, which stands above it"
        elif floor < len(FLOORS) - 1:  # the command line may use any package
            assert name in packages_of(floor), f"{module} imports {name}, which its floor in FLOORS does not have"


def test_no_modules_import_each_other() -> None:
    graph = {module: imports_of(module, lazily=False) & MODULES.keys() - {module} for module in MODULES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' <- '.join(error.args[1])}")
    assert any(graph.values())


def test_arguments_stand_in_one_order() -> None:
    """A kernel, then what is asked, then its answer: networks in each other's places are told from no type."""
    order, seen = ["kernel", "denoiser", "strategy", "prediction"], 0
    for part in ("guidance", "metric", "sampler", "trajectory", "variance"):
        for module in (name for name in MODULES if name.startswith(f"optcov.{part}")):
            for node in ast.walk(ast.parse(MODULES[module].read_text())):
                if isinstance(node, ast.FunctionDef):
                    arguments = [argument.arg for argument in node.args.args]
                    if not {"kernel", "prediction", "x_t", "times"} & set(arguments):
                        continue  # not asked on the way: what saves a strategy names it first
                    taken = [name for name in arguments if name in order]
                    assert taken == sorted(taken, key=order.index), f"{module}.{node.name}"
                    seen += len(taken) > 1
    assert seen > 20
