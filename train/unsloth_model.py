"""The student under Unsloth: a frozen base, the frozen folded history, and this round's trainable adapter.

The only file that imports unsloth. The traps of two adapters are handled here: Unsloth's compiler rewrites PEFT's adapter loop so
that only the first active adapter counts; PEFT's disable_adapter unfreezes on exit; Unsloth marks every adapter trainable;
concatenated rsLoRA factors would be scaled wrongly. The Trainer's own trap, a resume that forgets this round's adapter, is in
train/trainer.py. vLLM is hidden from Unsloth, which would load a library built for another CPU.
"""

from __future__ import annotations

import contextlib
import os
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.adapters import Adapter, loads_from
from shared.commands import setting
from shared.errors import SteerHealError
from shared.fitting import fit
from shared.folding import verify
from shared.layers import decoder_layers
from shared.models import Model, cache_folder, cap_attention
from shared.preconditions import trainable
from shared.runtime import gc_disabled
from shared.schema import Config, band
from train.isolation import vllm_hidden

os.environ.setdefault("UNSLOTH_COMPILE_LOCATION", str(cache_folder() / "unsloth_compiled"))
with vllm_hidden(), gc_disabled(), contextlib.redirect_stdout(None), warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from unsloth import FastLanguageModel  # before transformers and peft, which it patches

import torch
from safetensors.torch import load_file

from train.objective import Head

CURRENT, HISTORY = "default", "history"


