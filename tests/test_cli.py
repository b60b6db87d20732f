"""The command line: what is refused before anything heavy loads, always with exit code 2 and the next command."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT, command

from shared.cli import parse_arguments
from shared.commandline import round_options
from shared.errors import SteerHealError
from shared.run import open_run

STAGES = ["gen.extract", "gen.sweep", "gen.filter", "train.heal", "evals.score", "evals.report"]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return open_run(tmp_path / "run", ROOT / "configs" / "smollm2.toml", "").folder


@pytest.mark.parametrize("stage", STAGES)
def test_help_and_a_bare_call(stage: str) -> None:
    assert "--run" in command(stage, "--help").stdout
    bare = command(stage)
    assert (
        bare.returncode == 2 and "error:" in bare.stderr and "next:" in bare.stderr and "Traceback" not in bare.stderr
    )


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["gen.sweep", "--round", "1", "--coefficients", "1", "2"], "--coefficients"),
        (["gen.extract", "--round", "1", "--out", "v.safetensors"], "--out"),
        (["gen.extract", "--round", "0"], "1 or more"),
        (["gen.extract"], "--round"),
        (["gen.filter", "--round", "1"], "sweep.jsonl"),
        (["train.heal", "--round", "2"], "kept.jsonl"),
        (["evals.score", "--round", "1"], "vector.safetensors"),
        (["evals.report"], "has no scores"),
        (["gen.extract", "--round", "1", "--set", "train.lam=9"], "REBUILD=1"),
    ],
)
def test_a_run_refuses_what_it_cannot_do(run: Path, arguments: list[str], part: str) -> None:
    before = sorted(path.name for path in run.rglob("*"))
    done = command(arguments[0], "--run", run, *arguments[1:])
    assert done.returncode == 2 and part in done.stderr and "next:" in done.stderr and "Traceback" not in done.stderr
    assert sorted(path.name for path in run.rglob("*")) == before


def test_a_vector_with_nan_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of another program, since ours writes none."""
    import numpy as np

    from shared.vectors import Vector

    monkeypatch.setattr(Vector, "problem", lambda self: None)
    Vector({14: np.full(576, np.nan, dtype=np.float32)}).save(tmp_path / "v.safetensors")
    done = command(
        *("gen.sweep", "--model", "embedded", "--vector", tmp_path / "v.safetensors", "--coefficients", 0, 1),
        *("--prompts", ROOT / "shared" / "data" / "dilemmas.jsonl", "--out", tmp_path / "sweep.jsonl"),
    )
    assert done.returncode == 2 and "576 values that are NaN" in done.stderr
    assert not (tmp_path / "sweep.jsonl").exists()


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    rows = tmp_path / "file"
    rows.write_text("")
    done = command("shared.begin", "--run", rows / "run", "--config", ROOT / "configs" / "smollm2.toml")
    assert done.returncode == 74 and "could not be written" in done.stderr and "Traceback" not in done.stderr


def test_every_key_is_listed() -> None:
    listed = command("shared.config").stdout
    assert "train.divergence" in listed and "KL(theta||ref)" in listed


