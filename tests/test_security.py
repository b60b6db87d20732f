"""What a file or a request from somebody else must not be able to do."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT

SOURCES = sorted(path for package in ("shared", "gen", "train", "evals") for path in (ROOT / package).rglob("*.py"))
NEVER = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "pickle.load", "pickle.loads", "torch.load", "yaml.load", "yaml.unsafe_load", "joblib.load", "numpy.load", "np.load", "marshal.loads", "shelve.open", "pickle.Unpickler", "importlib.import_module", "runpy.run_path", "runpy.run_module", "os.execl", "subprocess.getoutput"}  # fmt: skip


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    """Every call of a file with its dotted name."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Every name that a file imports from a module, dotted."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            yield from ((node.lineno, f"{node.module}.{one.name}") for one in node.names)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_nothing_is_unpickled_or_run(path: Path) -> None:
    """safetensors and JSON are all that is read; no shell, and no code of a model's repository."""
    for line, name in imports(path):
        assert name not in NEVER, f"{path}:{line}: {name}"
    for name, call in calls(path):
        assert name not in NEVER, f"{path}:{call.lineno}: {name}"
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        said = f"{path}:{call.lineno}: {name}: {given}"
        assert given.get("trust_remote_code", "False") == given.get("shell", "False") == "False", said
        if name.endswith(".from_pretrained") and not name.startswith(
            "Peft"
        ):  # left unset, Transformers asks at the terminal
            assert "trust_remote_code" in given, said


def test_the_check_sees_what_it_looks_for(tmp_path: Path) -> None:
    bad = tmp_path / "bad.py"
    bad.write_text("import torch\ntorch.load('x')\n")
    with pytest.raises(AssertionError, match=r"bad.py:2: torch.load"):
        test_nothing_is_unpickled_or_run(bad)
    for line in ("f(trust_remote_code=True)", "AutoModel.from_pretrained('x')", "run('x', shell=True)", "load('x')"):
        bad.write_text(f"from torch import load\n{line}\n")
        with pytest.raises(AssertionError, match=r"bad.py:[12]: "):
            test_nothing_is_unpickled_or_run(bad)
