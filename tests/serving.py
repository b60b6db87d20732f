"""The real server in a process of its own, and its client."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx

from shared.vectors import Vector

ROOT = Path(__file__).parent.parent
STARTUP = 300  # seconds


class Server:
    """A server of this test's own, greedy through the completions endpoint. model: the name that it serves."""

    def __init__(self, url: str, process: subprocess.Popen[bytes], key: str = "-", model: str = "embedded"):
        from openai import OpenAI

        self.url, self.process, self.model = url, process, model
        self.client = OpenAI(base_url=url, api_key=key, max_retries=0)
        self.http = httpx.Client(
            base_url=url.removesuffix("/v1"), headers={"authorization": f"Bearer {key}"}, timeout=120
        )

    def ask(self, prompt: list[int], **steering: Any) -> tuple[str, list[float]]:
        answer = self.client.completions.create(
            model=self.model,
            prompt=prompt,
            temperature=0,
            max_tokens=10,
            logprobs=0,
            extra_body={"vllm_xargs": steering} if steering else {},
        ).choices[0]
        assert answer.logprobs is not None and answer.logprobs.token_logprobs is not None
        return answer.text, [float(value or 0) for value in answer.logprobs.token_logprobs]


@contextmanager
def serving(
    vector: Vector,
    folder: Path,
    *options: str,
    arguments: tuple[str, ...] = (),
    key: str = "",
    module: str = "gen.serve",
    vectors: bool = True,
    model: str = "embedded",
) -> Iterator[Server]:
    """gen.serve with the vector as `trait` and its negative as `minus`, or with neither.

    Args:
        vector: of the model's width and layers.
        folder: for its files and its log.
        options: those of `vllm serve`.
        arguments: those of the command.
        key: VLLM_API_KEY; the client sends the first of several.
        module: gen.serve, or gen.play.
        vectors: whether the vectors are served.
        model: "embedded", or a folder.
    """
    vector.save(folder / "v.safetensors")
    Vector({layer: -values for layer, values in vector.layers.items()}).save(folder / "w.safetensors")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [
        *(module, "--port", str(port), "--set", "model.dtype=float32 model.max_model_len=512"),
        *(("--model", model) if model != "embedded" else ()),
        *(
            (*("--vector", f"trait={folder / 'v.safetensors'}", "--vector", f"minus={folder / 'w.safetensors'}"),)
            if vectors
            else ()
        ),
        *arguments,
        *(("--", *options) if options else ()),
    ]
    log = folder / "log"
    with open(log, "w") as sink:
        process = subprocess.Popen(
            [sys.executable, "-m", *words],
            stdout=sink,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            start_new_session=True,
            env={**os.environ, **({"VLLM_API_KEY": key} if key else {})},
        )
        try:
            begin = time.monotonic()
            while True:
                assert process.poll() is None and time.monotonic() - begin < STARTUP, log.read_text()[-4000:]
                try:
                    if httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200:
                        break
                except httpx.TransportError:
                    time.sleep(1)
            yield Server(f"http://127.0.0.1:{port}/v1", process, key.split()[0] if key else "-", model)
        finally:
            with suppress(ProcessLookupError):  # a test has ended it
                os.killpg(process.pid, 15)
            process.wait(60)
