"""When steered requests enter and leave an engine that serves: their slots stay until then, and their tokens are counted.

vLLM's output processor knows every request between the two, the children of one with n > 1 by themselves.
"""

from __future__ import annotations

import functools
from typing import Any

from gen.engine import metrics
from gen.engine.reading import SLOT
from gen.engine.requests import RESOLVED
from gen.engine.steering import Term


def register() -> None:
    """Wrap vLLM's engine of a server, and its output processor. Called once a process."""
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.engine.output_processor import OutputProcessor

    OutputProcessor.steering_registry = None
    AsyncLLM.__init__ = _known_to_its_registry(AsyncLLM.__init__)
    OutputProcessor.add_request = _entered(OutputProcessor.add_request)
    OutputProcessor._finish_request = _finished(OutputProcessor._finish_request)
    OutputProcessor.abort_requests = _aborted(OutputProcessor.abort_requests)


def _known_to_its_registry(stock: Any) -> Any:
    @functools.wraps(stock)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        stock(self, *args, **kwargs)
        registry = self.input_processor.steering_registry
        registry.running = self.output_processor.request_states
        self.output_processor.steering_registry = registry

    return init


def _entered(stock: Any) -> Any:
    @functools.wraps(stock)
    def add_request(self: Any, request: Any, *args: Any, **kwargs: Any) -> None:
        stock(self, request, *args, **kwargs)
        extra = getattr(request.sampling_params, "extra_args", None) or {}
        if self.steering_registry is not None and RESOLVED in extra:
            steer = [Term(*term) for term in extra[RESOLVED]]
            read = [Term(extra[SLOT], 0.0, 0, 0)] if SLOT in extra else []  # holds its slot, and steers no position
            self.steering_registry.begin(request.request_id, (*steer, *read))
            metrics.requests.inc(bool(steer))

    return add_request


def _finished(stock: Any) -> Any:
    @functools.wraps(stock)
    def finish_request(self: Any, state: Any) -> None:
        stock(self, state)
        _count(self, state)

    return finish_request


def _aborted(stock: Any) -> Any:
    @functools.wraps(stock)
    def abort_requests(self: Any, *args: Any, **kwargs: Any) -> list[str]:
        before = dict(self.request_states)
        aborted: list[str] = stock(self, *args, **kwargs)
        for name in aborted:
            if name in before:
                _count(self, before[name])
        return aborted

    return abort_requests


def _count(processor: Any, state: Any) -> None:
    """The last token sampled is not read, and a request that ends early has read no more than its prompt."""
    if processor.steering_registry is None:
        return
    steer = processor.steering_registry.end(state.request_id)
    if steer and state.detokenizer is not None and (sampled := state.detokenizer.num_output_tokens()):
        metrics.tokens.inc(metrics.steered_tokens(steer, state.prompt_len + sampled - 1))
