"""A worker of a sweep on this machine: a process that makes windows for the driver that started it.

It reads frames from its standard input, a recipe and then one window each, and writes frames to its standard output. A frame is its
length in four bytes, big-endian, followed by that many bytes of JSON. What libraries print goes to standard error.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import struct
import sys
import threading
from typing import Any, BinaryIO

from shared.cli import quiet
from shared.errors import Exit, SteerHealError
from shared.runtime import limit_spinning


def send(stream: BinaryIO, message: dict[str, Any]) -> None:
    """Write one message as a frame. Raises BrokenPipeError where the reader has ended."""
    data = json.dumps(message).encode()
    stream.write(struct.pack(">I", len(data)) + data)
    stream.flush()


def receive(stream: BinaryIO) -> dict[str, Any] | None:
    """Read one frame; None where the other end has closed, also in the middle of one."""
    head = _exactly(stream, 4)
    body = None if head is None else _exactly(stream, struct.unpack(">I", head)[0])
    if body is None:
        return None
    message: dict[str, Any] = json.loads(body)
    return message


def _exactly(stream: BinaryIO, size: int) -> bytes | None:
    parts = []
    while size:
        part = stream.read(size)
        if not part:
            return None
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def reply_to(maker: Any, request: dict[str, Any]) -> dict[str, Any]:
    """The reply to a window: its rows as text, or the error of ours that it met."""
    from gen.recipe import as_planned

    try:
        return {"rows": maker.make(as_planned(request["rows"])).decode()}
    except SteerHealError as error:
        return {"error": error.as_dict()}


def main() -> None:
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # a Ctrl-C at the terminal reaches the driver as well, which ends this process
    quiet()
    limit_spinning()
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no frame
    requests: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()

    def read() -> None:
        while (message := receive(sys.stdin.buffer)) is not None:
            requests.put(message)
        os._exit(Exit.INTERRUPTED)  # the driver has gone, and nobody would take the window at work

    threading.Thread(target=read, daemon=True).start()
    from gen.recipe import Maker, Recipe

    try:
        maker = Maker(Recipe.model_validate_json(json.dumps(requests.get())))
    except SteerHealError as error:
        send(replies, {"error": error.as_dict()})
        sys.exit(error.code)
    send(replies, {"about": maker.about()})
    while True:
        send(replies, reply_to(maker, requests.get()))


if __name__ == "__main__":
    main()
