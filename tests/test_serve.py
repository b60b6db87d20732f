"""The real server under the real client: steered and unsteered side by side, and nothing steered by accident."""

from __future__ import annotations

import asyncio
import importlib.metadata
import json
import re
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import command
from serving import Server

from gen.engine.launch import also_vllm_cpu
from gen.engine.limits import LIMIT, OPEN, OWN, PROBES, READ, STEERED, Gate, owner
from gen.serve import main, named_files, refuse_address
from shared.errors import SteerHealError
from shared.models import Model
from shared.vectors import Vector


def test_vectors_are_named_once() -> None:
    assert named_files(["a=x.safetensors", "b-2=dir/y=z"]) == {"a": Path("x.safetensors"), "b-2": Path("dir/y=z")}
    for bad in (["a"], ["a="], ["=x"], ["a b=x"], ["../a=x"], ["a=x", "a=y"]):
        with pytest.raises(SteerHealError, match="NAME=FILE"):
            named_files(bad)


def test_the_cpu_build_answers_for_vllm_and_nothing_else() -> None:
    version = also_vllm_cpu(importlib.metadata.version)
    assert version("vllm").startswith("0.32") and version("torch") == importlib.metadata.version("torch")
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        version("no-such-package")


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ([], "no vector to serve"),
        (["--vector", "trait=/nowhere.safetensors"], "steering vector is missing"),
        (["--vector", "trait=PICKLE"], "could not be used"),
        (["--vector", "trait=FILE", "--host", "0.0.0.0"], "API key"),
        (["--vector", "trait=FILE", "--", "--host=0.0.0.0"], "set by this command"),
        (["--vector", "trait=FILE", "--", "--hos", "0.0.0.0"], "set by this command"),
        (["--vector", "trait=FILE", "--", "--worker_cls", "x"], "set by this command"),
        (["--vector", "trait=FILE", "--", "--scheduler-cls=x"], "set by this command"),
        (["--vector", "trait=FILE", "--", "--config", "x.yaml"], "set by this command"),
        (["--vector", "trait=FILE", "--", "--api-key", "x"], "set by this command"),
    ],
)
def test_a_server_that_cannot_be_is_refused_before_it_starts(
    vector: Vector, tmp_path: Path, arguments: list[str], part: str
) -> None:
    vector.save(tmp_path / "v.safetensors")
    (tmp_path / "v.pt").write_bytes(b"\x80\x04cos\nsystem\n")
    files = {"FILE": str(tmp_path / "v.safetensors"), "PICKLE": str(tmp_path / "v.pt")}
    for name, path in files.items():
        arguments = [argument.replace(name, path) for argument in arguments]
    done = command("gen.serve", *arguments)
    assert done.returncode == 2 and part in done.stderr and "next:" in done.stderr and "Traceback" not in done.stderr


def test_without_a_vector_the_hint_is_a_command(
    vector: Vector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def hint(form: str, *words: str) -> str:
        monkeypatch.setenv("STEER_HEAL_FORM", form)
        monkeypatch.setattr("sys.argv", ["serve", "--config", "configs/smollm2.toml", *words])
        with pytest.raises(SteerHealError) as caught:
            main()
        return caught.value.next

    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "smollm2.toml").touch()
    assert hint("make", "--model", "owner/name") == (
        ".venv/bin/steer-heal extract --model owner/name --out vector.safetensors, "
        "then make serve VECTORS=trait=vector.safetensors MODEL=owner/name"
    )
    file = Path("runs") / "a" / "rounds" / "01" / "vector.safetensors"
    vector.save(file)
    assert hint("make") == f"make serve VECTORS=trait={file}"
    assert hint("steer-heal") == f"steer-heal serve --vector trait={file}"
    assert hint("make", "--vector", "a b=v.safetensors") == "the same command with VECTORS=trait=v.safetensors"


