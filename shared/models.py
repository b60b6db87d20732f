"""Which model: the embedded one or a GGUF file (dequantised once into a cache), a Hugging Face id, or a local folder."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cached_property
from pathlib import Path
from typing import Any

from shared.cache import cache_folder as cache_folder
from shared.cache import remembered_digest
from shared.commands import nearest_command, option
from shared.console import console
from shared.context import context_of
from shared.dequantise import STAMP, dequantised
from shared.embedded import embedded_folder, embedded_gguf
from shared.errors import SteerHealError, in_one_line
from shared.gguf_header import Header, is_gguf
from shared.gguf_model import bytes_of, read_model, text_config
from shared.naming import means_path, no_tilde
from shared.nearby import ALIKE
from shared.publish import digest
from shared.quantised import refuse_quantised
from shared.records import Identity
from shared.runtime import gc_disabled
from shared.strict import read_object

TEMPLATES = ("chat_template.jinja", "chat_template.json", "additional_chat_templates", "tekken.json")
GGUF_VERSION = (
    2  # of the folder that a GGUF file becomes; 1 did not know every key of positions, nor whether BOS is added
)


@dataclass(frozen=True)
class Model:
    """A model on disk. revision is the hub commit, or None for a local one."""

    name: str
    folder: Path
    revision: str | None

    @property
    def place(self) -> Path:
        """The path of `folder`, without writing it where the model is dequantised. No output may be written there."""
        return self.folder

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over names and contents of configuration, tokenizer and weights."""
        files = sorted(
            p for p in self.folder.iterdir() if p.suffix in {".json", ".safetensors", ".jinja", ".model", ".txt"}
        )
        digests = ((remembered_digest if p.suffix == ".safetensors" else digest)(p) for p in files)
        listed = "".join(f"{p.name} {file_digest}\n" for p, file_digest in zip(files, digests, strict=True))
        return hashlib.sha256(listed.encode()).hexdigest()

    @property
    def identity(self) -> Identity:
        """Name, revision and fingerprint, as manifests record them."""
        return Identity(name=self.name, revision=self.revision, fingerprint=self.fingerprint)

    @cached_property
    def text_config(self) -> dict[str, Any]:
        """config.json, or its part about the language model where the model also reads images. Raises SteerHealError."""
        config = read_object(
            self.folder / "config.json",
            what="a model's configuration could not be read",
            expected="JSON as save_pretrained writes it",
            next="choose another model.name, or download it again",
        )
        inner = config.get("text_config")  # multimodal configurations nest the language model's
        return inner if isinstance(inner, dict) else config

    def chats(self) -> None:
        """Raise SteerHealError for a model whose tokenizer files hold no chat template."""
        note = self.folder / "tokenizer_config.json"
        inside = note.is_file() and b'"chat_template"' in note.read_bytes()
        beside = any((self.folder / name).exists() for name in TEMPLATES)
        if not inside and not beside:
            raise SteerHealError(
                "a model has no chat template",
                given=self.folder if self.revision is None else self.name,
                expected="a chat model (chat_template.jinja, or chat_template in tokenizer_config.json)",
                next="choose the instruction-tuned variant of the model, often named -it or -Instruct",
            )

    @property
    def depth(self) -> int:
        """The number of decoder layers. Raises SteerHealError where config.json has none."""
        return self._size("num_hidden_layers")

    @property
    def hidden(self) -> int:
        """The width of the hidden states. Raises SteerHealError where config.json has none."""
        return self._size("hidden_size")

    @property
    def context(self) -> int | None:
        """The longest sequence that the model knows, tokens; None where its configuration does not say."""
        return context_of(self.text_config)

    def _size(self, key: str) -> int:
        size = self.text_config.get(key)
        if isinstance(size, int) and not isinstance(size, bool) and size > 0:
            return size
        raise SteerHealError(
            "a model's configuration does not say its size",
            given=f"{self.folder / 'config.json'}: {key} {size!r}",
            expected="a decoder that Transformers loads as such, with num_hidden_layers and hidden_size",
            next="choose another model.name",
        )


class Dequantised(Model):
    """A model in a GGUF file, which is dequantised into the cache when its folder is first asked for."""

    def __init__(self, name: str, source: Path, place: Callable[[], Path]):
        """source: the GGUF file. place: gives its folder in the cache."""
        self.__dict__.update(name=name, revision=None, _source=source, _place=place)

    @cached_property
    def header(self) -> Header:
        """Raises SteerHealError for a file that holds no model which can be dequantised here."""
        return read_model(self.__dict__["_source"])

    @cached_property
    def place(self) -> Path:
        """The folder in the cache, which may not have been written yet."""
        place: Path = self.__dict__["_place"]()
        return place

    @cached_property
    def folder(self) -> Path:
        """The folder of the dequantised model. The first access writes it, which takes minutes for a large model."""
        return dequantised(lambda: self.header, self.place)

    @property
    def to_build(self) -> int:
        """Bytes that its folder will take, where that is still to be built."""
        return 0 if (self.place / STAMP).is_file() else bytes_of(self.header)

    @cached_property
    def text_config(self) -> dict[str, Any]:
        return text_config(self.header)

    def chats(self) -> None:
        if not self.header.text("tokenizer.chat_template"):
            raise SteerHealError(
                "a model has no chat template",
                given=self.__dict__["_source"],
                expected="a GGUF file of a chat model, with tokenizer.chat_template",
                next="choose the instruction-tuned variant of the model, often named -it or -Instruct",
            )


