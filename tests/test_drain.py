"""SIGTERM to a real server: what runs ends whole, what comes is refused, the process exits 0 in the time it says."""

from __future__ import annotations

import asyncio
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from serving import Server

from gen.engine import drain

PROMPT = [1, 4093, 198] + [100 + 13 * index % 900 for index in range(40)]
STEERED = {"steer_vector": "trait", "steer_coefficient": 8.0}  # at 1 the first hundred greedy tokens are the same


def stream(server: Server, tokens: int, **steering: Any) -> Any:
    return server.client.completions.create(
        model="embedded", prompt=PROMPT, temperature=0, max_tokens=tokens, stream=True,
        extra_body={"ignore_eos": True, **({"vllm_xargs": steering} if steering else {})},
    )  # fmt: skip


def whole(parts: Any) -> tuple[str, str | None]:
    """The text of what is left of a stream, and why it ended."""
    text, reason = "", None
    for part in parts:
        text, reason = text + part.choices[0].text, part.choices[0].finish_reason or reason
    return text, reason


def test_a_request_that_outlasts_the_time_is_told_and_a_new_one_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The layer alone, around an application that never answers."""
    monkeypatch.setattr(drain, "_draining", False)
    sent: dict[str, list[Any]] = {"running": [], "new": [], "metrics": []}

    async def never(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/metrics":
            await send({"type": "http.response.start", "status": 200, "headers": []})
        else:
            await asyncio.sleep(60)

    async def ask(name: str, path: str = "/v1/completions") -> None:
        async def send(message: Any) -> None:
            sent[name].append(message)

        await drain.Drain(never)({"type": "http", "path": path}, None, send)

    async def play() -> float:
        running = asyncio.create_task(ask("running"))
        await asyncio.sleep(0.1)
        begin = time.monotonic()
        draining = asyncio.create_task(asyncio.to_thread(drain.drain, 0.5))
        await asyncio.sleep(0.1)
        await ask("new")
        await ask("metrics", "/metrics")
        await asyncio.gather(running, draining)
        return time.monotonic() - begin

    took = asyncio.run(play())
    assert 0.5 <= took < 0.5 + drain.GRACE
    assert [messages[0]["status"] for messages in sent.values()] == [503, 503, 200]
    assert (b"retry-after", b"30") in sent["new"][0]["headers"] and b"shutting down" in sent["new"][1]["body"]


@pytest.mark.slow
def test_sigterm_lets_running_requests_end_and_refuses_new_ones(server: Server) -> None:
    """Of the server that other files have asked before: this file is the last of them."""
    with ThreadPoolExecutor(4) as pool:
        alone = [whole(stream(server, 100, **steering)) for steering in ({}, STEERED)]
        assert [reason for _, reason in alone] == ["length"] * 2 and alone[0] != alone[1]
        running = [stream(server, 100, **steering) for steering in ({}, STEERED)]
        begun = [next(iter(one)).choices[0].text for one in running]
        unstreamed = pool.submit(
            server.http.post, "/v1/completions", json={"model": "embedded", "prompt": PROMPT, "max_tokens": 80, "ignore_eos": True}
        )  # fmt: skip
        time.sleep(0.5)
        rests = [pool.submit(whole, one) for one in running]
        server.process.send_signal(signal.SIGTERM)
        begin = time.monotonic()
        time.sleep(0.3)
        answer = httpx.post(f"{server.url}/completions", json={"model": "embedded", "prompt": PROMPT, "max_tokens": 1})
        assert answer.status_code == 503 and int(answer.headers["retry-after"]) > 0
        assert answer.json()["error"] == {"message": drain.ENDING, "type": "ServiceUnavailableError", "param": None, "code": 503}  # fmt: skip
        assert httpx.get(server.url.removesuffix("/v1") + "/health").status_code == 503
        assert not any(rest.done() for rest in rests), "requests must run on, or this test proves nothing"
        for text, rest, (expected, _) in zip(begun, rests, alone, strict=True):
            assert (text + rest.result()[0], rest.result()[1]) == (expected, "length")
        assert unstreamed.result().json()["usage"]["completion_tokens"] == 80
        server.http.close()
        assert server.process.wait(drain.SECONDS + 2 * drain.GRACE) == 0
        print(f"ended {time.monotonic() - begin:.1f} s after the signal")
