"""Score rows kept by what determines them, so that the same weights are never asked the same question twice.

One JSONL per condition, under a name made of the weights, the steering, the instrument, the vignettes, the read and the versions of the
packages that compute. Safe to remove. How a condition is batched with others is not part of the name: it moves the last digits only.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from evals import forced_choice, free_answer, instrument
from evals.forced_choice import Condition, Free, Read
from evals.instrument import Instrument
from shared.models import cache_folder
from shared.publish import digest
from shared.records import Vignette, write_jsonl
from shared.run import versions
from shared.vectors import Vector


def _code() -> list[str]:
    """Digests of the modules that make a row: a change in them makes old rows another question's."""
    return [digest(Path(str(module.__file__))) for module in (forced_choice, free_answer, instrument)]


class Cache:
    """Rows of conditions of one student. weights: its fingerprint and dtype; template: the chat template's arguments."""

    def __init__(
        self,
        weights: tuple[str, str],
        template: Mapping[str, Any],
        asked: Instrument,
        vignettes: Sequence[Vignette],
        read: Read,
        free: Free | None,
        vectors: Mapping[str, Vector],
        folder: Path | None = None,
    ):
        self._folder = folder or cache_folder() / "scores"
        self._vectors = vectors
        self._common = {
            "weights": weights,
            "template": dict(template),
            "instrument": asked.identity,
            "vignettes": [vignette.model_dump() for vignette in vignettes],
            "read": asdict(read),
            "free": asdict(free) if free else None,
            "versions": versions(),
            "code": _code(),
        }

    def _path(self, condition: Condition) -> Path:
        vector = self._vectors[condition.vector] if condition.vector is not None else None
        steering = [] if vector is None else [condition.coefficient, condition.positions, vector.digest()]
        content = {**self._common, "steering": steering, "system": condition.system}
        return self._folder / f"{hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()}.jsonl"

    def get(self, condition: Condition) -> list[dict[str, Any]] | None:
        path = self._path(condition)
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else None

    def put(self, condition: Condition, rows: Sequence[dict[str, Any]]) -> None:
        write_jsonl(self._path(condition), rows)