def _gguf_folder(source: Path) -> Path:
    """The folder in the cache that a GGUF file becomes, named by its content: another file under the same name is another model."""
    with console.status(f"reading {source.name}"):
        return cache_folder() / f"gguf-{remembered_digest(source)[:32]}-{GGUF_VERSION}"


def resolve_model(name: str, revision: str | None = None, *, weights: bool = True) -> Model:
    """The model a name means, on disk. The embedded one and a GGUF file are dequantised when their folder is first asked for.

    Args:
        name: `embedded`, a local folder, a GGUF file or a Hugging Face id.
        revision: of the hub's.
        weights: False takes its configuration and tokenizer alone, where the weights are not here yet.

    Raises:
        SteerHealError: it cannot be had, is not a safetensors model, or is a GGUF file that cannot be dequantised.
    """
    if name == "embedded":
        return Dequantised(name, embedded_gguf(), lambda: embedded_folder(cache_folder()))
    if _is_folder(name):
        return _checked(Model(name, Path(name).resolve(), None))
    if _is_file(name) and (name.endswith(".gguf") or is_gguf(Path(name))):
        source = Path(name).resolve()
        model = Dequantised(name, source, lambda: _gguf_folder(source))
        _ = model.header  # what cannot be dequantised is refused here
        return model
    if meant := _meant(name):
        raise SteerHealError(
            "there is no such model",
            given=repr(name),
            expected=f"did you mean {meant}?",
            next=f"the same command with {option('MODEL', '--model', meant)}",
        )
    if _is_file(name) or means_path(name):
        is_file = _is_file(name)
        raise SteerHealError(
            "a model is a folder or a GGUF file" if is_file else "there is no such model",
            given=f"{name!r}{no_tilde(name)}",
            expected="'embedded', a folder with config.json and *.safetensors, a GGUF file, or a Hugging Face id, owner/name",
            next="load it with Transformers, save_pretrained(FOLDER), and name that folder"
            if is_file
            else f"ls {shlex.quote(str(Path(name).parent))}, and name a folder or a .gguf file that is there, or `embedded`",
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    kinds = ["*.json", "*.jinja", "*.model", "*.txt"]
    try:
        patterns = [*kinds, "*.safetensors"] if weights else kinds
        with console.status(f"fetching {name}, or looking for it in the cache"):
            folder = Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except HFValidationError:
        raise SteerHealError(
            "a name is neither a model folder nor a Hugging Face id",
            given=repr(name),
            expected="'embedded', a local folder or GGUF file, or owner/name of letters, digits, '-', '_' and '.'",
            next="name a model as owner/name, such as Qwen/Qwen3-0.6B, or `embedded`",
        ) from None
    except Exception as error:  # the hub client raises many types for one fact: the model is not here
        raise SteerHealError(
            "a model could not be loaded from the hub or its cache",
            given=f"{name} (revision {revision or 'main'}): {in_one_line(error)}",
            expected="'embedded', a local folder, or a Hugging Face id that can be reached or is cached",
            next="check the name, log in with `hf auth login` for a gated model, or take `embedded`",
        ) from None
    return _checked(Model(name, folder, folder.name), weights)


def tokenizer_folder(name: str) -> Path:
    """The folder of a model's tokenizer and generation_config.json: a local one as it is, of the hub's without its weights."""
    return Path(name) if _is_folder(name) else resolve_model(name, weights=False).folder


def _meant(name: str) -> str | None:
    """The name that a misspelt one was meant to be: `embedded`, or a model folder or GGUF file beside it. None where nothing is similar."""
    if "/" not in name and SequenceMatcher(None, name.lower(), "embedded").ratio() > ALIKE:
        return "embedded"
    path = Path(name)
    if _is_file(name) or not means_path(name) or "\0" in name or not _is_folder(str(path.parent)):
        return None
    folders = [config.parent.name for config in sorted(path.parent.glob("*/config.json"))]
    meant = nearest_command(path.name, [*folders, *(file.name for file in sorted(path.parent.glob("*.gguf")))])
    return str(path.with_name(meant)) if meant else None


def load_network(folder: Path, dtype: Any, device: str = "cpu") -> Any:
    """The network of a model folder, for inference. Reads safetensors only, and runs no code from the folder.

    Args:
        folder: of the model.
        dtype: of torch, or 'auto'.
        device: a GPU gets the weights directly, without a copy of them all in the memory of the host.
    """
    with gc_disabled():
        from transformers import AutoModelForCausalLM

    placed = {} if device == "cpu" else {"device_map": device}
    network = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, use_safetensors=True, trust_remote_code=False, **placed
    ).eval()
    cap_attention(network)
    return network


def cap_attention(network: Any) -> None:
    """Have a network cap its attention's logits where its configuration does (Gemma 2), as vLLM does.

    Transformers' default attention, PyTorch's, leaves the cap out without a word (5e-3 nats in a small random model).
    """
    if getattr(network.config.get_text_config(), "attn_logit_softcapping", None):
        network.set_attn_implementation("eager")


def _is_folder(name: str) -> bool:
    try:
        return Path(name).is_dir()
    except (OSError, ValueError):  # too long for a path, or with a NUL
        return False


def _is_file(name: str) -> bool:
    try:
        return Path(name).is_file()
    except (OSError, ValueError):
        return False


def _checked(model: Model, weights: bool = True) -> Model:
    if not (model.folder / "config.json").is_file() or (weights and not any(model.folder.glob("*.safetensors"))):
        raise SteerHealError(
            "a folder is not a model",
            given=model.folder,
            expected="config.json and *.safetensors",
            next="set model.name to a Hugging Face id or a folder written by save_pretrained",
        )
    refuse_quantised(model.folder, model.name)
    return model
