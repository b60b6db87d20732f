"""Which requests the server reads: layers around vLLM's application, `vllm serve --middleware gen.engine.limits.Gate` and `.BodyLimit`."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
from typing import Any

LIMIT = 8 << 20  # bytes: a million tokens as text, more than any model here takes
TOO_LARGE = f"the request is over {LIMIT} bytes"
PROBES = {"/health", "/ping"}
# vLLM has others, which take a request's steering and leave it out, and asks for its key under some paths alone
STEERED = {"/v1/completions", "/v1/chat/completions", "/v1/responses"}
READ = {"/v1/models", "/tokenize", "/detokenize", "/version", "/metrics", "/load"}


class Gate:
    """ASGI: 404 for an endpoint that is none of these; 401 without the bearer token of VLLM_API_KEY, where one is set, but for probes;
    400 for steering in the query string."""

    def __init__(self, app: Any):
        self.app = app
        key = os.environ.get("VLLM_API_KEY")
        self.key = _hash(key.encode()) if key else None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        path = scope.get("path", "").removeprefix(scope.get("root_path", ""))
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008})
        elif scope["type"] == "http" and path not in STEERED | READ | PROBES:
            await refuse(send, 404, f"{path} is not served here: {', '.join(sorted(STEERED | READ))}")
        elif scope["type"] == "http" and not self._may(scope, path):
            await refuse(send, 401, "the bearer token is not the server's API key")
        elif path in STEERED and b"steer" in scope.get("query_string", b"").lower():
            await refuse(send, 400, "steering is not read in the address: it goes into the body's vllm_xargs")
        else:
            await self.app(scope, receive, send)

    def _may(self, scope: Any, path: str) -> bool:
        if self.key is None or path in PROBES or scope["method"] == "OPTIONS":  # what a browser asks first
            return True
        return secrets.compare_digest(self.key, _given(scope["headers"]))


def _hash(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _given(headers: Any) -> bytes:
    """Of the key that a request carries; of nothing where it carries none."""
    scheme, _, key = next((value for name, value in headers if name == b"authorization"), b"").partition(b" ")
    return _hash(key.strip() if scheme.lower() == b"bearer" else b"")


class TooLarge(Exception):
    """More came than the length said, or than is read without one."""


class BodyLimit:
    """ASGI: answers 413 to a body over LIMIT, by its declared length before it is read, else where it passes the limit."""

    def __init__(self, app: Any):
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        declared = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        if declared.isdigit() and int(declared) > LIMIT:
            await refuse(send, 413, TOO_LARGE)
            return
        total, begun = 0, False

        async def counted() -> Any:
            nonlocal total
            message = await receive()
            total += len(message.get("body", b""))
            if total > LIMIT:
                raise TooLarge
            return message

        async def noted(message: Any) -> None:
            nonlocal begun
            if total <= LIMIT or begun:  # what the application makes of TooLarge is not what happened
                begun = True
                await send(message)

        with contextlib.suppress(TooLarge):  # where the application has not answered it in its own way
            await self.app(scope, counted, noted)
        if total > LIMIT and not begun:
            await refuse(send, 413, TOO_LARGE)


async def refuse(send: Any, code: int, message: str) -> None:
    error = {"message": message, "type": "BadRequestError", "param": None, "code": code}
    body = json.dumps({"error": error}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": code, "headers": headers})
    await send({"type": "http.response.body", "body": body})
