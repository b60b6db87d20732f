"""SIGTERM drains a server: running requests end, new ones are refused with 503, and the process exits 0.

vLLM's own drain waits for its engine alone, and closes the sockets with the engine: an answer whose last tokens are on their way
to a client is lost. Here the HTTP answers are waited for first, while the engine stands.
"""

from __future__ import annotations

import asyncio
import functools
import time
from typing import Any

from gen.engine.limits import READ, send_error

SECONDS = 30  # that running requests have, unless `vllm serve --shutdown-timeout` says otherwise
GRACE = 5  # seconds for connections that do not close, and for an engine without work, before they are cut
LINGER = 1.0  # seconds an engine stays after its last request, where the signal reached it as well as its server
ENDING = "the server is shutting down"

_running: set[asyncio.Task[Any]] = set()  # requests of this process that are being answered
_draining = False


class Drain:
    """ASGI: knows the running requests; 503 with Retry-After for a new one while the server drains. The outermost layer."""

    def __init__(self, app: Any):
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if _draining and scope["path"] not in READ:
            await _unavailable(send)
            return
        if server := getattr(getattr(scope.get("app"), "state", None), "server", None):
            server.config.timeout_graceful_shutdown = GRACE  # uvicorn waits for ever for a client that reads nothing
        task = asyncio.current_task()
        assert task is not None
        started = False

        async def noted(message: Any) -> None:
            nonlocal started
            started = True
            await send(message)

        _running.add(task)
        try:
            await self.app(scope, receive, noted)
        except asyncio.CancelledError:
            if started or not _draining:
                raise  # a stream that is cut off does not end as a whole one does
            await _unavailable(send)
        finally:
            _running.discard(task)


async def _unavailable(send: Any) -> None:
    await send_error(send, 503, ENDING, retry_after=str(SECONDS), connection="close")


def drain(seconds: float) -> None:
    """Refuse new requests and wait for the running ones; end those that are left after the grace period, seconds. From a thread beside the
    event loop: the answers are written there meanwhile."""
    global _draining
    _draining = True
    deadline = time.monotonic() + seconds
    while _running and time.monotonic() < deadline:
        time.sleep(0.05)
    for task in list(_running):
        task.get_loop().call_soon_threadsafe(task.cancel)
    deadline = time.monotonic() + GRACE
    while _running and time.monotonic() < deadline:
        time.sleep(0.05)


def register() -> None:
    """Wrap the shutdown of vLLM's engine of a server, and of its engine process. Called once a process."""
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.engine.core import EngineCoreProc

    AsyncLLM.shutdown = _drained(AsyncLLM.shutdown)
    EngineCoreProc._handle_shutdown = _lingering(EngineCoreProc._handle_shutdown)


def _drained(stock: Any) -> Any:
    @functools.wraps(stock)
    def shutdown(self: Any, timeout: float | None = None) -> None:
        if (
            timeout and not _draining and not _in_event_loop()
        ):  # on the loop nothing would run on: the server has failed
            drain(timeout)
        stock(self, timeout=min(timeout, GRACE) if timeout else timeout)

    return shutdown


def _in_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _lingering(stock: Any) -> Any:
    """A signal to the whole process group stops the engine process as well, which exits with its last request: its server, to which
    that is an engine that died, has the time to answer first."""

    @functools.wraps(stock)
    def handle_shutdown(self: Any) -> bool:
        from vllm.v1.engine.core import EngineShutdownState

        if self.shutdown_state == EngineShutdownState.REQUESTED:
            self.steering_lingers = self.vllm_config.shutdown_timeout > 0 and self.has_work()
        goes_on: bool = stock(self)
        if not goes_on and getattr(self, "steering_lingers", False):
            time.sleep(LINGER)
        return goes_on

    return handle_shutdown
