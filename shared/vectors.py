"""The steering vector file: safetensors, fp32 `layer.<l>` of shape [hidden], with its provenance as metadata; or a control vector in GGUF."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shared.commands import command_of, round_command
from shared.errors import SteerHealError, in_one_line
from shared.nearby import nearest_path
from shared.publish import atomic_file
from shared.records import Identity
from shared.strict import parse_json
from shared.vector_gguf import holds_gguf, read_directions, write_directions

VERSION = 1
MODEL_TYPE = "model_type"  # in the metadata: the architecture of the model, where a control vector says it


class Provenance(BaseModel):
    """What is read of a vector's metadata; a vector from elsewhere may carry none, or more."""

    model_config = ConfigDict(allow_inf_nan=False)
    positions: Literal["all", "generated"] = "all"
    hidden_norm: dict[str, Annotated[float, Field(gt=1e-12, strict=True)]] = {}


@dataclass(frozen=True)
class Vector:
    """layers: 0-based block -> fp32 [hidden], what is added to that block's output at coefficient 1.

    metadata: positions, model fingerprint, trait and neutral prompts, counts, per layer the mean norm of the
    residual stream (`hidden_norm`) and the cosine of the two halves' vectors (`split_half_cosine`).
    """

    layers: dict[int, np.ndarray]
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def hidden(self) -> int:
        """The width of the vector, the same in every layer."""
        return len(next(iter(self.layers.values())))

    @property
    def origin(self) -> Identity:
        """The original model of the round that it was extracted for. Raises SteerHealError where the file does not say."""
        try:
            metadata = self.metadata
            return Identity(
                name=metadata["model"], revision=metadata["revision"], fingerprint=metadata["model_fingerprint"]
            )
        except (KeyError, ValidationError) as error:
            raise SteerHealError(
                "a steering vector does not say which model it is of",
                given=in_one_line(error),
                expected="model, revision and model_fingerprint in its metadata",
                next="in a run the vector is made by its own stage: python -m gen.extract --help",
            ) from None

    def norm(self, layer: int) -> float:
        """The 2-norm of the vector in a layer."""
        return float(np.linalg.norm(self.layers[layer].astype(np.float64)))  # a square in float32 overflows at 2e19

    def relative_dose(self, coefficient: float) -> dict[int, float]:
        """|c| * ||v_l|| / mean ||h_l|| per layer, dimensionless; empty if the file carries no norms."""
        norms = self.metadata.get("hidden_norm", {})
        return {
            layer: abs(coefficient) * self.norm(layer) / norms[str(layer)]
            for layer in self.layers
            if str(layer) in norms
        }

    def random_like(self, seed: int) -> Vector:
        """Another direction with the same band and the same norm in each layer."""
        generator = np.random.default_rng(seed)
        layers = {}
        for layer, values in sorted(self.layers.items()):
            draw = generator.standard_normal(len(values))
            layers[layer] = (draw * (self.norm(layer) / np.linalg.norm(draw))).astype(np.float32)
        return Vector(layers, {**self.metadata, "random_seed": seed})

    def digest(self) -> str:
        """sha256 of the layers and their values, not of the provenance."""
        total = hashlib.sha256()
        for layer, values in sorted(self.layers.items()):
            total.update(f"{layer}\0".encode() + np.ascontiguousarray(values, dtype=np.float32).tobytes())
        return total.hexdigest()

    def problem(self) -> str | None:
        """Why the vector cannot steer: its first layer with a value that is not finite, or with norm 0. None where it can steer."""
        for layer, values in sorted(self.layers.items()):
            if bad := int((~np.isfinite(values)).sum()):
                return f"layer.{layer} has {bad} of {len(values)} values that are NaN or infinite"
            if not self.norm(layer) > 0:
                return f"layer.{layer} has norm 0"
        return None if self.layers else "no layers"

    def save(self, path: Path) -> None:
        """Write the file, as a control vector in GGUF where its name ends in .gguf. Raises SteerHealError, with nothing written, for a
        vector that cannot steer."""
        from safetensors.numpy import save_file

        if problem := self.problem():
            raise SteerHealError(
                "a steering vector would not steer",
                given=f"{path}: {problem}",
                expected="finite values and a norm above 0 in every layer",
                next="extract it again: python -m gen.extract --help",
            )
        provenance = {"version": VERSION, **self.metadata}
        if path.suffix == ".gguf":
            write_directions(path, self.layers, str(self.metadata.get(MODEL_TYPE, "unknown")), provenance)
            return
        tensors = {
            f"layer.{layer}": np.ascontiguousarray(values, dtype=np.float32) for layer, values in self.layers.items()
        }
        with atomic_file(path) as temporary:
            # one entry: safetensors writes several in an order that changes from process to process
            text = json.dumps(provenance, sort_keys=True, allow_nan=False)
            save_file(tensors, temporary, metadata={"steer_heal": text})

    def check(self, source: object, *, hidden: int, depth: int, model: str = "embedded") -> None:
        """Refuse a vector of another width or with layers the model does not have. model: its name, for the hint."""
        if self.hidden != hidden or max(self.layers) >= depth:
            raise SteerHealError(
                "a steering vector does not fit the model",
                given=f"{source}: width {self.hidden}, layers {sorted(self.layers)}",
                expected=f"width {hidden}, layers within 0 to {depth - 1}",
                next=f"extract it from this model: {_extracted(model, Path('vector.safetensors'))}",
            )


