"""How many models vLLM compiles for a run: the keys of its compile cache over four rounds, from the engines' configurations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gen.engine import options
from gen.engine.adapters import full_names
from gen.engine.settings import Settings, key_by_graph
from gen.students import AdapterRoom, ServedStudent, room_of
from shared.config import resolve_config
from shared.models import Model
from shared.schema import band

options.set_environment()
ROUNDS = range(1, 5)
RANK, LAYERS = 32, [14, 15]


@pytest.fixture
def large_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """The options of a GPU of 80 GB, on the CPU's build of vLLM, which makes configurations of them as well."""
    monkeypatch.setattr(options, "platform_options", lambda window: options.gpu_options(80 * 2**30, window))
    monkeypatch.setattr(options, "memory_options", lambda share: {"gpu_memory_utilization": share})


def student(model: Model, number: int) -> ServedStudent:
    """After so many rounds; served as an adapter, as on a GPU."""
    if number == 0:
        return ServedStudent(model.folder)
    return ServedStudent(
        model.folder, Path(f"{number}"), RANK * number, ("q_proj", "down_proj"), f"{number}", tuple(range(6, 24))
    )


def configuration(model: Model, served: list[ServedStudent], slots: int, room: AdapterRoom | None) -> Any:
    from vllm.engine.arg_utils import EngineArgs

    from gen.engine import plugin

    return EngineArgs(
        model=str(model.folder),
        worker_cls=plugin.WORKER,
        dtype="bfloat16",
        max_model_len=1024,
        additional_config=Settings(layers=LAYERS, slots=slots, count=True, adapted=list(room.layers) if room else []),  # type: ignore[arg-type]
        **options.engine_options(model.folder, "bfloat16", served, room, 1024),
    ).create_engine_config()


def keys(model: Model, *, roomy: bool) -> list[str]:
    """The compile keys of the eight engines of four rounds: a sweep's of the student before, a scoring's of that and of the new one."""
    config = resolve_config(None, f"train.rank={RANK}")[0]
    found = []
    for number in ROUNDS:
        for served, slots in (
            ([student(model, number - 1)], 16),
            ([ServedStudent(model.folder), student(model, number - 1), student(model, number)], 4),
        ):
            room = room_of(config, model, served) if roomy else None
            found.append(configuration(model, served, slots, room).compute_hash())
    return found


@pytest.mark.slow
def test_a_run_of_four_rounds_has_one_compile_key(model: Model, large_card: None) -> None:
    assert len(set(keys(model, roomy=True))) == 1
    assert len(set(keys(model, roomy=False))) > 3, (
        "engines without a common room must differ, or this test proves nothing"
    )


@pytest.mark.slow
def test_the_key_holds_what_the_graph_depends_on_alone(model: Model, large_card: None) -> None:
    room = AdapterRoom(128, ("q_proj",), (6, 7))
    config = configuration(model, [], 16, room)
    assert config.model_config.head_dtype.__str__() == "torch.float32" and config.lora_config.max_loras == 2  # on a CPU
    assert config.scheduler_config.max_num_seqs == 1024
    before = config.compute_hash()
    config.additional_config = Settings(layers=LAYERS, slots=3, stop_ids=[1], vectors={})
    assert config.compute_hash() == before
    config.additional_config = {"steering": Settings(layers=LAYERS).model_dump()}  # as a command line gives it
    assert config.compute_hash() != before
    key_by_graph(config, Settings(layers=LAYERS))
    assert config.compute_hash() == before
    config.additional_config = Settings(layers=[14])
    assert config.compute_hash() != before
    config.additional_config = other = {"steering": Settings(layers=LAYERS).model_dump(), "another": 1}
    key_by_graph(config, Settings(layers=LAYERS))
    assert config.additional_config is other


def test_a_room_is_of_four_rounds_and_doubles(model: Model) -> None:
    config = resolve_config(None, f"train.rank={RANK} train.layers=0.2-0.8")[0]
    rooms = [room_of(config, model, [student(model, number)]) for number in range(17)]
    assert [room.rank for room in rooms] == [128] * 5 + [256] * 4 + [512] * 8
    assert {room.modules for room in rooms} == {
        ("down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj")
    }
    assert set(rooms[0].layers) == set(band("0.2-0.8", model.depth)) <= set(rooms[1].layers)