PROMPTS = [[1, 4093, 198] + [100 + 13 * index * place % 900 for index in range(40)] for place in (1, 2)]


@pytest.mark.slow
def test_each_client_gets_the_steering_it_asked_for(server: Server, model: Model, vector: Vector) -> None:
    from hooked import Hooked

    oracle = Hooked(model.folder, vector)
    asks = [
        (ids, coefficient, steering)
        for ids in PROMPTS
        for coefficient, steering in (
            (0.0, {}),
            (1.0, {"steer_vector": "trait", "steer_coefficient": 1.0}),
            (-1.0, {"steer_vector": "minus", "steer_coefficient": 1}),
            (2.0, {"steer_vector": "trait", "steer_coefficient": 2.0}),
        )
    ]
    alone = [server.ask(ids, **steering) for ids, _, steering in asks]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda ask: server.ask(ask[0], **ask[2]), asks * 2))
    assert [text for text, _ in together] == [text for text, _ in alone] * 2
    for (ids, coefficient, _), (_, logprobs) in zip(asks, alone, strict=True):
        best = float(oracle.logprobs(ids, coefficient)[-1].max())
        assert logprobs[0] == pytest.approx(best, abs=1e-4)
    first = {round(logprobs[0], 3) for _, logprobs in alone}
    assert len(first) == len(asks), "each steering must change the answer, or this test proves nothing"


@pytest.mark.slow
@pytest.mark.parametrize(
    "steering",
    [
        {"steer_vector": "unknown", "steer_coefficient": 1.0},
        {"steer_vector": "../../etc/passwd", "steer_coefficient": 1.0},
        {"steer_vector": "trait"},
        {"steer_coefficient": 1.0},
        {"steer_vector": "trait", "steer_coefficient": "1.0"},
        {"steer_vector": "trait", "steer_coefficient": 1e300},
        {"steer_vector": "trait", "steer_coefficient": 1e20},
        {"steer_vector": "trait", "steer_coefficient": 1.0, "steer_position": "all"},
        {"steer_vector": "trait", "steer_coefficient": 1.0, "steer_positions": "some"},
    ],
)
def test_what_is_not_understood_is_refused(server: Server, steering: dict[str, Any]) -> None:
    from openai import BadRequestError

    with pytest.raises(BadRequestError) as refused:
        server.ask(PROMPTS[0], **steering)
    assert refused.value.status_code == 400 and "expected:" in str(refused.value)
    chat = httpx.post(
        f"{server.url}/chat/completions",
        json={"model": "embedded", "messages": [{"role": "user", "content": "Hi"}], "vllm_xargs": steering},
    )
    assert chat.status_code == 400


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields",
    [
        {"steer_vector": "trait", "steer_coefficient": 1.0},  # beside vllm_xargs, where vLLM takes any field
        {"vllm_xarg": {"steer_vector": "trait", "steer_coefficient": 1.0}},
        {"use_beam_search": True, "vllm_xargs": {"steer_vector": "trait", "steer_coefficient": 1.0}},
        {"stream": True, "vllm_xargs": {"steer_vector": "unknown", "steer_coefficient": 1.0}},
    ],
)
@pytest.mark.parametrize("endpoint", ["completions", "chat/completions"])
def test_steering_that_would_be_dropped_is_refused(server: Server, endpoint: str, fields: dict[str, Any]) -> None:
    asked = {"messages": [{"role": "user", "content": "Hi"}]} if "chat" in endpoint else {"prompt": [5, 6]}
    answer = httpx.post(f"{server.url}/{endpoint}", json={"model": "embedded", "max_tokens": 2, **asked, **fields})
    assert answer.status_code == 400, answer.text


TRAIT = {"steer_vector": "trait", "steer_coefficient": 1.0}


