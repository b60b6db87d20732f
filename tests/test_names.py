"""A name of the code means one thing."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator

from conftest import ROOT


def modules() -> Iterator[tuple[str, ast.Module]]:
    """Path and syntax tree of every module of the product."""
    for package in ("shared", "gen", "train", "evals"):
        for path in (ROOT / package).rglob("*.py"):
            yield str(path.relative_to(ROOT)), ast.parse(path.read_text(encoding="utf-8"))


def test_no_two_public_classes_have_one_name() -> None:
    places: dict[str, list[str]] = defaultdict(list)
    for path, tree in modules():
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(path)
    assert len(places) > 200
    assert not {name: paths for name, paths in places.items() if len(paths) > 1}


# One thing in every module that has it: a command's or a stage's entry, a package's options, a plugin's entry, and what other programs call by name.
INTERFACES = {"main", "stage", "register", "panels", "gpu_options", "bench_options", "extract", "sweep", "informedness", "forced_choice", "auth_nats", "care_nats", "answer_mass", "unscorable"}  # fmt: skip


def test_no_two_public_functions_have_one_name() -> None:
    places: dict[str, list[str]] = defaultdict(list)
    for path, tree in modules():
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
                places[node.name].append(path)
    twice = {name: paths for name, paths in places.items() if len(paths) > 1 and name not in INTERFACES}
    assert len(places) > 800 and not twice


# What may be imported under another name, and why.
RENAMED_IMPORTS = {
    ("numpy", "np"): "its documentation's own name",
    ("pyarrow", "pa"): "its documentation's own name",
    ("xml.etree.ElementTree", "ET"): "its documentation's own name",
    ("vllm.entrypoints.serve.middleware.register", "middleware"): "a module of vLLM with the name of the entry that vLLM calls in a plugin",
}  # fmt: skip


def renamed_imports(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """What a module imports under another name, with that name. `from a import b as b` exports b again, and renames nothing."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, alias.asname) for alias in node.names if alias.asname)
        elif isinstance(node, ast.ImportFrom):
            renamed = [alias for alias in node.names if alias.asname and alias.asname != alias.name]
            yield from ((f"{node.module}.{alias.name}", str(alias.asname)) for alias in renamed)


def test_an_import_keeps_the_name_of_what_it_imports() -> None:
    """Two names that clash are to be told apart where they are defined."""
    places: dict[tuple[str, str], list[str]] = defaultdict(list)
    for path, tree in modules():
        for renamed in renamed_imports(tree):
            places[renamed].append(path)
    assert not {renamed: paths for renamed, paths in places.items() if renamed not in RENAMED_IMPORTS}
    assert set(RENAMED_IMPORTS) == set(places), "an exception that nothing needs any more"


def test_a_renamed_import_is_seen_in_every_form() -> None:
    source = "import a.b as c\nfrom a import b as c, d\nfrom a import b as b\nimport a\ndef f():\n    from .e import g as h\n"
    assert list(renamed_imports(ast.parse(source))) == [("a.b", "c"), ("a.b", "c"), ("e.g", "h")]
