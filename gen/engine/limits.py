"""Which requests the server reads: layers around vLLM's application, each an option `vllm serve --middleware gen.engine.limits.NAME`.

The first named is the innermost: StrictBody reads no more than BodyLimit lets through, and Gate is asked first.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
from contextvars import ContextVar
from typing import Any

from gen.engine import metrics

LIMIT = 8 << 20  # bytes: a million tokens as text, more than any model here takes
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")  # of a vector
KEYS = "VLLM_API_KEY"  # environment: one key, or several with spaces between them
ALL_KEYS = "STEER_HEAL_API_KEYS"  # the same, where vLLM's own guard, which knows one key, is to see none
TOO_LARGE = f"the request is over {LIMIT} bytes"
PROBES = {"/health", "/ping"}
# vLLM has others, which take a request's steering and leave it out, and asks for its key under some paths alone
STEERED = {"/v1/completions", "/v1/chat/completions", "/v1/responses"}
OWN = {"/steer/info", "/steer/play", "/steer/vectors"}  # gen/engine/vectors.py; a vector is under the second
OPEN = {"/play"}  # a page without a secret, whose requests carry the key
READ = {"/v1/models", "/tokenize", "/detokenize", "/version", "/metrics", "/load"}


owner: ContextVar[str] = ContextVar("owner", default="")  # names the API key of the current request; "" without a key


class Gate:
    """ASGI: 404 for an endpoint that is none of these; 401 without a bearer token of VLLM_API_KEY, where one is set, but for probes
    and the page; 400 for a query, or a header that means to steer, where the body alone is read."""

    def __init__(self, app: Any):
        self.app = app
        self.keys = [_hash(key.encode()) for key in (os.environ.get(ALL_KEYS) or os.environ.get(KEYS, "")).split()]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        path = _path(scope)
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008})
        elif scope["type"] == "http" and not _served(path):
            await send_error(send, 404, f"{path} is not served here: {', '.join(sorted(STEERED | READ | OWN | OPEN))}")
        elif scope["type"] == "http" and not self._may(scope, path):
            await send_error(send, 401, "the bearer token is not the server's API key")
        elif path in STEERED and (unread := _unread(scope)):
            await send_error(send, 400, f"{unread}: steering goes into the body's vllm_xargs")
        else:
            await self.app(scope, receive, send)

    def _may(self, scope: Any, path: str) -> bool:
        if not self.keys or path in PROBES | OPEN or scope["method"] == "OPTIONS":  # what a browser asks first
            return True
        header_key = _given(scope["headers"])
        known = [
            secrets.compare_digest(key, header_key) for key in self.keys
        ]  # all of them, in a time that tells nothing
        if any(known):
            owner.set(header_key.hex()[:16])
        return any(known)


def _served(path: str) -> bool:
    return path in STEERED | READ | PROBES | OWN | OPEN or path.startswith("/steer/vectors/")


def _path(scope: Any) -> str:
    """The path of a request, below where the application is mounted."""
    return str(scope.get("path", "").removeprefix(scope.get("root_path", "")))


def _unread(scope: Any) -> str | None:
    """What a request to sample asks for outside its body; None for nothing. These endpoints have no parameters in the address, in
    whatever letters or escapes."""
    from gen.engine.requests import meant  # which imports torch, and who reads this file's names need not wait for it

    if scope.get("query_string"):
        return "a query in the address is not read"
    names = (name.decode("latin-1") for name, _ in scope["headers"])
    return next((f"the header {name} is not read" for name in names if meant(name)), None)


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
            await send_error(send, 413, TOO_LARGE)
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
            if total <= LIMIT or begun:  # drop the application's reply to TooLarge; 413 is sent below
                begun = True
                await send(message)

        with contextlib.suppress(TooLarge):  # where the application has not answered it in its own way
            await self.app(scope, counted, noted)
        if total > LIMIT and not begun:
            await send_error(send, 413, TOO_LARGE)


class StrictBody:
    """ASGI: 400 for a request to sample whose JSON does not say one thing, before vLLM's lenient reading makes it another."""

    def __init__(self, app: Any):
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if not self.reads(scope):
            await self.app(scope, receive, send)
            return
        messages: list[Any] = []
        more = True
        while more:
            messages.append(message := await receive())
            more = message["type"] == "http.request" and message.get("more_body", False)
        if problem := ambiguous(b"".join(message.get("body", b"") for message in messages)):
            await send_error(send, 400, problem)
            return

        async def again() -> Any:
            return messages.pop(0) if messages else await receive()

        await self.app(scope, again, send)

    def reads(self, scope: Any) -> bool:
        """Whether the body of this request is read."""
        return scope["type"] == "http" and _path(scope) in STEERED


def ambiguous(body: bytes) -> str | None:
    """Why a body that may ask for steering cannot be read in one way; None where it can, or is no JSON, which vLLM says itself.

    Of a key that is there twice JSON's usual readers keep the last, and vLLM's request models read true as 1.
    """
    if not any(part in body.lower() for part in (b"steer", b"vllm", b"\\u", b"\0")):  # escapes and UTF-16 hide names
        return None
    twice: list[str] = []

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        for name, value in pairs:
            if name in fields:
                twice.append(name)
            fields[name] = value
        return fields

    try:
        request = json.loads(body, object_pairs_hook=once)
    except (ValueError, RecursionError):
        return None
    if twice:
        return f"the body has the key {twice[0]!r} twice in one object, and all but the last would be dropped: leave one out"
    arguments = request.get("vllm_xargs") if isinstance(request, dict) else None
    for name, value in arguments.items() if isinstance(arguments, dict) else ():
        if isinstance(value, bool):
            return f"vllm_xargs.{name} is {str(value).lower()}, which is no number and no text"
    return None


KINDS = {
    400: "BadRequestError", 401: "AuthenticationError", 403: "PermissionDeniedError", 404: "NotFoundError", 405: "MethodNotAllowedError",
    409: "ConflictError", 413: "RequestTooLargeError", 429: "RateLimitError", 503: "ServiceUnavailableError",
}  # fmt: skip


async def send_error(send: Any, code: int, message: str, **headers: str) -> None:
    """Answer with an error in OpenAI's form; headers by their names with _ for -."""
    metrics.refusals.labels(str(code)).inc()
    error = {"message": message, "type": KINDS[code], "param": None, "code": code}
    body = json.dumps({"error": error}).encode()
    fields = {"content-type": "application/json", "content-length": str(len(body)), **headers}
    lines = [(name.replace("_", "-").encode(), value.encode()) for name, value in fields.items()]
    await send({"type": "http.response.start", "status": code, "headers": lines})
    await send({"type": "http.response.body", "body": body})
