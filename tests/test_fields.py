"""What a steering server reads over HTTP: every field of vLLM and of the endpoint's client, and steering in its one place alone."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import openai.types.chat.completion_create_params
import openai.types.completion_create_params
import openai.types.responses.response_create_params
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic_core import PydanticUndefined
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest

from gen.engine import plugin
from gen.engine.fields import misplaced_steering
from gen.engine.limits import STEERED, StrictBody, ambiguous
from gen.engine.requests import Registry, meant
from gen.engine.terms import KEYS

GOOD: dict[str, tuple[Any, dict[str, Any], frozenset[str]]] = {
    "chat": (
        ChatCompletionRequest,
        {"model": "m", "messages": [{"role": "user", "content": "Steer me out of this."}]},
        frozenset(openai.types.chat.completion_create_params.CompletionCreateParamsNonStreaming.__annotations__),
    ),
    "completions": (
        CompletionRequest,
        {"model": "m", "prompt": [5, 6]},
        frozenset(openai.types.completion_create_params.CompletionCreateParamsNonStreaming.__annotations__),
    ),
    "responses": (
        ResponsesRequest,
        {"model": "m", "input": "Hi"},
        frozenset(openai.types.responses.response_create_params.ResponseCreateParamsNonStreaming.__annotations__),
    ),
}
STEERING = {"steer_vector": "trait", "steer_coefficient": 8}


def refused(kind: str, fields: dict[str, Any], *, strict: bool = True) -> str | None:
    model, good, sent = GOOD[kind]
    error = misplaced_steering(model.model_validate({**good, **fields}), sent, strict=strict)
    return None if error is None else str(error)


@pytest.mark.parametrize("kind", GOOD)
def test_every_field_of_vllm_and_of_the_client_passes(kind: str) -> None:
    model, good, sent = GOOD[kind]
    assert refused(kind, {}) is None
    assert refused(kind, {"vllm_xargs": {**STEERING, "steer_positions": "generated", "steer_from": 1}}) is None
    for name, field in model.model_fields.items():
        default = field.get_default(call_default_factory=True)
        if name not in good and default is not PydanticUndefined and name != "vllm_xargs":
            assert refused(kind, {name: default}) is None, name
    unknown = sent - set(model.model_fields)
    assert kind == "responses" or unknown, "the client knows fields that vLLM ignores, or this proves nothing"
    for name in unknown:
        assert refused(kind, {name: None}) is None, name


@pytest.mark.parametrize("kind", GOOD)
@pytest.mark.parametrize(
    ("fields", "right"),
    [
        ({"steer_vector": "trait", "steer_coefficient": 8}, "vllm_xargs.steer_vector"),  # beside vllm_xargs
        ({"extra_body": {"vllm_xargs": STEERING}}, "vllm_xargs"),  # the Python client's argument, sent as it is
        ({"extra_body": {}}, "vllm_xargs"),
        ({"extra_args": STEERING}, "vllm_xargs"),
        ({"vllm_xarg": STEERING}, "vllm_xargs"),
        ({"VLLM_XARGS": STEERING}, "vllm_xargs"),
        ({"vllm_xargs": {"STEER_VECTOR": "trait", "STEER_COEFFICIENT": 8}}, "vllm_xargs.steer_vector"),
        ({"vllm_xargs": {**STEERING, "Steer-From": 2}}, "vllm_xargs.steer_from"),
        ({"vllm_xargs": {"steerVector": "trait", "steer_coefficient": 8}}, "vllm_xargs.steer_vector"),
        ({"vllm_xargs": {"vector": "trait", "coefficient": 8}}, "vllm_xargs.steer_vector"),
        ({"vllm_xargs": {**STEERING, "scale": 2}}, "steer_coefficient"),
        ({"vllm_xargs": {**STEERING, "steer_coeficient": 2}}, "vllm_xargs.steer_coefficient"),
        ({"vllm_xargs": {"steer": [1, 1.0, 0]}}, "steer_vector"),
        ({"metadata": {"steer_vector": "trait"}}, "vllm_xargs.steer_vector"),
        ({"metadata": {"VLLM-XARGS": "{}"}}, "vllm_xargs"),
        ({"steering": {"vectors": [{"source": "trait", "scale": 8}]}}, "steer_vector"),  # EasySteer
        ({"steer_vector_request": {"steer_vector_name": "trait", "scale": 8}}, "steer_vector"),  # EasySteer, before
        ({"vllm_xargs": {"hotwire": '{"id": "trait", "layer": 14, "scale": 8}'}}, "steer_vector"),  # hotwire-vllm
        ({"vllm_xargs": {"apply_steering_vectors": "[]"}}, "steer_vector"),  # vllm-lens
        ({"vllm_xargs": {"output_residual_stream": "[14]"}}, "steer_vector"),  # vllm-lens
        ({"vllm_xargs": {"hook_config": "{}"}}, "steer_vector"),  # vLLM-Hook
        ({"hooks": [{"layer": 14}]}, "steer_vector"),  # vLLM-Hook
        ({"steering_vectors": {"14": [0.0]}}, "steer_vector"),  # the steering-bench fork
        ({"control_vectors": [{"path": "v.gguf", "strength": 1}]}, "steer_vector"),  # llama.cpp, repeng
        ({"nnsight": {}}, "steer_vector"),
    ],
)
def test_what_would_be_dropped_is_refused_and_the_right_field_named(
    kind: str, fields: dict[str, Any], right: str
) -> None:
    sentence = refused(kind, fields)
    assert sentence and right in sentence and all(key in sentence for key in KEYS)


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("chat", {"messages": [{"role": "user", "content": "Hi", "steer_vector": "trait"}]}),
        ("chat", {"chat_template_kwargs": {"nested": {"steer_coefficient": 8}}}),
        ("chat", {"stream": True, "stream_options": {"include_usage": True, "steer_vector": "trait"}}),
        ("chat", {"chat_template_kwargs": {"mixed": ["a", 1, {"steer_vector": "trait"}]}}),
        ("chat", {"response_format": {"type": "json_object", "steer_vector": "trait"}}),
        ("chat", {"tools": [{"type": "function", "steer_vector": "trait", "function": {"name": "f"}}]}),
        ("chat", {"mm_processor_kwargs": {"steering": [{"steer_vector": "trait"}]}}),
        ("completions", {"kv_transfer_params": {"steer_vector": "trait"}}),
        ("responses", {"input": [{"role": "user", "content": "Hi", "steer_vector": "trait"}]}),
        ("responses", {"metadata": {"Steer_Vector": "trait"}}),
    ],
)
def test_steering_inside_another_field_is_refused(kind: str, fields: dict[str, Any]) -> None:
    sentence = refused(kind, fields)
    assert sentence and "inside another field" in sentence and "vllm_xargs" in sentence


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": [{"role": "user", "content": [{"type": "text", "text": 'Say "steer_vector": 1.'}]}]},
        {"metadata": {"user": "u1", "trace": "steer_vector"}, "store": True, "user": "steer"},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "object", "properties": {"steer_vector": {"type": "string"}}}}}},
        {"tools": [{"type": "function", "function": {"name": "steer", "parameters": {"type": "object", "properties": {"steer_vector": {"type": "string"}}}}}]},
        {"logit_bias": {"5": 1.0}, "stop": ["steer"], "logprobs": True, "top_logprobs": 3, "seed": 1, "n": 2},
        {"vllm_xargs": None},
        {"vllm_xargs": {}},
    ],
)  # fmt: skip
def test_what_clients_send_for_other_reasons_passes(fields: dict[str, Any]) -> None:
    assert refused("chat", fields) is None


@pytest.mark.parametrize("kind", GOOD)
def test_a_server_that_does_not_steer_refuses_only_what_means_to(kind: str) -> None:
    assert refused(kind, {"unknown": 1, "vllm_xargs": {"other": 1}}, strict=False) is None
    assert refused(kind, {"Steering": 1}, strict=False)
    assert refused(kind, {"vllm_xargs": {"STEER_VECTOR": "trait"}}, strict=False)
    assert refused(kind, {"metadata": {"steer_vector": "trait"}}, strict=False)


names = st.text(st.characters(codec="utf-8", exclude_categories=("Cs",)), min_size=1, max_size=12)


@given(st.sampled_from(sorted(GOOD)), names)
def test_an_unknown_field_is_refused_wherever_vllm_would_ignore_it(kind: str, name: str) -> None:
    model, _, sent = GOOD[kind]
    known = set(model.model_fields) | sent
    sentence = refused(kind, {name: "trait"}) if name not in known else "known"
    assert sentence and (sentence == "known" or name in sentence)
    if name not in KEYS:
        sentence = refused(kind, {"vllm_xargs": {**STEERING, name: 1}})
        assert sentence and name in sentence


spellings = st.builds(
    lambda key, upper, join: "".join(
        letter.upper() if high else letter for letter, high in zip(key, upper, strict=False)
    ).replace("_", join),
    st.sampled_from(KEYS),
    st.lists(st.booleans(), min_size=20, max_size=20),
    st.sampled_from(["_", "-", "", " ", "."]),
)
paths = st.recursive(
    spellings.map(lambda key: {key: 1}),
    lambda inner: st.one_of(st.builds(lambda each: {"x": each}, inner), st.builds(lambda each: [each], inner)),
    max_leaves=4,
)


@given(paths)
def test_our_fields_are_found_in_any_letters_and_at_any_depth(value: Any) -> None:
    assert refused("chat", {"chat_template_kwargs": {"deep": value}})


@given(spellings)
def test_our_names_are_ours_in_any_letters(name: str) -> None:
    assert meant(name)
    assert name in KEYS or refused("completions", {"vllm_xargs": {name: 1}})


GOOD_BODY = {"model": "m", "prompt": [5, 6], "vllm_xargs": STEERING}
XARGS = '"vllm_xargs": {"steer_vector": "trait", "steer_coefficient": 8}'
AMBIGUOUS = {
    "dropped": (f'{{"model": "m", {XARGS}, "vllm_xargs": {{}}}}', "'vllm_xargs' twice"),
    "replaced": ('{"vllm_xargs": {"steer_coefficient": 8, "steer_vector": "t", "steer_coefficient": 0}}', "'steer_coefficient' twice"),
    "escaped": (f'{{{XARGS}, "vllm\\u005fxargs": null}}', "'vllm_xargs' twice"),
    "true": ('{"vllm_xargs": {"steer_vector": "t", "steer_coefficient": true}}', "steer_coefficient is true"),
    "false": ('{"vllm_xargs": {"steer_vector": "t", "steer_coefficient": 1, "steer_from": false}}', "steer_from is false"),
}  # fmt: skip


@pytest.mark.parametrize(("body", "problem"), AMBIGUOUS.values(), ids=AMBIGUOUS)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le"])
def test_a_body_that_does_not_say_one_thing(body: str, problem: str, encoding: str) -> None:
    assert problem in (ambiguous(body.encode(encoding)) or "")


def test_a_body_that_says_one_thing() -> None:
    assert ambiguous(json.dumps(GOOD_BODY).encode()) is None
    assert ambiguous(json.dumps({"messages": [{"a": 1}, {"a": 1}], "stream": True, "user": "steer"}).encode()) is None
    for other in (b"", b"{", b"[" * 100_000, b"steer", b"[1]", b"\xff\xfesteer", b'{"vllm_xargs": null}'):
        assert ambiguous(other) is None, other
    read = CompletionRequest.model_validate({**GOOD_BODY, "vllm_xargs": {**STEERING, "steer_coefficient": True}})
    assert read.vllm_xargs == {**STEERING, "steer_coefficient": 1}, "then true needs no refusal before it"


@pytest.mark.parametrize("path", sorted(STEERED))
def test_the_layer_passes_on_what_it_read(path: str) -> None:
    """Whole, whatever pieces it came in, and then what the connection says next."""
    body = json.dumps(GOOD_BODY).encode()
    pieces = [body[:7], b"", body[7:30], body[30:]]
    arriving = [{"type": "http.request", "body": piece, "more_body": piece is not pieces[-1]} for piece in pieces]
    arriving.append({"type": "http.disconnect"})
    seen: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return arriving.pop(0)

    async def application(scope: Any, receive: Any, send: Any) -> None:
        while not seen or seen[-1]["type"] != "http.disconnect":
            seen.append(await receive())

    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {"type": "http", "path": path, "headers": [], "method": "POST"}
    asyncio.run(StrictBody(application)(scope, receive, send))
    assert b"".join(message.get("body", b"") for message in seen) == body and seen[-1]["type"] == "http.disconnect"
    seen.clear()
    arriving.append({"type": "http.request", "body": AMBIGUOUS["dropped"][0].encode(), "more_body": False})
    asyncio.run(StrictBody(application)(scope, receive, send))
    assert sent[0]["status"] == 400 and b"twice" in sent[1]["body"] and not seen


@pytest.mark.parametrize("slots", [0, 1])
def test_vllms_own_server_reads_bodies_as_strictly_where_its_engine_steers(
    slots: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the plugin alone, without the options that gen.serve gives it; an engine without steering is left as it is."""
    import httpx
    from vllm.entrypoints.launchers import app
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    plugin.register()
    monkeypatch.setattr(plugin, "_registry", Registry(slots=slots))
    arguments = make_arg_parser(FlexibleArgumentParser()).parse_args([])
    transport = httpx.ASGITransport(app.build_app(arguments, ("generate",), None), raise_app_exceptions=False)

    async def ask(path: str, body: str) -> str:
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            return (
                await client.post(path, content=body, headers={"content-type": "application/json"}, timeout=60)
            ).text

    for path in (*STEERED, "/invocations", "/inference/v1/generate"):
        for body, words in AMBIGUOUS.values():
            assert (words in asyncio.run(ask(path, body))) == bool(slots), (path, body)
        assert "twice" not in asyncio.run(ask(path, '{"vllm_xargs": {"steer_vector": "v", "steer_coefficient": 1.0}}'))
