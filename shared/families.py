"""What the code knows of model families by name; everything else it reads from a model's own configuration, weights and chat template.

A family that needs nothing special still has an entry: it names the random models that tests/test_families.py makes of it, which
are the rows of docs/models.md. To add a family, add an entry to FAMILIES and its network to tests/family_models.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

# How Llama 3 cuts text before its merges (llama.cpp, src/llama-vocab.cpp).
LLAMA_3_SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


@dataclass(frozen=True)
class GgufFacts:
    """What a GGUF file of a family leaves unsaid, or Transformers does not read.

    Args:
        architecture: `general.architecture` of its files.
        model_type: what it becomes in config.json.
        converted_splits: values of tokenizer.ggml.pre by which Transformers' converter of the architecture splits text already.
        splits: other values of tokenizer.ggml.pre, with the pattern that text is cut by. Their vocabularies begin a text with BOS
            where the file does not say.
        local_rope: sliding layers have a different rotary base, `rope.freq_base_swa`.
        sliding_window: the window is in the file, and Transformers leaves it at its default.
        largest_depth: blocks of the one size of the family whose attention is scaled by hidden / heads, and not by the width of a head.
    """

    architecture: str
    model_type: str
    converted_splits: frozenset[str] = frozenset()
    splits: Mapping[str, str] = field(default_factory=dict)
    local_rope: bool = False
    sliding_window: bool = False
    largest_depth: int | None = None


@dataclass(frozen=True)
class Family:
    """One family of models.

    Args:
        models: the random models of tests/family_models.py by name, each with its title in docs/models.md.
        model_types: `model_type` of the text model in config.json, the tried one first. What stands here holds for all of them.
        gguf: of its GGUF files; None where they are refused, or written as another family's (Mistral's as Llama's).
        post_norm: the blocks read the residual stream itself, and a norm comes after them (gen/engine/overflow.py).
        scaled_context: max_position_embeddings is the context after RoPE scaling, not before it.
        default_sizes: sizes that its config.json may leave out, as Transformers has them.
    """

    models: Mapping[str, str]
    model_types: tuple[str, ...]
    gguf: GgufFacts | None = None
    post_norm: bool = False
    scaled_context: bool = False
    default_sizes: Mapping[str, int] = field(default_factory=dict)


FAMILIES = (
    Family(
        {"llama3": "Llama 3"},
        ("llama",),
        GgufFacts(  # SmolLM splits off digits as well, which its merges never join
            "llama",
            "llama",
            converted_splits=frozenset({"default", "gpt-2", "smollm"}),
            splits=dict.fromkeys(("llama-bpe", "llama3", "llama-v3"), LLAMA_3_SPLIT),
        ),
    ),
    Family({"qwen2": "Qwen2"}, ("qwen2",), GgufFacts("qwen2", "qwen2", frozenset({"default", "qwen2"}))),
    Family({"qwen3": "Qwen3"}, ("qwen3",), GgufFacts("qwen3", "qwen3", frozenset({"default", "qwen2"}))),
    Family(
        {"qwen3_moe": "Qwen3-MoE"}, ("qwen3_moe",), GgufFacts("qwen3moe", "qwen3_moe", frozenset({"default", "qwen2"}))
    ),
    Family({"gemma2": "Gemma 2"}, ("gemma2",), GgufFacts("gemma2", "gemma2", largest_depth=46)),
    Family(
        {
            "gemma3_text": "Gemma 3, text",
            "gemma3": "Gemma 3, multimodal",
            "gemma3_vision": "Gemma 3, multimodal, with a stand-in for torchvision",
        },
        ("gemma3_text", "gemma3", "gemma3n_text", "gemma3n"),
        GgufFacts("gemma3", "gemma3_text", local_rope=True, largest_depth=62),
        scaled_context=True,
        default_sizes={
            "num_attention_heads": 8,
            "head_dim": 256,
            "num_key_value_heads": 4,
            "vocab_size": 262_208,
        },
    ),
    Family({"mistral": "Mistral"}, ("mistral",)),
    Family({"phi3": "Phi-3", "phi4": "Phi-4"}, ("phi3",), GgufFacts("phi3", "phi3", sliding_window=True)),
    Family({"olmo2": "OLMo-2"}, ("olmo2", "olmo3", "olmo_hybrid", "flex_olmo", "exaone4"), post_norm=True),
)
GGUF = {family.gguf.architecture: family.gguf for family in FAMILIES if family.gguf is not None}
GGUF_SPLITS = {pre: pattern for facts in GGUF.values() for pre, pattern in facts.splits.items()}
TITLES = {name: title for family in FAMILIES for name, title in family.models.items()}
_BY_TYPE = {model_type: family for family in FAMILIES for model_type in family.model_types}
_UNKNOWN = Family({}, ())

# How chat templates write a thought, whichever model they come with: what opens it, and what stands between it and the answer.
THOUGHTS = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|channel|>analysis<|message|>", "<|channel|>final<|message|>"),
    ("<|channel>thought", "<channel|>"),
)
# Parts of the names of modules that are no part of the language model.
TOWERS = frozenset({"vision", "audio"})
# Where a multimodal model keeps its language model: Transformers' name for it first, then that of older checkpoints, then none.
LANGUAGE_MODEL = ("model.language_model.", "language_model.model.", "model.")
# Keys of config.json that a mixture of experts has.
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
# Model types whose Conv1D weights are [in, out]: no adapter over them is taken.
CONV1D = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer"})
# Llama 3's scaling of positions, which a GGUF file holds as one factor a frequency, without these constants.
LLAMA_3_ROPE = {
    "rope_type": "llama3",
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def family_of(model_type: object) -> Family:
    """The family of a text model's `model_type`; for one that is not known, a family of which nothing is."""
    return _BY_TYPE.get(str(model_type), _UNKNOWN)
