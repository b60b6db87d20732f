"""A LiteLLM proxy in front of the server: steering passes through it or is refused. Its pins do not go with the locks, so it has an
environment of its own: `python -m venv D && D/bin/pip install 'litellm[proxy]'`, and LITELLM=D/bin/litellm names its program."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from serving import Server

LITELLM = os.environ.get("LITELLM") or shutil.which("litellm")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(LITELLM is None, reason="no LiteLLM: LITELLM is not set, and no litellm is on the path"),
]
STARTUP, KEY = 120, "sk-proxy"  # seconds; LiteLLM starts without a key only if it is told that this is dangerous
MESSAGES: list[Any] = [{"role": "user", "content": "Name a fruit."}]
TERMS = [
    {"vector": "trait", "coefficient": 4.0, "until": "end"},
    {"vector": "minus", "coefficient": 8.0, "from": "end"},
]
STEERED: list[dict[str, Any]] = [{"steer_vector": "trait", "steer_coefficient": 8.0}, {"steer_terms": TERMS}]


@pytest.fixture(scope="module")
def proxy(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A client of the proxy. The server is its model `chat` by LiteLLM's provider openai, `vllm` by hosted_vllm, and `text` completes."""
    from openai import OpenAI

    folder = tmp_path_factory.mktemp("proxy")
    models = {"chat": "openai/embedded", "vllm": "hosted_vllm/embedded", "text": "text-completion-openai/embedded"}
    config = {
        "model_list": [
            {"model_name": name, "litellm_params": {"model": model, "api_base": server.url, "api_key": "one"}}
            for name, model in models.items()
        ],
        "general_settings": {"master_key": KEY},
        "litellm_settings": {
            **{"num_retries": 0, "telemetry": False, "cache": True, "cache_params": {"type": "local"}},
            "enable_caching_on_provider_specific_optional_params": True,  # else an answer is found under another steering
        },
    }
    (folder / "config.yaml").write_text(json.dumps(config))  # which is YAML
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "DATABASE_URL")}
    with open(folder / "log", "w") as log:
        process = subprocess.Popen(
            [str(LITELLM), "--config", folder / "config.yaml", "--host", "127.0.0.1", "--port", str(port)],
            stdout=log, stderr=subprocess.STDOUT, cwd=folder, env={**environment, "LITELLM_LOCAL_MODEL_COST_MAP": "True"},
        )  # fmt: skip
        try:
            begin = time.monotonic()
            while True:
                assert process.poll() is None and time.monotonic() - begin < STARTUP, (folder / "log").read_text()
                try:
                    if httpx.get(f"http://127.0.0.1:{port}/health/liveliness").status_code == 200:
                        break
                except httpx.TransportError:
                    time.sleep(0.5)
            yield OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=KEY, max_retries=0)
        finally:
            process.terminate()
            process.wait(30)


def chat(client: Any, model: str, xargs: dict[str, Any] | None, **more: Any) -> Any:
    extra = {"vllm_xargs": xargs} if xargs else {}
    ask = {"messages": MESSAGES, "temperature": 0, "max_tokens": 8, **more}
    return client.chat.completions.create(model=model, extra_body=extra, **ask)


@pytest.mark.parametrize("model", ["chat", "vllm"])
def test_steering_passes_through_a_chat(proxy: Any, server: Server, model: str) -> None:
    direct = [chat(server.client, "embedded", xargs).choices[0].message.content for xargs in (None, *STEERED)]
    assert len(set(direct)) == 3, "each steering must change the answer, or this test proves nothing"
    for xargs, expected in zip((None, *STEERED), direct, strict=True):
        assert chat(proxy, model, xargs).choices[0].message.content == expected
        parts = chat(proxy, model, xargs, stream=True)
        assert "".join(part.choices[0].delta.content or "" for part in parts if part.choices) == expected


def test_steering_passes_through_a_completion(proxy: Any, server: Server) -> None:
    prompt = "A fruit that grows on trees"
    answers: dict[str, list[str]] = {}
    for client, model in ((server.client, "embedded"), (proxy, "text")):
        answers[model] = [
            client.completions.create(
                model=model, prompt=prompt, temperature=0, max_tokens=8, extra_body={"vllm_xargs": xargs} if xargs else {}
            ).choices[0].text
            for xargs in (None, *STEERED)
        ]  # fmt: skip
    assert answers["text"] == answers["embedded"] and len(set(answers["embedded"])) == 3


@pytest.mark.parametrize("model", ["chat", "vllm"])
def test_a_refusal_passes_through_in_openais_form(proxy: Any, model: str) -> None:
    from openai import BadRequestError

    for xargs in ({"steer_vector": "none", "steer_coefficient": 1.0}, {"steer_vector": "trait", "scale": 2.0}):
        for stream in (False, True):
            with pytest.raises(BadRequestError) as refused:
                list(chat(proxy, model, xargs, stream=stream))
            assert refused.value.status_code == 400 and "steer" in refused.value.message
            assert {"message", "type", "code"} <= set(refused.value.body)


@pytest.mark.parametrize("model", ["chat", "vllm"])
def test_misplaced_steering_is_refused_behind_a_proxy_too(proxy: Any, model: str) -> None:
    from openai import BadRequestError

    for extra in ({"steer_vector": "trait", "steer_coefficient": 1.0}, {"vllm_xarg": STEERED[0]}):
        with pytest.raises(BadRequestError):
            proxy.chat.completions.create(model=model, messages=MESSAGES, max_tokens=2, extra_body=extra)


@pytest.mark.parametrize("model", ["chat", "vllm"])
def test_logprobs_and_projections_pass_through(proxy: Any, server: Server, model: str) -> None:
    xargs = {**STEERED[0], "steer_read": "trait"}
    direct, behind = (
        chat(client, name, xargs, logprobs=True, top_logprobs=1).choices[0]
        for client, name in ((server.client, "embedded"), (proxy, model))
    )
    assert [token.logprob for token in behind.logprobs.content] == pytest.approx(
        [token.logprob for token in direct.logprobs.content], abs=1e-4
    )
    projections = behind.provider_specific_fields["steer_projections"]
    assert projections["first"] == direct.steer_projections["first"] and len(projections["values"]) == 8
    np.testing.assert_allclose(projections["values"], direct.steer_projections["values"], atol=1e-3)
    stream = chat(proxy, model, xargs, logprobs=True, top_logprobs=1, stream=True)
    read = [
        choice.steer_projections for part in stream for choice in part.choices if hasattr(choice, "steer_projections")
    ]
    assert len(read) == 1 and read[0]["first"] == projections["first"]
    np.testing.assert_allclose(read[0]["values"], projections["values"], atol=1e-3)


def test_vectors_are_brought_to_the_server_alone(proxy: Any) -> None:
    headers = {"authorization": f"Bearer {KEY}"}
    for path in ("/steer/vectors", "/steer/info"):
        assert httpx.get(str(proxy.base_url).removesuffix("/v1/") + path, headers=headers).status_code == 404
