"""Folding, gates and merging against separate adapters in PEFT."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from shared.adapters import load_adapter
from shared.config import resolve_config
from shared.errors import SteerHealError
from shared.folding import add, exact_network, fold, folded_at_gates, gates_of, refold, rounds_of
from shared.merging import merged
from shared.models import Model, cache_folder, load_network
from shared.old_students import remove_old_students
from shared.run import Run

SIZE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
}
IDS = torch.arange(10)[None]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Model:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("base")
    LlamaForCausalLM(LlamaConfig(**SIZE)).bfloat16().float().save_pretrained(
        folder
    )  # on the bf16 grid, as published weights are
    return Model("tiny", folder, None)


def adapter(base: Model, folder: Path, seed: int, **options: object) -> Path:
    settings = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"], **options}
    network = get_peft_model(
        LlamaForCausalLM.from_pretrained(base.folder), LoraConfig(task_type="CAUSAL_LM", **settings)
    )
    torch.manual_seed(seed)
    for name, value in network.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(value, std=0.3)
    network.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def adapters(base: Model, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two rounds of different rank, alpha and target modules."""
    folder = tmp_path_factory.mktemp("rounds")
    return [
        adapter(base, folder / "1", 1),
        adapter(
            base, folder / "2", 2, r=3, lora_alpha=3, target_modules=["q_proj", "o_proj"], layers_to_transform=[1, 2]
        ),
    ]


def logits(base: Model, folder: Path | None) -> torch.Tensor:
    network = LlamaForCausalLM.from_pretrained(base.folder)
    with torch.inference_mode():
        return (PeftModel.from_pretrained(network, folder) if folder else network).eval()(IDS).logits


def by_hand(base: Model, gated: list[tuple[Path, float]]) -> torch.Tensor:
    """The weights of the formula, added with plain torch."""
    network = LlamaForCausalLM.from_pretrained(base.folder).eval()
    for folder, gate in gated:
        found = load_adapter(folder)
        for name, (a, b) in found.modules.items():
            network.get_submodule(name).weight.data += gate * found.scale * (b @ a)
    with torch.inference_mode():
        return network(IDS).logits


@pytest.mark.parametrize("gates", [(1.0, 1.0), (0.5, 1.0), (1.0, 0.0), (-1.0, 2.0)])
def test_folded_equals_the_formula(
    base: Model, adapters: list[Path], tmp_path: Path, gates: tuple[float, float]
) -> None:
    gated = list(zip(adapters, gates, strict=True))
    fold(gated, tmp_path / "history")
    torch.testing.assert_close(logits(base, tmp_path / "history"), by_hand(base, gated), atol=2e-5, rtol=1e-4)
    assert not torch.allclose(logits(base, tmp_path / "history"), logits(base, None), atol=1e-2)


def test_all_gates_off_is_the_original_bit_for_bit(base: Model, adapters: list[Path], tmp_path: Path) -> None:
    fold([(folder, 1.0) for folder in adapters], tmp_path / "history")
    refold(tmp_path / "history", {1: 0.0, 2: 0.0}, tmp_path / "off")
    assert torch.equal(logits(base, tmp_path / "off"), logits(base, None))


def test_gates_are_recorded_and_dialled(base: Model, adapters: list[Path], tmp_path: Path) -> None:
    fold([(folder, 1.0) for folder in adapters], tmp_path / "history")
    refold(tmp_path / "history", {2: 0.25}, tmp_path / "dialled")
    gates = json.loads((tmp_path / "dialled" / "gates.json").read_text())
    assert [(row["round"], row["gate"], row["rank"], row["scale"]) for row in gates["rounds"]] == [
        (1, 1.0, 4, 2.0),
        (2, 0.25, 3, 1.0),
    ]
    assert [folder for folder, _ in rounds_of(tmp_path / "dialled")] == [folder.resolve() for folder in adapters]
    torch.testing.assert_close(
        logits(base, tmp_path / "dialled"),
        by_hand(base, list(zip(adapters, (1.0, 0.25), strict=True))),
        atol=2e-5,
        rtol=1e-4,
    )
    with pytest.raises(SteerHealError, match="1 to 2"):
        refold(tmp_path / "history", {3: 1.0}, tmp_path / "x")


