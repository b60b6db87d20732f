"""Vectors that come and go over HTTP, per API key, and what OpenAI's clients see of a server that steers by several terms."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from serving import Server, serving
from test_page import AXE, CHROMIUM, browser, violations  # noqa: F401  a fixture

from gen.engine.limits import LIMIT
from shared.vectors import Vector

pytestmark = pytest.mark.slow

PROMPT = [1, 4093, 198] + [100 + 13 * index % 900 for index in range(40)]
PERSONAS = {"trait": "You always answer with a fruit.", "neutral": "You are a helpful assistant."}
ARGUMENTS = ("--layers", "13", "--slots", "4")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keyed")


@pytest.fixture(scope="module")
def server(vector: Vector, folder: Path) -> Iterator[Server]:
    """With two API keys, and room for two vectors beside the operator's `trait` and `minus`."""
    arguments = (*ARGUMENTS, "--keep", str(folder / "kept"))
    with serving(
        Vector(vector.layers, PERSONAS), folder, arguments=arguments, key="one two", module="gen.play"
    ) as running:
        yield running


@pytest.fixture
def empty(server: Server) -> Iterator[Server]:
    """Clients' vectors are gone before and after."""
    for key in ("one", "two") * 2:
        headers = {"authorization": f"Bearer {key}"}
        for each in server.http.get("/steer/vectors", headers=headers).json()["data"]:
            if each["owner"] == "client":
                assert server.http.delete(f"/steer/vectors/{each['id']}", headers=headers).status_code == 200
        if key == "two":
            yield server
            break


def body(vector: Vector, folder: Path) -> bytes:
    vector.save(folder / "upload.safetensors")
    return (folder / "upload.safetensors").read_bytes()


def scaled(vector: Vector, by: float, **metadata: Any) -> Vector:
    return Vector({layer: by * values for layer, values in vector.layers.items()}, metadata)


def upload(server: Server, name: str, content: bytes, key: str = "one") -> httpx.Response:
    return server.http.post(f"/steer/vectors?name={name}", content=content, headers={"authorization": f"Bearer {key}"})


def test_info_says_what_the_server_can_do(empty: Server) -> None:
    info = empty.http.get("/steer/info").json()
    assert (info["layers"], info["depth"], info["hidden"], info["terms"]) == ([13, 14, 15], 30, 576, 4)
    assert info["slots"] == {"total": 4, "free": 2} and info["dtype"] == "float32" and len(info["fingerprint"]) > 8
    assert info["versions"]["vllm"].startswith("0.32") and info["upload"]["bytes"] == LIMIT


def test_a_vector_is_taken_used_and_given_back(empty: Server, vector: Vector, tmp_path: Path) -> None:
    twice = scaled(vector, 2.0, hidden_norm={"14": 10.0})
    said = upload(empty, "mine", body(twice, tmp_path)).json()
    assert said["id"] == "mine" and said["owner"] == "client" and said["digest"] == twice.digest()[:16]
    assert said["relative_dose"] == {"14": pytest.approx(twice.norm(14) / 10), "15": None}
    assert empty.http.get("/steer/vectors/mine").json() == said
    text, logprobs = empty.ask(PROMPT, steer_vector="mine", steer_coefficient=0.5)
    expected, theirs = empty.ask(PROMPT, steer_vector="trait", steer_coefficient=1.0)
    assert text == expected and logprobs == pytest.approx(theirs, abs=1e-4)
    ids = [each["id"] for each in empty.http.get("/steer/vectors").json()["data"]]
    assert ids == ["mine", "minus", "trait"]
    other = {"authorization": "Bearer two"}
    assert [each["id"] for each in empty.http.get("/steer/vectors", headers=other).json()["data"]] == ["minus", "trait"]
    for method in ("GET", "DELETE"):
        assert empty.http.request(method, "/steer/vectors/mine", headers=other).status_code == 404
    ask = {"model": "embedded", "prompt": PROMPT, "vllm_xargs": {"steer_vector": "mine", "steer_coefficient": 0.5}}
    assert empty.http.post("/v1/completions", json=ask, headers=other).status_code == 400
    assert empty.http.delete("/steer/vectors/mine").json()["deleted"] is True
    assert empty.http.post("/v1/completions", json=ask).status_code == 400


