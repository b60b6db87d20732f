"""Clients of a served model for the load test: requests of many kinds, vectors that come and go, and a client that means harm."""

from __future__ import annotations

import json
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
from serving import Server

from gen.engine.limits import LIMIT

TIE = 1e-4  # nats between the two best tokens within which another batch may choose the other one
SAME = 1e-3  # nats within which a log-probability is the same
NEAR = 1e-2  # within which a projection is the same
RACE = 1.0  # seconds before the signal in which a request may be sent and still be read after it
ENOUGH = 50  # wrong answers, after which a client asks no more
PATHS = {"completions": "/v1/completions", "chat": "/v1/chat/completions"}


@dataclass(frozen=True)
class Ask:
    """A greedy request: an endpoint, the prompt (token ids, or the text of a chat), the tokens to sample, the fields of vllm_xargs."""

    endpoint: str
    prompt: Any
    tokens: int
    steering: dict[str, Any]

    def body(self, model: str, *, read: bool = False, stream: bool = False) -> dict[str, Any]:
        chat = self.endpoint == "chat"
        prompt = {"messages": [{"role": "user", "content": self.prompt}]} if chat else {"prompt": self.prompt}
        xargs = {**self.steering, **({"steer_read": "trait"} if read else {})}
        return {
            **{"model": model, "temperature": 0, "max_tokens": self.tokens, "ignore_eos": True, "stream": stream},
            **({"logprobs": True, "top_logprobs": 2} if chat else {"logprobs": 2}),
            **prompt,
            "return_tokens_as_token_ids": True,  # two tokens may have one text
            **({"vllm_xargs": xargs} if xargs else {}),
        }


class Answer:
    """Of one choice, whole or in chunks. leads: of the best token over the second best, nats; projections: None unless asked for."""

    def __init__(self, choices: list[dict[str, Any]]):
        self.tokens: list[str] = []
        self.logprobs: list[float] = []
        self.leads: list[float] = []
        for found in (choice["logprobs"] for choice in choices if choice.get("logprobs")):
            if "content" in found:
                rows = [
                    (one["token"], one["logprob"], [best["logprob"] for best in one["top_logprobs"]])
                    for one in found["content"] or []
                ]
            else:
                best = [list(each.values()) for each in found["top_logprobs"]]
                rows = list(zip(found["tokens"], found["token_logprobs"], best, strict=True))
            for token, logprob, levels in rows:
                self.tokens.append(token)
                self.logprobs.append(logprob)
                self.leads.append(float(np.diff(sorted(levels)[-2:])[0]))
        read = choices[-1].get("steer_projections") if choices else None
        self.projections = None if read is None else np.array(read["values"], dtype=float)

    def compare(self, alone: Answer, *, whole: bool) -> tuple[bool, str]:
        """Whether it left the answer that the request has alone at a tie, and what else differs; "" for nothing.

        Args:
            alone: with projections.
            whole: whether it is to be as long.
        """
        if len(self.tokens) != len(alone.tokens) and (whole or len(self.tokens) > len(alone.tokens)):
            return False, f"{len(self.tokens)} tokens, not {len(alone.tokens)}"
        pairs = enumerate(zip(self.tokens, alone.tokens, strict=False))
        same = next((k for k, (mine, other) in pairs if mine != other), len(self.tokens))
        left = same < len(self.tokens)
        if left and alone.leads[same] > TIE:
            return left, f"token {same} differs, where the best was {alone.leads[same]:.2e} ahead"
        if not np.allclose(self.logprobs[:same], alone.logprobs[:same], atol=SAME, rtol=0):
            return left, f"log-probabilities {self.logprobs[:same]}, not {alone.logprobs[:same]}"
        if self.projections is not None and not np.allclose(
            self.projections[:same], alone.projections[:same], atol=NEAR, rtol=0
        ):
            return left, f"projections {self.projections[:same]}, not {alone.projections[:same]}"
        return left, ""


class Refused(Exception):
    """An answer that is an error."""

    def __init__(self, response: httpx.Response):
        super().__init__(f"{response.status_code}: {response.text[:500]}")
        self.status = response.status_code