def test_a_changed_round_is_refused(base: Model, tmp_path: Path) -> None:
    folder = adapter(base, tmp_path / "1", 5)
    fold([(folder, 1.0)], tmp_path / "history")
    adapter(base, tmp_path / "1", 6)
    with pytest.raises(SteerHealError, match="not the one that was folded"):
        rounds_of(tmp_path / "history")


def test_a_history_that_cannot_be_read_names_the_round_that_makes_it(tmp_path: Path) -> None:
    """In a run with the options that the command needs; elsewhere the export that wrote it."""
    inside, outside = tmp_path / "my run" / "rounds" / "02" / "history", tmp_path / "history"
    for history in (inside, outside):
        history.mkdir(parents=True)
        (history / "gates.json").write_text("{}")
    (tmp_path / "my run" / "config.toml").touch()
    with pytest.raises(SteerHealError) as refused:
        rounds_of(inside)
    assert refused.value.next == f"make round N=2 RUN='{tmp_path}/my run' REBUILD=1"
    with pytest.raises(SteerHealError) as refused:
        rounds_of(outside)
    assert refused.value.next.startswith("python -m train.export --run DIR --round K --as history --out ")


@pytest.mark.parametrize("place", ["a\0b", "x" * 5000, "/", "../.."])
def test_a_place_that_holds_no_adapter_is_refused(base: Model, tmp_path: Path, place: str) -> None:
    fold([(adapter(base, tmp_path / "1", 5), 1.0)], tmp_path / "history")
    path = tmp_path / "history" / "gates.json"
    gates = json.loads(path.read_text())
    gates["rounds"][0]["adapter"] = place
    path.write_text(json.dumps(gates))
    with pytest.raises(SteerHealError, match="not the one that was folded"):
        rounds_of(tmp_path / "history")


def test_a_merged_student_of_somebody_else_is_not_used(base: Model, adapters: list[Path], tmp_path: Path) -> None:
    """It lies in a run under the right name: other weights, or the right ones that this user has not merged."""
    student = merged(base, adapters[0], tmp_path / "students", "float32")
    weights = next(student.folder.glob("*.safetensors"))
    right = weights.read_bytes()
    weights.write_bytes(right[:-4] + b"\0\0\0\0")
    merged(base, adapters[0], tmp_path / "students", "float32")
    assert weights.read_bytes() == right
    (cache_folder() / "derived" / student.folder.name).unlink()
    (student.folder / "config.json").write_text("{}")
    again = merged(base, adapters[0], tmp_path / "students", "float32")
    assert again.text_config["num_hidden_layers"] == base.depth


