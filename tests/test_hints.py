"""The command that an error names: pasted into a shell, it touches what it means and nothing beside it."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

from gen.windows import Windows
from shared.commands import removal
from shared.errors import SteerHealError
from train.unfinished import Unfinished

ROOT = Path(__file__).parent.parent
CHANGES = re.compile(r"\b(?:rm|mv|cp)(?: -\S*)*\s+\Z")  # what removes or moves the word behind it


def unquoted(source: str) -> list[int]:
    """Lines of a source where a value stands behind rm, mv or cp and is not quoted there."""
    return [
        value.lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.JoinedStr)
        for before, value in zip(node.values, node.values[1:], strict=False)
        if isinstance(before, ast.Constant) and CHANGES.search(str(before.value))
        if isinstance(value, ast.FormattedValue) and not ast.unparse(value.value).startswith("shlex.quote(")
    ]


@pytest.mark.parametrize("package", ["shared", "gen", "train", "evals"])
def test_no_command_removes_or_moves_an_unquoted_path(package: str) -> None:
    found = {path.name: unquoted(path.read_text(encoding="utf-8")) for path in (ROOT / package).rglob("*.py")}
    assert not {name: lines for name, lines in found.items() if lines}


@pytest.mark.parametrize("source", ['f"rm {path}"', 'f"begin again: rm -rf {run.students}; x"', 'f"mv -- {folder} ELSEWHERE"'])  # fmt: skip
def test_an_unquoted_path_would_be_found(source: str) -> None:
    assert unquoted(source) and not unquoted(source.replace("{", "{shlex.quote(").replace("}", ")}"))


@pytest.mark.parametrize("name", ["my run", "-rf", "it's", "a;b", "$HOME", "plain"])
def test_a_removal_removes_one_folder(name: str, tmp_path: Path) -> None:
    for other in {name, name.split()[0], "other"}:
        (tmp_path / other).mkdir()
    subprocess.run(removal(name, folder=True), shell=True, check=True, cwd=tmp_path)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {name.split()[0], "other"} - {name}
    (tmp_path / name).write_text("")
    subprocess.run(removal(tmp_path / name), shell=True, check=True)
    assert not (tmp_path / name).exists()


def pasted(error: SteerHealError) -> None:
    """Run the removal in an error's next step."""
    command = re.search(r"rm (?:-r )?(?:'[^']*'|\S+)", error.next)
    assert command is not None
    subprocess.run(command[0].rstrip(","), shell=True, check=True)


def test_the_next_step_of_an_interrupted_stage_removes_its_folder_alone(tmp_path: Path) -> None:
    mine, theirs = tmp_path / "my run", tmp_path / "my"
    (mine / "rounds").mkdir(parents=True)
    theirs.mkdir()
    done = Windows(mine / "sweep.jsonl")
    done.open({"seed": 1}, rebuild=False)
    done.note("walk", {})
    with pytest.raises(SteerHealError) as caught:
        Windows(mine / "sweep.jsonl").open({"seed": 2}, rebuild=False)
    pasted(caught.value)
    assert not done.folder.exists() and theirs.is_dir()
    Unfinished(mine / "healing", {"seed": 1})
    with pytest.raises(SteerHealError) as caught:
        Unfinished(mine / "healing", {"seed": 2})
    pasted(caught.value)
    assert not (mine / "healing").exists() and theirs.is_dir() and (mine / "rounds").is_dir()
