"""vLLM's plugin entry point: every request is read before it enters an engine, in `vllm serve` as in a script.

Loaded by vLLM in each of its processes. An engine without steering behaves as it would without the plugin, but for one thing: a
request that asks for steering is refused there.
"""

from __future__ import annotations

import functools
import sys
from typing import Any

from gen.engine import drain, lifecycle, metrics, projections, reading
from gen.engine.fields import misplaced_steering
from gen.engine.limits import StrictBody, owner
from gen.engine.requests import RESOLVED, Registry, meant
from gen.engine.steering import Steer
from gen.engine.terms import READ, UNKNOWN
from shared.errors import SteerHealError

WORKER = "gen.engine.worker.Worker"
STRICT = f"{StrictBody.__module__}.{StrictBody.__name__}"
SCHEDULER = "gen.engine.scheduler.scheduler"
_registry: Registry | None = None  # of the engine that this process serves over HTTP


def register() -> None:
    """Wrap vLLM's input processor and its HTTP requests, once a process."""
    from vllm.v1.engine.input_processor import InputProcessor

    if not hasattr(InputProcessor, "steering_registry"):
        InputProcessor.__init__ = _with_registry(InputProcessor.__init__)
        InputProcessor.process_inputs = _with_steering(InputProcessor.process_inputs)
        InputProcessor.steering_registry = None
        lifecycle.register()
        drain.register()
        reading.register()
        _wrap_http_requests()
        _wrap_http_bodies()