@pytest.mark.parametrize(("number", "kept"), [(None, []), (1, ["1"]), (2, ["1", "2"]), (3, ["2"])])
def test_students_that_no_stage_to_come_reads_are_removed(
    base: Model,
    adapters: list[Path],
    tmp_path: Path,
    number: int | None,
    kept: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A round begins with the student before it and ends in its own; dialled ones are made again."""
    run = Run(tmp_path / "run", resolve_config(None, f"model.name={base.folder} model.dtype=float32")[0])
    remove_old_students(run, number)
    folders = {}
    for round_, one in (("1", adapters[0]), ("2", adapters[1])):
        fold([(one, 1.0)], run.round(int(round_)) / "history")
        folders[round_] = merged(base, run.round(int(round_)) / "history", run.students, "float32").folder
    folders["dialled"] = folded_at_gates(run.round(2) / "history", {1: 0.5}, run.students)
    assert len({*folders.values()}) == 3 and all(folder.parent == run.students for folder in folders.values())
    remove_old_students(run, number)
    assert [name for name, folder in folders.items() if folder.is_dir()] == kept
    said = " ".join(capsys.readouterr().out.split())
    assert f"removed {3 - len(kept)} folder" in said and "no stage to come reads them" in said
    remove_old_students(run, number)
    assert "removed" not in capsys.readouterr().out


READS = """
import os, sys
from pathlib import Path
from shared.folding import folded_at_gates
from shared.merging import merged
from shared.models import Model

what, base, adapter, cache = sys.argv[1:]
folder = folded_at_gates(Path(adapter), {1: 0.5}, Path(cache)) if what == "gated" else merged(Model("tiny", Path(base), None), Path(adapter), Path(cache), "float32").folder
reading = os.open(folder, os.O_RDONLY)
print(folder, os.fstat(reading).st_ino, flush=True)
input()
print(*sorted(name for name in os.listdir(folder) if os.path.samefile(folder, f"/proc/self/fd/{reading}")), flush=True)
"""


@pytest.mark.parametrize("what", ["gated", "merged"])
def test_weights_that_another_process_reads_are_not_replaced_under_it(
    base: Model, adapters: list[Path], tmp_path: Path, what: str
) -> None:
    """Three at once, one of which makes them, then another user, to whom the folder is somebody else's."""
    line = [sys.executable, "-c", READS, what, base.folder, adapters[0], tmp_path / "cache"]
    stranger = {**os.environ, "STEER_HEAL_CACHE": str(tmp_path / "of another user")}

    def begin(environment: dict[str, str] | None = None) -> subprocess.Popen[str]:
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        return subprocess.Popen([*map(str, line)], cwd=ROOT, env=environment, **pipes)

    readers = [begin() for _ in range(3)]
    there = [reader.stdout.readline() for reader in readers if reader.stdout]
    readers.append(begin(stranger))
    assert readers[-1].stdout is not None
    there.append(readers[-1].stdout.readline())
    assert len(set(there)) == 1 and there[0].strip(), "one folder, and never another in its place"
    for reader in readers:
        names = reader.communicate("\n")[0].split()
        assert reader.returncode == 0 and any(name.endswith(".safetensors") for name in names)


def test_a_gate_folded_once_is_folded_once(base: Model, adapters: list[Path], tmp_path: Path) -> None:
    """Under a name that says what of: another gate, other adapters and another place are other folders."""
    fold([(folder, 1.0) for folder in adapters], tmp_path / "history")
    half = folded_at_gates(tmp_path / "history", {2: 0.5}, tmp_path / "cache")
    stamp = half.stat().st_mtime_ns
    assert (
        folded_at_gates(tmp_path / "history", {2: 0.5}, tmp_path / "cache") == half and half.stat().st_mtime_ns == stamp
    )
    assert [gate for _, gate in rounds_of(half)] == [1.0, 0.5]
    refold(tmp_path / "history", {2: 0.5}, tmp_path / "by hand")
    torch.testing.assert_close(logits(base, half), logits(base, tmp_path / "by hand"), atol=0, rtol=0)
    others = [
        folded_at_gates(tmp_path / "history", {2: 0.5 + 1e-9}, tmp_path / "cache"),
        folded_at_gates(tmp_path / "history", {1: 0.5}, tmp_path / "cache"),
        folded_at_gates(adapters[0], {1: 0.5}, tmp_path / "cache"),
        folded_at_gates(tmp_path / "history", {2: 0.5}, tmp_path / "elsewhere" / "cache"),
    ]
    assert len({half, *others}) == 5
    assert [folder for folder, _ in rounds_of(others[-1])] == [folder for folder, _ in rounds_of(half)]
    (half / "adapter_config.json").write_text("{}")
    assert folded_at_gates(tmp_path / "history", {2: 0.5}, tmp_path / "cache") == half
    assert [gate for _, gate in rounds_of(half)] == [1.0, 0.5] and load_adapter(half).rank == 7, "and mended"


def test_code_that_changed_merges_anew(
    base: Model, adapters: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = merged(base, adapters[0], tmp_path / "students", "float32")
    monkeypatch.setattr("shared.cached_weights.code_digest", lambda package: "after a pull")
    after = merged(base, adapters[0], tmp_path / "students", "float32")
    assert after.folder != before.folder and after.fingerprint == before.fingerprint


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_merged_equals_the_adapter(base: Model, adapters: list[Path], tmp_path: Path, dtype: str) -> None:
    fold([(folder, 1.0) for folder in adapters], tmp_path / "history")
    student = merged(base, tmp_path / "history", tmp_path / "students", dtype)
    network = LlamaForCausalLM.from_pretrained(student.folder)
    assert network.dtype == getattr(torch, dtype)
    with torch.inference_mode():
        found = network.float()(IDS).logits
    difference = (found - logits(base, tmp_path / "history")).abs().max()
    assert difference < (2e-5 if dtype == "float32" else 0.2)
    stamp = student.folder.stat().st_mtime_ns
    assert merged(base, tmp_path / "history", tmp_path / "students", dtype).folder.stat().st_mtime_ns == stamp
    assert merged(base, None, tmp_path / "students", dtype) is base


def faint(base: Model, folder: Path) -> Path:
    """An adapter whose shift is under the step of a half-precision weight."""
    from safetensors.torch import load_file, save_file

    adapter(base, folder, 7)
    tensors = {
        name: value * (1e-5 if "lora_A" in name else 1.0)
        for name, value in load_file(folder / "adapter_model.safetensors").items()
    }
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return folder


def test_added_in_memory_is_the_merged_checkpoint(base: Model, adapters: list[Path], tmp_path: Path) -> None:
    """Bit for bit that of fp32, which rounds nothing; half a round's gate and modules of one round alone among them."""
    fold(list(zip(adapters, (1.0, 0.5), strict=True)), tmp_path / "history")
    checkpoint = merged(base, tmp_path / "history", tmp_path / "students", "float32").folder
    wanted = load_network(checkpoint, torch.float32).state_dict()
    found = exact_network(base, tmp_path / "history").state_dict()
    assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)
    plain = exact_network(base, None).state_dict()
    assert sum(not torch.equal(plain[name], wanted[name]) for name in wanted) == 8


def test_a_shift_that_half_precision_swallows_is_kept_in_memory(base: Model, tmp_path: Path) -> None:
    folder = faint(base, tmp_path / "1")
    found, plain = (exact_network(base, adapter).state_dict() for adapter in (folder, None))
    for name, (a, b) in load_adapter(folder).modules.items():
        shift = found[f"{name}.weight"] - plain[f"{name}.weight"]
        torch.testing.assert_close(shift, 2.0 * (b @ a), atol=1e-7, rtol=0.05)


@pytest.mark.parametrize("nested", ["model.language_model.", "language_model.model."])
def test_the_level_of_a_multimodal_model_does_not_hide_a_module(base: Model, adapters: list[Path], nested: str) -> None:
    """Trained as the language model of a larger one, added to it alone."""
    loaded = load_adapter(adapters[0])
    other = replace(loaded, modules={name.replace("model.", nested, 1): f for name, f in loaded.modules.items()})
    found, wanted = exact_network(base, None), exact_network(base, adapters[0])
    add(found, other)
    assert all(torch.equal(a, b) for a, b in zip(found.parameters(), wanted.parameters(), strict=True))


def test_an_adapter_that_does_not_fit_is_not_added(base: Model, adapters: list[Path]) -> None:
    loaded = load_adapter(adapters[0])
    name, (a, b) = next(iter(loaded.modules.items()))
    for modules in ({"model.layers.9.mlp.down_proj": (a, b)}, {name: (a[:, :1], b)}):  # one column would be broadcast
        with pytest.raises(SteerHealError, match="does not fit a model"):
            add(exact_network(base, None), replace(loaded, modules=modules))


def test_a_dtype_that_swallows_the_adapter_is_refused(base: Model, tmp_path: Path) -> None:
    folder = faint(base, tmp_path / "1")
    with pytest.raises(SteerHealError, match="too coarse for the adapter"):
        merged(base, folder, tmp_path / "students", "bfloat16")
    assert merged(base, folder, tmp_path / "students", "float32").folder.is_dir()
    assert len(list((tmp_path / "students").iterdir())) == 1


def test_missing_files_and_foreign_modules_are_refused(base: Model, adapters: list[Path], tmp_path: Path) -> None:
    with pytest.raises(SteerHealError, match=r"adapter_config\.json"):
        load_adapter(tmp_path)
    other = tmp_path / "other"
    LlamaForCausalLM(LlamaConfig(**{**SIZE, "num_hidden_layers": 2})).save_pretrained(other)
    with pytest.raises(SteerHealError, match="lacks"):
        merged(Model("two layers", other, None), adapters[0], tmp_path / "students", "float32")


def test_a_round_has_one_gate() -> None:
    assert gates_of(["1=0.5", "2=0"]) == {1: 0.5, 2: 0.0}
    for twice in (["1=0.5", "1=0.7"], ["1=0.5", "2=1", "01=0.5"]):
        with pytest.raises(SteerHealError, match="a gate is there twice"):
            gates_of(twice)