def test_what_is_no_vector_of_this_model_is_refused(empty: Server, vector: Vector, tmp_path: Path) -> None:
    from safetensors.numpy import save

    def raw(**layers: np.ndarray) -> bytes:
        return save({name.replace("_", "."): values for name, values in layers.items()})

    good, ones = body(vector, tmp_path), np.ones(576, dtype=np.float32)
    for name, content, key, code, words in (
        ("a", good, "wrong", 401, "API key"),
        ("a/b", good, "one", 400, "a name of letters"),
        ("", good, "one", 400, "a name of letters"),
        ("trait", good, "one", 409, "operator"),
        ("a", b"", "one", 400, "could not be used"),
        ("a", b"\x80\x04cos\nsystem\n", "one", 400, "could not be used"),
        ("a", b"GGUF" + bytes(60), "one", 400, "GGUF"),
        ("a", good[:-9], "one", 400, "could not be used"),
        ("a", raw(layer_14=ones * np.float32(np.nan)), "one", 400, "NaN"),
        ("a", raw(layer_14=np.ones(8, dtype=np.float32)), "one", 400, "does not fit"),
        ("a", raw(layer_30=ones), "one", 400, "does not fit"),
        ("a", raw(layer_3=ones), "one", 400, "not patched"),
        ("a", raw(other=ones), "one", 400, "could not be used"),
        ("a", bytes(LIMIT + 1), "one", 413, str(LIMIT)),
    ):
        answer = upload(empty, name, content, key)
        assert answer.status_code == code and words in answer.json()["error"]["message"], answer.text
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}, "OpenAI's form"
    for method, path, code in (
        ("DELETE", "trait", 403),
        ("DELETE", "none", 404),
        ("GET", "none", 404),
        ("PUT", "a", 405),
    ):
        assert empty.http.request(method, f"/steer/vectors/{path}").status_code == code
    assert empty.http.get("/steer/info").json()["slots"]["free"] == 2


def test_a_running_request_keeps_its_vector_and_a_full_bank_says_when(
    empty: Server, vector: Vector, tmp_path: Path
) -> None:
    def stream() -> Any:
        return empty.client.completions.create(
            model="embedded", prompt=PROMPT, temperature=0, max_tokens=120, stream=True,
            extra_body={"vllm_xargs": {"steer_vector": "mine", "steer_coefficient": 1.0}, "ignore_eos": True},
        )  # fmt: skip

    assert upload(empty, "mine", body(scaled(vector, 1.5), tmp_path)).status_code == 200
    alone = "".join(part.choices[0].text for part in stream())
    running = stream()
    begin = next(running).choices[0].text
    assert upload(empty, "mine", body(scaled(vector, -1.5), tmp_path)).status_code == 200
    assert empty.http.delete("/steer/vectors/mine").status_code == 200
    assert upload(empty, "b", body(scaled(vector, 2.0), tmp_path)).status_code == 200
    full = upload(empty, "c", body(scaled(vector, 3.0), tmp_path))
    assert (
        full.status_code == 429 and int(full.headers["retry-after"]) > 0 and "slots" in full.json()["error"]["message"]
    )
    assert begin + "".join(part.choices[0].text for part in running) == alone
    assert upload(empty, "c", body(scaled(vector, 3.0), tmp_path)).status_code == 200
    text, logprobs = empty.ask(PROMPT, steer_vector="c", steer_coefficient=1.0)
    again, theirs = empty.ask(PROMPT, steer_vector="trait", steer_coefficient=3.0)
    assert text == again and logprobs == pytest.approx(theirs, abs=1e-4), "the slot holds the new vector alone"


TERMS = [
    {"vector": "trait", "coefficient": 1.0, "until": "end"},
    {"vector": "minus", "coefficient": 0.5, "positions": "last"},
    {"vector": "trait", "coefficient": 2.0, "from": "end"},
]


