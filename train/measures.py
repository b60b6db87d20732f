"""What the trainer's benchmark measures: steps, losses and their memory, against the naive trainer and plain SFT.

Step times are those of one optimiser step on one batch, the sides in turn. A loss's peak memory is that of the process while it
computes loss and gradient from final hidden states, above what it held before, in a fresh process for each value.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from train.unsloth_model import CURRENT, load_student  # isort: skip (Unsloth comes before transformers)

import torch

from shared.chat import load_tokenizer, render
from shared.config import resolve
from shared.console import console
from shared.models import resolve as resolve_model
from shared.ratios import Side, interleave, ratio, record, warm
from shared.records import Prompt, data_file, read_jsonl
from shared.traits import load_trait
from train.data import IGNORED, Example, collate
from train.naive import Naive, naive_loss
from train.objective import Head, barrier, per_position
from train.reference import reference_states
from train.trainer import HealTrainer
from train.unfinished import Unfinished

# What configs/smollm2.toml trains with; tau 0 keeps the barrier on, which is what costs.
SETTINGS = "model.dtype=float32 train.rank=16 train.alpha=32 train.layers=0.2-0.8 train.batch_size=8 train.lam=0.3 train.tau=0 train.heldout=0"
ROWS, TOKENS = 8, 48
WORDS, HIDDEN = 49_152, 576  # the embedded model's head
MANY_WORDS, MANY_HIDDEN = 262_144, 640  # that of Gemma 3 270M
SIDES = ("ours", "naive")


def rows(tokenizer: Any) -> list[Example]:
    """A batch as rounds have it: dilemmas under the neutral prompt, completions of equal length (the text of other dilemmas)."""
    prompts = read_jsonl(data_file("embedded", "dilemmas.jsonl"), Prompt, made_by="git checkout shared/data")
    neutral = load_trait("embedded").neutral
    said = tokenizer(" ".join(row.turns[-1]["content"] for row in prompts), add_special_tokens=False)["input_ids"]
    return [
        Example(render(tokenizer, row.turns, neutral), said[index * TOKENS : (index + 1) * TOKENS], str(index))
        for index, row in enumerate(prompts[:ROWS])
    ]


def steps(rounds: int) -> dict[str, Any]:
    """Time of an optimiser step: ours against the naive trainer, and against plain SFT of the same student."""
    config, model = resolve(None, SETTINGS)[0], resolve_model("embedded")
    examples = rows(load_tokenizer(str(model.folder)))
    student = load_student(model, config, None)
    batch = collate(examples)
    answers = [example.completion for example in examples]
    with TemporaryDirectory() as scratch:
        work = Unfinished(Path(scratch) / "work", {})
        states = reference_states(student, examples, (), work.states("base"), {}, "auto", ROWS)
        trainer = HealTrainer(student, examples, [], {"base": states}, config, config.train.lam, work, Path(scratch))
        trainer.create_optimizer_and_scheduler(1000)
        trainer.current_gradient_accumulation_steps = 1
        parameters = list(student.current.values())

        def finish() -> list[list[int]]:
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            trainer.optimizer.step()
            trainer.optimizer.zero_grad()
            return answers

        def ours() -> list[list[int]]:
            mine = {**batch, "row": torch.arange(ROWS)}
            trainer.training_step(trainer.model, mine, torch.tensor(ROWS * TOKENS))
            return finish()

        def sft() -> list[list[int]]:
            student.network.train()
            student.network(**batch, use_cache=False).loss.backward()
            return finish()

        naive = Naive(model.folder, student.network.peft_config[CURRENT].target_modules, config.train)

        def theirs() -> list[list[int]]:
            naive.step(batch)
            return answers

        sides = {"ours": Side(ours), "naive": Side(theirs), "sft": Side(sft)}
        warm(sides)
        interleave("optimiser steps", sides, rounds)
    size = f"{ROWS} rows of {sum(map(len, examples)) // ROWS} tokens on average, {TOKENS} of them completion, fp32"
    return {
        "heal_step_over_naive": ratio(sides["ours"], sides["naive"], f"time of an optimiser step with the barrier over the naive trainer's (two forwards, full log-softmax; Hugging Face and PEFT); {size}", bound=0.75),
        "heal_step_over_sft": ratio(sides["ours"], sides["sft"], f"time of an optimiser step with the barrier and a cached reference over plain Unsloth SFT; {size}", bound=1.25),
    }  # fmt: skip


def loss(side: str, words: int, hidden: int, prompt: int, completion: int) -> Any:
    """A call that computes loss and gradient from final hidden states of `ROWS` rows; the naive side takes prompts through too."""
    draws = torch.Generator().manual_seed(0)
    weight = torch.randn(words, hidden, generator=draws) * 0.05
    length = prompt + completion
    labels = torch.randint(words, (ROWS, length), generator=draws)
    labels[:, :prompt] = IGNORED
    states = torch.randn(ROWS, length, hidden, generator=draws)
    reference = states + 0.1 * torch.randn(ROWS, length, hidden, generator=draws)
    config = resolve(None, SETTINGS)[0].train

    def naive() -> torch.Tensor:
        x = states.clone().requires_grad_()
        with torch.no_grad():
            theirs = reference @ weight.T
        naive_loss(x @ weight.T, theirs, labels, config.lam, config.tau).backward()
        assert x.grad is not None
        return x.grad

    def ours() -> torch.Tensor:
        x = states.clone().requires_grad_()
        predicts = labels[:, 1:] != IGNORED
        at, goal, other = x[:, :-1][predicts], labels[:, 1:][predicts], reference[:, :-1][predicts]
        found = per_position(at, goal, [other], Head(weight), "kl_rev", config.chunk)
        (found.ce.mean() + barrier(found.kl[0], "kl_rev", "rmse", config.lam, config.tau)).backward()
        assert x.grad is not None
        return x.grad

    return {"ours": ours, "naive": naive}[side]


def peak(call: Any) -> float:
    """MiB by which the process's peak exceeds what it held before the call (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak back to the present
    status = Path("/proc/self/status")

    def mib(name: str) -> float:
        return int(next(line for line in status.read_text().splitlines() if line.startswith(name)).split()[1]) / 1024

    before = mib("VmRSS")
    call()
    return mib("VmHWM") - before


