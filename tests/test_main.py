"""steer-heal: the same commands under one name, and the words that shells complete."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from conftest import ROOT, command

from shared.commands import COMMANDS, as_typed, command_of, imported, nearest_command, round_command, setting
from shared.main import _typed
from shared.options import Options
from shared.subcommands import options_of


def steer_heal(*words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "shared.main", *map(str, words)]
    return subprocess.run(line, capture_output=True, text=True, cwd=ROOT, env={**os.environ, **environment})


def test_the_list_the_version_and_a_misspelt_command() -> None:
    listed = steer_heal()
    assert listed.returncode == 0 and all(name in listed.stdout for name in COMMANDS)
    assert steer_heal("--help").stdout == listed.stdout
    assert re.fullmatch(r"steer-heal \d+\.\d+\.\d+\n", steer_heal("--version").stdout)
    wrong = steer_heal("swep", "--out", "x")
    assert wrong.returncode == 2 and "did you mean sweep?" in wrong.stderr and "steer-heal sweep --help" in wrong.stderr
    assert "did you mean bench heal?" in steer_heal("bench", "hel").stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_there_under_its_name(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEER_HEAL_FORM", "steer-heal")
    options = options_of(name)
    assert isinstance(options, Options) and options.prog == f"steer-heal {name}"
    shown = options.format_help()
    assert "(default: None)" not in shown and "SUPPRESS" not in shown
    if name != "round":  # its module is loaded where it is run
        assert callable(imported(f"{COMMANDS[name].module}:main"))


def test_help_and_refusals_have_the_form_that_was_typed() -> None:
    assert steer_heal("sweep", "--help").stdout.startswith("usage: steer-heal sweep")
    assert command("gen.sweep", "--help").stdout.startswith("usage: python -m gen.sweep")
    refused = steer_heal("sweep", "--model", "embedded", "--vector", "nope", "--prompts", "p", "--out", "s.jsonl", "--coefficients", "0")  # fmt: skip
    assert refused.returncode == 2 and "steer-heal extract --model embedded --out nope" in refused.stderr
    assert "python -m" not in refused.stderr
    refused = steer_heal("report", "--run", "nope")
    assert "next:     steer-heal round --rounds 1 --run nope" in refused.stderr


def test_it_is_the_code_of_the_module(tmp_path: Path) -> None:
    words = ["--set", "train.lam=0.7", "--config", "configs/smollm2.toml"]
    assert steer_heal("config", *words).stdout == command("shared.config", *words).stdout != ""


def test_the_script_is_declared() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    place = re.search(r'^steer-heal = "([\w.]+):(\w+)"$', text, re.MULTILINE)
    assert place and callable(getattr(import_module(place[1]), place[2]))


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ("make", "make round N=2 RUN='my runs/x' CONFIG=c.toml MODEL=owner/name SET='a=1 b=$$x' REBUILD=1"),
        ("steer-heal", "steer-heal round --rounds 2 --run 'my runs/x' --config c.toml --model owner/name --set 'a=1 b=$x' --rebuild"),
    ],
)  # fmt: skip
def test_a_hint_has_every_option(form: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEER_HEAL_FORM", form)
    given = {"config": Path("c.toml"), "overrides": "a=1 b=$x", "model": "owner/name"}
    assert round_command("my runs/x", 2, rebuild=True, **given) == expected


def test_a_hint_of_steer_heal_has_what_make_has_by_default(tmp_path: Path) -> None:
    """Each hint is typed as it stands, and is taken."""

    def refused(*words: object) -> tuple[str, list[str]]:
        done = steer_heal(*map(str, words))
        assert done.returncode == 2, done.stdout + done.stderr
        hint = done.stderr.splitlines()[-1].removeprefix("  next:     ")
        return done.stderr, shlex.split(hint)

    run = tmp_path / "run"
    for words in (["report", "--run", run], ["round", "--run", run], ["card", "--run", run, "--round", 1]):
        begun = ["steer-heal", "round", "--rounds", "1", "--run", str(run), "--config", "configs/smollm2.toml"]
        assert refused(*words)[1] == begun
    begun = refused("status", "--run", tmp_path / "none")[1]
    assert begun[-4:] == ["--run", "runs/smollm2", "--config", "configs/smollm2.toml"]
    assert steer_heal(*begun[1:-3], str(run), *begun[-2:], "--dry-run").returncode == 0
    said, hint = refused("round", "--rum", run)
    assert "did you mean --run?" in said and hint == ["steer-heal", "round", "--run", str(run)]
    said, hint = refused("round", "--run", run, "--config", "configs/smolm2.toml")
    assert hint[-2:] == ["--config", "configs/smollm2.toml"] and "the same command with" in said


def test_the_hint_for_scores_of_all_items_makes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the command that asked for them and has none."""
    monkeypatch.setenv("STEER_HEAL_FORM", "steer-heal")
    words = shlex.split(round_command("r", mode="full", target="report"))
    arguments = options_of(words[1]).parse_args(words[2:])
    assert arguments.report and (arguments.eval, str(arguments.run)) == ("full", "r")


