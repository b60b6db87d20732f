"""How an engine is told to steer: vLLM's additional_config, which every process sees and vLLM's compile key is made of.

A script hands Settings over as they are, a command line {"steering": settings}. Without them in the key an unsteered compiled model
would be loaded and the steering silently gone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from gen.engine.steering import VERSION
from shared.errors import SteerHealError
from shared.publish import digest
from shared.vectors import Vector, load_vector


class VectorFile(BaseModel):
    """A vector file the operator has chosen, and the sha256 it had then."""

    model_config = ConfigDict(extra="forbid")
    path: str
    sha256: str


class Settings(BaseModel):
    """layers: 0-based blocks that vectors may steer; slots: vectors held at a time; vectors: by name, loaded at start.

    The vectors of API keys that survived a restart are among them, as OWNER/NAME; folder is where such vectors are kept, None for nowhere.
    model: fingerprint of the model.
    read: whether requests may ask for projections of the residual stream.
    count: whether steered tokens are counted by request, for a caller that asks for the counts. stop_ids: tokens that end a turn, at which
    every request stops beside those that vLLM knows of. adapted: blocks that adapters change, empty for all.
    """

    model_config = ConfigDict(extra="forbid")
    version: int = VERSION
    layers: list[int] = Field(min_length=1)
    slots: int = Field(16, ge=1)
    count: bool = False
    stop_ids: list[int] = []
    vectors: dict[str, VectorFile] = {}
    folder: str | None = None
    model: str = ""
    adapted: list[int] = []
    read: bool = False

    def compute_hash(self) -> str:
        """The part of vLLM's compile key that steering adds: the op's version, the steered layers, and whether projections are read.

        Slots and vectors are contents of buffers, on which the compiled graph does not depend: a sweep and a scoring share one graph.
        """
        return hashlib.sha256(json.dumps([self.version, sorted(self.layers), self.read]).encode()).hexdigest()

    def load(self) -> Iterator[tuple[str, Vector]]:
        """The vectors by name, in the order of their slots. Raises SteerHealError when a file has changed since it was chosen."""
        for name, file in sorted(self.vectors.items()):
            vector = load_vector(Path(file.path))
            if digest(Path(file.path)) != file.sha256:
                raise SteerHealError(
                    "a steering vector changed while the engine started",
                    given=file.path,
                    expected=f"sha256 {file.sha256}",
                    next="the same command again",
                )
            yield name, vector


def settings_of(vllm_config: Any) -> Settings | None:
    """The steering of an engine's configuration, or None."""
    extra = vllm_config.additional_config
    options = extra.get("steering") if isinstance(extra, dict) else extra if isinstance(extra, Settings) else None
    if options is None:
        return None
    settings = options if isinstance(options, Settings) else Settings.model_validate(options)
    refuse_unsupported(vllm_config)
    if settings.read and vllm_config.aux_output_config.enabled:
        raise SteerHealError(
            "projections and routed experts are returned in the same field of an answer",
            given="--read and --enable-return-routed-experts",
            expected="one of them",
            next="start it without --enable-return-routed-experts",
        )
    return settings


def key_by_graph(vllm_config: Any, settings: Settings) -> None:
    """Let a command line's additional_config enter the compile key as a script's does, unless it holds other things too.

    vLLM hashes a dictionary as a whole: a server with another vector would compile again.
    """
    extra = vllm_config.additional_config
    if isinstance(extra, dict) and set(extra) == {"steering"}:
        vllm_config.additional_config = settings


def refuse_unsupported(vllm_config: Any) -> None:
    """Refuse what splits, guesses or drops a step's tokens, or shares their cache, behind the patch's back. Raises SteerHealError."""
    parallel = vllm_config.parallel_config
    problems = {
        "--pipeline-parallel-size 1": parallel.pipeline_parallel_size > 1,
        "--prefill-context-parallel-size 1": parallel.prefill_context_parallel_size > 1,
        "--decode-context-parallel-size 1": parallel.decode_context_parallel_size > 1,
        "no --enable-dbo and --ubatch-size 0": parallel.use_ubatching,
        "no speculative decoding": vllm_config.speculative_config is not None,
        "no --kv-sharing-fast-prefill": vllm_config.cache_config.kv_sharing_fast_prefill,
        "no --kv-transfer-config (connectors may ignore the cache salt)": vllm_config.kv_transfer_config is not None,
    }
    if wrong := [mend for mend, broken in problems.items() if broken]:
        raise SteerHealError(
            "this engine cannot be steered as it is configured",
            given="options that split, guess or drop a step's tokens, or share their cache",
            expected=", ".join(wrong) + " (tensor and data parallelism are fine)",
            next="the same command with these options changed",
        )
