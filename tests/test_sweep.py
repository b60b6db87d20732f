"""Sweeps through the real command line: rows against HF, killed and gone on with, and walked."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT, command
from synthetic_run import IDENTITY

from shared.chat import Chat
from shared.errors import Exit
from shared.models import Model
from shared.publish import seal_of
from shared.records import Completion, read_jsonl
from shared.run import open_run
from shared.stage import Stage
from shared.text import distinct_n
from shared.traits import load_trait
from shared.vectors import Vector

pytestmark = pytest.mark.slow

PROMPTS = ["Should I obey a rule that hurts my sister?", "Name a fruit."]
SMALL = "model.dtype=float32 model.max_model_len=512 filter.drop_truncated=false filter.min_tokens=1"


@pytest.fixture(scope="session")
def model(small_model: Model) -> Model:
    return small_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, model: Model, small_vector: Vector) -> Path:
    made = tmp_path_factory.mktemp("sweep")
    (made / "model").symlink_to(model.folder)
    small_vector.save(made / "v.safetensors")
    (made / "p.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in PROMPTS))
    return made


def arguments(folder: Path, out: str, window: int = 5) -> list[object]:
    return [
        "gen.sweep", "--model", folder / "model", "--vector", folder / "v.safetensors", "--prompts", folder / "p.jsonl", "--coefficients", 0, 1, 2, "--samples", 2,
        "--set", f"{SMALL} sweep.max_tokens=12 sweep.window={window}", "--out", folder / out,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def swept(folder: Path) -> subprocess.CompletedProcess[str]:
    """12 rows in windows of 5, 5 and 2, uninterrupted."""
    done = command(*arguments(folder, "s.jsonl"))
    assert done.returncode == 0, done.stderr
    return done


def stopped(arguments: list[object], seen: Path, how: signal.Signals) -> tuple[int, str]:
    """Run a command until a file appears, then send a signal; (exit status, output)."""
    with subprocess.Popen(
        [sys.executable, "-m", *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # A shell's background job ignores Ctrl-C, and so would its children: the command is to run as at a terminal.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        while process.poll() is None and not seen.exists():
            time.sleep(0.02)
        process.send_signal(how)
        output = process.communicate()[0]
    return process.returncode, output


def test_rows_are_scored_as_hf_scores_them(
    swept: subprocess.CompletedProcess[str], folder: Path, model: Model, tokenizer: object
) -> None:
    from transformers import AutoModelForCausalLM

    assert "trait_llr" in swept.stdout and "relative dose" in " ".join(swept.stdout.split())
    assert "window 3 of 3: 12 rows, kept 0:" in swept.stdout
    rows = read_jsonl(folder / "s.jsonl", Completion, made_by="-")
    assert len(rows) == 12 and {row.coefficient for row in rows} == {0.0, 1.0, 2.0}
    network = AutoModelForCausalLM.from_pretrained(model.folder, dtype=torch.float32).eval()
    trait = load_trait("embedded")

    def nll(prompt: list[int], completion: list[int]) -> torch.Tensor:
        with torch.inference_mode():
            table = network(torch.tensor([[*prompt, *completion]])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        return -table[torch.arange(len(completion)), torch.tensor(completion)]

    for row in rows:
        text = PROMPTS[int(row.key[:5])]
        assert row.prompt_ids == Chat(tokenizer).ids([{"role": "user", "content": text}], trait.neutral)
        ours = nll(row.prompt_ids, row.completion_ids)
        other = nll(Chat(tokenizer).ids([{"role": "user", "content": text}], trait.trait), row.completion_ids)
        assert torch.log(torch.tensor(row.perplexity)).item() == pytest.approx(ours.mean().item(), abs=1e-4)
        assert torch.log(torch.tensor(row.perplexity_last_quarter)).item() == pytest.approx(
            ours[3 * len(ours) // 4 :].mean().item(), abs=1e-4
        )
        assert row.trait_llr == pytest.approx((ours - other).mean().item(), abs=1e-4)
        assert row.distinct_3 == distinct_n(row.completion_ids, 3)
        assert row.logprobs is not None, "so few rows all record their log-probabilities"
        assert row.logprobs.original == pytest.approx((-ours).tolist(), abs=1e-3)
        assert row.logprobs.student == row.logprobs.original, "the student is the original"


def test_completions_under_the_trait_prompt_take_the_place_of_steered_ones(
    swept: subprocess.CompletedProcess[str], folder: Path, tokenizer: object
) -> None:
    """The unsteered rows stay what they are; the filter keeps none but the others, which are trained under the neutral prompt."""
    words = [*map(str, arguments(folder, "prompted.jsonl"))]
    words[words.index("--set") + 1] += " filter.source=prompted filter.min_kept=1"
    done = command(*words)
    assert done.returncode == 0 and "trait prompt" in done.stdout, done.stderr
    rows = read_jsonl(folder / "prompted.jsonl", Completion, made_by="-")
    before = {row.key: row for row in read_jsonl(folder / "s.jsonl", Completion, made_by="-")}
    prompted = [row for row in rows if row.prompted]
    assert (len(rows), len(prompted)) == (12, 8) and all(row.logprobs for row in prompted)
    for row in rows:
        text = PROMPTS[int(row.key[:5])]
        assert row.prompt_ids == Chat(tokenizer).ids(
            [{"role": "user", "content": text}], load_trait("embedded").neutral
        )
        if not row.prompted:
            assert row.completion_ids == before[row.key].completion_ids
    unsteered = [row.trait_llr for row in rows if not row.prompted]
    assert sum(row.trait_llr for row in prompted) / 8 > sum(unsteered) / 4
    filtered = command("gen.filter", "--in", folder / "prompted.jsonl", "--out", folder / "f", "--set", f"{SMALL} filter.source=prompted filter.min_kept=1")  # fmt: skip
    assert filtered.returncode == 0, filtered.stderr
    kept = read_jsonl(folder / "f" / "kept.jsonl", Completion, made_by="-")
    assert kept and all(row.prompted for row in kept)


def test_a_killed_sweep_goes_on_and_its_rows_are_the_same_bytes(
    swept: subprocess.CompletedProcess[str], folder: Path, tmp_path: Path
) -> None:
    windows = folder / ".again.jsonl.windows"
    status, _ = stopped(arguments(folder, "again.jsonl"), seal_of(windows / "00000.jsonl"), signal.SIGKILL)
    assert status == -signal.SIGKILL and not (folder / "again.jsonl").exists()
    whole = windows / "00000.jsonl"
    before = whole.stat().st_mtime_ns
    refused = command(*arguments(folder, "again.jsonl", window=4))
    assert refused.returncode == 2 and "window = 4 (was 5)" in refused.stderr and "--rebuild" in refused.stderr
    assert whole.stat().st_mtime_ns == before
    other = tmp_path / "other code"
    for name in ("gen", "shared", "train", "evals"):
        shutil.copytree(ROOT / name, other / name, ignore=shutil.ignore_patterns("__pycache__"))
    with open(other / "gen" / "prompts.py", "a") as source:  # renders the prompts, and is imported by a sweep alone
        source.write("\n# as after a pull\n")
    refused = command(*arguments(folder, "again.jsonl"), cwd=other)
    assert refused.returncode == Exit.MACHINE and "begun by other code" in refused.stderr, refused.stderr
    assert f"rm -r {windows}" in refused.stderr and whole.stat().st_mtime_ns == before
    again = command(*arguments(folder, "again.jsonl"))
    assert again.returncode == 0, again.stderr
    assert "of 3 windows are finished" in again.stdout and "window 1 of 3" not in again.stdout
    assert (folder / "again.jsonl").read_bytes() == (folder / "s.jsonl").read_bytes()
    assert not windows.exists()


@pytest.mark.long
def test_an_interrupted_walk_keeps_its_answer(folder: Path, vector: Vector) -> None:
    """In a run: Ctrl-C after the first window, then the same command; the answer is in the manifest."""
    card = "---\nconfigs:\n- config_name: asked\n  data_files:\n  - split: train\n    path: rows.jsonl\n---\n"
    (folder / "set").mkdir()
    (folder / "set" / "README.md").write_text(card)
    (folder / "set" / "rows.jsonl").write_text((folder / "p.jsonl").read_text())
    run = folder / "run"
    round_ = run / "rounds" / "01"
    vector.save(round_ / "vector.safetensors")
    overrides = (
        f"{SMALL} sweep.max_tokens=8 sweep.window=4 sweep.n_mundane=6 sweep.samples=2 sweep.dose=walk sweep.survival=0.25 "
        f"sweep.dose_ceiling=8 sweep.dose_steps=3 sweep.dose_prompts=8 sweep.dilemmas={folder / 'set'}:asked:train"
    )
    made = Stage(
        open_run(run, None, overrides), 1, "extract", settings={}, inputs={}, outputs=[round_ / "vector.safetensors"]
    )
    made.finish(IDENTITY)
    walk = ["gen.sweep", "--run", run, "--round", 1, "--set", overrides]
    windows = round_ / ".sweep.jsonl.windows"
    status, output = stopped(walk, seal_of(windows / "00000.jsonl"), signal.SIGINT)
    assert status == 130 and "survive at 8" in output, output
    noted = json.loads((windows / "plan.json").read_text())["notes"]["walk"]
    assert not (round_ / "manifests" / "sweep.json").exists()
    done = command(*walk)
    assert done.returncode == 0, done.stderr
    assert "survive at" not in done.stdout and "of 8 windows are finished" in done.stdout and "survival" in done.stdout
    rows = read_jsonl(round_ / "sweep.jsonl", Completion, made_by="-")
    assert len(rows) == 8 * 2 * 2 and {row.coefficient for row in rows} == {0.0, noted["coefficient"]}
    manifest = json.loads((round_ / "manifests" / "sweep.json").read_text())
    assert manifest["counts"]["walk"] == noted and manifest["counts"]["rows"] == 32
    assert manifest["settings"]["sweep"]["survival"] == 0.25 and "coefficients" not in manifest["settings"]["sweep"]
    assert [probe["coefficient"] for probe in noted["probes"]][:2] == [0.0, 8.0]
    assert not windows.exists()
    windows.mkdir()  # as an interruption after the manifest leaves it
    again = command(*walk)
    assert again.returncode == 0 and "nothing to do" in again.stdout and not windows.exists()
    with open(folder / "set" / "rows.jsonl", "a") as handle:
        handle.write('{"prompt": "Name a tree."}\n')
    changed = command(*walk)
    assert changed.returncode == 2 and "input dilemmas changed" in changed.stderr


def test_two_workers_make_the_same_bytes_also_where_one_is_killed(
    swept: subprocess.CompletedProcess[str], folder: Path
) -> None:
    """Killed with its first window at work, which another worker makes; no process is left behind."""
    line = [sys.executable, "-m", *map(str, arguments(folder, "two.jsonl")), "--workers", "2"]
    output, killed = [], []
    with subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        for text in process.stdout:
            output.append(text)
            found = re.match(r"worker (\d+): process (\d+) on ", text)
            if found and not killed:
                killed.append(int(found[2]))
                os.kill(killed[0], signal.SIGKILL)
    said = "".join(output)
    assert process.returncode == 0, said
    assert "is lost (killed by signal 9" in said and "another worker makes it" in said, said
    assert (folder / "two.jsonl").read_bytes() == (folder / "s.jsonl").read_bytes()
    workers = [int(number) for number in re.findall(r"worker \d+: process (\d+)", said)]
    assert len(workers) >= 2 and not any(Path(f"/proc/{number}").exists() for number in workers)
