"""Small random-weight models of each family through every stage: docs/models.md is the table of what passes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from families_table import CHECKS, JSON, PAGE, measured, page, reason
from family_checks import extraction
from family_models import ARCHITECTURES, SIZES, write

from shared.families import FAMILIES, TITLES, family_of
from shared.models import Model, load_network, resolve_model

TRIED = [name for name in TITLES if not ARCHITECTURES[name].stand_in]


def test_every_family_of_the_registry_is_tried_and_stands_on_the_page() -> None:
    """A family is tried by a network of the type that its entry names first; the others are said to be alike."""
    shown = [line.split(" | ")[0].removeprefix("| ") for line in PAGE.read_text().splitlines()]
    types = [name for family in FAMILIES for name in family.model_types]
    assert len(types) == len(set(types)) and set(ARCHITECTURES) == set(TITLES)
    for family in FAMILIES:
        assert set(family.models) & set(TRIED), f"{family.model_types[0]} is tried by no model"
        assert set(family.models.values()) <= set(shown)
        for name in family.models:
            text = (
                ARCHITECTURES[name]
                .config(**SIZES, vocab_size=64, bos_token_id=1, eos_token_id=2, pad_token_id=0)
                .get_text_config()
            )
            assert text.model_type == family.model_types[0]
            if (facts := family.gguf) is not None:
                assert facts.model_type == text.model_type


def test_a_model_of_no_known_family_has_no_facts() -> None:
    unknown = family_of("of tomorrow")
    assert unknown is family_of(None) and not unknown.models and not unknown.post_norm and not unknown.default_sizes
    assert family_of("olmo3").post_norm and family_of("gemma3n_text").scaled_context


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    folder = tmp_path_factory.mktemp("families")
    return {family: resolve_model(str(write(family, folder / family))) for family in TRIED}


@pytest.mark.parametrize("family", TRIED)
def test_a_vector_is_what_plain_hooks_read(models: dict[str, Model], family: str) -> None:
    found = extraction(models[family])
    assert reason("vector", found) is None, found


@pytest.mark.parametrize("family", TRIED)
def test_a_history_is_added_and_merged_and_its_gates_off_are_the_original(
    models: dict[str, Model], family: str, tmp_path: Path
) -> None:
    """On every linear module of a block: the same student by PEFT, by our sum, and by a checkpoint that was merged."""
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model

    from shared.folding import exact_network, fold
    from shared.layers import decoder_layers
    from shared.merging import merged

    model = models[family]
    network = load_network(model.folder, torch.float32)
    stack, layers = decoder_layers(network, model.depth)
    assert layers is network.get_decoder().layers, "the text tower's, where there are several"
    modules = [f"{stack}.{index}.{name}" for index in (1, 2) for name, inner in layers[index].named_modules() if isinstance(inner, torch.nn.Linear)]  # fmt: skip
    torch.manual_seed(0)
    lora = LoraConfig(r=4, lora_alpha=8, target_modules=modules, init_lora_weights=False)
    get_peft_model(network, lora).save_pretrained(tmp_path / "1")
    for gate, name in ((1.0, "on"), (0.0, "off")):
        fold([(tmp_path / "1", gate)], tmp_path / name)
    ids = torch.tensor([[20 + (7 * place) % 400 for place in range(40)]])

    @torch.no_grad()
    def logprobs(network: torch.nn.Module) -> torch.Tensor:
        return network(input_ids=ids).logits[0].log_softmax(-1)

    original = load_network(model.folder, torch.float32)
    wanted = logprobs(PeftModel.from_pretrained(load_network(model.folder, torch.float32), str(tmp_path / "1")).eval())
    assert float((wanted - logprobs(original)).abs().max()) > 0.1, (
        "the adapter must matter, or this test proves nothing"
    )
    assert torch.allclose(logprobs(exact_network(model, tmp_path / "on")), wanted, atol=1e-4)
    student = merged(model, tmp_path / "on", tmp_path / "cache", "float32")
    assert torch.allclose(logprobs(load_network(student.folder, torch.float32)), wanted, atol=1e-4)
    assert torch.equal(logprobs(exact_network(model, tmp_path / "off")), logprobs(original))


def test_attention_is_capped_where_the_configuration_says_so(models: dict[str, Model]) -> None:
    """PyTorch's attention gives the logits of a network without a cap."""
    import torch

    ids = torch.tensor([[20 + (7 * place) % 400 for place in range(40)]])
    network = load_network(models["gemma2"].folder, torch.float32)

    @torch.inference_mode()
    def logprobs() -> torch.Tensor:
        return network(ids).logits.log_softmax(-1)

    capped = logprobs()
    network.set_attn_implementation("sdpa")
    plain = logprobs()
    network.set_attn_implementation("eager")
    for layer in network.model.layers:
        layer.self_attn.attn_logit_softcapping = None
    assert float((capped - plain).abs().max()) > 1e-3 and torch.allclose(logprobs(), plain, atol=1e-5)
    assert load_network(models["llama3"].folder, torch.float32).config._attn_implementation == "sdpa"


def test_an_adapter_over_experts_is_refused_on_a_cpu(
    models: dict[str, Model], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM ends there with an attribute that its stand-in for Triton lacks."""
    import torch

    from gen.engine.options import lora_options
    from gen.students import ServedStudent
    from shared.errors import SteerHealError

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    served = {
        family: ServedStudent(models[family].folder, tmp_path, 8, ("q_proj",)) for family in ("qwen3", "qwen3_moe")
    }
    assert lora_options([served["qwen3"]])["enable_lora"]
    with pytest.raises(SteerHealError, match="no adapter over a mixture of experts"):
        lora_options(list(served.values()))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert lora_options(list(served.values()))["enable_lora"]


def test_a_class_that_needs_torchvision_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gen.engine import options
    from shared.errors import SteerHealError

    there: list[str] = []
    monkeypatch.setattr(options, "find_spec", lambda name: name if name in there else None)
    untold = "Model architectures ['Gemma3ForConditionalGeneration'] failed to be inspected."
    with pytest.raises(SteerHealError, match="without torchvision"), options.vision_explained(tmp_path):
        raise ValueError(untold)
    with pytest.raises(ValueError, match="max_model_len"), options.vision_explained(tmp_path):
        raise ValueError("max_model_len is too large")
    there.append("torchvision")
    with pytest.raises(ValueError, match="failed to be inspected"), options.vision_explained(tmp_path):
        raise ValueError(untold)


def test_the_page_is_what_was_measured() -> None:
    results = json.loads(JSON.read_text())
    assert list(results["families"]) == list(TITLES) and PAGE.read_text() == page(results)


@pytest.mark.long
@pytest.mark.parametrize("family", TITLES)
def test_a_family_passes_what_the_table_says(family: str, tmp_path: Path) -> None:
    """A check that failed when the table was made must fail still: a pass is a reason to make it again."""
    known, found = json.loads(JSON.read_text())["families"][family], measured(family, tmp_path)
    verdicts = {check: reason(check, found[check]) for check in CHECKS}
    assert {check: why is None for check, why in verdicts.items()} == {
        check: reason(check, known[check]) is None for check in CHECKS
    }, verdicts
