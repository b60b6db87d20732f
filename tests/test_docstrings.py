"""Every public function of a module has a docstring, and every name under its `Args:` is a parameter or a field."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from conftest import ROOT

PACKAGES = ("shared", "gen", "train", "evals")
ARGS = re.compile(r"Args:\n(.*?)(?:\n\n|\n\w+:\n|\Z)", re.DOTALL)
NAMES = re.compile(r"^    (\*{0,2}\w+(?:, \*{0,2}\w+)*):", re.MULTILINE)


def parameters(node: ast.FunctionDef | ast.AsyncFunctionDef) -> set[str]:
    """The names of a function's parameters."""
    rest = [argument for argument in (node.args.vararg, node.args.kwarg) if argument is not None]
    return {each.arg for each in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs, *rest)}


def documented(node: ast.AST) -> Iterator[str]:
    """The names under `Args:` of a function or a class."""
    text = ast.get_docstring(node) or ""  # type: ignore[arg-type]
    for section in ARGS.findall(text):
        for names in NAMES.findall(section):
            yield from (name.strip(" *") for name in names.split(","))


def test_every_documented_argument_is_a_parameter_or_a_field() -> None:
    strange, count = [], 0
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    known = parameters(node)
                elif isinstance(node, ast.ClassDef):
                    methods = [each for each in node.body if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)]
                    known = {name for method in methods for name in parameters(method)}
                    known |= {field.target.id for field in node.body if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)}  # fmt: skip
                else:
                    continue
                names = list(documented(node))
                count += len(names)
                strange += [f"{path.relative_to(ROOT)}:{node.lineno} {node.name}: {name}" for name in names if name not in known]  # fmt: skip
    assert not strange
    assert count > 500  # the search itself works


def test_every_public_function_has_a_docstring() -> None:
    spared = ("main", "stage")  # of a command, which its module and its options describe
    missing = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and not node.name.startswith("_")
        and node.name not in spared
        and not node.name.endswith("_options")
        and not ast.get_docstring(node)
    ]
    assert not missing