@pytest.mark.parametrize(
    ("memory", "window", "seats"), [(80, 1024, 1024), (80, 5000, 1024), (80, 320, 320), (24, 1024, 256), (24, 100, 100)]
)
def test_graphs_are_made_up_to_the_batch_that_runs(memory: int, window: int, seats: int) -> None:
    found = options.gpu_options(memory * 2**30, window)
    sizes = found["compilation_config"]["cudagraph_capture_sizes"]
    assert found["max_num_seqs"] == seats == sizes[-1] and sizes == sorted(set(sizes)) and len(sizes) <= 15


def test_modules_of_the_band_get_room_by_their_full_names() -> None:
    """vLLM packs q_proj into qkv_proj, and a multimodal wrapper has a tower of the same names."""
    import torch

    def block() -> torch.nn.Module:
        inner = torch.nn.ModuleDict({name: torch.nn.Identity() for name in ("qkv_proj", "o_proj")})
        return torch.nn.ModuleDict({"self_attn": inner, "norm": torch.nn.Identity()})

    class Wrapper(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.packed_modules_mapping = {"qkv_proj": ["q_proj", "k_proj", "v_proj"]}
            self.vision_tower = torch.nn.ModuleDict({"layers": torch.nn.ModuleList(block() for _ in range(4))})
            text = torch.nn.ModuleDict({"layers": torch.nn.ModuleList(block() for _ in range(4))})
            self.language_model = torch.nn.ModuleDict({"model": text})

    assert full_names(Wrapper(), ["q_proj"], [1, 2], 4) == [
        f"language_model.model.layers.{layer}.self_attn.qkv_proj" for layer in (1, 2)
    ]
    assert len(full_names(Wrapper(), ["q_proj", "o_proj"], [3], 4)) == 2


def test_logits_are_in_float32_at_both_levels_of_a_multimodal_configuration(tmp_path: Path, model: Model) -> None:
    head = {"head_dtype": "float32"}
    assert options.precision_options(model.folder, "float32") == {}
    assert options.precision_options(model.folder, "bfloat16") == {"hf_overrides": head}
    (tmp_path / "config.json").write_text('{"text_config": {"hidden_size": 8}}')
    assert options.precision_options(tmp_path, "bfloat16") == {"hf_overrides": {**head, "text_config": head}}
    assert options.command_line(options.precision_options(tmp_path, "float16")) == [
        "--hf-overrides", '{"head_dtype": "float32", "text_config": {"head_dtype": "float32"}}',
    ]  # fmt: skip


def test_the_sampler_that_needs_a_compiler_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    monkeypatch.delenv("VLLM_USE_FLASHINFER_SAMPLER", raising=False)
    options.set_environment()
    assert os.environ["VLLM_USE_FLASHINFER_SAMPLER"] == "0"
    monkeypatch.setenv("VLLM_USE_FLASHINFER_SAMPLER", "1")
    options.set_environment()
    assert os.environ["VLLM_USE_FLASHINFER_SAMPLER"] == "1"


def test_an_engine_is_split_over_as_many_gpus_as_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from gen.local import gpu_groups
    from shared.errors import SteerHealError

    assert options.parallel_options(1) == {} and (torch.cuda.is_available() or options.parallel_options(2) == {})
    monkeypatch.setattr(options, "on_gpu", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert options.parallel_options(2) == {"tensor_parallel_size": 2}
    with pytest.raises(SteerHealError, match="fewer GPUs than an engine is split over"):
        options.parallel_options(4)
    assert options.command_line({"tensor_parallel_size": 2}) == ["--tensor-parallel-size", "2"]
    assert gpu_groups(["0", "1", "2"], 1) == ["0", "1", "2"] and gpu_groups(["0", "3", "5", "6", "7"], 2) == [
        "0,3",
        "5,6",
    ]
    assert gpu_groups(["0"], 2) == []
