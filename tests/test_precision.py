"""How a GPU multiplies and compiles in a training, as far as it shows without one."""

from __future__ import annotations

import pytest
import torch

from train.data import IGNORED, Example, collate
from train.precision import blocks_uncompiled, tensor_cores


@pytest.mark.parametrize(
    ("device", "dtype", "inside"),
    [("cuda", "bfloat16", "high"), ("cuda", "float32", "highest"), ("cpu", "bfloat16", "highest")],
)
def test_tensor_cores_take_products_of_half_precision_models_alone(device: str, dtype: str, inside: str) -> None:
    assert torch.get_float32_matmul_precision() == "highest"
    with pytest.raises(ValueError), tensor_cores(device, dtype):
        assert torch.get_float32_matmul_precision() == inside
        raise ValueError
    assert torch.get_float32_matmul_precision() == "highest"


def test_checks_on_a_gpu_run_uncompiled() -> None:
    compiled: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> object:
        compiled.append(len(inputs))
        return graph.forward

    twice = torch.compile(lambda x: 2 * x, backend=backend)
    with blocks_uncompiled("cuda"):
        assert twice(torch.ones(2)).sum() == 4 and not compiled
    with blocks_uncompiled("cpu"):
        assert twice(torch.ones(2)).sum() == 4 and compiled


@pytest.mark.parametrize("multiple", [1, 8, 64])
def test_a_batch_is_padded_to_a_multiple(multiple: int) -> None:
    examples = [Example([1, 2, 3], [4, 5], "a"), Example([1], [2] * 70, "b")]
    plain, batch = collate(examples), collate(examples, multiple)
    width = batch["input_ids"].shape[1]
    assert width % multiple == 0 and width - plain["input_ids"].shape[1] < multiple
    for name, fill in (("input_ids", 0), ("attention_mask", 0), ("labels", IGNORED)):
        assert torch.equal(batch[name][:, :71], plain[name]) and (batch[name][:, 71:] == fill).all()


def test_gemma_trains_without_being_told_what_is_an_image() -> None:
    """Transformers once refused; with zeros it would take the mask for images in place of a causal one."""
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    text = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "vocab_size": 64, "sliding_window": 8}  # fmt: skip
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}  # fmt: skip
    network = Gemma3ForConditionalGeneration(Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_index=63)).train()  # fmt: skip
    ids = torch.randint(3, 60, (2, 12))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    network(**batch, labels=ids).loss.backward()
    assert all(value.grad is not None for name, value in network.named_parameters() if "language_model.layers" in name)
    with torch.no_grad():
        told = network(**batch, token_type_ids=torch.zeros_like(ids)).logits
        assert torch.allclose(network(**batch).logits, told, atol=1e-5)
