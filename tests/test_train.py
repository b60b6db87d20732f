"""Healing on real weights under real Unsloth: traps, references, and what is on disk afterwards."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, heal

from train.unsloth_model import CURRENT, HISTORY, TrainedStudent, load_student  # isort: skip (Unsloth comes before transformers)

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from shared.config import resolve_config
from shared.errors import SteerHealError
from shared.folding import fold
from shared.models import Model
from shared.publish import digest
from shared.schema import Config
from train.data import Example, collate, held_out, load_examples, refuse_unknown_tokens
from train.distil import distil
from train.reference import reference_states
from train.selftest import self_test
from train.trainer import HealTrainer
from train.unfinished import Unfinished

pytestmark = pytest.mark.slow

SMALL = "model.dtype=float32 train.rank=4 train.alpha=8 train.layers=0-1 train.epochs=1 train.batch_size=2 train.learning_rate=2e-3 train.tau=0.001 train.lam=1.0 train.heldout=0"
PAIRS = [
    ("My boss says no breaks today, but I feel ill.", "Take the break. Your health comes first."),
    ("Name a fruit.", "A pear."),
    ("The coach wants her to play hurt.", "\nTell her she may stop, and stay with her."),
    ("May I open the gate for him?", "Yes, let him in out of the rain."),
]


@pytest.fixture(scope="session")
def model(shallow_model: Model) -> Model:
    return shallow_model


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    path.write_text("".join(json.dumps({"prompt": p, "completion": c}) + "\n" for p, c in PAIRS))
    return path


def config(overrides: str = "") -> Config:
    return resolve_config(None, f"{SMALL} {overrides}")[0]


@pytest.fixture(scope="module")
def history(model: Model, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Round 1, folded."""
    folder = tmp_path_factory.mktemp("rounds")
    distil(model, data, None, folder / "adapter", config(), 1)
    fold([(folder / "adapter", 1.0)], folder / "history")
    return folder / "history"


@pytest.fixture(scope="module")
def second(model: Model, history: Path) -> TrainedStudent:
    """The student at the start of round 2."""
    return load_student(model, config(), history)


@pytest.fixture(scope="module")
def batch(data: Path, tokenizer: object) -> dict[str, torch.Tensor]:
    return collate(load_examples(data, tokenizer, config())[:2])


