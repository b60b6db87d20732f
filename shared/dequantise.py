"""A GGUF model as a plain folder: its weights dequantised, its tokenizer, its configuration, and every token that ends a turn.

Transformers reads the weights (docs/gguf.md says what is mended after it). The folder appears whole or not at all, and one process
at a time makes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.cache import remembered_digest
from shared.console import console, say
from shared.errors import Exit, SteerHealError, in_one_line
from shared.families import GGUF, LLAMA_3_ROPE
from shared.gguf_header import Header, state_of
from shared.gguf_model import (
    ROPE_FACTORS,
    bytes_of,
    described_file,
    dtype_of,
    position_scaling,
    refuse_weights,
    text_config,
)
from shared.gguf_tokenizer import tokenizer_of
from shared.locks import held
from shared.machine import GIB, free_disk
from shared.publish import atomic_folder, digest

if TYPE_CHECKING:
    import torch

WEIGHTS, STAMP = "model.safetensors", "SHA256"  # the stamp holds the digest of the weights
ONE_FILE = "100TB"  # no shards: one file, and one digest


def is_dequantised(folder: Path) -> bool:
    """Whether a folder is there with the weights that its checksum names."""
    stamp, weights = folder / STAMP, folder / WEIGHTS
    complete = stamp.is_file() and weights.is_file()
    return complete and stamp.read_text().strip() == remembered_digest(weights)


def dequantised(header: Callable[[], Header], folder: Path) -> Path:
    """The folder of a GGUF model, built where it is absent or not what its checksum says.

    Args:
        header: reads the header, and refuses a file that is no model; not called where the folder is complete.
        folder: in the cache.

    Raises:
        SteerHealError: too little room, or weights that do not make the model.
    """
    if is_dequantised(folder):
        return folder
    parsed = header()
    with held(folder):
        if not is_dequantised(folder):  # nobody has built it while this waited
            if folder.is_dir():
                say(f"{folder} does not match its checksum: building it again", "yellow")
            _room(parsed, folder)
            _build(parsed, folder)
    return folder


def _room(header: Header, folder: Path) -> None:
    """Raise SteerHealError where the disk is too small for the dequantised weights."""
    needed, (free, place) = bytes_of(header), free_disk(folder)
    if free < needed:
        raise SteerHealError(
            "there is too little room to dequantise a GGUF file",
            given=f"{free / 1e9:.1f} GB free at {place}",
            expected=f"{needed / 1e9:.1f} GB, for the weights of {header.path.name} in {dtype_of(header)}",
            next="free some, or name another place: export STEER_HEAL_CACHE=/path/to/cache",
            code=Exit.MACHINE,
        )


def _build(header: Header, folder: Path) -> None:
    """Read the GGUF and write its weights as a plain model.

    A model loaded from GGUF cannot be saved as it is: its configuration still says it is quantised.
    """
    dtype = dtype_of(header)
    say(
        f"dequantising {header.path.name} ({described_file(header)}) to {dtype} into {folder} (once, {bytes_of(header) / GIB:.1f} GiB)"
    )
    with console.status(f"dequantising {header.path.name}"), _parsed_once():
        tokenizer, ends = tokenizer_of(header)  # first: what it refuses does not wait for the weights
        network = _network(header, dtype)
        network.config.eos_token_id = ends[0] if len(ends) == 1 else ends
        if network.generation_config is not None:
            network.generation_config.eos_token_id = network.config.eos_token_id
        with atomic_folder(folder) as temporary:
            network.save_pretrained(temporary, max_shard_size=ONE_FILE)
            tokenizer.save_pretrained(temporary)
            (temporary / STAMP).write_text(digest(temporary / WEIGHTS) + "\n")
            if state_of(header.path) != header.state:
                refuse_weights(header, "it was changed while it was read")


@contextmanager
def _parsed_once() -> Iterator[None]:
    """Let Transformers parse the file once, and build its map of tensor names once.

    It parses the file for the tokenizer, the configuration and the weights, and builds the map for every module of the network: most
    of the time that a small model takes. The model's name is left out: it takes a Llama that is called `mistral` for another architecture,
    for which it has no tokenizer.
    """
    import gguf

    def nameless(*args: Any) -> Any:
        reader = read(*args)
        reader.fields.pop("general.name", None)
        return reader

    read = gguf.GGUFReader
    repeated = {name: getattr(gguf, name) for name in ("GGUFReader", "get_tensor_name_map")}
    for name, function in repeated.items():
        setattr(gguf, name, lru_cache(maxsize=None)(nameless if function is read else function))
    try:
        yield
    finally:
        for name, function in repeated.items():
            setattr(gguf, name, function)


def _network(header: Header, dtype: str) -> Any:
    """The model of a GGUF file, dequantised, under a configuration that does not say it was quantised."""
    import torch
    from transformers import AutoModelForCausalLM

    try:
        loaded, info = AutoModelForCausalLM.from_pretrained(
            header.path.parent,
            gguf_file=header.path.name,
            dtype=getattr(torch, dtype),
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (ValueError, RuntimeError, KeyError, NotImplementedError, IndexError, TypeError) as error:
        refuse_weights(header, in_one_line(error))
    _complete(header, loaded, info)
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.dtype = getattr(torch, dtype)
    _mend(header, config)
    _scale_positions(header, config)
    state = loaded.state_dict()
    with torch.device("meta"):  # without drawing weights that are replaced at once
        plain = type(loaded)(config)
    try:
        plain.load_state_dict(state, assign=True)
    except RuntimeError as error:  # Transformers itself does not compare shapes here
        refuse_weights(header, str(error).strip().splitlines()[-1].strip())
    plain.tie_weights()
    return plain


def _complete(header: Header, network: Any, info: dict[str, Any]) -> None:
    """Raise SteerHealError unless every tensor of the file went into the network, and every weight of the network came from it.

    Transformers draws a weight that the file lacks, and leaves out a tensor that it does not know; both with a warning at most.
    """
    import torch
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

    if lacking := sorted(str(name) for kind in ("missing_keys", "mismatched_keys") for name in info[kind]):
        refuse_weights(header, f"without {', '.join(lacking[:3])}{' and more' if len(lacking) > 3 else ''}")
    processor = TENSOR_PROCESSORS.get(header.architecture, TensorProcessor)(config=network.config.to_dict())
    names = get_gguf_hf_weights_map(network, processor)
    strange = [
        tensor.name
        for tensor in header.tensors
        if tensor.name not in names and tensor.name.removesuffix(".weight") not in names and tensor.name != ROPE_FACTORS
    ]
    if strange:
        refuse_weights(header, f"with {', '.join(strange[:3])}{' and more' if len(strange) > 3 else ''}")
    for name, value in network.state_dict().items():
        if not torch.isfinite(value).all():
            refuse_weights(header, f"{name} has values that are NaN or infinite")
    header_config, config = text_config(header), network.config
    if differ := [
        key for key in ("num_hidden_layers", "hidden_size", "vocab_size") if getattr(config, key) != header_config[key]
    ]:
        refuse_weights(
            header, f"{differ[0]} is {header_config[differ[0]]}, and {getattr(config, differ[0])} in Transformers"
        )


def _mend(header: Header, config: Any) -> None:
    """Put sizes into a configuration that Transformers leaves at its own default, whatever the file says."""
    header_config, architecture = text_config(header), header.architecture
    if hasattr(config, "head_dim"):
        config.head_dim = header_config["head_dim"]
    if hasattr(config, "moe_intermediate_size"):
        config.moe_intermediate_size = (
            header.whole(f"{architecture}.expert_feed_forward_length") or config.moe_intermediate_size
        )
    if GGUF[architecture].sliding_window:
        config.sliding_window = header.whole(f"{architecture}.attention.sliding_window") or None
    if hasattr(config, "query_pre_attn_scalar"):  # no key of the file says it: llama.cpp knows the largest by its depth
        largest = config.num_hidden_layers == GGUF[architecture].largest_depth
        config.query_pre_attn_scalar = (
            config.hidden_size // config.num_attention_heads if largest else header_config["head_dim"]
        )
    for key in ("attn_logit_softcapping", "final_logit_softcapping"):
        if (cap := header.fields.get(f"{architecture}.{key}")) and hasattr(config, key):
            setattr(config, key, float(cap))


def _scale_positions(header: Header, config: Any) -> None:
    """Put the scaling of positions into a configuration: Transformers does not read it out of a GGUF file."""
    architecture = header.architecture
    scaling, factor = position_scaling(header)
    original = header.whole(f"{architecture}.rope.scaling.original_context_length")
    nested = config.rope_parameters.get("full_attention")  # Gemma 3 scales its global layers alone
    rope = config.rope_parameters if nested is None else nested
    if any(tensor.name == ROPE_FACTORS for tensor in header.tensors):
        rope.update(_llama3(header, config))
    elif scaling != "none":
        rope.update(rope_type=scaling, factor=factor)
        if scaling == "yarn":
            rope["original_max_position_embeddings"] = original or config.max_position_embeddings
            for name in ("beta_fast", "beta_slow"):
                if (value := header.fields.get(f"{architecture}.rope.scaling.yarn_{name}")) is not None:
                    rope[name] = float(value)
    local = header.fields.get(f"{architecture}.rope.freq_base_swa")
    if nested is not None and local:
        config.rope_parameters["sliding_attention"]["rope_theta"] = float(local)


def _llama3(header: Header, config: Any) -> dict[str, Any]:
    """Llama 3's scaling that gives the file's factors, one a frequency.

    A factor is 1 at high frequencies and `factor` at low ones. The file does not hold the constants between: they are Llama 3's, and
    what they give is compared with the file. Raises SteerHealError where it differs.
    """
    import numpy as np
    import torch
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    (tensor,) = (tensor for tensor in header.tensors if tensor.name == ROPE_FACTORS)
    if tensor.kind != "F32":
        refuse_weights(header, f"{ROPE_FACTORS} is {tensor.kind}, not F32")
    factors = np.fromfile(header.path, np.float32, tensor.values, offset=tensor.offset)
    computed = {**LLAMA_3_ROPE, "factor": float(factors.max())}
    scaled = type(config).from_dict({**config.to_dict(), "rope_parameters": {**config.rope_parameters, **computed}})
    frequencies: torch.Tensor = ROPE_INIT_FUNCTIONS["llama3"](scaled, torch.device("cpu"))[0]
    size = 2 * len(factors)
    plain = 1.0 / config.rope_parameters["rope_theta"] ** (torch.arange(0, size, 2).float() / size)
    if frequencies.shape != plain.shape or not np.allclose((plain / frequencies).numpy(), factors, rtol=1e-3):
        refuse_weights(header, f"{ROPE_FACTORS} has factors that are not Llama 3's")
    return computed