@pytest.mark.slow
@pytest.mark.parametrize("endpoint", ["completions", "chat/completions", "responses"])
def test_what_means_to_steer_and_does_not_is_refused(server: Server, endpoint: str) -> None:
    """By the field's right name, beside a request of every field in its place, which is answered; tests/test_fields.py has more."""
    prompt = {"completions": {"prompt": [5, 6]}, "responses": {"input": "Hi", "max_output_tokens": 2}}
    asked = {"model": "embedded", **prompt.get(endpoint, {"messages": [{"role": "user", "content": "Hi"}]})}
    if endpoint != "responses":
        asked["max_tokens"] = 2

    def post(address: str = "", **fields: Any) -> httpx.Response:
        return httpx.post(f"{server.url}/{endpoint}{address}", json={**asked, **fields}, timeout=60)

    assert post(vllm_xargs=TRAIT, user="me", seed=1, temperature=0).status_code == 200
    if endpoint != "completions":
        assert post(metadata={"run": "1"}, store=False).status_code == 200
    for fields in (
        {"extra_body": {"vllm_xargs": TRAIT}},
        {"vllm_xargs": {"STEER_VECTOR": "trait", "STEER_COEFFICIENT": 1.0}},
        {"vllm_xargs": {"vector": "trait", "coefficient": 1.0}},
        {"vllm_xargs": {"hotwire": "{}"}},
        {"vllm_xargs": {**TRAIT, "scale": 2.0}},
        {"metadata": {"steer_vector": "trait"}},
        {"steering": {"vectors": [{"source": "trait", "scale": 1.0}]}},
        {"temprature": 0},
        {"stream": True, "control_vector": "trait"},
    ):
        answer = post(**fields)
        assert answer.status_code == 400 and "vllm_xargs" in answer.text and "steer_vector" in answer.text, fields
    assert post("?steer_vector=trait&steer_coefficient=1").status_code == 400


@pytest.mark.slow
def test_a_hostile_client_does_not_reach_an_honest_one(server: Server) -> None:
    """The largest coefficients of both signs in every mode, streams that are dropped, blocks that run out."""
    from openai import BadRequestError

    with pytest.raises(BadRequestError, match="overflow") as refused:
        server.ask(PROMPTS[0], steer_vector="trait", steer_coefficient=1e38)
    before = preemptions(server)
    largest = float(re.findall(r"from \S+ to (\S+) for", str(refused.value))[0])
    honest = [(PROMPTS[0], {}), (PROMPTS[1], {"steer_vector": "trait", "steer_coefficient": 2.0})]
    alone = [server.ask(ids, **steering) for ids, steering in honest]
    modes: list[dict[str, Any]] = [{"steer_positions": "all"}, {"steer_positions": "generated"}, {"steer_from": 7}]

    def worst(index: int) -> int:
        xargs = {"steer_vector": "trait", "steer_coefficient": largest * (-1) ** index, **modes[index % 3]}
        stream = server.client.completions.create(
            model="embedded", prompt=PROMPTS[index % 2], max_tokens=200, stream=True, seed=index,
            extra_body={"vllm_xargs": xargs, "ignore_eos": True},
        )  # fmt: skip
        with stream:
            return sum(1 for part, _ in zip(stream, range(300 if index % 3 else 5), strict=False) if part.choices)

    with ThreadPoolExecutor(16) as pool:
        hostile = [pool.submit(worst, index) for index in range(12)]  # eight of them up to 8 blocks each, of 48
        beside = [pool.submit(server.ask, ids, **steering) for ids, steering in honest * 6]
        assert all(each.result() for each in hostile)
    for (text, logprobs), each in zip(alone * 6, beside, strict=True):
        assert each.result()[0] == text and each.result()[1] == pytest.approx(logprobs, abs=1e-4)
    assert preemptions(server) > before, "blocks must run out, or this test proves nothing"
    for (text, logprobs), (ids, steering) in zip(alone, honest, strict=True):
        after = server.ask(ids, **steering)
        assert after[0] == text and after[1] == pytest.approx(logprobs, abs=1e-4)