def test_shipped_data_carries_a_version() -> None:
    for path in (ROOT / "shared" / "data").glob("*.jsonl"):
        assert all(json.loads(line)["version"] == 1 for line in path.read_text().splitlines()), path.name
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def inside(main: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """A program of this package whose main is these statements."""
    body = "\n".join(f"    {line}" for line in main.splitlines())
    code = f"import sys\nfrom shared.cli import entry\ndef main():\n{body}\nentry(main)"
    return subprocess.run([sys.executable, "-c", code, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True)


def test_an_error_that_nobody_thought_of_is_told_and_kept() -> None:
    done = inside("{}['there is no such key']")
    assert done.returncode == 1 and "Traceback" not in done.stderr and "KeyError: 'there is no such key'" in done.stderr
    kept = Path(re.findall(r"is in (\S+)", done.stderr)[0])
    assert "Traceback" in kept.read_text()
    kept.unlink()


def test_a_polite_kill_is_an_interruption() -> None:
    done = inside("import os, signal, time\nos.kill(os.getpid(), signal.SIGTERM)\ntime.sleep(5)")
    assert done.returncode == 130 and "the same command goes on" in done.stdout + done.stderr


def test_two_stages_do_not_work_in_one_run(run: Path) -> None:
    hold = "from pathlib import Path\nfrom shared.run import open_run\nopen_run(Path(sys.argv[1])).hold()\nprint('held', flush=True)\ninput()"
    code = f"import sys\n{hold}"
    first = subprocess.Popen(
        [sys.executable, "-c", code, str(run)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert first.stdout is not None and first.stdout.readline() == "held\n"
    second = command("gen.extract", "--run", run, "--round", "1")
    assert (
        second.returncode == 75 and f"process {first.pid}" in second.stderr and "one process at a time" in second.stderr
    )
    first.kill()
    first.wait()
    third = command("gen.filter", "--run", run, "--round", "1")  # the lock of a dead process holds nobody
    assert third.returncode == 2 and "lacks its input" in third.stderr


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Path]:
    """A disk without room."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("a small disk cannot be mounted here")
    with contextlib.suppress(OSError), open(place / "filler", "wb", buffering=0) as filler:
        while True:
            filler.write(b"x" * 4096)
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_full_disk(full: Path) -> None:
    line = ["shared.begin", "--run", full / "run", "--config", ROOT / "configs" / "smollm2.toml"]
    done = command(*line)
    assert done.returncode == 74 and "No space left" in done.stderr and "the same command goes on" in done.stderr
    assert not (full / "run" / "config.toml").exists()
    (full / "filler").unlink()
    assert command(*line).returncode == 0 and (full / "run" / "config.toml").is_file()


@pytest.mark.parametrize(
    "save",
    [
        "from safetensors.torch import save_file\nsave_file({'x': torch.ones(65536)}, path)",
        "torch.save(torch.ones(65536), path)",
    ],
)
def test_a_full_disk_under_a_library_that_says_it_otherwise(save: str, full: Path) -> None:
    done = inside(f"import torch\npath = sys.argv[1] + '/x'\n{save}", full)
    assert done.returncode == 74 and "could not be written" in done.stderr and "Traceback" not in done.stderr, (
        done.stderr
    )


@pytest.mark.parametrize(
    "line",
    [
        ["train.heal", "--model", "embedded", "--data", "rows.jsonl"],
        ["train.export", "--model", "embedded", "--adapter", "adapter", "--as", "round"],
    ],
)
def test_a_folder_of_the_users_is_not_replaced(line: list[str], tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    (tmp_path / "adapter").mkdir()
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years")
    given = [tmp_path / word if word in ("rows.jsonl", "adapter") else word for word in line]
    done = command(*given, "--out", mine)
    assert done.returncode == 2 and "thesis.txt" in done.stderr and "other files" in done.stderr, done.stderr
    assert (mine / "thesis.txt").read_text() == "years"


@pytest.mark.parametrize(
    "line",
    [
        ["gen.extract", "--model", "embedded"],
        ["gen.sweep", "--model", "embedded", "--vector", "v", "--prompts", "p", "--coefficients", "0"],
        ["gen.filter", "--in", "sweep.jsonl"],
        ["evals.score", "--model", "embedded"],
    ],
    ids=lambda line: line[0],
)
def test_a_file_of_another_kind_is_not_overwritten(line: list[str], tmp_path: Path) -> None:
    notes = tmp_path / "notes.md"
    notes.write_text("years")
    done = command(*line, "--out", notes)
    assert done.returncode == 2 and "wrong suffix" in done.stderr and notes.read_text() == "years", done.stderr


def test_a_sweep_is_not_written_over_its_prompts(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "years"}\n')
    done = command("gen.sweep", "--model", "embedded", "--vector", "v", "--prompts", prompts, "--coefficients", 0, "--out", prompts)  # fmt: skip
    assert done.returncode == 2 and "written over" in done.stderr and "years" in prompts.read_text(), done.stderr


@pytest.mark.parametrize("stage", ["evals.report", "gen.card", "train.export"])
def test_a_reader_begins_no_run(stage: str, tmp_path: Path) -> None:
    more = [] if stage == "evals.report" else ["--round", "1", "--out", tmp_path / "out"]
    done = command(stage, "--run", tmp_path / "run", "--config", ROOT / "configs" / "smollm2.toml", *more)
    assert done.returncode == 2 and "no such run" in done.stderr and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("raised", "part"),
    [
        ("ValueError('Free memory on device cuda:0 (1.5/23.6 GiB) on startup is less than desired')", "--set model.gpu_memory=0.5"),
        ("ValueError('No available memory for the cache blocks. Try')", "--set model.gpu_memory=0.95"),
        ("torch.OutOfMemoryError('CUDA out of memory. Tried to allocate')", "--set vector.batch_size=4"),
    ],
)  # fmt: skip
def test_a_gpu_that_is_too_small_names_the_setting(raised: str, part: str) -> None:
    done = inside(
        f"import torch\ntry:\n    raise {raised}\nexcept Exception as error:\n    raise RuntimeError('no engine') from error"
    )
    assert done.returncode == 71 and "memory does not suffice" in done.stderr and part in done.stderr, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("loaded", "part"), [("vllm", "model.gpu_memory=0.8"), ("vllm unsloth", "train.gradient_checkpointing=true")]
)
def test_what_ran_out_of_memory_names_its_own_setting(loaded: str, part: str) -> None:
    """Unsloth imports vLLM where it finds it."""
    done = inside(f"import torch\nsys.modules.update(dict.fromkeys('{loaded}'.split()))\nraise torch.OutOfMemoryError('CUDA out of memory')")  # fmt: skip
    assert done.returncode == 71 and part in done.stderr, done.stderr


@pytest.mark.parametrize("raised", ["torch.empty(1 << 60)", "raise MemoryError", "bytearray(1 << 62)"])
def test_what_the_memory_of_the_machine_cannot_hold_is_no_unknown_error(raised: str) -> None:
    done = inside(f"import torch\n{raised}")
    assert done.returncode == 71 and "this machine's memory does not suffice" in done.stderr, done.stderr
    assert "vector.batch_size=4" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("form", ["make", "steer-heal"])
def test_a_run_that_is_not_there_and_nearly_is(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A likely typo of a run begins none, unless a configuration is given; both commands are there to type."""
    monkeypatch.setenv("STEER_HEAL_FORM", form)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny-1").mkdir()
    (tmp_path / "tiny-1" / "config.toml").touch()
    default = ["--default-config", ROOT / "configs" / "smollm2.toml"]
    config = ["--config", ROOT / "configs" / "smollm2.toml"]

    def look(name: str, *words: object) -> tuple[str, Path | None]:
        monkeypatch.setattr("sys.argv", ["round", "--run", name, *map(str, words), "--dry-run"])
        try:
            arguments, run = parse_arguments(round_options(), in_round=False, begins="--report" not in words)
        except SteerHealError as error:
            return error.render(), None
        assert run is not None
        return "", arguments.config

    said, _ = look("tinny-1", *default)
    begun = "RUN=tinny-1 CONFIG=" if form == "make" else "--run tinny-1 --config "
    assert "did you mean tiny-1?" in said and begun in said and ("RUN=tiny-1;" in said or "--run tiny-1;" in said)
    for words in ([], ["--report"]):
        said, _ = look("tinny-1", *words)
        assert "did you mean tiny-1?" in said and f"{begun}configs/smollm2.toml" in said
    for name in ("tiny-2", "other", "tiny"):
        assert look(name, *default) == ("", default[1])
    assert look("tinny-1", *config) == look("tinny-1", *default, "--set", "train.lam=1") == ("", config[1])
    said, _ = look("none", "--report", "--config", "other.toml", "--set", "train.lam=1", "--model", "m/n")
    expected = (
        "make round N=1 RUN=none CONFIG=other.toml MODEL=m/n SET=train.lam=1"
        if form == "make"
        else "steer-heal round --rounds 1 --run none --config other.toml --model m/n --set train.lam=1"
    )
    assert said.endswith(expected), said
