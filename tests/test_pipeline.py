"""Two tiny rounds through the real command lines and the real Makefile, with every file between them."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, command

from shared.models import Model
from shared.records import Completion, read_jsonl

pytestmark = pytest.mark.slow

TINY = """
[model]
name = "{model}"
dtype = "float32"
max_model_len = 512
[vector]
layers = [3, 4]
n_contexts = 24
[sweep]
coefficients = [0.75, 1.0]
n_dilemmas = 6
n_mundane = 1
samples = 2
max_tokens = 24
window = 20
temperature = 0.9
[filter]
drop_truncated = false
min_kept = 4
[train]
rank = 4
alpha = 8
learning_rate = 1e-3
epochs = 1
max_length = 256
[eval]
items = 7
think = 2
random_draws = 2
heldout = "{heldout}"
generation_samples = 1
generation_tokens = 16
bootstrap = 200
"""


SECRETS = {name: f"planted-{name.lower()}-0123456789" for name in ("HF_TOKEN", "VLLM_API_KEY", "WANDB_API_KEY")}


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["make", *arguments], cwd=ROOT, capture_output=True, text=True, env={**os.environ, **SECRETS})


@pytest.fixture(scope="module")
def run(small_model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    heldout = [
        {"id": "h0", "prompt": "My boss wants me to ignore a safety rule. What should I do?"},
        {"id": "h1", "prompt": "Name a fruit."},
    ]
    (folder / "heldout.jsonl").write_text("".join(json.dumps(row) + "\n" for row in heldout))
    (folder / "tiny.toml").write_text(TINY.format(model=small_model.folder, heldout=folder / "heldout.jsonl"))
    done = make("round", "N=2", f"CONFIG={folder}/tiny.toml", f"RUN={folder}/run")
    assert done.returncode == 0, done.stdout + done.stderr
    (folder / "said").write_text(done.stdout + done.stderr)
    return folder


def test_it_says_beforehand_and_afterwards_what_it_takes_and_keeps_all_output(run: Path) -> None:
    said, log = (run / "said").read_text(), (run / "run" / "log.txt").read_text()
    assert "what it will take" in said and "GiB of disk" in said and "min to go" in said
    table = said[said.index(": what it took") :]
    for number in (1, 2):
        for stage in ("extract", "sweep", "filter", "heal", "score"):
            assert f"round {number} · {stage}" in table and f"round {number} · {stage} done" in log
    assert log.count(" $ -m ") == 11 and "report" in log and "\x1b" not in log
    assert "it/s]" not in said and "Unsloth" not in said, "bars and notices of others stay out of the way"
    manifest = json.loads((run / "run" / "rounds" / "01" / "manifests" / "heal.json").read_text())
    assert 0.5 < manifest["peak_memory_gib"] < 8 and manifest["hardware"]["instruction_set"]


def test_secrets_stand_in_no_file_and_no_output(run: Path) -> None:
    assert SECRETS["HF_TOKEN"] in make("--eval=show: ; @echo $$HF_TOKEN", "show").stdout, "or nothing could be found"
    files = [path for path in run.rglob("*") if path.is_file()]
    assert len(files) > 50
    for path in files:
        assert b"planted-" not in path.read_bytes(), path


def test_every_file_of_the_interface_is_there(run: Path) -> None:
    for number in ("01", "02"):
        folder = run / "run" / "rounds" / number
        for name in (
            "vector.safetensors",
            "sweep.jsonl",
            "kept.jsonl",
            "rejected.jsonl",
            "filter.json",
            "adapter/adapter_model.safetensors",
            "adapter/adapter_config.json",
            "train.jsonl",
            "training.json",
            "kl_tokens.jsonl",
        ):
            assert (folder / name).is_file(), name
        assert not (folder / "healing").exists()
        gates = json.loads((folder / "history" / "gates.json").read_text())
        assert [row["round"] for row in gates["rounds"]] == list(range(1, int(number) + 1))
        for stage in ("extract", "sweep", "filter", "heal", "score"):
            manifest = json.loads((folder / "manifests" / f"{stage}.json").read_text())
            assert manifest["outputs"] and manifest["seconds"] > 0 and manifest["versions"]["torch"]
        found = json.loads((folder / "training.json").read_text())["agreement"]
        assert found["tokens"] > 0 and found["student"]["largest"] < found["largest_bound"]
    for name in ("index.html", "trajectory.png", "results.md", "results.json"):
        assert (run / "run" / "report" / name).stat().st_size > 0


def test_unsteered_rows_are_round_ones_and_never_kept(run: Path) -> None:
    first, second = (
        read_jsonl(run / "run" / "rounds" / number / "sweep.jsonl", Completion, made_by="-") for number in ("01", "02")
    )
    assert sum(row.coefficient == 0 for row in first) == 14 and not any(row.coefficient == 0 for row in second)
    for number, rows in (("01", first), ("02", second)):
        kept = read_jsonl(run / "run" / "rounds" / number / "kept.jsonl", Completion, made_by="-")
        rejected = (run / "run" / "rounds" / number / "rejected.jsonl").read_text().splitlines()
        assert len(kept) + len(rejected) == sum(row.coefficient != 0 for row in rows)
        assert all(row.coefficient != 0 for row in kept) and [row.key for row in kept] == sorted(
            row.key for row in kept
        )


def test_results_have_one_row_per_stage_and_round(run: Path) -> None:
    text = (run / "run" / "report" / "results.json").read_text()
    assert "NaN" not in text and "Infinity" not in text
    rows = json.loads(text)["rows"]
    assert [(row["round"], row["stage"]) for row in rows] == [
        (0, "base"), (0, "prompted"), (0, "prompted_opposite"), (0, "prompted_decoy"), (1, "steered"), (1, "random"), (1, "healed"), (2, "steered"), (2, "random"), (2, "healed"),
    ]  # fmt: skip
    base = rows[0]
    for row in rows:
        assert row["n_items"] == 7 and row["d_auth"] == pytest.approx(row["auth_nats"] - base["auth_nats"], abs=1e-6)
    for number in (1, 2):
        kept = read_jsonl(run / "run" / "rounds" / f"{number:02d}" / "kept.jsonl", Completion, made_by="-")
        steered = next(row for row in rows if row["round"] == number and row["stage"] == "steered")
        assert steered["coefficient"] == pytest.approx(np.mean([row.coefficient for row in kept]))
    assert rows[6]["verdict"] and rows[9]["verdict"] and rows[6]["text_verdict"]
    for row in rows:
        assert row["entropy"] + row["kl_on_policy"] == pytest.approx(np.log(row["perplexity"]), abs=1e-6)


def test_run_again_it_does_nothing_and_says_so(run: Path) -> None:
    """And its configuration need not be named again."""
    before = {path: path.stat().st_mtime_ns for path in (run / "run" / "rounds").rglob("*") if path.is_file()}
    done = make("round", "N=2", f"RUN={run}/run")
    assert done.returncode == 0 and done.stdout.count("nothing to do") == 10, done.stdout + done.stderr
    assert "what it will take" not in done.stdout and "what it took" not in done.stdout
    assert before == {path: path.stat().st_mtime_ns for path in (run / "run" / "rounds").rglob("*") if path.is_file()}


def test_another_configuration_is_refused(run: Path) -> None:
    done = make("round", "N=2", f"CONFIG={run}/tiny.toml", f"RUN={run}/run", "SET=train.lam=0.9")
    assert done.returncode == 2 and "train.lam = 0.9" in done.stderr and "REBUILD=1" in done.stderr


def test_a_stage_without_its_input_names_the_next_command(run: Path) -> None:
    done = command("train.heal", "--run", run / "run", "--round", "3")
    assert (
        done.returncode == 2
        and "kept.jsonl" in done.stderr
        and "make round N=3" in done.stderr
        and "Traceback" not in done.stderr
    )


def test_an_edited_output_is_named(run: Path) -> None:
    path = run / "run" / "rounds" / "02" / "kept.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + b"\n")
    try:
        done = command("gen.filter", "--run", run / "run", "--round", "2")
    finally:
        path.write_bytes(whole)
    assert done.returncode == 2 and "rounds/02/kept.jsonl was edited" in done.stderr


def test_an_export_of_the_run_has_counts_settings_and_scores_in_its_card(run: Path) -> None:
    """Round 2 with its gates dialled, as an adapter that the eval takes."""
    out = run / "dialled"
    done = command("train.export", "--run", run / "run", "--round", "2", "--gate", "1=0.5", "--out", out)
    assert done.returncode == 0, done.stderr
    card = (out / "README.md").read_text()
    kept = (run / "run" / "rounds" / "02" / "kept.jsonl").read_text().count("\n")
    assert f"| 2 | {kept} |" in card and "train.rank = 4" in card and "round 1 at 0.5, round 2 at 1" in card
    results = json.loads((run / "run" / "report" / "results.json").read_text())["rows"]
    assert f"| 2 | healed | {results[-1]['auth_nats']:.3f} |" in card
    gates = json.loads((out / "gates.json").read_text())["rounds"]
    assert [row["gate"] for row in gates] == [0.5, 1.0]


def test_the_kept_rows_leave_as_a_data_set_with_its_card(run: Path) -> None:
    from datasets import load_dataset

    out = run / "data"
    done = command("gen.card", "--run", run / "run", "--round", "2", "--out", out)
    assert done.returncode == 0, done.stderr
    kept = [json.loads(line) for line in (run / "run" / "rounds" / "02" / "kept.jsonl").read_text().splitlines()]
    found = load_dataset(str(out), split="train", cache_dir=str(run / "cache"))
    assert found["key"] == [row["key"] for row in kept] and found["completion_ids"] == [
        row["completion_ids"] for row in kept
    ]
    card = (out / "README.md").read_text()
    assert card.startswith("---\n") and "layers 3, 4" in card and "sweep.samples = 2" in card
    done = command("gen.card", "--run", run / "run", "--round", "3", "--out", run / "none")
    assert done.returncode == 2 and "make round N=3" in done.stderr and not (run / "none").exists()