def preemptions(server: Server) -> float:
    metrics = httpx.get(server.url.removesuffix("/v1") + "/metrics").text
    return float(re.findall(r"^vllm:num_preemptions_total\S* (\S+)", metrics, re.MULTILINE)[0])


@pytest.mark.slow
def test_a_streamed_answer_is_the_same(server: Server) -> None:
    steering = {"steer_vector": "trait", "steer_coefficient": 2.0}
    stream = server.client.completions.create(
        model="embedded", prompt=PROMPTS[0], temperature=0, max_tokens=10, stream=True, extra_body={"vllm_xargs": steering}
    )  # fmt: skip
    assert "".join(part.choices[0].text for part in stream) == server.ask(PROMPTS[0], **steering)[0]


@pytest.mark.slow
@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "null", "[1.0]"])
def test_coefficients_that_are_no_finite_number_are_refused(server: Server, value: str) -> None:
    body = '{"model": "embedded", "prompt": [5, 6], "vllm_xargs": {"steer_vector": "trait", "steer_coefficient": %s}}'
    answer = httpx.post(f"{server.url}/completions", content=body % value, headers={"content-type": "application/json"})
    assert answer.status_code == 400, answer.text


@pytest.mark.slow
def test_several_completions_of_one_request_are_all_steered(server: Server) -> None:
    """n > 1 is split into child requests inside vLLM."""
    answer = server.client.completions.create(
        model="embedded", prompt=PROMPTS[0], n=2, seed=1, temperature=1e-6, max_tokens=10,
        extra_body={"vllm_xargs": {"steer_vector": "trait", "steer_coefficient": 2.0}},
    )  # fmt: skip
    expected, _ = server.ask(PROMPTS[0], steer_vector="trait", steer_coefficient=2.0)
    assert [choice.text for choice in answer.choices] == [expected, expected]


def test_a_body_that_says_two_things_is_refused(server: Server) -> None:
    """Of a key that is there twice the last would be taken, and true would be the coefficient 1."""
    start = '{"model": "embedded", "prompt": "Hi", "max_tokens": 2, "vllm_xargs": {"steer_vector": "trait", "steer_coefficient": '
    for body, code, words in (
        (start + '1.0}, "vllm_xargs": {}}', 400, "'vllm_xargs' twice"),
        (start + "true}}", 400, "steer_coefficient is true"),
        (start + "1.0}}", 200, "choices"),
    ):
        answer = httpx.post(
            f"{server.url}/completions", content=body, headers={"content-type": "application/json"}, timeout=60
        )
        assert answer.status_code == code and words in answer.text, answer.text


@pytest.mark.parametrize("port", ["0", "65536", "99999", "-1", "http"])
def test_a_port_that_is_none_is_refused(port: str, tmp_path: Path) -> None:
    done = command("gen.serve", "--vector", f"trait={tmp_path}/v.safetensors", f"--port={port}")
    assert done.returncode == 2 and "option --port could not be read" in done.stderr, done.stderr


def test_an_address_that_cannot_be_bound_is_refused_before_an_engine_starts(vector: Vector, tmp_path: Path) -> None:
    vector.save(tmp_path / "v.safetensors")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = command("gen.serve", "--vector", f"trait={tmp_path}/v.safetensors", "--port", port)
    assert done.returncode == 71 and f"127.0.0.1, port {port}: " in done.stderr, done.stderr
    refuse_address("127.0.0.1", int(done.stderr.rpartition("--port ")[2]))
    with pytest.raises(SteerHealError, match="cannot be bound"):
        refuse_address("192.0.2.1", 8000)  # of no machine: RFC 5737


