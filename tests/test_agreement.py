"""Sampler against trainer: what is recorded, the trainer's side against plain Hugging Face, and every fault made again."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from train.unsloth_model import CURRENT, HISTORY, TrainedStudent  # isort: skip (Unsloth comes before transformers)

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Gemma2Config, LlamaConfig

from gen.plan import plan, windows
from gen.recording import ROWS, is_recorded
from shared.chat import Chat
from shared.config import resolve_config
from shared.errors import SteerHealError
from shared.logprobs import Logprobs, digest_of
from shared.records import Completion, Prompt, read_jsonl, write_jsonl
from train.agreement import agree, logprobs
from train.data import Example, load_examples
from train.recorded import recorded_beside

CONFIG = resolve_config(None, "model.dtype=float32 train.batch_size=3 train.chunk=4")[0]
SIZES: dict[str, Any] = {
    "vocab_size": 49152, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
    "initializer_range": 0.3,
}  # fmt: skip
DATED = "{{ bos_token }}Today Date: {{ date_string }}\n\n{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"


@pytest.mark.parametrize("prompts, coefficients, samples", [(40, [0.0, 0.75, 1.0, 1.5, 2.0], 1), (1000, [1.0], 3), (7, [0.5, 1.0], 2), (3, list(range(100)), 1)])  # fmt: skip
def test_the_rows_recorded_are_spread_evenly_and_do_not_depend_on_the_windows(
    prompts: int, coefficients: list[float], samples: int
) -> None:
    rows = list(plan([Prompt(prompt="x")] * prompts, coefficients, samples, "0"))
    chosen = [row.key for row in rows if is_recorded(prompts, coefficients, samples)(row)]
    again = [
        row.key for window in windows(rows, 5) for row in window if is_recorded(prompts, coefficients, samples)(row)
    ]
    per = [sum(row.coefficient == c for row in rows if row.key in set(chosen)) for c in coefficients]
    assert again == chosen and sum(per) <= max(ROWS, len(coefficients)) and min(per) >= 1
    assert sum(per) == max(ROWS, len(coefficients)) or max(per) == prompts * samples
    steered = [count for _, count in sorted((abs(c), n) for c, n in zip(coefficients, per, strict=True) if c)]
    assert steered == sorted(steered, reverse=True), "most of the lowest coefficients"
    if 0 in coefficients and len(coefficients) > 1:
        assert per[coefficients.index(0)] <= min(steered)
    places = sorted({row.index for row in rows if row.key in set(chosen)})
    assert places[0] < prompts / 4 and places[-1] >= prompts * 2 / 3


def test_a_row_without_a_record_is_written_without_the_field_and_one_with_it_is_read_back(tmp_path: Path) -> None:
    found = Logprobs(ids="f00", student=[-1.5, -0.25], original=[-1.0, -0.125])
    row = Completion(
        key="a", prompt_ids=[1], completion_ids=[2, 3], text="t", finish_reason="stop", coefficient=1.0, sample=0, seed=1, perplexity=2.0,
        perplexity_last_quarter=2.0, trait_llr=0.0, distinct_3=1.0,
    )  # fmt: skip
    write_jsonl(tmp_path / "rows.jsonl", [row, row.model_copy(update={"key": "b", "logprobs": found})])
    assert "logprobs" not in (tmp_path / "rows.jsonl").read_text().splitlines()[0]
    plain, held = read_jsonl(tmp_path / "rows.jsonl", Completion, made_by="-")
    assert plain.logprobs is None and held.logprobs == found


def student_of(config: Any) -> TrainedStudent:
    """A small random model under a history that moves it, and this round's adapter, which adds nothing."""
    torch.manual_seed(0)
    lora = LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    network = get_peft_model(AutoModelForCausalLM.from_config(config).float(), lora)
    network.add_adapter(HISTORY, lora)
    for name, value in network.named_parameters():
        if f"lora_B.{HISTORY}" in name:
            torch.nn.init.normal_(value, std=0.3)
    student = TrainedStudent(network, (HISTORY, CURRENT))
    for layer in student.layers:
        layer._active_adapter, layer._disable_adapters = [HISTORY, CURRENT], False
    return student


