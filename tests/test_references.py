"""Docstrings and comments name only what exists: modules, functions and classes of ours, by dotted name or in backticks."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

from conftest import ROOT

from shared.config import flatten_config
from shared.schema import Config

PACKAGES = ("shared", "gen", "train", "evals")
DOTTED = re.compile(rf"(?<![\w./-])(?:{'|'.join(PACKAGES)})(?:\.\w+)+")
COMMENT = re.compile(r"(?:^|\s)#\s(.*)$", re.MULTILINE)
STRING = re.compile(r"""["'](\w+)["']""")
QUOTED = re.compile(r"`([a-z]\w*_\w+)(?:\(\))?`")  # of several words: one word alone may be anything
FILES = ("jsonl", "json", "md", "py")  # endings of files, which are no attributes
SPARED = {"worker_cls", "common_control_vector_load"}  # of vLLM and of llama.cpp


PATHS = re.compile(r"(?<![\w./-])(?:gen|train|evals|shared|tests|docs)/[\w./-]+\.(?:py|md|html)\b")


@cache
def files() -> list[Path]:
    return [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def modules() -> dict[str, Path]:
    """Every module of ours by its dotted name; a package stands for its __init__."""
    places = {(path.parent if path.stem == "__init__" else path.with_suffix("")): path for path in files()}
    return {".".join(place.relative_to(ROOT).parts): path for place, path in places.items()}


@cache
def parted(path: Path) -> tuple[list[str], str]:
    """The docstrings and comments of a file, and the code without them."""
    lines, docstrings = path.read_text(encoding="utf-8").split("\n"), []
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node, clean=False)
            if text is not None:
                docstrings.append(text)
                first = node.body[0]
                for number in range(first.lineno - 1, first.end_lineno or first.lineno):
                    lines[number] = ""
    code = "\n".join(lines)
    return [*docstrings, *COMMENT.findall(code)], COMMENT.sub("", code)


def members(body: list[ast.stmt]) -> dict[str, ast.stmt]:
    """The names that the statements of a module or a class define or import."""
    found: dict[str, ast.stmt] = {}
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found[node.name] = node
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {alias.asname or alias.name: node for alias in node.names}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {name.id: node for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}
        elif isinstance(node, ast.If | ast.With | ast.Try):
            found |= members(node.body)
    return found


def exists(name: str) -> bool:
    """Whether a dotted name is a module, a member of one, or a member of a class in one."""
    parts = name.split(".")
    length = next((length for length in range(len(parts), 0, -1) if ".".join(parts[:length]) in modules()), 0)
    if not length:
        return False
    body = tree_of(modules()[".".join(parts[:length])]).body
    for part in parts[length:]:
        node = members(body).get(part)
        if node is None:
            return False
        body = node.body if isinstance(node, ast.ClassDef) else []
    return True


def test_dotted_names_of_ours_exist() -> None:
    keys, count, strange = set(flatten_config(Config())), 0, []
    for path in files():
        for text in parted(path)[0]:
            for name in DOTTED.findall(text):
                count += 1
                if name not in keys and name.rpartition(".")[2] not in FILES and not exists(name):
                    strange.append(f"{path.relative_to(ROOT)}: {name}")
    assert not strange
    assert count > 90  # the search itself works
    assert exists("gen.plan.Job.walks") and not exists("gen.plan.place") and not exists("gen.plan.Job.walk")


def test_files_of_ours_exist() -> None:
    named = {(path, name) for path in files() for text in parted(path)[0] for name in PATHS.findall(text)}
    assert [f"{path.relative_to(ROOT)}: {name}" for path, name in sorted(named) if not (ROOT / name).is_file()] == []
    assert len(named) > 40


def test_names_in_backticks_exist() -> None:
    """Each is a name in its own file, a public one of another, or a string, as keys and names of stages are."""
    known = SPARED.union(*(members(tree_of(path).body) for path in files()))
    known.update(*(STRING.findall(parted(path)[1]) for path in files()))
    count, strange = 0, []
    for path in files():
        prose, code = parted(path)
        names = [name for text in prose for name in QUOTED.findall(text)]
        count += len(names)
        own = set(re.findall(r"\w+", code)) if names else set()
        strange += [f"{path.relative_to(ROOT)}: {name}" for name in names if name not in known | own]
    assert not strange
    assert count > 60
    assert "planned_rows" in known and "rows_of" not in known
