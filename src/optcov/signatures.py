"""Reads the signatures of classes and functions from source, so that a typo is found without importing PyTorch."""

from __future__ import annotations

import ast
import builtins
import collections.abc
import importlib
import importlib.util
import inspect
import pathlib
import sys
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import Field

WITHOUT_ARGUMENTS = {"ABC", "Generic", "Protocol", "nn.Module"}  # base classes whose constructors take no arguments
Definition = ast.ClassDef | ast.FunctionDef | ast.expr


class Object:
    """Stands for every class that has no plain values as instances."""


@dataclass(frozen=True)
class Signature:
    """The signature of a class or function.

    Args:
        is_class: whether it is a class.
        parameters: the type of each parameter by name; Any if the type is unknown.
        takes_any: whether it takes arbitrary further keyword arguments.
    """

    is_class: bool
    parameters: dict[str, Any]
    takes_any: bool

    @classmethod
    @cache
    def read(cls, target: str) -> Signature | None:
        """Read the signature of ``package.module.Name``, defined in that package; None if the source lacks it."""
        module, _, name = target.rpartition(".")
        match _find(module, name):
            case (home, ast.FunctionDef() as function):
                return cls(False, *_parameters(home, function))
            case (home, ast.ClassDef() as definition):
                own = _constructor(home, definition)
                return None if own is None else cls(True, *own)
        return None

    @classmethod
    def imported(cls, target: str) -> Signature:
        """Read the signature by importing the class or function.

        Raises:
            ImportError, AttributeError, ValueError: if it cannot be imported.
        """
        module, _, name = target.rpartition(".")
        found = getattr(importlib.import_module(module), name)
        parameters = inspect.signature(found).parameters
        homes = [sys.modules[each.__module__] for each in (found.__mro__ if inspect.isclass(found) else ())]
        # names in the fields of base dataclasses
        inherited = {name: value for home in reversed(homes) for name, value in vars(home).items()}
        try:
            hints = get_type_hints(found.__init__ if inspect.isclass(found) else found, localns=inherited)
        except NameError:  # a type that is imported for type checkers alone
            hints = {}
        named = {name: hints.get(name, Any) for name, each in parameters.items() if each.kind is not each.VAR_KEYWORD}
        return cls(inspect.isclass(found), named, len(named) < len(parameters))


@cache
def _source(module: str) -> tuple[Path, list[ast.stmt]] | None:
    """The file and the statements of a module, found without importing it or its packages."""
    top, *below = module.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    roots = [] if spec is None else [Path(root, *below) for root in spec.submodule_search_locations or []]
    paths = [path for root in roots for path in (root / "__init__.py", root.with_name(f"{root.name}.py"))]
    if not below and spec is not None and spec.origin is not None:
        paths = [Path(spec.origin)]
    path = next((path for path in paths if path.suffix == ".py" and path.is_file()), None)
    return None if path is None else (path, list(_flat(ast.parse(path.read_bytes()).body)))


def _flat(statements: list[ast.stmt]) -> Iterator[ast.stmt]:
    for statement in statements:
        yield statement
        if isinstance(statement, (ast.If, ast.Try)):
            yield from _flat(statement.body)


@cache
def _find(module: str, name: str) -> tuple[str, Definition] | None:
    """The module that defines a name, following imports within one package, and the definition."""
    source = _source(module) if module else None
    for statement in reversed(source[1] if source else []):
        if isinstance(statement, (ast.ClassDef, ast.FunctionDef)) and statement.name == name:
            return module, statement
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == name:
            return module, statement.value
        if isinstance(statement, ast.ImportFrom):
            for alias in statement.names:
                if (alias.asname or alias.name) == name:
                    package = module.split(".")[: None if source and source[0].name == "__init__.py" else -1]
                    base = package[: len(package) - statement.level + 1] if statement.level else []
                    other = ".".join([*base, *([statement.module] if statement.module else [])])
                    return _find(other, alias.name) if other.split(".")[0] == module.split(".")[0] else None
    return None


def _constructor(module: str, node: ast.ClassDef) -> tuple[dict[str, Any], bool] | None:
    """The parameters of a class, from its own constructor, its dataclass fields, or its base class."""
    for each in node.body:
        if isinstance(each, ast.FunctionDef) and each.name == "__init__":
            return _parameters(module, each)
    names = [ast.unparse(base).partition("[")[0] for base in node.bases]
    bases = [(home, base) for home, base in filter(None, map(_find, [module] * len(names), names))]
    inherited = [_constructor(home, base) for home, base in bases if isinstance(base, ast.ClassDef)]
    above = next(filter(None, inherited), ({}, False) if set(names) <= WITHOUT_ARGUMENTS else None)
    if any("dataclass" in ast.unparse(each) for each in node.decorator_list):
        fields = {ast.unparse(each.target): each.annotation for each in node.body if isinstance(each, ast.AnnAssign)}
        own = {
            name: _type(module, hint)
            for name, hint in fields.items()
            if name != "_" and "ClassVar" not in ast.unparse(hint)  # "_: KW_ONLY" is not a field
        }
        return (above[0] if above else {}) | own, False
    return above


def _parameters(module: str, node: ast.FunctionDef) -> tuple[dict[str, Any], bool]:
    arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    types = {each.arg: _type(module, each.annotation) if each.annotation else Any for each in arguments}
    return {name: hint for name, hint in types.items() if name != "self"}, node.args.kwarg is not None


def _type(module: str, hint: ast.expr) -> Any:
    """The type that an annotation stands for; Any if part of it is unknown."""
    match hint:
        case ast.Constant(value=str(text)):
            return _type(module, ast.parse(text, mode="eval").body)
        case ast.Constant(value=value):
            return value
        case ast.BinOp():
            parts = (_type(module, hint.left), _type(module, hint.right))
            return Any if Any in parts else typing.Union[parts]  # noqa: UP007 (of values)
        case ast.Subscript():
            inner = hint.slice.elts if isinstance(hint.slice, ast.Tuple) else [hint.slice]
            if ast.unparse(hint.value).endswith("Literal"):
                return Literal[tuple(ast.literal_eval(each) for each in inner)]
            if ast.unparse(hint.value).endswith("Annotated"):
                base, bounds = _type(module, inner[0]), inner[1]
                if base is Any or not isinstance(bounds, ast.Call) or ast.unparse(bounds.func) != "Within":
                    return base
                limits = {str(each.arg): ast.literal_eval(each.value) for each in bounds.keywords}  # of optcov.ranges
                return Annotated[base, Field(**limits)]
            container = _type(module, hint.value)
            if container is collections.abc.Callable:
                return Object
            types = tuple(_type(module, each) for each in inner)
            return Any if Any in (container, *types) else container[types[0] if len(types) == 1 else types]
        case ast.Name(id=name):
            if isinstance(known := getattr(builtins, name, None), type) or hasattr(typing, name):
                return known or getattr(typing, name)
            for standard in (collections.abc, pathlib):
                if hasattr(standard, name):
                    return getattr(standard, name)
            match _find(module, name):
                case (home, ast.expr() as alias):
                    return _type(home, alias)
                case (_, ast.ClassDef()):
                    return Object
    return Any