@pytest.fixture(scope="module")
def student() -> TrainedStudent:
    return student_of(LlamaConfig(**SIZES))


def merged(student: TrainedStudent, gate: float = 1.0) -> Any:
    """A checkpoint of the student as plain Hugging Face has it, its history at a gate."""
    network = copy.deepcopy(student.network)
    for name, value in network.named_parameters():
        if f"lora_B.{HISTORY}" in name:
            value.data *= gate
    return network.merge_and_unload(adapter_names=[HISTORY]) if gate else network.unload()


def naive(network: Any, row: Example) -> list[float]:
    """Log-probabilities of a completion, as anybody would write it."""
    with torch.no_grad():
        logits = network(input_ids=torch.tensor([[*row.prompt, *row.completion]])).logits[0].double()
    table = logits[len(row.prompt) - 1 : -1].log_softmax(-1)
    return [float(line[token]) for line, token in zip(table, row.completion, strict=True)]


def examples(count: int = 5) -> list[Example]:
    draws = torch.Generator().manual_seed(1)
    return [
        Example(
            [1, *torch.randint(5, 49152, (4 + 3 * k,), generator=draws).tolist()],
            torch.randint(5, 49152, (6 + k,), generator=draws).tolist(),
            f"row {k}",
        )
        for k in range(count)
    ]


def sampled(
    student: TrainedStudent, rows: list[Example], gate: float = 1.0, bos: list[int] | None = None
) -> list[Example]:
    """Rows with the record of a sampler whose student is the history at a gate, and that may put a BOS of its own before a prompt."""
    network, original = merged(student, gate), merged(student, 0.0)
    found = []
    for row in rows:
        seen = Example([*(bos or []), *row.prompt], row.completion, row.key)
        record = Logprobs(ids=digest_of(row.prompt, row.completion), student=naive(network, seen), original=naive(original, seen))  # fmt: skip
        found.append(Example(row.prompt, row.completion, row.key, record))
    return found


@pytest.mark.parametrize("config", [LlamaConfig(**SIZES), Gemma2Config(**SIZES, final_logit_softcapping=3.0, query_pre_attn_scalar=8)], ids=["llama", "gemma2"])  # fmt: skip
def test_the_trainers_side_is_plain_hugging_face(config: Any) -> None:
    """Padded batches, chunks of positions and the softcap; a history over the base, and all gates off."""
    student, rows = student_of(config), examples()
    wanted = torch.tensor([value for row in rows for value in naive(merged(student), row)])
    assert torch.allclose(torch.from_numpy(logprobs(student, rows, CONFIG)).float(), wanted, atol=2e-5)
    with student.only():
        off = torch.from_numpy(logprobs(student, rows, CONFIG)).float()
    plain = torch.tensor([value for row in rows for value in naive(merged(student, 0.0), row)])
    assert torch.allclose(off, plain, atol=2e-5) and (off - wanted).abs().mean() > 0.1


def test_one_model_agrees_and_the_figures_name_the_token(student: TrainedStudent, tokenizer: Any) -> None:
    rows = sampled(student, examples())
    assert rows[3].logprobs is not None
    rows[3].logprobs.student[2] += 2e-4  # beyond rounding, within the bound
    found = agree(student, [*rows, Example([1, 2], [3], "not recorded")], tokenizer, CONFIG, None)
    assert found.rows == 5 and found.tokens == sum(len(row.completion) for row in rows)
    assert found.student is not None and found.original is not None and found.effect is not None
    assert found.student.largest == pytest.approx(2e-4, abs=5e-5) and found.original.largest < 5e-5
    assert (found.student.key, found.student.position) == ("row 3", 2)
    assert found.student.token == tokenizer.decode([rows[3].completion[2]]) and found.effect > 0.1
    assert "over 40 tokens of 5 rows" in found.sentence()