def _with_registry(stock: Any) -> Any:
    @functools.wraps(stock)
    def init(self: Any, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
        global _registry
        import torch

        from gen.engine.settings import settings_of

        stock(self, vllm_config, *args, **kwargs)
        settings = settings_of(vllm_config)
        if settings is None:
            _registry = self.steering_registry = Registry(slots=0)
            return
        if vllm_config.parallel_config.worker_cls != WORKER:
            raise ValueError(f"steering is configured but the worker is not ours: --worker-cls {WORKER}")
        if vllm_config.scheduler_config.scheduler_cls not in (None, SCHEDULER):
            raise ValueError(f"steering is configured but the scheduler is not ours: --scheduler-cls {SCHEDULER}")
        self.generation_config_fields = _ending(self.generation_config_fields, settings.stop_ids)
        vllm_config.scheduler_config.scheduler_cls = SCHEDULER  # the engine's core is started after its input processor
        model = vllm_config.model_config
        limit = float(torch.finfo(model.dtype).max)
        _registry = self.steering_registry = Registry(settings.slots, limit, model.hf_text_config.model_type)
        _registry.layers, _registry.reads = settings.layers, settings.read
        for name, vector in settings.load():
            self.steering_registry.add(name, vector)

    return init


def _ending(fields: dict[str, Any], stop_ids: list[int]) -> dict[str, Any]:
    """A model's generation_config.json with further ids at which vLLM stops a request, unless that ignores the end."""
    own = fields.get("eos_token_id", [])
    ids = [*(own if isinstance(own, list) else [own]), *stop_ids]
    return {**fields, "eos_token_id": [*dict.fromkeys(ids)]} if stop_ids else fields


def _with_steering(stock: Any) -> Any:
    @functools.wraps(stock)
    def process_inputs(self: Any, request_id: str, prompt: Any, params: Any, *args: Any, **kwargs: Any) -> Any:
        request = stock(self, request_id, prompt, params, *args, **kwargs)
        _unforged(request.cache_salt)
        sampling = request.sampling_params
        if sampling is None or not sampling.extra_args:
            return request
        steer, salt = _read(self.steering_registry, sampling.extra_args, len(request.prompt_token_ids or ()))
        slot = self.steering_registry.slot_read(sampling.extra_args, owner.get())
        if salt is not None or slot:
            if request.resumable:
                raise _invalid("a streamed prompt cannot be steered: its positions are not known")
            sampling.extra_args = {
                **sampling.extra_args,
                RESOLVED: [list(term) for term in steer],
                **({reading.SLOT: slot} if slot else {}),
            }  # the engine's own copy of the params
        if salt is not None:
            _reached(steer, len(request.prompt_token_ids), sampling.max_tokens)
            request.cache_salt = f"{request.cache_salt or ''}\0{salt}"
        return request

    return process_inputs


def _reached(steer: Steer, prompt_tokens: int, max_tokens: int | None) -> None:
    """Refuse windows that all start after the last token that is read: the answer would be unsteered. The last one sampled is not."""
    if max_tokens is not None and (start := min(term.start for term in steer)) >= prompt_tokens + max_tokens - 1:
        raise _invalid(f"no window is reached: the first starts at position {start}, of {prompt_tokens} + {max_tokens}")


def _wrap_http_requests() -> None:
    """Refuse over HTTP what would be dropped in silence, and refuse early what would fail in the middle of a stream.

    vLLM's requests take any field; beam search drops vllm_xargs. What vLLM does not know and the endpoint's client may send is
    what the openai package, which vLLM builds on, declares for it.
    """
    import openai.types.chat.completion_create_params
    import openai.types.completion_create_params
    import openai.types.responses.response_create_params
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest
    from vllm.entrypoints.openai.responses.protocol import ResponsesRequest

    if "vllm.entrypoints.cli.main" in sys.modules:
        projections.register()
    for kind, client in (
        (ChatCompletionRequest, openai.types.chat.completion_create_params.CompletionCreateParamsNonStreaming),
        (CompletionRequest, openai.types.completion_create_params.CompletionCreateParamsNonStreaming),
        (ResponsesRequest, openai.types.responses.response_create_params.ResponseCreateParamsNonStreaming),
    ):
        if (
            "vllm.entrypoints.cli.main" in sys.modules
        ):  # a server: building a request model again takes 0.2 s, which a sweep is spared
            _take_objects(kind)
        client_fields = frozenset(client.__annotations__)
        readable = kind is not ResponsesRequest
        kind.to_sampling_params = _checked(kind.to_sampling_params, client_fields, steerable=True, readable=readable)
        if hasattr(kind, "to_beam_search_params"):
            kind.to_beam_search_params = _checked(
                kind.to_beam_search_params, client_fields, steerable=False, readable=False
            )


def _take_objects(kind: Any) -> None:
    """Let vllm_xargs hold objects: vLLM's own type takes lists of numbers and texts alone, and steer_terms is a list of objects."""
    kind.model_fields["vllm_xargs"].annotation = dict[str, Any] | None
    kind.__annotations__["vllm_xargs"] = dict[str, Any] | None
    kind.model_rebuild(force=True)


class SteeringBody(StrictBody):
    """StrictBody at every endpoint of a server whose engine steers; nothing where it does not."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if _registry is None or not _registry.slots:
            await self.app(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)

    def reads(self, scope: Any) -> bool:
        return bool(scope["type"] == "http" and scope["method"] == "POST")


def _wrap_http_bodies() -> None:
    """Add SteeringBody to the application of `vllm serve`, since a parsed request no longer shows a key that was there twice."""
    from vllm.entrypoints.serve.middleware import register as middleware

    stock = middleware.init_entrypoints_middleware

    @functools.wraps(stock)
    def with_steering_body(args: Any, app: Any, *others: Any, **keywords: Any) -> None:
        stock(args, app, *others, **keywords)
        if (
            STRICT not in args.middleware
        ):  # behind the gate and the limit of a body, which this layer would stand before
            app.add_middleware(SteeringBody)

    middleware.init_entrypoints_middleware = with_steering_body
    if application := sys.modules.get("vllm.entrypoints.launchers.app"):  # it has taken the function by name already
        application.init_entrypoints_middleware = with_steering_body  # type: ignore[attr-defined]


def _checked(stock: Any, client_fields: frozenset[str], *, steerable: bool, readable: bool) -> Any:
    @functools.wraps(stock)
    def to_params(self: Any, *args: Any, **kwargs: Any) -> Any:
        steering = _registry is not None and _registry.slots > 0
        _unforged(self.cache_salt)
        if refused := misplaced_steering(self, client_fields, strict=steering):
            raise _invalid(str(refused))
        arguments = self.vllm_xargs or {}
        if not steerable and any(map(meant, arguments)):
            raise _invalid("beam search cannot be steered")
        if _registry is not None:
            _read(_registry, arguments, UNKNOWN)  # the prompt is not tokenised yet; its length is checked when it is
        if READ in arguments and not readable:
            raise _invalid(
                f"{READ}: this endpoint has no place for projections; /v1/completions and /v1/chat/completions have"
            )
        params = stock(self, *args, **kwargs)
        if READ in arguments and params.logprobs is None:
            raise _invalid(
                f"{READ}: projections come with the log-probabilities, and the request asks for none (logprobs)"
            )
        return params

    return to_params


def _unforged(salt: str | None) -> None:
    """Refuse a client's salt that could be one of ours: its unsteered blocks would be read by somebody's steered request."""
    if "\0" in (salt or ""):
        raise _invalid("a cache_salt holds no NUL character")


def _read(registry: Registry, extra: Any, prompt_tokens: int) -> Any:
    try:
        return registry.read(extra, prompt_tokens, owner.get())
    except SteerHealError as error:
        raise _invalid(str(error)) from None


def _invalid(message: str) -> Exception:
    """vLLM's error for a bad request, HTTP 400."""
    from vllm.exceptions import VLLMValidationError

    metrics.refusals.labels("400").inc()
    return VLLMValidationError(message, parameter="vllm_xargs")
