"""What a worker needs to make any window of a sweep, as plain data, and the engine that it makes them with."""

from __future__ import annotations

import base64
import os
import socket
import tempfile
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from gen.plan import Job, Planned, sampled_on
from gen.prompts import PromptRenderer
from gen.sampler import start_sampler
from gen.students import ServedStudent
from shared.chat import Chat
from shared.errors import SteerHealError
from shared.machine import cores, peak_memory
from shared.models import Model, resolve_model
from shared.records import Prompt, as_jsonl
from shared.schema import Config
from shared.traits import Trait, load_trait
from shared.vectors import Vector, load_vector


class Recipe(BaseModel):
    """A sweep's model, vector, trait and settings as JSON. It holds no path of the machine that wrote it but the student's.

    Args:
        model, revision, fingerprint: the original model's name, as model.name has it; each worker finds it on its own machine.
        student: folder of the student's weights; None where they are the original's.
        adapter, rank, modules, layers: the student's adapter, as gen.students.ServedStudent has it.
        vector: the vector file, base64.
        day: what a chat template with a clock writes, on every machine.
        threads: CPU threads of a worker.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    model: str
    revision: str | None
    fingerprint: str
    student: str | None
    student_fingerprint: str
    adapter: str | None
    rank: int
    modules: tuple[str, ...]
    layers: tuple[int, ...]
    vector: str
    trait: Trait
    config: Config
    day: date
    threads: int

    @classmethod
    def of(cls, job: Job, day: date, threads: int) -> Recipe:
        """The recipe of a job. day: as the chat template writes it. threads: CPU threads of each worker."""
        student, is_student = job.student, job.student.folder != job.origin.folder
        return cls(
            model=job.origin.name if job.origin.revision or job.origin.name == "embedded" else str(Path(job.origin.name).resolve()),
            revision=job.origin.revision,
            fingerprint=job.origin.fingerprint,
            student=str(student.folder.resolve()) if is_student else None,
            student_fingerprint=student.fingerprint,
            adapter=str(student.adapter.resolve()) if student.adapter else None,
            rank=student.rank,
            modules=student.modules,
            layers=student.layers,
            vector=base64.b64encode(job.vector_file.read_bytes()).decode(),
            trait=load_trait(job.config.vector.trait),
            config=job.config,
            day=day,
            threads=threads,
        )  # fmt: skip


class Maker:
    """One engine. What it makes of planned rows does not depend on what it made before."""

    def __init__(self, recipe: Recipe):
        start = time.monotonic()
        config = recipe.config
        origin = resolve_model(recipe.model, recipe.revision)
        _same_weights(origin, recipe.fingerprint)
        folder = Path(recipe.student) if recipe.student else origin.folder
        if recipe.student:
            _present(folder)
            _same_weights(Model(str(folder), folder, None), recipe.student_fingerprint)
        student = ServedStudent(
            folder,
            Path(recipe.adapter) if recipe.adapter else None,
            recipe.rank,
            recipe.modules,
            recipe.student_fingerprint,
            recipe.layers,
        )
        vector = _vector(recipe.vector)
        chat = Chat.load(origin.folder, config.model.chat_template_kwargs, recipe.day)
        renderer = PromptRenderer(chat, recipe.trait)
        self._engine, self._sampler = start_sampler(config, renderer, student, ServedStudent(origin.folder), vector)
        self._seconds = time.monotonic() - start

    def about(self) -> dict[str, Any]:
        """Besides the plan, its rows depend on `place` and cache_blocks; the rest is for the log."""
        return {
            "place": sampled_on(),
            "cache_blocks": self._engine.cache_blocks,
            "threads": int(os.environ.get("OMP_NUM_THREADS", cores())),
            "host": socket.gethostname(),
            "process": os.getpid(),
            "start_seconds": round(self._seconds, 1),
            "peak_memory": peak_memory(),
        }

    def make(self, rows: Sequence[Planned]) -> bytes:
        """The completions of planned rows, in their order, as lines of JSONL."""
        return as_jsonl(self._sampler(rows, lambda *_: None))


def as_plain(rows: Sequence[Planned]) -> list[dict[str, Any]]:
    """Planned rows as JSON can hold them."""
    return [
        {
            "key": row.key,
            "index": row.index,
            "prompt": row.prompt.model_dump(),
            "coefficient": row.coefficient,
            "sample": row.sample,
            "seed": row.seed,
            "recorded": row.recorded,
            "prompted": row.prompted,
        }
        for row in rows
    ]


def as_planned(rows: Sequence[dict[str, Any]]) -> list[Planned]:
    """The inverse of `as_plain`."""
    return [Planned(**{**row, "prompt": Prompt.model_validate(row["prompt"])}) for row in rows]


def _vector(encoded: str) -> Vector:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vector.safetensors"
        path.write_bytes(base64.b64decode(encoded))
        return load_vector(path)


def _present(folder: Path) -> None:
    if not folder.is_dir():
        raise SteerHealError(
            "a worker cannot read the student's weights",
            given=f"{folder} on {socket.gethostname()}",
            expected="the folder of the run, on a disk that all machines share",
            next="put the run on a shared disk: RUN=/shared/disk/NAME",
        )


def _same_weights(model: Model, expected: str) -> None:
    if expected and model.fingerprint != expected:
        raise SteerHealError(
            "a worker has other weights under the model's name",
            given=f"{model.folder} on {socket.gethostname()}: {model.fingerprint}",
            expected=expected,
            next="give every machine the same model: name its revision (model.revision), or copy the folder",
        )