def test_a_hint_is_a_command_that_make_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEER_HEAL_FORM", "make")
    line = round_command("runs/a b", 2, overrides="vector.trait='it is $HOME.json' train.lam=0.2")
    done = subprocess.run(f"{line} -n LOCK=cpu", shell=True, capture_output=True, text=True, cwd=ROOT)
    assert "--run 'runs/a b'" in done.stdout, done.stdout + done.stderr
    assert """--set 'vector.trait='\\''it is $HOME.json'\\'' train.lam=0.2'""" in done.stdout


def test_settings_are_named_as_they_were_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STEER_HEAL_FORM", raising=False)
    assert (
        setting("a.b=1") == "--set a.b=1"
        and command_of("gen.sweep", "--out", "a b") == "python -m gen.sweep --out 'a b'"
    )
    monkeypatch.setenv("STEER_HEAL_FORM", "make")
    assert setting("a.b=[1, 2]") == "SET='a.b=[1, 2]'"
    monkeypatch.setenv("STEER_HEAL_FORM", "steer-heal")
    again = "make it again: python -m evals.study --help"
    assert as_typed(again) == "make it again: steer-heal study --help"
    monkeypatch.setenv("STEER_HEAL_PROGRAM", ".venv/bin/steer-heal")
    assert as_typed(again) == "make it again: .venv/bin/steer-heal study --help"
    assert round_command("r", 1, config="c").startswith(".venv/bin/steer-heal round ")
    made = 'first python -c "import csv", or make it again: python -m pip install -c python'
    assert as_typed(made) == made.replace("python -c", ".venv/bin/python -c", 1)
    monkeypatch.delenv("STEER_HEAL_PROGRAM")
    assert as_typed(made) == made
    monkeypatch.setenv("STEER_HEAL_FORM", "make")
    assert as_typed(again) == "make it again: .venv/bin/steer-heal study --help"
    assert command_of("shared.begin") == ".venv/bin/python -m shared.begin"


def test_the_script_is_named_as_it_is_typed(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(program)
    monkeypatch.setenv("PATH", os.defpath)
    assert _typed(str(program / "steer-heal")) == "steer-heal" == os.path.basename(_typed("/nowhere/main.py"))
    monkeypatch.chdir(program.parent)
    assert _typed(str(program / "steer-heal")) == "bin/steer-heal"
    monkeypatch.setenv("PATH", str(program))
    assert _typed(str(program / "steer-heal")) == "steer-heal"


def test_the_nearest_word() -> None:
    assert nearest_command("train.lamda", ["train.lam", "train.layers"]) == "train.lam"
    assert nearest_command("n", ["N", "RUN"]) == "N" and nearest_command("zzz", ["N", "RUN"]) is None


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A folder with steer-heal in it, as pip would write it."""
    script = tmp_path / "bin" / "steer-heal"
    script.parent.mkdir()
    script.write_text(
        f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(ROOT)!r})\nfrom shared.main import main\nmain()\n"
    )
    script.chmod(0o755)
    return script.parent


BASH = """
eval "$(steer-heal completion bash)"
COMP_LINE=$1 COMP_POINT=${#1} COMP_TYPE=9
read -ra COMP_WORDS <<< "$1"
[[ $1 == *' ' ]] && COMP_WORDS+=('')
COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
_python_argcomplete steer-heal
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("steer-heal sw", ["sweep"]),
        ("steer-heal co", ["compare", "config", "completion"]),
        ("steer-heal bench ", ["setup", "sweep", "heal", "score"]),
        ("steer-heal sweep --co", ["--config", "--coefficients"]),
        ("steer-heal score --model embedded --deb", ["--debias"]),
        ("steer-heal export --as ", ["round", "history", "merged"]),
        ("steer-heal round --eval f", ["full"]),
        ("steer-heal nothing --", [""]),
        ("steer-heal --v", ["--version"]),
    ],
)
def test_bash_completes(typed: str, words: list[str], program: Path) -> None:
    environment = {**os.environ, "PATH": f"{program}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", BASH, "bash", typed], capture_output=True, text=True, env=environment)
    assert [word.strip() for word in done.stdout.rstrip("\n").split("\n")] == words, done.stdout + done.stderr


def test_every_shell_has_its_script() -> None:
    for shell, mark in (("bash", "complete "), ("zsh", "compdef"), ("fish", "complete --command steer-heal")):
        assert mark in steer_heal("completion", shell).stdout
    refused = steer_heal("completion", "bsh")
    assert refused.returncode == 2 and "did you mean bash?" in refused.stderr


def test_completion_imports_nothing_that_takes_long(tmp_path: Path) -> None:
    code = "import sys, atexit\natexit.register(lambda: None)\nfrom shared.subcommands import options_of\nfrom shared import completion\nfrom shared.commands import COMMANDS\nfor name in COMMANDS: options_of(name)\nprint(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout.split()
    assert not {"pydantic", "numpy", "rich", "tomlkit", "torch", "huggingface_hub"} & set(loaded)