def cosine(a: np.ndarray, b: np.ndarray) -> float | None:
    """The cosine of two directions; None where one has norm 0 or is not finite."""
    a, b = (np.asarray(values, dtype=np.float64) for values in (a, b))  # a square in float32 overflows at 2e19
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / norms if 0 < norms < np.inf else None


def _extracted(model: str, out: Path) -> str:
    return command_of("gen.extract", "--model", model, "--out", out)


def _missing(path: Path, model: str) -> SteerHealError:
    """The error about a vector file that is not there."""
    meant, round_ = nearest_path(path, "*.safetensors"), path.parent
    if round_.parent.name == "rounds" and round_.name.isdecimal():
        next_ = round_command(round_.parent.parent, int(round_.name))
    else:
        next_ = f"the same command with {meant}" if meant else _extracted(model, path)
    return SteerHealError(
        "a steering vector is missing",
        given=path,
        expected=f"did you mean {meant}?" if meant else "a safetensors or GGUF file",
        next=next_,
    )


def load_vector(path: Path, model: str = "embedded") -> Vector:
    """Read a vector file. Raises SteerHealError when it is missing, malformed, empty, not finite, of mixed width or of norm 0 in a layer.

    model: the name of the one that it is for, for the hint.
    """
    from safetensors import SafetensorError

    def refuse(given: str) -> SteerHealError:
        return SteerHealError(
            "a steering vector could not be used",
            given=f"{path}: {given}",
            expected="safetensors with finite fp32 tensors layer.<l> of one width, none of them 0 throughout, or a control vector in GGUF",
            next="make it again: python -m gen.extract --help",
        )

    if not path.is_file():
        raise _missing(path, model)
    try:
        layers, provenance = _of_gguf(path) if holds_gguf(path) else _of_safetensors(path)
        Provenance.model_validate(provenance)
        version = str(provenance.pop("version", VERSION))
    except (
        SafetensorError,
        ValueError,
        OSError,
        TypeError,
        AttributeError,
    ) as error:  # numpy lacks the smallest floats
        raise refuse(str(error)) from None
    if version != str(VERSION):
        raise refuse(f"version {version}, this is {VERSION}")
    if (
        not layers
        or any(v.dtype != np.float32 or v.ndim != 1 for v in layers.values())
        or len({len(v) for v in layers.values()}) != 1
    ):
        raise refuse(
            "; ".join(f"layer.{k} {v.dtype} {list(v.shape)}" for k, v in sorted(layers.items())) or "no tensors"
        )
    if problem := (vector := Vector(layers, provenance)).problem():
        raise refuse(problem)
    return vector


def _of_safetensors(path: Path) -> tuple[dict[int, np.ndarray], dict[str, Any]]:
    """(tensors by layer, metadata) as a file has them. Raises ValueError for a tensor that is no layer's."""
    from safetensors import safe_open

    layers: dict[int, np.ndarray] = {}
    with safe_open(path, framework="numpy") as handle:
        metadata = handle.metadata() or {}
        for name in handle.keys():  # noqa: SIM118 (safe_open is no mapping)
            prefix, _, number = name.partition(".")
            if prefix != "layer" or not (number.isascii() and number.isdigit() and number == str(int(number))):
                raise ValueError(f"tensor {name}")
            layers[int(number)] = handle.get_tensor(name)
    provenance = parse_json(metadata.get("steer_heal", "{}"))
    provenance.setdefault("version", metadata.get("version", VERSION))
    return layers, provenance


def _of_gguf(path: Path) -> tuple[dict[int, np.ndarray], dict[str, Any]]:
    """(directions by layer, metadata). A stranger's file says no more than which architecture it is for."""
    layers, hint, text = read_directions(path)
    provenance = parse_json(text) if text is not None else {MODEL_TYPE: hint} if hint else {}
    return layers, provenance