def memory(side: str, words: int, hidden: int, prompt: int, completion: int) -> float:
    """Peak memory of a loss in a process of its own, MiB."""
    command = [sys.executable, "-m", "train.bench", "--memory", side, *map(str, (words, hidden, prompt, completion))]
    return float(
        json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    )


def memories(repeats: int) -> dict[str, Any]:
    prompt = sum(len(example.prompt) for example in rows(load_tokenizer(str(resolve_model("embedded").folder)))) // ROWS
    size = f"{ROWS} rows of {prompt} prompt and {TOKENS} completion tokens"

    def pairs(words: int, hidden: int) -> list[tuple[float, float]]:
        found = []
        for turn in range(repeats):
            with console.status(f"peak memory at {words} words: {turn + 1} of {repeats}"):
                found.append(tuple(memory(side, words, hidden, prompt, TOKENS) for side in SIDES))
        return found  # type: ignore[return-value]

    few, many = pairs(WORDS, HIDDEN), pairs(MANY_WORDS, MANY_HIDDEN)
    with console.status("peak memory at four times the length"):
        longer = [(memory("ours", MANY_WORDS, MANY_HIDDEN, prompt, 4 * TOKENS), ours) for ours, _ in many]

    def row(found: list[tuple[float, float]], what: str, bound: float) -> dict[str, Any]:
        middle = sorted(found)[len(found) // 2]
        return {**record(found, what, bound=bound), "mib": dict(zip(("ours", "reference"), middle, strict=True))}

    return {
        "heal_loss_memory_over_naive": row(few, f"peak memory of loss and gradient over naive's; {WORDS} words, {size}", 0.2),
        "heal_loss_memory_262k_over_naive": row(many, f"the same at {MANY_WORDS} words", 0.15),
        "heal_loss_memory_262k_4x_length_over_1x": row(longer, f"our peak with completions of {4 * TOKENS} tokens over that with {TOKENS}; {MANY_WORDS} words", 1.1),
    }  # fmt: skip


def losses(rounds: int) -> dict[str, Any]:
    """Time of loss and gradient alone, both sides over the completion positions."""
    sides = {}
    for side in SIDES:
        call = loss(
            side, WORDS, HIDDEN, 1, TOKENS
        )  # naive drops the last position; one of prompt makes the positions equal

        def run(call: Any = call) -> list[list[int]]:
            call()
            return [[0] * TOKENS] * ROWS

        sides[side] = Side(run)
    warm(sides)
    interleave("losses", sides, rounds)
    what = f"time of loss and gradient over naive's on the same {ROWS * TOKENS} completion positions; {WORDS} words"
    return {"heal_loss_time_over_naive": ratio(sides["ours"], sides["naive"], what, bound=1.45)}