@dataclass(frozen=True)
class TrainedStudent:
    """network: the PEFT model; adapters: all that are attached, the history first."""

    network: Any
    adapters: tuple[str, ...]

    @property
    def layers(self) -> list[Any]:
        """The modules that carry adapters."""
        from peft.tuners.tuners_utils import BaseTunerLayer

        return [module for module in self.network.modules() if isinstance(module, BaseTunerLayer)]

    @contextlib.contextmanager
    def only(self, *names: str) -> Iterator[None]:
        """Activate just these adapters inside the context; none is the original model. Trainability is never touched."""
        layers = self.layers
        saved = [(layer._active_adapter, layer._disable_adapters) for layer in layers]
        try:
            for layer in layers:
                layer._active_adapter, layer._disable_adapters = list(names), not names
            yield
        finally:
            for layer, (active, disabled) in zip(layers, saved, strict=True):
                layer._active_adapter, layer._disable_adapters = active, disabled

    @property
    def head(self) -> Head:
        """Weight, bias and soft cap of the output layer."""
        layer = self.network.get_output_embeddings()
        config = self.network.config
        return Head(
            layer.weight,
            getattr(layer, "bias", None),
            getattr(config, "text_config", config).to_dict().get("final_logit_softcapping"),
        )

    def hidden(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Final hidden states [batch, length, hidden], what the head turns into logits."""
        if input_ids.device.type == "cpu":
            inner = self.network.get_base_model().get_decoder()
            return inner(**self._inputs(input_ids, attention_mask)).last_hidden_state
        os.environ["UNSLOTH_RETURN_HIDDEN_STATES"] = "1"
        try:
            return self.network(**self._inputs(input_ids, attention_mask)).logits
        finally:
            os.environ["UNSLOTH_RETURN_HIDDEN_STATES"] = "0"

    @torch.no_grad()
    def logits(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Logits [batch, length, vocabulary] without gradients, under the active adapters."""
        return self.network(**self._inputs(input_ids, attention_mask)).logits

    def _inputs(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> dict[str, Any]:
        # No token_type_ids for Gemma 3: Transformers 5 trains without, and zeros would take the mask for images in place of a causal one.
        return {"input_ids": input_ids, "attention_mask": attention_mask, "use_cache": False}

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return next(self.network.parameters()).device

    @property
    def multiple(self) -> int:
        """The number that the length of a batch is a multiple of: Unsloth compiles blocks and FlexAttention tunes itself by shape on a GPU."""
        return 64 if self.device.type == "cuda" else 1

    def parameters(self, adapter: str) -> dict[str, torch.nn.Parameter]:
        """The parameters of an adapter, by their name in the network."""
        return {name: value for name, value in self.network.named_parameters() if f".{adapter}." in name}

    @property
    def current(self) -> dict[str, torch.nn.Parameter]:
        """The parameters of this round's adapter, which are trained."""
        return self.parameters(CURRENT)

    def save(self, folder: Path) -> None:
        """Write this round's adapter, and nothing else, as PEFT does."""
        self.network.save_pretrained(str(folder), selected_adapters=[CURRENT], save_embedding_layers=False)
        (folder / "README.md").unlink(missing_ok=True)

    def load(self, folder: Path) -> None:
        """Read this round's adapter back in place: trainability and the optimiser's references stay."""
        written = load_file(folder / "adapter_model.safetensors")
        with torch.no_grad():
            for name, value in self.current.items():
                value.copy_(written[name.replace(f".{CURRENT}.", ".")])

    def holds(self, folder: Path) -> bool:
        """Whether this round's adapter in memory is, bit for bit, the one in a folder."""
        written = load_file(folder / "adapter_model.safetensors")
        ours = {name.replace(f".{CURRENT}.", "."): value for name, value in self.current.items()}
        return written.keys() == ours.keys() and all(
            torch.equal(written[name], value.detach().cpu()) for name, value in ours.items()
        )


@contextlib.contextmanager
def peft_forwards_kept() -> Iterator[None]:
    """Undo what Unsloth's compiler does to PEFT's LoRA layers: its forward returns after the first active adapter."""
    from peft.tuners import lora

    classes = [
        lora.Linear,
        *[cls for name in ("Linear4bit", "Linear8bitLt") if (cls := getattr(lora, name, None)) is not None],
    ]
    forwards = [cls.forward for cls in classes]
    try:
        yield
    finally:
        for cls, forward in zip(classes, forwards, strict=True):
            cls.forward = forward


def load_student(model: Model, config: Config, history: Path | None) -> TrainedStudent:
    """The student at the start of a round: the original weights under the history, and a fresh adapter whose effect is zero."""
    train = config.train
    trainable(config, model.context)
    if train.load_in_4bit and not torch.cuda.is_available():
        raise SteerHealError(
            "4-bit weights need a GPU",
            given="train.load_in_4bit = true",
            expected="false on a CPU",
            next=setting("train.load_in_4bit=false"),
        )
    folded = verify(history) if history is not None else None
    if folded is not None:
        fit(folded, model)
    with vllm_hidden(), peft_forwards_kept(), contextlib.redirect_stdout(None):  # Unsloth's notices
        network, _ = FastLanguageModel.from_pretrained(
            str(model.folder),
            max_seq_length=train.max_length,
            dtype=getattr(torch, config.model.dtype),
            load_in_4bit=train.load_in_4bit,
            use_gradient_checkpointing=train.gradient_checkpointing,
            trust_remote_code=False,
        )
        cap_attention(network)
        network = FastLanguageModel.get_peft_model(
            network,
            r=train.rank,
            lora_alpha=train.alpha,
            lora_dropout=0.0,
            bias="none",
            target_modules=targets(network, model, train.layers),
            use_gradient_checkpointing=train.gradient_checkpointing,
            random_state=config.seed,
            use_rslora=False,
        )
        if folded is not None:
            refuse_missing_modules(network, folded, model)
            network.load_adapter(str(folded.folder), adapter_name=HISTORY, is_trainable=False)
    network.train()  # the references and the self-test take the same kernels as the steps; nothing here drops out
    student = TrainedStudent(network, (HISTORY, CURRENT) if history is not None else (CURRENT,))
    written = network.peft_config[CURRENT]  # what PEFT and Transformers load the base by
    written.base_model_name_or_path, written.revision = loads_from(model), model.revision
    activate_adapters(student)
    return student


def refuse_missing_modules(network: Any, history: Adapter, model: Model) -> None:
    """Raise SteerHealError unless the network has every module of a history; PEFT would skip those that it does not find."""
    layers = {
        name: module.weight for name, module in network.get_base_model().named_modules() if hasattr(module, "weight")
    }
    names = {name.replace(".base_layer", ""): weight for name, weight in layers.items()}
    for name, (a, b) in history.modules.items():
        shape = tuple(names[name].shape) if name in names else None
        if shape is None or (shape != (len(b), a.shape[1]) and not hasattr(names[name], "quant_state")):
            raise SteerHealError(
                "a history does not fit the model",
                given=f"{history.folder}: {name} {[len(b), a.shape[1]]}",
                expected=f"{name} {list(shape)}" if shape else f"a module of {model.name}",
                next="name the model it was trained on",
            )


def activate_adapters(student: TrainedStudent) -> None:
    """Activate the history and the current adapter; make the current one trainable in fp32, and freeze all else."""
    for layer in student.layers:
        layer._active_adapter, layer._disable_adapters = list(student.adapters), False
    current = {id(value) for value in student.current.values()}
    for value in student.network.parameters():
        value.requires_grad_(id(value) in current)
        if id(value) in current:
            value.data = value.data.float()


def targets(network: torch.nn.Module, model: Model, layers: str) -> str:
    """A pattern over every linear module in the band of the text tower's decoder layers."""
    name, stack = decoder_layers(network, model.depth)
    chosen = band(layers, model.depth, "train.layers")
    inner = sorted(
        {
            inside
            for index in chosen
            for inside, module in stack[index].named_modules()
            if isinstance(module, torch.nn.Linear)
        }
    )
    return rf"(?:.*\.)?{re.escape(name)}\.(?:{'|'.join(map(str, chosen))})\.(?:{'|'.join(map(re.escape, inner))})"
