"""The largest request that the server reads, as a layer around vLLM's application: `vllm serve --middleware gen.engine.limits.BodyLimit`."""

from __future__ import annotations

import contextlib
import json
from typing import Any

LIMIT = 8 << 20  # bytes: a million tokens as text, more than any model here takes


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
            await refuse(send)
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
            await refuse(send)


async def refuse(send: Any) -> None:
    error = {"message": f"the request is over {LIMIT} bytes", "type": "BadRequestError", "param": None, "code": 413}
    body = json.dumps({"error": error}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 413, "headers": headers})
    await send({"type": "http.response.body", "body": body})
