"""What the trainer's benchmark measures: steps, losses and their memory, against the naive trainer and plain SFT.

Step times are those of one optimiser step on one batch, the sides in turn. A loss's peak memory is that of the process while it
computes loss and gradient from final hidden states, above what it held before, in a fresh process for each value.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from train.unsloth_model import CURRENT, HISTORY, load_student  # isort: skip (Unsloth comes before transformers)

import torch

from shared.chat import Chat
from shared.config import resolve_config
from shared.console import console
from shared.folding import fold
from shared.models import Model, resolve_model
from shared.ratios import Side, interleave, ratio_of_pairs, ratio_of_times, warm
from shared.records import Prompt, data_file, read_jsonl
from shared.traits import load_trait
from train.data import IGNORED, Example, collate
from train.naive import Naive, naive_loss
from train.objective import Head, barrier, per_position
from train.reference import reference_states
from train.trainer import HealTrainer
from train.unfinished import Unfinished

# Of steps; losses and their memory are measured in float32.
DTYPE = "bfloat16" if torch.cuda.is_available() else "float32"
# What configs/smollm2.toml trains with; tau 0 keeps the barrier on, which is what costs.
SETTINGS = f"model.dtype={DTYPE} train.rank=16 train.alpha=32 train.layers=0.2-0.8 train.batch_size=8 train.lam=0.3 train.tau=0 train.heldout=0"
ROWS, TOKENS = 8, 48
VOCABULARY, HIDDEN = 49_152, 576  # the embedded model's head
LARGE_VOCABULARY, LARGE_HIDDEN = 262_144, 640  # that of Gemma 3 270M
SIDES = ("ours", "naive")


def rows(chat: Chat) -> list[Example]:
    """A batch as in a round: dilemmas under the neutral prompt, completions of equal length (the text of other dilemmas)."""
    prompts = read_jsonl(data_file("embedded", "dilemmas.jsonl"), Prompt, made_by="git checkout shared/data")
    neutral = load_trait("embedded").neutral
    answer = chat.plain(" ".join(row.turns[-1]["content"] for row in prompts))
    return [
        Example(chat.ids(row.turns, neutral), answer[index * TOKENS : (index + 1) * TOKENS], str(index))
        for index, row in enumerate(prompts[:ROWS])
    ]


class TrainingBench:
    """Our trainer and plain SFT on one student, a step at a time on one batch."""

    def __init__(
        self,
        scratch: Path,
        history: Path | None = None,
        *,
        model: Model | None = None,
        settings: str = SETTINGS,
        examples: Sequence[Example] | None = None,
    ):
        config, self.model = resolve_config(None, settings)[0], model or resolve_model("embedded")
        self.config = config
        self.examples = list(examples or rows(Chat.load(self.model.folder)))
        self.answers = [example.completion for example in self.examples]
        self.student = load_student(self.model, config, history)
        self.batch = {
            name: value.to(self.student.device) for name, value in collate(self.examples, self.student.multiple).items()
        }
        work = Unfinished(scratch / "work", {})
        names = {"base": ()} if history is None else {"base": (), "previous": (HISTORY,)}
        references = {
            name: reference_states(self.student, self.examples, adapters, work.states(name), {}, "auto", ROWS)
            for name, adapters in names.items()
        }
        self.trainer = HealTrainer(self.student, self.examples, [], references, config, config.train.lam, work)
        self.trainer.create_optimizer_and_scheduler(1000)
        self.trainer.current_gradient_accumulation_steps = 1

    def _finish(self) -> list[list[int]]:
        torch.nn.utils.clip_grad_norm_(self.student.current.values(), 1.0)
        self.trainer.optimizer.step()
        self.trainer.optimizer.zero_grad()
        return self.answers

    def ours(self) -> list[list[int]]:
        """One optimiser step of the trainer on the batch."""
        batch = {**self.batch, "row": torch.arange(ROWS)}
        self.trainer.training_step(self.trainer.model, batch, torch.tensor(ROWS * TOKENS))
        return self._finish()

    def sft(self) -> list[list[int]]:
        """One optimiser step of plain cross-entropy on the batch."""
        self.student.network(**self.batch, use_cache=False).loss.backward()
        return self._finish()


def _first_round(scratch: Path, rounds: int) -> tuple[dict[str, Side], int]:
    """Sides ours, naive and sft without a history, and the tokens of the batch; leaves the round's adapter in scratch/round."""
    bench = TrainingBench(scratch)
    modules = bench.student.network.peft_config[CURRENT].target_modules
    naive = Naive(bench.model.folder, modules, bench.config.train, DTYPE)

    def theirs() -> list[list[int]]:
        naive.step(bench.batch)
        return bench.answers

    sides = {"ours": Side(bench.ours), "naive": Side(theirs), "sft": Side(bench.sft)}
    warm(sides)
    interleave("optimiser steps", sides, rounds)
    bench.student.save(scratch / "round")
    return sides, sum(map(len, bench.examples))


