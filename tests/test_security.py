"""What a file or a request from somebody else must not be able to do."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT

SOURCES = sorted(path for package in ("shared", "gen", "train", "evals") for path in (ROOT / package).rglob("*.py"))
NEVER = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "pickle.load", "pickle.loads", "pickle.Unpickler", "torch.load", "torch.serialization.load", "torch.package", "dill.load", "cloudpickle.load", "yaml.load", "yaml.unsafe_load", "joblib.load", "numpy.load", "marshal.loads", "marshal.load", "shelve.open", "importlib.import_module", "runpy.run_path", "runpy.run_module", "subprocess.getoutput", "subprocess.getstatusoutput", "pandas.read_pickle", *(f"os.{way}{how}" for way in ("exec", "spawn") for how in ("l", "le", "lp", "lpe", "v", "ve", "vp", "vpe")), *(f"builtins.{name}" for name in ("eval", "exec", "compile", "__import__"))}  # fmt: skip

# `vllm serve`, with a command line of our own and no shell; subcommands, by the names in shared/commands.py alone; the list of measures.
OURS = {
    ("serve.py", "os.execv"),
    ("commands.py", "importlib.import_module"),
}


def names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Every name that a file imports or speaks of, dotted and as its module calls it, whatever it is called here."""
    known: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            known.update({one.asname or one.name.partition(".")[0]: one.name if one.asname else one.name.partition(".")[0] for one in node.names})  # fmt: skip
        elif isinstance(node, ast.ImportFrom):
            known.update({one.asname or one.name: f"{node.module}.{one.name}" for one in node.names})
            yield from ((node.lineno, f"{node.module}.{one.name}") for one in node.names)
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Load):
            root, dot, rest = ast.unparse(node).partition(".")
            yield node.lineno, f"{known.get(root, root)}{dot}{rest}"


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """Every call of a file with its dotted name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_nothing_is_unpickled_or_run(path: Path) -> None:
    """safetensors and JSON are all that is read; no shell, and no code of a model's repository."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for line, name in names(tree):
        assert name not in NEVER or (path.name, name) in OURS, f"{path}:{line}: {name}"
    for name, call in calls(tree):
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        said = f"{path}:{call.lineno}: {name}: {given}"
        assert given.get("trust_remote_code", "False") == given.get("shell", "False") == "False", said
        if name.endswith(".from_pretrained") and not name.startswith(
            "Peft"
        ):  # left unset, Transformers asks at the terminal
            assert "trust_remote_code" in given, said


@pytest.mark.parametrize(
    "line",
    [
        "import torch\ntorch.load('x')", "import torch as t\nt.load('x')", "from torch import load\nload('x')", "import torch\nf = torch.load",
        "import torch.serialization\ntorch.serialization.load('x')", "import pickle as p\np.loads(b'')", "import builtins\nbuiltins.eval('1')",
        "f = __import__", "import os\nos.execv('/bin/sh', [])", "f(trust_remote_code=True)", "AutoModel.from_pretrained('x')", "run('x', shell=True)",
        "import numpy as np\nnp.load('x')",
    ],
)  # fmt: skip
def test_the_check_sees_what_it_looks_for(line: str, tmp_path: Path) -> None:
    bad = tmp_path / "bad.py"
    bad.write_text(line + "\n")
    with pytest.raises(AssertionError, match=r"bad.py:[12]: "):
        test_nothing_is_unpickled_or_run(bad)