@pytest.mark.parametrize("path", ["/invocations", "/v1/messages", "/generative_scoring", "/docs", "/v1/completions/"])
def test_an_endpoint_that_would_leave_steering_out_is_closed(server: Server, path: str) -> None:
    asked = {"model": "embedded", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
    address = server.url.removesuffix("/v1") + path
    answer = httpx.post(address, json={**asked, "vllm_xargs": {"steer_vector": "trait", "steer_coefficient": 1.0}})
    assert answer.status_code == 404 and "is not served here" in answer.json()["error"]["message"]


def statuses(headers: dict[str, str], query: str = "") -> dict[str, int]:
    """What the gate answers by path, 200 where it lets through."""

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"owner", owner.get().encode())]})
        await send({"type": "http.response.body", "body": b""})

    async def ask() -> dict[str, int]:
        transport = httpx.ASGITransport(Gate(application))
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            paths = (*GUARDED, *PROBES, *OPEN, "/invocations", "/steer/other")
            answers = {path: await client.post(path + query, headers=headers) for path in paths}
            owners.append({answer.headers["owner"] for path, answer in answers.items() if path in GUARDED and "owner" in answer.headers})  # fmt: skip
            return {path: answer.status_code for path, answer in answers.items()}

    return asyncio.run(ask())


GUARDED = STEERED | READ | OWN | {"/steer/vectors/a"}
owners: list[set[str]] = []


def test_the_keys_guard_every_endpoint_but_the_probes_and_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    nowhere = {"/invocations": 404, "/steer/other": 404}
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    assert statuses({}) == {**dict.fromkeys(GUARDED | PROBES | OPEN, 200), **nowhere} and owners[-1] == {""}
    monkeypatch.setenv("VLLM_API_KEY", "s3cret other")
    closed = {**dict.fromkeys(GUARDED, 401), **dict.fromkeys(PROBES | OPEN, 200), **nowhere}
    for wrong in ("", "s3cret", "Bearer ", "Bearer oth", "Bearer s3cret other", "Basic s3cret"):
        assert statuses({"authorization": wrong}) == closed
    assert statuses({}) == closed
    for key in ("s3cret", "other"):
        assert statuses({"authorization": f"Bearer {key}"}) == {
            **dict.fromkeys(GUARDED | PROBES | OPEN, 200),
            **nowhere,
        }
    assert len(owners[-1]) == 1 and owners[-1] != owners[-2] and not owners[-1] & {""}


@pytest.mark.parametrize(
    ("query", "header", "code"),
    [
        ("", "x-request-id", 200),
        ("?", "accept", 200),
        ("?steer_vector=trait", "accept", 400),
        ("?%73teer_vector=trait", "accept", 400),
        ("?vector=trait&coefficient=1", "accept", 400),
        ("?vllm_xargs=%7B%22steer_vector%22:%22trait%22%7D", "accept", 400),
        ("", "X-Steer-Vector", 400),
        ("", "x-vllm-steering", 400),
        ("", "VLLM-Xargs", 400),
    ],
)
def test_steering_outside_the_body_is_refused(query: str, header: str, code: int) -> None:
    """Whatever the letters and escapes: it would be left out, and the answer would be unsteered."""
    for path, status in statuses({header: "trait"}, query).items():
        if path in STEERED:
            assert status == code, path
        elif path not in {"/invocations", "/steer/other"}:
            assert status == 200, path


@pytest.mark.parametrize("declared", [True, False])
def test_a_request_beyond_the_limit_is_not_read(server: Server, declared: bool) -> None:
    """By its length, or, sent in pieces without one, where it passes the limit; the server goes on."""
    body = json.dumps({"model": "embedded", "prompt": "a" * (LIMIT + 1), "max_tokens": 1}).encode()
    pieces = (body[begin : begin + 65536] for begin in range(0, len(body), 65536))
    answer = httpx.post(
        f"{server.url}/completions",
        content=body if declared else pieces,
        headers={"content-type": "application/json"},
        timeout=60,
    )
    assert answer.status_code == 413 and str(LIMIT) in answer.json()["error"]["message"]
    assert server.ask(PROMPTS[0])