@pytest.mark.skipif(not shutil.which("make"), reason="no make")
@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["round", "n=2"], "did you mean N?"),
        (["round", "N=2", "MODLE=x"], "next:     make round N=2 MODEL=x"),
        (["help", "XYZZY=1"], "one of CONFIG"),
        (["round", "N=0"], "a whole number from 1"),
        (["round", "N=two"], "a whole number from 1"),
        (["round", "N=1 2"], "a whole number from 1"),
        (["round", "REBUILD=0"], "REBUILD=1, or none"),
        (["study", "SET=train.lam=1"], "rounds, models and settings are those of its [study] table"),
        (["report", "N=2", "RUN=runs/x"], "next:     make report RUN=runs/x"),
        (["doctor", "VECTORS=a=b"], "make doctor does not use VECTORS"),
        (["round", "VECTORS=a=b", "N=2"], "next:     make round N=2"),
        (["bench", "CONFIG=c.toml"], "expected: no variables"),
        (["rond", "N=2"], "next:     make round N=2"),
        (["tests"], "did you mean test?"),  # which is a folder
        (["xyzzy"], "next:     make help"),
    ],
)
def test_make_refuses_what_it_would_pass_over(words: list[str], part: str) -> None:
    done = subprocess.run(["make", *words], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2 and part in done.stderr, done.stderr


@pytest.mark.skipif(not shutil.which("make"), reason="no make")
@pytest.mark.parametrize("target", ["round", "report", "study", "serve", "verify", "status", "doctor"])
def test_hints_under_make_are_in_its_form(target: str, tmp_path: Path) -> None:
    """The form is what `make` hands its commands, and hints compare it whole."""
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\ncase $1 in -c) ;; *) echo "<$STEER_HEAL_FORM>" ;; esac\n')
    python.chmod(0o755)
    for name in ("requirements", "pyproject.toml", "Makefile"):
        (tmp_path / name).symlink_to(ROOT / name)
    done = subprocess.run(
        ["make", target, "LOCK=cpu", "-o", ".venv/.ready-cpu"], capture_output=True, text=True, cwd=tmp_path
    )  # which is also that no target refuses to begin
    assert done.stdout == "<make>\n", done.stdout + done.stderr


@pytest.mark.skipif(not shutil.which("make"), reason="no make")
@pytest.mark.parametrize("lock", ["cpu", "gpu"])
def test_the_lock_is_that_of_the_environment(lock: str, tmp_path: Path) -> None:
    """On a machine with a GPU, set up with LOCK=cpu, `make round` goes on with it; and the other way round."""
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / f".ready-{lock}").touch()
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "nvidia-smi").symlink_to("/bin/true")

    def chosen(path: str) -> str:
        line = ["make", "-f", str(ROOT / "Makefile"), "--eval", "lock: ; @echo $(LOCK)", "lock"]
        environment = {**os.environ, "PATH": path}
        return subprocess.run(line, capture_output=True, text=True, cwd=tmp_path, env=environment).stdout.strip()

    assert chosen(f"{programs}:{os.environ['PATH']}") == lock == chosen(os.environ["PATH"])
    (tmp_path / ".venv" / f".ready-{lock}").unlink()
    assert chosen(f"{programs}:{os.environ['PATH']}") == "gpu"


def test_make_begins_with_what_is_given_and_goes_on_with_what_is_frozen(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()

    def line(*words: str, **environment: str) -> str:
        done = subprocess.run(
            ["make", "-n", "round", *words], capture_output=True, text=True, cwd=ROOT, env={**os.environ, **environment}
        )
        return next(text for text in done.stdout.splitlines() if "--run" in text)

    here = f"RUN={tmp_path}/run"
    assert "--default-config 'configs/smollm2.toml'" in line(here)
    (tmp_path / "run" / "config.toml").touch()
    assert "--config" not in line(here) and "--config 'c.toml'" in line(here, "CONFIG=c.toml")
    assert "--config 'c.toml'" in line(here, CONFIG="c.toml")
    assert "--set 'train.lam=1'" in line(here, "SET=train.lam=1") and "--config" not in line(here, "SET=train.lam=1")
    named = line("MODEL=Qwen/Qwen3-0.6B")
    assert "--model 'Qwen/Qwen3-0.6B'" in named and "--run 'runs/Qwen3-0.6B'" in named
    assert "--run 'runs/smollm2'" in line() and "--model" not in line()
    report = subprocess.run(["make", "-n", "report", "CONFIG=c.toml"], capture_output=True, text=True, cwd=ROOT).stdout
    assert "--run 'runs/c' --config 'c.toml'" in " ".join(report.split())
    doctor = subprocess.run(["make", "-n", "doctor", "RUN=/big"], capture_output=True, text=True, cwd=ROOT).stdout
    assert "shared.doctor --run '/big'" in doctor
    for target in ("serve", "verify"):
        command = ["make", "-n", "-o", ".venv/.ready-cpu", target, "LOCK=cpu"]
        plain, model = (
            subprocess.run([*command, *words], capture_output=True, text=True, cwd=ROOT).stdout
            for words in ([], ["MODEL=Qwen/Qwen3-0.6B"])
        )
        assert "--config" in plain and "--model" not in plain and "--model 'Qwen/Qwen3-0.6B'" in model
