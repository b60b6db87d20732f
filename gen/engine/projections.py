"""The projections of a request over HTTP: `steer_projections` in a choice, beside its logprobs, for a request with `steer_read`."""

from __future__ import annotations

import functools
import json
from collections.abc import AsyncIterator
from typing import Any

import numpy as np

from gen.engine.sampling import projections_by_position
from gen.engine.terms import READ


def register() -> None:
    """Wrap what makes answers out of vLLM's outputs. Called once a process, of a server."""
    from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
    from vllm.entrypoints.openai.completion.serving import OpenAIServingCompletion

    OpenAIServingCompletion.completion_stream_generator = _streamed(
        OpenAIServingCompletion.completion_stream_generator, 1
    )
    OpenAIServingChat.chat_completion_stream_generator = _streamed(
        OpenAIServingChat.chat_completion_stream_generator, 0
    )
    OpenAIServingCompletion.request_output_to_completion_response = _completed(
        OpenAIServingCompletion.request_output_to_completion_response
    )
    OpenAIServingChat.chat_completion_full_generator = _chatted(OpenAIServingChat.chat_completion_full_generator)


class Taken:
    """The projections of a request's choices by their index, taken out of its outputs, where vLLM would encode them as routed experts."""

    def __init__(self, serving: Any, request: Any):
        self.vector = request.vllm_xargs[READ]
        self.layers: list[int] = serving.engine_client.input_processor.steering_registry.layers
        self.choices = request.n or 1
        self.whole = request.prompt_logprobs is not None or bool(getattr(request, "echo", False))
        self.by_choice: dict[int, dict[str, Any]] = {}

    def take(self, prompt: int, result: Any) -> None:
        """Move the projections out of one RequestOutput; prompt is the prompt's index in the request."""
        for output in result.outputs:
            rows, output.routed_experts = output.routed_experts, None
            if rows is not None:
                last = len(result.prompt_token_ids) - 1
                table = projections_by_position(rows, int(rows[:, 0].max()) + 1)
                assert table is not None
                self.by_choice[output.index + prompt * self.choices] = self._record(table, 0 if self.whole else last)

    def _record(self, table: np.ndarray, first: int) -> dict[str, Any]:
        layers = ~np.isnan(table).all(0)  # the vector has no others
        values = [[None if np.isnan(x) else float(x) for x in row] for row in table[first:, layers]]
        kept = [layer for layer, has in zip(self.layers, layers, strict=True) if has]
        return {"vector": self.vector, "layers": kept, "first": first, "values": values}

    async def through(self, results: AsyncIterator[Any]) -> AsyncIterator[Any]:
        """The outputs of a request, RequestOutput or (prompt, RequestOutput), without their projections."""
        async for each in results:
            prompt, result = each if isinstance(each, tuple) else (0, each)
            self.take(prompt, result)
            yield each

    def put(self, choices: Any) -> None:
        """Add the projections to the choices of an answer, as their field steer_projections."""
        for choice in choices:
            choice.steer_projections = self.by_choice[choice.index]


def _reads(request: Any) -> bool:
    return READ in (request.vllm_xargs or {})


def _streamed(stock: Any, place: int) -> Any:
    """place: of the outputs among the arguments after the request."""

    @functools.wraps(stock)
    def generator(self: Any, request: Any, *args: Any, **kwargs: Any) -> AsyncIterator[str]:
        if not _reads(request):
            untouched: AsyncIterator[str] = stock(self, request, *args, **kwargs)
            return untouched
        taken = Taken(self, request)
        before, results, behind = args[:place], args[place], args[place + 1 :]
        return _lines(stock(self, request, *before, taken.through(results), *behind, **kwargs), taken)

    return generator


async def _lines(lines: AsyncIterator[str], taken: Taken) -> AsyncIterator[str]:
    """Of a stream, with the projections in the last chunk of each choice."""
    async for line in lines:
        if taken.by_choice and line.startswith("data: {"):
            chunk = json.loads(line.removeprefix("data: "))
            for choice in chunk.get("choices", []):
                if choice.get("finish_reason") and choice["index"] in taken.by_choice:
                    choice["steer_projections"] = taken.by_choice.pop(choice["index"])
            line = f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n"
        yield line


def _completed(stock: Any) -> Any:
    @functools.wraps(stock)
    def response(self: Any, results: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        if not _reads(request):
            return stock(self, results, request, *args, **kwargs)
        taken = Taken(self, request)
        for prompt, result in enumerate(results):
            taken.take(prompt, result)
        answer = stock(self, results, request, *args, **kwargs)
        taken.put(answer.choices)
        return answer

    return response


def _chatted(stock: Any) -> Any:
    @functools.wraps(stock)
    async def response(self: Any, request: Any, results: Any, *args: Any, **kwargs: Any) -> Any:
        if not _reads(request):
            return await stock(self, request, results, *args, **kwargs)
        taken = Taken(self, request)
        answer = await stock(self, request, taken.through(results), *args, **kwargs)
        taken.put(getattr(answer, "choices", []))
        return answer

    return response