def step_times(rounds: int) -> dict[str, Any]:
    """Time of an optimiser step: ours against the naive trainer, and against plain SFT of the same student, without and with history."""
    with TemporaryDirectory() as scratch:
        sides, tokens = _first_round(Path(scratch), rounds)
        fold([(Path(scratch) / "round", 1.0)], Path(scratch) / "history")
        later = TrainingBench(Path(scratch) / "later", Path(scratch) / "history")
        second = {"ours": Side(later.ours), "sft": Side(later.sft)}
        warm(second)
        interleave("optimiser steps over a history", second, rounds)
    size = f"{ROWS} rows of {tokens // ROWS} tokens on average, {TOKENS} of them completion, {DTYPE}"
    speed = {"tokens_per_second": tokens / statistics.median(sides["ours"].seconds)}
    return {
        "heal_step_over_naive": {**ratio_of_times(sides["ours"], sides["naive"], f"time of an optimiser step with the barrier over the naive trainer's (two forwards, full log-softmax; Hugging Face and PEFT); {size}", bound=0.75), **speed},
        "heal_step_over_sft": ratio_of_times(sides["ours"], sides["sft"], f"time of an optimiser step with the barrier and a cached reference over plain Unsloth SFT; {size}", bound=1.25),
        "heal_step_over_sft_with_history": ratio_of_times(second["ours"], second["sft"], "the same over a folded history, KL measured to both references, over plain SFT of that student", bound=1.25),
    }  # fmt: skip


def loss(side: str, vocabulary: int, hidden: int, prompt: int, completion: int) -> Any:
    """A call that computes loss and gradient from final hidden states of `ROWS` rows; the naive side takes prompts through too.

    Args:
        side: `ours` or `naive`.
        vocabulary, hidden: of the model.
        prompt, completion: tokens of a row.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    draws = torch.Generator().manual_seed(0)
    weight = torch.randn(vocabulary, hidden, generator=draws) * 0.05
    length = prompt + completion
    labels = torch.randint(vocabulary, (ROWS, length), generator=draws)
    labels[:, :prompt] = IGNORED
    states = torch.randn(ROWS, length, hidden, generator=draws)
    reference = states + 0.1 * torch.randn(ROWS, length, hidden, generator=draws)
    weight, labels, states, reference = (value.to(device) for value in (weight, labels, states, reference))
    config = resolve_config(None, SETTINGS)[0].train

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
        inner, goal, other = x[:, :-1][predicts], labels[:, 1:][predicts], reference[:, :-1][predicts]
        values = per_position(inner, goal, [other], Head(weight), "kl_rev", config.chunk)
        (values.ce.mean() + barrier(values.kl[0], "kl_rev", "rmse", config.lam, config.tau)).backward()
        assert x.grad is not None
        return x.grad

    return {"ours": ours, "naive": naive}[side]


def peak(call: Any) -> float:
    """MiB by which the process's peak, or on a GPU the allocator's, exceeds what it held before the call (Linux)."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        allocated = torch.cuda.memory_allocated()
        call()
        return (torch.cuda.max_memory_allocated() - allocated) / 2**20
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak back to the present
    status = Path("/proc/self/status")

    def mib(name: str) -> float:
        return int(next(line for line in status.read_text().splitlines() if line.startswith(name)).split()[1]) / 1024

    before = mib("VmRSS")
    call()
    return mib("VmHWM") - before


