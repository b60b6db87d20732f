"""Whether an adapter fits a model: the one check before its shift is merged, served or trained over."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from pathlib import Path

from shared import adapter_base
from shared.adapters import Adapter, load_adapter
from shared.commands import setting
from shared.errors import SteerHealError
from shared.families import CONV1D, LANGUAGE_MODEL
from shared.lora import layers_of
from shared.models import Model
from shared.quantised import headers
from shared.strict import read_object

FLOATS = {"F64", "F32", "F16", "BF16"}
DECODER = re.compile(r"(?:.*\.)?layers\.(\d+)\..+")


def admitted(folder: Path, model: Model, *, by_engine: bool = False) -> Adapter:
    """The adapter of a folder, which fits a model. Raises SteerHealError as `load_adapter` and `fit` do."""
    adapter = load_adapter(folder)
    fit(adapter, model, by_engine=by_engine)
    return adapter


def fit(adapter: Adapter, model: Model, *, by_engine: bool = False) -> dict[str, str]:
    """The weight of the model that each module of an adapter is added to: module -> tensor name in the checkpoint.

    vLLM and PEFT leave out modules that they do not find, and the model would be scored under the student's name.

    Args:
        adapter: as `load_adapter` reads it.
        model: the original weights; headers of its files are read, no tensors.
        by_engine: whether vLLM applies the adapter; a module that it would leave out is refused then as well.

    Raises:
        SteerHealError: other weights were trained on, or the model has no such layer, module or shape; with the module's name.
    """
    adapter_base.check_noted_base(adapter, model)
    config = read_object(
        model.folder / "config.json",
        what="a model's configuration could not be read",
        expected="JSON as save_pretrained writes it",
        next="choose another model.name, or download it again",
    )
    nested = isinstance(config.get("text_config"), dict)
    text = config["text_config"] if nested else config
    weights = {name: tensor for _, header in headers(model.folder) for name, tensor in header.items()}

    def refuse(what: str, given: str, expected: str, next: str = "name the model that the adapter was trained on") -> SteerHealError:  # fmt: skip
        return SteerHealError(what, given=f"{adapter.folder}: {given}", expected=expected, next=next)

    lacks, unfit = "an adapter names modules that the model lacks", "an adapter does not fit a model"
    if beyond := [layer for layer in layers_of(adapter.config) if not 0 <= layer < model.depth]:
        raise refuse(lacks, f"layers_to_transform {beyond[0]}", f"layers 0 to {model.depth - 1} of {model.name}")
    if text.get("model_type") in CONV1D:
        raise refuse(unfit, next(iter(adapter.modules)), f"a model with linear layers; {text['model_type']} has Conv1D")
    merged = f"serve it merged: {setting('model.student=merged')}"
    places: dict[str, str] = {}
    used_weights: set[str] = set()
    for module, (a, b) in adapter.modules.items():
        shape = [len(b), a.shape[1]]
        given = f"{module} {shape}"
        place = next(
            (name for spelling in _spellings(module, nested) if (name := f"{spelling}.weight") in weights), None
        )
        layer = DECODER.fullmatch(module)
        if place is None or (layer and int(layer[1]) >= model.depth):
            raise refuse(lacks, given, f"modules of {model.name}, such as {_example(weights, module)}")
        if not layer and not _head(module, text, config):
            raise refuse(unfit, given, "modules of the decoder layers; embeddings and a tied head are not changed")
        tensor = weights[place]
        if tensor.get("shape") != shape:
            raise refuse(unfit, given, f"{module} {tensor.get('shape')} in {model.name}")
        if tensor.get("dtype") not in FLOATS:
            raise refuse(unfit, f"{given} over {place} of {tensor.get('dtype')}", "weights in float32, float16 or bfloat16")  # fmt: skip
        if place in used_weights:
            raise refuse(unfit, given, f"one module of {place}")
        if by_engine and not layer:
            raise refuse("the engine cannot apply this adapter", given, "modules of the decoder layers", merged)
        if by_engine and nested and not module.startswith(LANGUAGE_MODEL[:2]):
            raise refuse("the engine cannot apply this adapter", given, f"{LANGUAGE_MODEL[0]}{module.removeprefix(LANGUAGE_MODEL[2])}", merged)  # fmt: skip
        if by_engine and ".experts." in module:
            raise refuse("the engine cannot apply this adapter", given, "no modules of single experts", merged)
        places[module] = place
        used_weights.add(place)
    adapter_base.check_named_base(adapter, model)  # last: what does not fit is told by its modules
    return places


def _spellings(module: str, nested: bool) -> Iterator[str]:
    """Names in a checkpoint that a module may have: multimodal checkpoints and classes nest the language model differently."""
    yield module
    if not nested:
        return
    if module == "lm_head":
        yield "language_model.lm_head"
    for prefix in LANGUAGE_MODEL:
        if (inner := module.removeprefix(prefix)).startswith("layers.") and inner != module:
            yield from (other + inner for other in LANGUAGE_MODEL if other != prefix)


def _head(module: str, text: dict[str, object], config: dict[str, object]) -> bool:
    """Whether it is the output head of a model that says that its head is not the embedding."""
    tied = text.get("tie_word_embeddings", config.get("tie_word_embeddings"))
    return module == "lm_head" and tied is False


def _example(weights: Iterable[str], module: str) -> str:
    """The module of the checkpoint's decoder layers whose name is closest."""
    names = [name.removesuffix(".weight") for name in weights if name.endswith(".weight") and DECODER.fullmatch(name)]
    return next(iter(get_close_matches(module, names, 1, 0.0)), "none")