def test_terms_pass_as_a_list_and_as_text_in_every_way_of_asking(server: Server) -> None:
    text, logprobs = server.ask(PROMPT, steer_terms=TERMS)
    assert server.ask(PROMPT, steer_terms=json.dumps(TERMS[::-1])) == (text, logprobs)
    plain = server.ask(PROMPT, steer_vector="trait", steer_coefficient=1.0)
    assert logprobs[0] != pytest.approx(plain[1][0], abs=1e-3)
    with ThreadPoolExecutor(6) as pool:
        beside = list(
            pool.map(lambda index: server.ask(PROMPT, **([{"steer_terms": TERMS}, {}][index % 2])), range(12))
        )
    assert {answer[0] for answer in beside[::2]} == {text} and {answer[0] for answer in beside[1::2]} == {
        server.ask(PROMPT)[0]
    }
    options: dict[str, Any] = {
        "model": "embedded",
        "prompt": PROMPT,
        "temperature": 0,
        "max_tokens": 10,
        "extra_body": {"vllm_xargs": {"steer_terms": TERMS}},
    }
    assert "".join(part.choices[0].text for part in server.client.completions.create(**options, stream=True)) == text
    several = server.client.completions.create(**{**options, "temperature": 1e-6}, n=2)
    assert [choice.text for choice in several.choices] == [text] * 2
    stop = text[len(text) // 2 :][:3]
    cut = server.client.completions.create(**options, stop=stop).choices[0]
    assert cut.text == text[: text.index(stop)] and cut.finish_reason == "stop"


def test_chat_with_tools_and_logprobs_is_steered(server: Server) -> None:
    tools: list[Any] = [
        {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    ]
    ask: dict[str, Any] = {
        "model": "embedded",
        "messages": [{"role": "user", "content": "Name a fruit."}],
        "temperature": 0,
        "max_tokens": 8,
    }
    steered = {"vllm_xargs": {"steer_terms": TERMS}}
    more: dict[str, Any] = {"tools": tools, "tool_choice": "none", "logprobs": True, "top_logprobs": 2}
    first = server.client.chat.completions.create(**ask, **more, extra_body=steered).choices[0]
    plain = server.client.chat.completions.create(**ask, **more).choices[0]
    assert first.message.content != plain.message.content and len(first.logprobs.content) > 1
    parts = server.client.chat.completions.create(**ask, **more, extra_body=steered, stream=True)
    assert "".join(part.choices[0].delta.content or "" for part in parts) == first.message.content


def test_metrics_count_steered_requests_tokens_and_refusals(server: Server) -> None:
    def counts() -> dict[str, float]:
        text = server.http.get("/metrics").text
        found = re.findall(r"^steer_heal:(\w+)_total(?:\{code=\"(\d+)\"\})? (\S+)$", text, re.MULTILINE)
        return {name + code: float(value) for name, code, value in found}

    before = counts()
    server.ask(PROMPT)
    _, sampled = server.ask(PROMPT, steer_vector="trait", steer_coefficient=1.0)  # the last one is not read
    server.ask(PROMPT, steer_terms=TERMS[1:2])  # one
    ask = {"model": "embedded", "prompt": PROMPT, "vllm_xargs": {"steer_vector": "none", "steer_coefficient": 1.0}}
    assert server.http.post("/v1/completions", json=ask).json()["error"]["code"] == 400
    after = counts()
    assert after["steered_requests"] - before["steered_requests"] == 2
    assert after["steered_tokens"] - before["steered_tokens"] == len(PROMPT) + len(sampled) - 1 + 1
    assert after["refusals400"] - before.get("refusals400", 0) == 1


@pytest.mark.long
def test_a_kept_vector_survives_a_restart(vector: Vector, tmp_path: Path) -> None:
    arguments = (*ARGUMENTS, "--keep", str(tmp_path / "kept"))
    answers = []
    for start in range(2):
        with serving(vector, tmp_path, arguments=arguments, key="one two") as running:
            if start == 0:
                for name, by in (("mine", 2.0), ("gone", 3.0)):
                    assert upload(running, name, body(scaled(vector, by), tmp_path)).status_code == 200
                assert running.http.delete("/steer/vectors/gone").status_code == 200
            answers.append(running.ask(PROMPT, steer_vector="mine", steer_coefficient=1.0))
            assert [each["id"] for each in running.http.get("/steer/vectors").json()["data"]] == [
                "mine",
                "minus",
                "trait",
            ]
    assert answers[0] == answers[1]


def test_the_page_is_open_and_what_it_is_about_is_not(server: Server) -> None:
    nobody = {"authorization": ""}
    page = server.http.get("/play", headers=nobody)
    assert page.status_code == 200 and page.headers["content-type"].startswith("text/html")
    assert "frame-ancestors 'none'" in page.headers["content-security-policy"]
    assert not re.search(r"(src|href)=|https?://|@import|\burl\(", page.text), "nothing from the network"
    assert len(page.text.splitlines()) < 600
    assert server.http.get("/steer/play", headers=nobody).status_code == 401
    about = server.http.get("/steer/play").json()
    assert {name: about[name] for name in PERSONAS} == PERSONAS and about["model"] == "embedded"
    assert len(about["prompts"]) > 3 and about["gates"] == []


class Page:
    """The page in a tab of Chromium, with the key in its place."""

    def __init__(self, tab: Any, server: Server):
        self.tab, self.url = tab, server.url.removesuffix("/v1") + "/play"

    def open(self, width: int = 1280) -> None:
        self.tab.complaints.clear()
        self.tab.requests.clear()
        self.tab.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 500)  # fmt: skip
        self.tab.call("Page.navigate", url=self.url)
        self.until("!['', 'loading', undefined].includes(document.getElementById('status')?.textContent)")

    def enter_key(self, key: str = "one") -> None:
        self.tab.run(f"$('key').value = '{key}'; $('key').dispatchEvent(new Event('change'))")
        self.until("$('status').textContent === 'ready'")

    def until(self, condition: str, seconds: float = 90) -> None:
        begin = time.monotonic()
        while not self.tab.run(condition):
            assert time.monotonic() - begin < seconds, (condition, self.tab.run("document.body.innerText"))
            time.sleep(0.2)


@pytest.fixture
def page(browser: Any, server: Server) -> Page:  # noqa: F811
    return Page(browser, server)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_the_page_samples_side_by_side_in_a_browser(page: Page, server: Server) -> None:
    page.open()
    shown = "[$('key-field'), $('gate-field')].map(one => one.offsetParent !== null)"
    assert page.tab.run(shown) == [True, False], "a guarded server asks for its key"
    page.enter_key()
    assert page.tab.run(shown) == [False, False]
    assert page.tab.run("[$('persona').value, $('neutral').value]") == list(PERSONAS.values())
    assert page.tab.run("[...document.querySelectorAll('article h2')].map(one => one.textContent)") == [
        "Base",
        "Prompted",
        "Steered",
    ]
    page.tab.run("$('pick').value = '1'; $('pick').dispatchEvent(new Event('change'))")
    assert page.tab.run("$('prompt').value === data.prompts[1]") is True
    page.tab.run(
        "$('tokens').value = 12; $('temperature').value = 0; $('coefficient').value = 2; $('coefficient').dispatchEvent(new Event('input'))"
    )
    page.tab.run("$('vector').value = 'trait'; $('prompt').focus()")
    for kind in ("keyDown", "keyUp"):
        page.tab.call(
            "Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", windowsVirtualKeyCode=13, modifiers=2
        )
    page.until("$('status').textContent === 'done'")
    texts = page.tab.run("[...document.querySelectorAll('.answer')].map(one => one.textContent)")
    for kind, text in zip(("base", "prompted", "steered"), texts, strict=True):
        body = json.loads(page.tab.run(f"JSON.stringify(requestOf('{kind}'))"))
        assert server.http.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"] == text
    assert len(set(texts)) == 3
    facts = page.tab.run("[...document.querySelectorAll('article dl')].map(one => one.textContent)")
    assert all("perplexity" in each and "trait_llr" in each and "KL to base" in each for each in facts)
    assert "0.000 nats" in facts[0] and "0.000 nats" not in facts[2]
    tinted = "[...document.querySelectorAll('#column-%s .answer span')].some(one => one.style.backgroundColor)"
    assert page.tab.run(tinted % "steered") and not page.tab.run(tinted % "base")
    assert all(url.startswith(page.url.removesuffix("/play")) for url in page.tab.requests)
    refused = [each for each in page.tab.complaints if "401" not in each]  # the first look, without a key
    assert refused == []


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_requests_are_copied_as_they_are_sent(page: Page, server: Server) -> None:
    page.open()
    page.enter_key()
    page.tab.run(
        "$('tokens').value = 6; $('temperature').value = 0; $('prompt').value = `Don't say \"<b>no</b>\" \\\\ $HOME`"
    )
    expected = server.http.post(
        "/v1/chat/completions", json=json.loads(page.tab.run("JSON.stringify(requestOf('steered'))"))
    ).json()
    curl, python = (page.tab.run(f"{form}(requestOf('steered'))") for form in ("asCurl", "asPython"))
    environment = {**os.environ, "VLLM_API_KEY": "one"}
    said = subprocess.run(["bash", "-c", curl], capture_output=True, text=True, env=environment, check=True).stdout
    assert json.loads(said)["choices"][0]["message"]["content"] == expected["choices"][0]["message"]["content"]
    said = subprocess.run(
        [sys.executable, "-c", python], capture_output=True, text=True, env=environment, check=True
    ).stdout
    assert said.rstrip("\n") == expected["choices"][0]["message"]["content"].rstrip("\n")


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_a_phone_stops_and_keeps_text_text(page: Page, scheme: str) -> None:
    page.tab.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    page.open(390)
    page.enter_key()
    assert page.tab.run("document.documentElement.scrollWidth") <= 390
    dark = page.tab.run("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
    assert dark == (scheme == "dark")
    page.tab.run("$('tokens').value = 300; $('prompt').value = 'Count.'; go()")
    page.until("document.querySelectorAll('.answer span').length > 3")
    page.tab.call("Input.dispatchKeyEvent", type="keyDown", key="Escape", code="Escape", windowsVirtualKeyCode=27)
    assert page.tab.run("$('status').textContent") == "stopped" and page.tab.run("$('stop').disabled") is True
    nasty = "<img src=x onerror=alert(1)>"
    page.tab.run(
        "ask = async (path) => new Response(`data: ${JSON.stringify({choices: [{delta: {content: "
        f"{json.dumps(nasty)}"
        "}, finish_reason: 'stop'}]})}\\n\\ndata: [DONE]\\n\\n`); void go()"
    )
    page.until("$('status').textContent === 'done'")
    assert page.tab.run("document.querySelector('.answer').textContent") == nasty
    assert page.tab.run("document.images.length") == 0
    unlabelled = "[...document.querySelectorAll('input, select, textarea')].filter(one => !one.labels.length).length"
    assert page.tab.run(unlabelled) == 0


@pytest.mark.skipif(CHROMIUM is None or not AXE, reason="no Chromium, or AXE_CORE does not name axe-core's axe.min.js")
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_violation_on_the_page(page: Page, scheme: str, width: int) -> None:
    """Before the key is there, and with answers whose tokens are tinted."""
    page.tab.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    page.open(width)
    assert violations(page.tab) == []
    page.enter_key()
    page.tab.run(
        "$('tokens').value = 12; $('coefficient').value = 2; $('coefficient').dispatchEvent(new Event('input'))"
    )
    page.tab.run("$('vector').value = 'trait'; $('prompt').value = 'Name a fruit.'; void go()")
    page.until("$('status').textContent === 'done'")
    assert page.tab.run(
        "[...document.querySelectorAll('#column-steered .answer span')].some(one => one.style.backgroundColor)"
    )
    assert violations(page.tab) == []
    page.tab.call("Emulation.setEmulatedMedia", features=[])