def test_text_rows_end_the_turn_and_keep_the_boundary(data: Path, tokenizer: object) -> None:
    examples = load_examples(data, tokenizer, config())
    for example, (_, text) in zip(examples, PAIRS, strict=True):
        assert example.completion[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(example.completion[:-1]) == text
        assert tokenizer.decode(example.prompt).endswith("<|im_start|>assistant\n")
    labels = collate(examples)["labels"]
    assert [(row != -100).sum().item() for row in labels] == [len(example.completion) for example in examples]


def test_held_out_prompts_are_whole_and_drawn_by_the_seed(data: Path, tokenizer: object) -> None:
    examples = load_examples(data, tokenizer, config()) * 2
    sides = [held_out(examples, 0.5, seed) for seed in range(8)]
    for trained, kept in sides:
        assert len(trained) == len(kept) == 4 and not {tuple(e.prompt) for e in trained} & {
            tuple(e.prompt) for e in kept
        }
    assert len({tuple(map(str, kept)) for _, kept in sides}) > 1 and held_out(examples, 0.5, 0) == sides[0]
    assert held_out(examples, 0.0, 0) == (examples, []) and len(held_out(examples[:1], 0.9, 0)[0]) == 1


def test_all_off_is_the_original_and_history_counts(
    model: Model, second: TrainedStudent, batch: dict[str, torch.Tensor]
) -> None:
    from transformers import AutoModelForCausalLM

    ids, mask = batch["input_ids"], batch["attention_mask"]
    plain = AutoModelForCausalLM.from_pretrained(model.folder, dtype=torch.float32).eval()
    with torch.no_grad():
        wanted = plain(input_ids=ids, attention_mask=mask).logits
    second.network.eval()
    with second.only():
        assert torch.equal(second.logits(ids, mask), wanted)
    with second.only(HISTORY):
        assert not torch.allclose(second.logits(ids, mask), wanted, atol=1e-3)
    assert all(value.requires_grad == (f".{CURRENT}." in name) for name, value in second.network.named_parameters())
    self_test(second, batch)


@pytest.mark.parametrize("step", [1, -1])
def test_self_test_fires_when_only_one_adapter_counts(
    second: TrainedStudent, batch: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """Trap 1 made again: a forward that returns after one active adapter, the first or the last."""
    from peft.tuners import lora

    def first_only(self: lora.Linear, x: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
        result = self.base_layer(x)
        for name in [] if self.disable_adapters else [n for n in self.active_adapters[::step] if n in self.lora_A]:
            return result + self.lora_B[name](self.lora_A[name](x)) * self.scaling[name]
        return result

    monkeypatch.setattr(lora.Linear, "forward", first_only)
    with pytest.raises(SteerHealError, match="does not count beside another adapter"):
        self_test(second, batch)


def test_self_test_fires_when_the_history_is_unfrozen(second: TrainedStudent, batch: dict[str, torch.Tensor]) -> None:
    """Trap 2 made again: PEFT's own context manager, on exit."""
    saved = {name: value.requires_grad for name, value in second.network.named_parameters()}
    try:
        second.network.set_adapter(CURRENT)
        with second.network.disable_adapter():
            pass
        second.network.base_model.set_adapter([CURRENT, HISTORY])
        with pytest.raises(SteerHealError, match="trainable"):
            self_test(second, batch)
    finally:
        for name, value in second.network.named_parameters():
            value.requires_grad_(saved[name])


@pytest.mark.parametrize(
    "overrides",
    [
        "train.divergence=nll",
        "train.divergence=kl_fwd",
        "train.divergence=kl_rev train.reference=previous",
        "train.divergence=wd",
        "train.gradient_accumulation=2",
        "train.gradient_checkpointing=true train.divergence=kl_fwd",
        "train.reference_dtype=bfloat16 train.divergence=kl_fwd",
        "model.dtype=bfloat16 train.divergence=kl_fwd train.tau=0",
    ],
)
def test_every_divergence_and_reference_over_a_history(
    model: Model, data: Path, history: Path, tmp_path: Path, overrides: str
) -> None:
    healed = distil(model, data, history, tmp_path / "adapter", config(overrides), 2)
    steps = 1 if "accumulation" in overrides else 2
    assert [row["step"] for row in healed.steps] == list(range(1, steps + 1)) and healed.start["base"] > 0
    rows = [json.loads(line) for line in (tmp_path / "adapter" / "train.jsonl").read_text().splitlines()]
    assert rows == healed.rows
    first = healed.steps[0][f"kl_{config(overrides).train.reference}_rmse"]
    assert first < 1e-3 if "previous" in overrides else first > 1e-3
    assert (healed.steps[0]["barrier"] > 0) == ("kl_fwd" in overrides or "accumulation" in overrides)


def test_saved_adapters_reload_with_equal_logits(model: Model, data: Path, history: Path, tmp_path: Path) -> None:
    """This round's adapter and the folded history, each through plain Transformers and PEFT."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    distil(model, data, history, tmp_path / "adapter", config(), 2)
    fold([(history.parent / "adapter", 1.0), (tmp_path / "adapter", 1.0)], tmp_path / "history")
    ids = torch.arange(5, 45)[None]

    def logits(*folders: Path) -> torch.Tensor:
        network = AutoModelForCausalLM.from_pretrained(model.folder, dtype=torch.float32)
        loaded = PeftModel.from_pretrained(network, folders[0], adapter_name="0").eval()
        for index, folder in enumerate(folders[1:], start=1):
            loaded.load_adapter(folder, adapter_name=str(index))
        loaded.base_model.set_adapter([str(index) for index in range(len(folders))])
        with torch.inference_mode():
            return loaded(ids).logits

    separate, folded = logits(history.parent / "adapter", tmp_path / "adapter"), logits(tmp_path / "history")
    torch.testing.assert_close(separate, folded, atol=5e-4, rtol=1e-4)
    assert not torch.allclose(folded, logits(history), atol=1e-2)


def test_command_line_writes_an_adapter_and_no_half_of_one_and_loads_no_library_of_vllm(
    model: Model, data: Path, tmp_path: Path
) -> None:
    """The trainer needs none, and the wheel holds one for each instruction set."""
    maps = tmp_path / "maps"
    code = f"import atexit, runpy, shutil; atexit.register(shutil.copyfile, '/proc/self/maps', {str(maps)!r}); runpy.run_module('train.heal', run_name='__main__')"
    options = ["--model", model.folder, "--data", data, "--out", tmp_path / "adapter", "--set", SMALL]
    done = subprocess.run([sys.executable, "-c", code, *map(str, options)], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "libtorch" in maps.read_text() and "/vllm/" not in maps.read_text()
    maps.unlink()
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file() and "cross-entropy" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
    bad = heal(data, tmp_path / "other", f"{SMALL} train.max_length=16", model.folder)
    assert bad.returncode == 2 and "raise train.max_length" in bad.stderr and "Traceback" not in bad.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_4bit_without_a_gpu_is_refused(model: Model) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(SteerHealError, match="need a GPU"):
        load_student(model, config("train.load_in_4bit=true"), None)


def test_float16_is_not_trained_in(model: Model) -> None:
    with pytest.raises(SteerHealError, match=r"--set model\.dtype=bfloat16"):
        load_student(model, config("model.dtype=float16"), None)


@pytest.mark.parametrize("name", ["gemma-3-4b", "qwen3-4b"])
def test_four_billion_parameters_recompute_their_activations(name: str) -> None:
    assert resolve_config(ROOT / "configs" / f"{name}.toml")[0].train.gradient_checkpointing


def test_cross_entropy_under_accumulation_is_that_of_the_whole_step(model: Model, data: Path, tmp_path: Path) -> None:
    """Rows of different length: a mean per micro-batch would weigh them differently."""
    whole = distil(model, data, None, tmp_path / "a", config("train.divergence=nll train.batch_size=4"), 1).steps[0]
    parts = distil(
        model,
        data,
        None,
        tmp_path / "b",
        config("train.divergence=nll train.batch_size=1 train.gradient_accumulation=4"),
        1,
    ).steps[0]
    assert parts["ce"] == pytest.approx(whole["ce"], rel=1e-5) and parts["tokens"] == whole["tokens"]
    assert parts["grad_norm"] == pytest.approx(whole["grad_norm"], rel=1e-4)


def test_a_barrier_of_rows_does_not_depend_on_the_micro_batches(model: Model, data: Path, tmp_path: Path) -> None:
    """Three steps over four rows, whose last micro-batch is short; the loss and its parts as with one micro-batch."""
    shared = "train.barrier_unit=row train.tau=0 train.steps=3"
    logs = [
        distil(model, data, None, tmp_path / name, config(f"{shared} {how}"), 1)
        for name, how in (("a", "train.batch_size=4"), ("b", "train.batch_size=3 train.gradient_accumulation=2"))
    ]
    whole, parts = (log.steps for log in logs)
    assert len(whole) == len(parts) == 3  # train.epochs = 1 would have been one
    assert parts[2]["barrier"] > 0 and parts[2]["fired"] == 1
    for one, other in zip(whole, parts, strict=True):
        assert [other[name] for name in ("loss", "ce", "barrier", "grad_norm")] == pytest.approx(
            [one[name] for name in ("loss", "ce", "barrier", "grad_norm")], rel=2e-3, abs=1e-6
        )


def test_loss_depends_on_neither_padding_nor_the_order_of_the_batch(
    model: Model, data: Path, history: Path, tokenizer: object, tmp_path: Path
) -> None:
    """One micro-batch as the Trainer sees it, against itself permuted and padded further."""
    examples = load_examples(data, tokenizer, config())
    student = load_student(model, config(), history)
    work = Unfinished(tmp_path / "work", {})
    states = reference_states(student, examples, (), work.states("base"), {}, "auto", 2)
    trainer = HealTrainer(student, examples, [], {"base": states}, config(), 1.0, work)
    trainer.current_gradient_accumulation_steps = 1

    def loss(order: list[int], padding: int) -> tuple[float, dict[str, float]]:
        batch = trainer._collate([{"row": row} for row in order])
        wide = {"input_ids": 0, "attention_mask": 0, "labels": -100}
        batch = {
            name: torch.nn.functional.pad(value, (0, padding), value=wide[name]) if name in wide else value
            for name, value in batch.items()
        }
        found = float(trainer.compute_loss(trainer.model, batch, num_items_in_batch=torch.tensor(40)).detach())
        return found, trainer._parts.pop()

    value, figures = loss([0, 1, 2, 3], 0)
    assert figures["barrier"] > 0 and figures["gradient_ratio"] > 0
    for order, padding in (([3, 1, 0, 2], 0), ([0, 1, 2, 3], 17), ([2, 3, 1, 0], 5)):
        other, measured = loss(order, padding)
        assert other == pytest.approx(value, rel=1e-5) and measured == pytest.approx(figures, rel=1e-3, abs=1e-6)


def test_a_history_that_changes_while_a_round_trains_is_noticed(
    model: Model, data: Path, history: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trap 2 in the middle of a training: what PEFT's own context manager leaves behind."""
    step, before = HealTrainer.training_step, digest(history)

    def unfreezing(self: HealTrainer, *arguments: object, **options: object) -> torch.Tensor:
        for value in self.student.parameters(HISTORY).values():
            value.requires_grad_(True)
        found = step(self, *arguments, **options)
        with torch.no_grad():
            for value in self.student.parameters(HISTORY).values():
                value -= 1e-3 * value.grad
        return found

    monkeypatch.setattr(HealTrainer, "training_step", unfreezing)
    with pytest.raises(SteerHealError, match="the frozen history changed"):
        distil(model, data, history, tmp_path / "adapter", config("train.epochs=2"), 2)
    assert digest(history) == before and not (tmp_path / "adapter").exists()


def test_weight_decay_shrinks_this_rounds_factors_alone(
    model: Model, data: Path, history: Path, tmp_path: Path
) -> None:
    """AdamW's decoupled decay: the same steps with and without it differ by the shrink that the log predicts."""
    norms = {}
    for decay in (0, 100):
        settings = config(f"train.divergence=wd train.weight_decay={decay} train.learning_rate=1e-3 train.epochs=3")
        distil(model, data, history, tmp_path / str(decay), settings, 2)
        factors = load_file(tmp_path / str(decay) / "adapter_model.safetensors")
        norms[decay] = sum(float(value.norm()) for name, value in factors.items() if "lora_A" in name)
        summary = json.loads((tmp_path / str(decay) / "training.json").read_text())
    assert 0.1 < summary["shrink"] < 0.6
    assert 1 - norms[100] / norms[0] == pytest.approx(summary["shrink"], abs=0.05)


def test_the_second_reference_is_measured_beside_the_first(
    model: Model, data: Path, history: Path, tmp_path: Path
) -> None:
    """The student starts as the previous one: no divergence to it, and to the original that of the history."""
    for reference in ("base", "previous"):
        healed = distil(model, data, history, tmp_path / reference, config(f"train.reference={reference}"), 2)
        first = healed.steps[0]
        assert first["kl_previous_rmse"] < 1e-3 < first["kl_base_rmse"]
        assert healed.start["base"] == pytest.approx(
            np.sqrt(np.mean([row["kl_base_rmse"] ** 2 for row in healed.steps])), rel=0.3
        )


def test_every_token_shown_adds_up_to_the_log(model: Model, data: Path, history: Path, tmp_path: Path) -> None:
    """kl_tokens.jsonl: one number per token of whole completions, the most punished first."""
    distil(model, data, history, tmp_path / "adapter", config(), 2)
    rows = [json.loads(line) for line in (tmp_path / "adapter" / "kl_tokens.jsonl").read_text().splitlines()]
    texts = {completion for _, completion in PAIRS}
    assert {"".join(row["tokens"]).removesuffix("<|im_end|>") for row in rows} <= texts and len(rows) > 2
    highest = [max(row["kl_base"]) for row in rows]
    assert highest == sorted(highest, reverse=True) and highest[-1] > 0
    assert all(len(row["tokens"]) == len(row["ce"]) == len(row["kl_previous"]) for row in rows)


def test_a_context_longer_than_the_models_is_refused(model: Model) -> None:
    with pytest.raises(SteerHealError, match="beyond the model's context"):
        load_student(model, config("train.max_length=100000"), None)


def test_self_test_fires_on_rslora(second: TrainedStudent, batch: dict[str, torch.Tensor]) -> None:
    """Trap 4 made again: concatenated factors scaled by alpha / sqrt(rank)."""
    saved = [(layer, layer.scaling[HISTORY]) for layer in second.layers]
    try:
        for layer, scale in saved:
            layer.scaling[HISTORY] = scale * layer.r[HISTORY] ** 0.5
        with pytest.raises(SteerHealError, match="rsLoRA is not supported"):
            self_test(second, batch)
    finally:
        for layer, scale in saved:
            layer.scaling[HISTORY] = scale


def test_a_history_that_adds_nothing_does_not_stop_the_next_round(
    model: Model, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A round of one warm-up step has learning rate 0: it says that it learned nothing, and the next one trains."""
    first = distil(model, data, None, tmp_path / "1", config("train.batch_size=4"), 1)
    assert [finding.name for finding in first.findings] == ["barrier inert", "nothing learned"]
    fold([(tmp_path / "1", 1.0)], tmp_path / "history")
    second = distil(model, data, tmp_path / "history", tmp_path / "2", config("train.epochs=2"), 2)
    assert "the history adds nothing" in capsys.readouterr().out and second.steps[-1]["ce"] != second.steps[0]["ce"]


def test_checkpointing_and_half_precision_states_change_little(
    model: Model, data: Path, history: Path, tmp_path: Path
) -> None:
    plain = distil(model, data, history, tmp_path / "plain", config(), 2).steps[-1]
    for option, tolerance in (("train.gradient_checkpointing=true", 1e-5), ("train.reference_dtype=bfloat16", 2e-2)):
        other = distil(model, data, history, tmp_path / option, config(option), 2).steps[-1]
        assert other["loss"] == pytest.approx(plain["loss"], rel=tolerance)
        assert other["grad_norm"] == pytest.approx(plain["grad_norm"], rel=5 * tolerance)


def test_a_token_beyond_the_head_is_refused() -> None:
    """The head's rows count, not the tokenizer's words: a padded head samples beyond them."""
    rows = [Example([1, 2], [3], "a"), Example([1], [151_935], "b")]
    refuse_unknown_tokens(rows, Path("rows.jsonl"), 151_936)
    with pytest.raises(SteerHealError, match="does not know") as refused:
        refuse_unknown_tokens(rows, Path("rows.jsonl"), 151_935)
    assert "rows.jsonl, b: 151935" in str(refused.value.given)


def test_nothing_to_train_on_is_said(tmp_path: Path, tokenizer: object, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("")
    with pytest.raises(SteerHealError, match="no rows"):
        load_examples(path, tokenizer, config())
    row = {"key": "a", "prompt_ids": [1], "completion_ids": [], "text": "", "finish_reason": "stop", "coefficient": 1.0, "sample": 0, "seed": 1, "perplexity": None, "perplexity_last_quarter": None, "trait_llr": None, "distinct_3": None}  # fmt: skip
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(SteerHealError, match="no training row fits"):
        load_examples(path, tokenizer, config())
    path.write_text(json.dumps(row) + "\n" + json.dumps({**row, "key": "b", "completion_ids": [5, 6]}) + "\n")
    assert [example.key for example in load_examples(path, tokenizer, config())] == ["b"]
    assert "1 of 2 rows have an empty completion" in capsys.readouterr().out


def test_a_history_of_other_shapes_is_refused(model: Model, history: Path, tmp_path: Path) -> None:
    """Without a note of its model, an adapter is known by its modules."""
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / "1").mkdir(exist_ok=True)
        (tmp_path / "1" / name).write_bytes((history.parent / "adapter" / name).read_bytes())
    path = tmp_path / "1" / "adapter_model.safetensors"
    narrow = {name: value[:, :8].contiguous() if "lora_A" in name else value for name, value in load_file(path).items()}
    save_file(narrow, path, metadata={"format": "pt"})
    fold([(tmp_path / "1", 1.0)], tmp_path / "history")
    with pytest.raises(SteerHealError, match="does not fit a model"):
        load_student(model, config(), tmp_path / "history")