def choices_of(http: httpx.Client, path: str, body: dict[str, Any]) -> Generator[dict[str, Any], None, None]:
    """The choices of an answer as they come. Closing the generator drops the connection.

    Raises:
        Refused: an error in place of an answer.
        httpx.TransportError: an answer that breaks off.
    """
    if not body.get("stream"):
        response = http.post(path, json=body)
        if response.status_code != 200:
            raise Refused(response)
        yield from response.json()["choices"]
        return
    with http.stream("POST", path, json=body) as response:
        if response.status_code != 200:
            response.read()
            raise Refused(response)
        for line in response.iter_lines():
            if line == "data: [DONE]":
                return
            if line.startswith("data: "):
                yield from json.loads(line.removeprefix("data: "))["choices"]
    raise httpx.RemoteProtocolError("a stream without [DONE]")


@dataclass
class Load:
    """What all clients share. alone: the answer of each request by itself. signalled: when the server was told to end, monotonic."""

    server: Server
    asks: list[Ask]
    alone: list[Answer]
    signalled: float = float("inf")
    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, what: str, by: int = 1) -> None:
        with self._lock:
            self.counts[what] += by

    def over(self, begun: float, error: Exception) -> bool:
        """Whether a request that failed came when the server was ending; else that it failed is wrong.

        A server that is told to end breaks no answer off that it has begun, and answers 503 to what it reads after the signal.
        """
        refused = isinstance(error, Refused) and error.status == 503
        if begun > self.signalled - (RACE if refused else 0) and (refused or not isinstance(error, Refused)):
            self.count("refused 503" if refused else "gone")
            return True
        self.complain(f"{type(error).__name__}: {error}")
        return False

    def complain(self, what: str) -> None:
        self.wrong.append(what)
        assert len(self.wrong) < ENOUGH, self.wrong[:5]

    def check(self, begun: float, what: object, answer: Answer, alone: Answer, *, whole: bool) -> None:
        tie, wrong = answer.compare(alone, whole=whole)
        self.count("tokens", len(answer.tokens))
        self.count("ties", tie)
        self.count("across the signal", begun < self.signalled < time.monotonic())
        if wrong:
            self.complain(f"{what}: {wrong}")

    @contextmanager
    def client(self, key: str) -> Iterator[httpx.Client]:
        headers = {"authorization": f"Bearer {key}"}
        with httpx.Client(base_url=self.server.http.base_url, headers=headers, timeout=120) as http:
            yield http

    def converse(self, number: int) -> None:
        """A client that asks again and again: for all at once, as a stream, and as a stream that it drops, a third of them with a reading."""
        draws = random.Random(number)
        with self.client("one") as http:
            while True:
                index, way = draws.randrange(len(self.asks)), draws.choice(["whole", "stream", "abort"])
                ask, read, begun = self.asks[index], draws.random() < 0.3, time.monotonic()
                chunks = choices_of(
                    http, PATHS[ask.endpoint], ask.body(self.server.model, read=read, stream=way != "whole")
                )
                try:
                    parts = [chunk for _, chunk in zip(range(3), chunks, strict=False)] if way == "abort" else []
                    parts += [] if way == "abort" else list(chunks)
                except (Refused, httpx.TransportError) as error:
                    if self.over(begun, error):
                        return
                    continue
                finally:
                    chunks.close()
                answer = Answer(parts)
                if read and way != "abort" and answer.projections is None:
                    self.complain(f"{ask}: no projections")
                self.check(begun, ask, answer, self.alone[index], whole=way != "abort")
                self.count(way)
                self.count("read", read)

    def come_and_go(self, number: int, multiples: dict[float, bytes], index: int) -> None:
        """A client that brings multiples of `trait`, asks with them for what request `index` asks of `trait`, and takes them away.

        Its vector goes, or has another content, while a request runs that began with it. Two API keys use the same names.
        """
        draws, key, path = random.Random(number), ("one", "two")[number % 2], f"/steer/vectors/v{number // 2}"
        with self.client(key) as http:
            sent = 0.0

            def upload(by: float) -> bool:
                nonlocal sent
                sent = time.monotonic()
                answer = http.post("/steer/vectors", params={"name": path.rpartition("/")[2]}, content=multiples[by])
                self.count(f"upload {answer.status_code}")
                if answer.status_code == 429:
                    assert int(answer.headers["retry-after"]) > 0
                    time.sleep(0.2)
                elif answer.status_code != 200:
                    raise Refused(answer)
                return answer.status_code == 200

            def delete() -> None:
                nonlocal sent
                sent = time.monotonic()
                answer = http.delete(path)
                if answer.status_code != 200:
                    raise Refused(answer)

            while True:
                by, other, replace = draws.choice(list(multiples)), draws.choice(list(multiples)), draws.random() < 0.5
                try:
                    if not upload(by):
                        continue
                    sent = begun = time.monotonic()
                    parts = self._multiple(http, index, path, by)
                    first = [next(parts)]
                    replaced = replace and upload(other)
                    if not replaced:
                        delete()
                    self.check(begun, f"v at {by}", Answer(first + list(parts)), self.alone[index], whole=True)
                    if replaced:
                        sent = begun = time.monotonic()
                        answer = Answer(list(self._multiple(http, index, path, other)))
                        self.check(begun, f"v, now at {other}", answer, self.alone[index], whole=True)
                        delete()
                except (Refused, httpx.TransportError) as error:
                    if self.over(sent, error):
                        return

    def _multiple(self, http: httpx.Client, index: int, path: str, by: float) -> Generator[dict[str, Any], None, None]:
        ask = self.asks[index]
        term = {"steer_vector": path.rpartition("/")[2], "steer_coefficient": ask.steering["steer_coefficient"] / by}
        mine = Ask(ask.endpoint, ask.prompt, ask.tokens, term)
        return choices_of(http, PATHS[ask.endpoint], mine.body(self.server.model, stream=True))

    def harass(self) -> None:
        """A client that means harm: the largest coefficients, streams that are dropped, bodies that say nonsense or do not end, vectors
        that are none. All that can be refused is."""
        ask = {"model": self.server.model, "prompt": [5, 6, 7], "max_tokens": 64, "ignore_eos": True}
        refusals: list[tuple[str, dict[str, Any]]] = [
            (PATHS["completions"], {"json": {**ask, "vllm_xargs": {"steer_vector": "none", "steer_coefficient": 1.0}}}),
            (PATHS["completions"], {"json": {**ask, "vllm_xargs": {"steer_terms": "[" * 5000}}}),
            (PATHS["completions"], {"content": b'{"prompt": "\xff', "headers": {"content-type": "application/json"}}),
            (PATHS["completions"], {"json": ask, "headers": {"authorization": "Bearer three"}}),
            ("/steer/vectors?name=bad", {"content": b"\0" * 10000}),
            ("/steer/vectors?name=../../etc", {"content": b""}),
            ("/steer/vectors?name=large", {"content": bytes(LIMIT + 1)}),
        ]
        with self.client("one") as http:
            largest, number = http.get("/steer/vectors/trait").json()["largest_coefficient"], 0
            while time.monotonic() < self.signalled:
                try:
                    self._harm(http, *refusals[number % len(refusals)])
                    steering = {"steer_vector": "trait", "steer_coefficient": largest * (-1) ** number}
                    body = {**ask, "stream": True, "logprobs": 0, "vllm_xargs": {**steering, "steer_read": "minus"}}
                    with http.stream("POST", PATHS["completions"], json=body) as answer:
                        for _ in zip(answer.iter_lines(), range(number % 9), strict=False):
                            pass
                except (httpx.TransportError, OSError) as error:
                    self.over(time.monotonic(), error)
                number += 1

    def _harm(self, http: httpx.Client, path: str, options: dict[str, Any]) -> None:
        status = http.post(path, **options).status_code
        self.count(f"refused {status}")
        if status not in (400, 401, 413, 503):
            self.complain(f"{status} for {str(options)[:200]} of a hostile client")
        with socket.create_connection((http.base_url.host, int(http.base_url.port or 0))) as half:
            half.sendall(
                b"POST /v1/completions HTTP/1.1\r\nhost: a\r\nauthorization: Bearer one\r\ncontent-length: 99\r\n\r\n{"
            )