def memory(side: str, vocabulary: int, hidden: int, prompt: int, completion: int) -> float:
    """Peak memory of a loss in MiB, measured in a separate process.

    Args:
        side: `ours` or `naive`.
        vocabulary, hidden: of the model.
        prompt, completion: tokens of a row.
    """
    command = [
        sys.executable,
        "-m",
        "train.bench",
        "--memory",
        side,
        *map(str, (vocabulary, hidden, prompt, completion)),
    ]
    return float(
        json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    )


def memories(repeats: int) -> dict[str, Any]:
    """Ratios of the peak memory of loss and gradient, ours over the naive one's, at two vocabularies and at four times the length."""
    prompt = sum(len(example.prompt) for example in rows(Chat.load(resolve_model("embedded").folder))) // ROWS
    size = f"{ROWS} rows of {prompt} prompt and {TOKENS} completion tokens"

    def pairs(vocabulary: int, hidden: int) -> list[tuple[float, float]]:
        measured = []
        for turn in range(repeats):
            with console.status(f"peak memory at a vocabulary of {vocabulary}: {turn + 1} of {repeats}"):
                measured.append(tuple(memory(side, vocabulary, hidden, prompt, TOKENS) for side in SIDES))
        return measured  # type: ignore[return-value]

    few, many = pairs(VOCABULARY, HIDDEN), pairs(LARGE_VOCABULARY, LARGE_HIDDEN)
    with console.status("peak memory at four times the length"):
        longer = [(memory("ours", LARGE_VOCABULARY, LARGE_HIDDEN, prompt, 4 * TOKENS), ours) for ours, _ in many]

    def row(measured: list[tuple[float, float]], what: str, bound: float) -> dict[str, Any]:
        middle = sorted(measured)[len(measured) // 2]
        return {
            **ratio_of_pairs(measured, what, bound=bound),
            "mib": dict(zip(("ours", "reference"), middle, strict=True)),
        }

    return {
        "heal_loss_memory_over_naive": row(few, f"peak memory of loss and gradient over naive's; a vocabulary of {VOCABULARY}, {size}", 0.2),
        "heal_loss_memory_262k_over_naive": row(many, f"the same at a vocabulary of {LARGE_VOCABULARY}", 0.15),
        "heal_loss_memory_262k_4x_length_over_1x": row(longer, f"our peak with completions of {4 * TOKENS} tokens over that with {TOKENS}; a vocabulary of {LARGE_VOCABULARY}", 1.1),
    }  # fmt: skip


def losses(rounds: int) -> dict[str, Any]:
    """Time of loss and gradient alone, both sides over the completion positions."""
    sides = {}
    for side in SIDES:
        # naive drops the last position; one of prompt makes the positions equal
        call = loss(side, VOCABULARY, HIDDEN, 1, TOKENS)

        def run(call: Any = call) -> list[list[int]]:
            call()
            return [[0] * TOKENS] * ROWS

        sides[side] = Side(run)
    warm(sides)
    interleave("losses", sides, rounds)
    description = f"time of loss and gradient over naive's on the same {ROWS * TOKENS} completion positions; a vocabulary of {VOCABULARY}"
    return {"heal_loss_time_over_naive": ratio_of_times(sides["ours"], sides["naive"], description, bound=1.45)}
