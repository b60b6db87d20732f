"""Models of a published shape without their weights, for measurements of speed: nothing is downloaded, and the speed is the model's."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from shared.models import Model, resolve_model

# config.json of models by their public names: what the speed of random weights depends on.
SHAPES: dict[str, dict[str, Any]] = {
    "qwen3-4b": {
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32,
        "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936, "max_position_embeddings": 40960, "rms_norm_eps": 1e-6, "rope_theta": 1000000, "tie_word_embeddings": True, "hidden_act": "silu", "attention_bias": False,
        "torch_dtype": "bfloat16", "bos_token_id": 1, "eos_token_id": 2,
    },
}  # fmt: skip


@contextlib.contextmanager
def of_shape(config: dict[str, Any]) -> Iterator[Model]:
    """A model without weights in a temporary folder: a configuration, with the tokenizer of the embedded model (any would do for speed)."""
    with TemporaryDirectory(prefix="steer-heal-shape-") as name:
        folder = Path(name)
        for file_ in resolve_model("embedded").folder.iterdir():
            if "token" in file_.name or file_.suffix == ".jinja":
                shutil.copy(file_, folder / file_.name)
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
        yield Model(str(folder), folder, None)