def test_without_a_record_nothing_is_compared_and_that_is_said(
    student: TrainedStudent, tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    found = agree(student, examples(), tokenizer, CONFIG, None)
    assert (found.rows, found.student) == (0, None) and "earlier version" in str(found.note)
    assert "nothing was compared" in " ".join(capsys.readouterr().out.split())


def test_where_no_recorded_row_was_kept_the_rejected_ones_are_compared(
    student: TrainedStudent, tokenizer: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = sampled(student, examples(4))

    def written(file: str, some: list[Example], record: bool) -> None:
        write_jsonl(
            tmp_path / file,
            [
                Completion(
                    key=row.key, prompt_ids=row.prompt, completion_ids=row.completion, text="t", finish_reason="length", coefficient=1.0, sample=0,
                    seed=1, perplexity=2.0, perplexity_last_quarter=2.0, trait_llr=0.0, distinct_3=1.0, logprobs=row.logprobs if record else None,
                )
                for row in some
            ],
        )  # fmt: skip

    for kept, rejected in (("kept.jsonl", "rejected.jsonl"), ("good.jsonl", "good.rejected.jsonl")):
        written(kept, rows[:2], False)
        written(rejected, rows[2:], True)
        others = recorded_beside(tmp_path / kept, Chat(tokenizer))
        assert [row.key for row in others] == [row.key for row in rows[2:]]
    kept_rows = load_examples(tmp_path / "kept.jsonl", Chat(tokenizer), CONFIG)
    found = agree(student, kept_rows, tokenizer, CONFIG, None, lambda: others)
    assert found.rows == 2 and found.student is not None and "left out" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(SteerHealError, match="not one model"):
        agree(student, kept_rows, tokenizer, CONFIG, None, lambda: sampled(student, examples(2), gate=0.0))
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    assert recorded_beside(tmp_path / "pairs.jsonl", Chat(tokenizer)) == []


def stopped(student: TrainedStudent, rows: list[Example], tokenizer: Any) -> SteerHealError:
    with pytest.raises(SteerHealError) as caught:
        agree(student, rows, tokenizer, CONFIG, "make round RUN=r N=2 REBUILD=1")
    return caught.value


def test_an_adapter_lost_by_the_sampler(student: TrainedStudent, tokenizer: Any) -> None:
    error = stopped(student, sampled(student, examples(), gate=0.0), tokenizer)
    assert "the sampler's student and the trainer's are not one model" in error.what
    assert "a lost adapter" in str(error.given) and "without the history" in str(error.given)
    assert "row row " in str(error.given) and "of its completion" in str(error.given)
    assert error.next == "make round RUN=r N=2 REBUILD=1" and "docs/agreement.md" in str(error.expected)


@pytest.mark.parametrize("gate, share", [(0.5, range(35, 66)), (1.5, range(105, 181))])
def test_a_stale_merge(student: TrainedStudent, tokenizer: Any, gate: float, share: range) -> None:
    """Of the same history at another gate, as a checkpoint that was not merged again would be."""
    given = str(stopped(student, sampled(student, examples(), gate=gate), tokenizer).given)
    assert "a stale merge" in given
    assert int(given.split("student has ")[1].split("%")[0]) in share, given


def test_an_adapter_lost_by_the_trainer(student: TrainedStudent, tokenizer: Any) -> None:
    """One that does not count, and one that was never loaded."""
    rows = sampled(student, examples())
    without = TrainedStudent(copy.deepcopy(student.network), student.adapters)
    for name, value in without.network.named_parameters():
        if f"lora_B.{HISTORY}" in name:
            value.data.zero_()
    assert "adds nothing in the trainer: a lost adapter" in str(stopped(without, rows, tokenizer).given)
    alone = TrainedStudent(without.network, (CURRENT,))
    error = stopped(alone, rows, tokenizer)
    assert "the trainer has no history" in str(error.given) and "--history" in error.next


def test_a_double_bos_in_the_row(student: TrainedStudent, tokenizer: Any) -> None:
    rows = sampled(student, examples())
    rows[2] = Example([1, *rows[2].prompt], rows[2].completion, rows[2].key, rows[2].logprobs)
    error = stopped(student, rows, tokenizer)
    assert "does not hold the tokens that the sampler scored" in error.what
    assert "row row 2, token 0 of its prompt" in str(error.given) and "a double BOS" in str(error.given)


def test_a_double_bos_in_the_sampler(student: TrainedStudent, tokenizer: Any) -> None:
    """The row's ids are what was asked for, and the engine put a BOS of its own before them."""
    error = stopped(student, sampled(student, examples(), bos=[tokenizer.bos_token_id]), tokenizer)
    assert "the sampler's original and the trainer's" in error.what and "a double BOS" in str(error.given)


def test_another_template_date(student: TrainedStudent, tokenizer: Any) -> None:
    """The same conversation rendered on another day, by a template that prints the day as Llama 3's does."""
    dated = copy.copy(tokenizer)
    dated.chat_template = DATED
    turns = [{"role": "user", "content": "May I open the gate?"}]

    def on(day: str) -> list[int]:
        return list(dated.apply_chat_template(turns, date_string=day, return_dict=False))

    rows = sampled(student, [Example(on("26 Jul 2024"), [31, 41, 59], "gate")])
    agree(student, rows, dated, CONFIG, None)
    late = [Example(on("27 Nov 2026"), [31, 41, 59], "gate", rows[0].logprobs)]
    error = stopped(student, late, dated)
    assert "row gate" in str(error.given) and "it says 27 Nov 2026" in str(error.given)


@pytest.mark.parametrize(
    "edit",
    [
        lambda row: Example(row.prompt, row.completion[:-1], row.key, row.logprobs),
        lambda row: Example(row.prompt[:-1], row.completion, row.key, row.logprobs),
    ],
    ids=["completion", "prompt"],
)
def test_a_row_edited_since_says_which_field_to_remove(
    student: TrainedStudent, tokenizer: Any, edit: Callable[[Example], Example]
) -> None:
    rows = sampled(student, examples())
    error = stopped(student, [*rows[:4], edit(rows[4])], tokenizer)
    assert "row row 4" in str(error.given) and "remove the field logprobs" in str(error.expected)


def test_other_weights_are_no_ones_adapter(student: TrainedStudent, tokenizer: Any) -> None:
    other = student_of(LlamaConfig(**{**SIZES, "rope_theta": 10.0}))
    error = stopped(other, sampled(student, examples()), tokenizer)
    assert "original" in error.what and "other original weights" in str(error.given) and "make verify" in error.next


def test_in_half_precision_a_lost_adapter_within_the_bound_is_seen_by_the_historys_effect(tokenizer: Any) -> None:
    """Its effect is below what bfloat16 may differ by on other models, and here nothing else differs."""
    student = student_of(LlamaConfig(**SIZES))
    for name, value in student.network.named_parameters():
        if f"lora_B.{HISTORY}" in name:
            value.data *= 0.03
    half = resolve_config(None, "model.dtype=bfloat16")[0]
    found = agree(student, sampled(student, examples()), tokenizer, half, None)
    assert found.effect is not None and found.mean_bound is not None and 0 < found.effect < found.mean_bound
    with pytest.raises(SteerHealError, match="lost adapter"):
        agree(student, sampled(student, examples(), gate=0.0), tokenizer, half, None)


def test_four_bits_are_reported_without_a_bound(student: TrainedStudent, tokenizer: Any) -> None:
    config = resolve_config(None, "model.dtype=float32 train.load_in_4bit=true")[0]
    found = agree(student, sampled(student, examples(), gate=0.5), tokenizer, config, None)
    assert found.mean_bound is None and "4 bits" in str(found.note) and found.student is not None


def test_the_page_names_places_that_are_there() -> None:
    """Every file of the list of causes, and every function or class behind it."""
    lines = (ROOT / "docs" / "agreement.md").read_text(encoding="utf-8").splitlines()
    found = 0
    for place in [line.split("|")[2] for line in lines if line.count("|") == 4]:
        path = None
        for word in re.findall(r"`([^`]+)`", place):
            if word.endswith(".py"):
                path, found = ROOT / word, found + 1
                assert path.is_file(), word
            elif path is not None:
                name = re.escape(word.rpartition(".")[2])
                assert re.search(rf"^\s*(?:(?:def|class) {name}\b|{name}\b.*=)", path.read_text(encoding="utf-8"), re.M), word  # fmt: skip
    assert found > 40
