"""One window of a sweep: sampled from the student, then scored under the original weights, in one engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from gen.plan import Planned
from gen.prompts import PromptRenderer
from gen.recording import recorded_logprobs, unsteered_logprobs
from gen.scoring import score_completions
from gen.students import ServedStudent, adapter_room
from shared.models import Model
from shared.records import Completion
from shared.schema import Config
from shared.vectors import Vector

if TYPE_CHECKING:
    from gen.engine.engine import Engine
    from gen.engine.sampling import Output


class Sampler:
    """Makes the rows of planned completions; which ones depends on nothing that ran in the engine before."""

    def __init__(
        self,
        engine: Engine,
        renderer: PromptRenderer,
        student: ServedStudent,
        origin: ServedStudent,
        vector: Vector,
        config: Config,
    ):
        self.engine, self.renderer, self.student, self.origin = engine, renderer, student, origin
        self.teacher = origin if config.filter.source == "prompted" else student  # who samples
        self.sweep, self.positions = config.sweep, vector.metadata.get("positions", "all")
        engine.load("trait", vector)

    def __call__(self, rows: Sequence[Planned], advance: Callable[[float, int], None]) -> list[Completion]:
        """The completions of planned rows, in their order; advance(rows, tokens) as parts of them are done."""
        from gen.engine.sampling import Request

        neutral: list[list[int]] = []
        towards: list[list[int]] = []
        for _, group in groupby(rows, key=lambda row: row.index):
            same = list(group)
            under_neutral, under_trait = self.renderer(same[0].prompt)
            neutral += [under_neutral] * len(same)
            towards += [under_trait] * len(same)
        requests = [
            Request(
                under_trait if row.prompted else ids,
                self.sweep.max_tokens,
                self.sweep.temperature,
                self.sweep.top_p,
                row.seed,
                "trait" if row.coefficient else None,
                row.coefficient,
                self.positions,
                stop_ids=self.renderer.chat.stop_ids,
            )
            for row, ids, under_trait in zip(rows, neutral, towards, strict=True)
        ]

        def sampled_one(_index: int, output: Output) -> None:
            advance(0.5, len(output.token_ids))

        self.engine.serve(self.teacher)
        self.engine.reset_cache()  # what a resumed sweep finds in it must be what an uninterrupted one does: nothing
        sampled = self.engine.run(requests, sampled_one)
        completions = [output.token_ids for output in sampled]
        chosen = [place for place, row in enumerate(rows) if completions[place] and row.recorded]
        if self.teacher is not self.student:
            self.engine.serve(self.student)
        students = {} if self._original else unsteered_logprobs(self.engine, neutral, completions, chosen)
        self.engine.serve(self.origin)
        scores = score_completions(self.engine, neutral, towards, completions, lambda: advance(0.25, 0))
        return [
            Completion(
                key=row.key,
                prompt_ids=ids,
                completion_ids=output.token_ids,
                text=output.text,
                finish_reason=output.finish_reason,
                coefficient=row.coefficient,
                sample=row.sample,
                seed=row.seed,
                prompted=row.prompted,
                logprobs=recorded_logprobs(
                    ids, output.token_ids, students.get(place, measures.logprobs), measures.logprobs
                )
                if place in chosen
                else None,
                **measures.row_fields,
            )
            for place, (row, ids, output, measures) in enumerate(zip(rows, neutral, sampled, scores, strict=True))
        ]

    @property
    def _original(self) -> bool:
        """Whether the student is the original model, whose scores are the student's own as well."""
        return (self.student.folder, self.student.adapter) == (self.origin.folder, self.origin.adapter)


def start_sampler(
    config: Config, renderer: PromptRenderer, student: ServedStudent, origin: ServedStudent, vector: Vector
) -> tuple[Engine, Sampler]:
    """An engine for a sweep, which whoever asked for it closes, and the sampler that uses it."""
    from gen.engine.engine import start

    engine = start(
        student.folder,
        layers=sorted(vector.layers),
        dtype=config.model.dtype,
        max_model_len=config.model.max_model_len,
        gpu_memory=config.model.gpu_memory,
        tensor_parallel=config.model.tensor_parallel,
        seed=config.seed,
        students=[student],
        room=adapter_room(config, Model(str(origin.folder), origin.folder, None), [student]),
        window=config.sweep.window,
    )
    return engine, Sampler(engine, renderer, student, origin, vector, config)
