"""The pages of a run and of a study in headless Chromium: they load without a complaint and without network, in the bad cases too, and
their controls work."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import command
from synthetic_run import NASTY, build, build_study, published
from websockets.sync.client import connect

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
AXE = os.environ.get("AXE_CORE", "")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update "
    "--disable-sync --remote-debugging-port=0 --remote-allow-origins=*"
)


class Browser:
    """One tab over the DevTools protocol; complaints and requests are what it reported so far."""

    def __init__(self, port: int):
        tab = httpx.put(f"http://127.0.0.1:{port}/json/new?about:blank").json()
        self._socket = connect(tab["webSocketDebuggerUrl"], max_size=None)
        self._number = 0
        self.complaints: list[str] = []
        self.requests: list[str] = []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call("Emulation.setFocusEmulationEnabled", enabled=True)  # a headless tab has no focus of its own

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": params}))
        while True:
            found = self._hear()
            if found.get("id") == self._number:
                assert "error" not in found, found
                return dict(found["result"])

    def _hear(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._socket.recv(timeout=60))
        if found.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled"):
            self.complaints.append(json.dumps(found["params"]))
        if found.get("method") == "Network.requestWillBeSent":
            self.requests.append(found["params"]["request"]["url"][:60])
        return found

    def open(self, page: Path, width: int) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 500
        )
        self.call("Page.navigate", url=page.as_uri())
        while self._hear().get("method") != "Page.loadEventFired":
            pass

    def run(self, script: str) -> Any:
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def move(self, x: float, y: float) -> None:
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def close(self) -> None:
        self._socket.close()


def violations(browser: Browser) -> list[Any]:
    """What axe-core finds in the page that is open: rule, number of elements, the first three."""
    browser.run(Path(AXE).read_text(encoding="utf-8"))
    said = browser.call("Runtime.evaluate", expression="axe.run().then(found => JSON.stringify(found.violations.map(one => [one.id, one.nodes.length, one.nodes.slice(0, 3).map(node => node.html.slice(0, 200) + node.failureSummary)])))", awaitPromise=True)  # fmt: skip
    found: list[Any] = json.loads(said["result"]["value"])
    return found


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = build(tmp_path_factory.mktemp("run"))
    done = command("evals.report", "--run", run.folder)
    assert done.returncode == 0, done.stderr
    return run.folder / "report" / "index.html"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    folder = tmp_path_factory.mktemp("chromium")
    process = subprocess.Popen([str(CHROMIUM), *FLAGS.split(), f"--user-data-dir={folder}"], stderr=subprocess.DEVNULL)
    port, begin = folder / "DevToolsActivePort", time.monotonic()
    try:
        while not (port.is_file() and port.read_text().count("\n")):
            assert process.poll() is None and time.monotonic() - begin < 60
            time.sleep(0.2)
        tab = Browser(int(port.read_text().splitlines()[0]))
        yield tab
        tab.close()
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture(scope="module")
def pages(page: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run's page, a run of one round whose student answers nothing, and the page of a study with such an arm and one that starved."""
    folder = tmp_path_factory.mktemp("pages")
    dead = build(folder / "dead", 1, dead={1})
    assert command("evals.report", "--run", dead.folder).returncode == 0
    build_study(folder / "study", dead={"kl_rev-s0": {2}}, starved={"nll-s1": 1})
    done = published(folder / "study", folder / "out")
    assert done.returncode == 0, done.stderr
    return {"run": page, "dead": dead.folder / "report" / "index.html", "study": folder / "out" / "index.html"}


@pytest.mark.parametrize("width", [1440, 1280, 390])
@pytest.mark.parametrize("which", ["run", "dead", "study"])
def test_it_loads_without_a_complaint_without_network_and_without_overflow(
    browser: Browser, pages: dict[str, Path], which: str, width: int
) -> None:
    page = pages[which]
    browser.complaints.clear()
    browser.requests.clear()
    browser.open(page, width)
    assert browser.complaints == []
    assert browser.requests[0].startswith("file:") and all(url.startswith("data:") for url in browser.requests[1:])
    wide = browser.run(
        f"[...document.querySelectorAll('body *')].filter(one => one.getBoundingClientRect().right > {width} && !one.closest('.wide')).map(one => one.outerHTML.slice(0, 80))"
    )
    assert browser.run("document.documentElement.scrollWidth") <= width, wide
    cut = "[...document.querySelectorAll('.wide')].filter(one => one.scrollWidth > one.clientWidth).map(one => one.querySelector('table').ariaLabel)"
    assert width < 500 or browser.run(cut) == [], "columns that are cut off"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("which", ["run", "dead", "study"])
def test_axe_finds_no_violation(browser: Browser, pages: dict[str, Path], which: str, scheme: str) -> None:
    """By axe-core, which is not ours: `npm pack axe-core`, unpacked, and AXE_CORE names its axe.min.js."""
    if not AXE:
        pytest.skip("AXE_CORE does not name axe-core's axe.min.js")
    browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    browser.open(pages[which], 1280)
    browser.run("document.querySelectorAll('details').forEach(one => { one.open = true; })")
    found = violations(browser)
    browser.call("Emulation.setEmulatedMedia", features=[])
    assert found == []


def test_the_answer_is_on_the_first_screen(browser: Browser, pages: dict[str, Path]) -> None:
    for width in (1280, 390):
        browser.open(pages["run"], width)
        assert browser.run("document.querySelector('.headline').getBoundingClientRect().bottom") < 600
        lines = browser.run("[...document.querySelectorAll('.lines > div')].map(one => one.getBoundingClientRect().bottom)")  # fmt: skip
        assert len(lines) == 5 and (width < 500 or lines[-1] < 900)
        assert browser.run("[...document.querySelectorAll('.lines .symbol')].every(one => one.textContent.length === 1)")  # fmt: skip


def test_the_page_can_be_walked_by_its_parts(browser: Browser, pages: dict[str, Path]) -> None:
    """Skip link, one main, five groups in a navigation that stays, and a first column that stays."""
    browser.open(pages["run"], 390)
    assert browser.run("document.querySelectorAll('main').length") == 1
    assert browser.run("document.querySelector('a.skip').getAttribute('href')") == "#answer"
    links = browser.run("[...document.querySelectorAll('nav a')].map(one => one.getAttribute('href'))")
    assert links == ["#answer", "#results", "#measures", "#texts", "#training", "#record"]
    browser.run("document.getElementById('levels').scrollIntoView()")
    assert browser.run("document.querySelector('nav').getBoundingClientRect().top") == 0
    browser.run("document.querySelector('#levels .wide').scrollLeft = 200")
    assert browser.run("document.querySelector('#levels tbody th').getBoundingClientRect().left - document.querySelector('#levels .wide').getBoundingClientRect().left") == 0  # fmt: skip


def test_a_chart_is_one_tab_stop_with_arrow_keys(browser: Browser, page: Path) -> None:
    browser.open(page, 1280)
    stops = "[...document.querySelectorAll('svg.panel')].filter(one => one.querySelector('.pt')).map(one => one.querySelectorAll('[tabindex=\"0\"]').length)"
    assert set(browser.run(stops)) == {1}
    browser.run("document.querySelector('svg .pt').focus()")
    told = "document.getElementById('tip').hidden ? '' : document.getElementById('tip').textContent.split('\\n')[0]"
    first = browser.run(told)
    for key, code in (("ArrowRight", 39), ("ArrowRight", 39)):
        browser.call("Input.dispatchKeyEvent", type="keyDown", key=key, code=key, windowsVirtualKeyCode=code)
    second = browser.run(told)
    assert first and second and first != second and set(browser.run(stops)) == {1}
    browser.call("Input.dispatchKeyEvent", type="keyDown", key="Home", code="Home", windowsVirtualKeyCode=36)
    assert browser.run(told) == first


def test_texts_are_searched_and_sorted_and_have_a_link_each(browser: Browser, page: Path) -> None:
    browser.open(page, 1280)
    shown = "[...document.querySelectorAll('.sample')].filter(one => !one.hidden).length"
    whole = browser.run(shown)
    search = "(words => { const box = document.querySelector('[data-search]'); box.value = words; box.dispatchEvent(new Event('input')); })"
    browser.run(f"{search}('dilemma 3')")
    assert whole == 12 and browser.run(shown) == 2
    assert browser.run("document.querySelector('[data-count]').textContent") == "2 samples"
    browser.run(f"{search}('')")
    for key in ("perplexity", "trait", "kl"):
        browser.run(f"(() => {{ const box = document.querySelector('[data-order]'); box.value = '{key}'; box.dispatchEvent(new Event('change')); }})()")  # fmt: skip
        values = browser.run(f"[...document.querySelectorAll('.sample')].map(one => Number(one.dataset.{key}))")
        assert values == sorted(values, reverse=True) and len(set(values)) > 3
    browser.run("document.getElementById('text-7').open = false; location.hash = '#text-7'")
    browser.run("new Promise(done => setTimeout(done, 200))")
    assert browser.run("document.getElementById('text-7').open") is True


def test_text_of_a_model_stays_text(browser: Browser, page: Path) -> None:
    browser.open(page, 1280)
    assert browser.run("document.scripts.length") == 1
    texts = browser.run("[...document.querySelectorAll('.sample .card pre')].map(one => one.textContent)")
    assert texts and all(NASTY in text for text in texts)


def test_a_point_says_its_figures_and_is_shown_in_every_panel(browser: Browser, page: Path) -> None:
    browser.open(page, 1280)
    place = browser.run(
        "(() => { const point = document.querySelector('svg .pt[data-key^=\"round 1 healed\"] use');"
        " point.scrollIntoView({block: 'center'}); const box = point.getBoundingClientRect();"
        " return [box.x + box.width / 2, box.y + box.height / 2]; })()"
    )
    browser.move(*place)
    said = browser.run("document.getElementById('tip').hidden ? '' : document.getElementById('tip').textContent")
    assert said.startswith("round 1 healed") and "auth_nats -" in said and "verdict healed" in said
    assert browser.run("document.querySelectorAll('.pt.same').length") == 5
    browser.move(2, 2)
    assert browser.run("document.getElementById('tip').hidden && !document.querySelector('.pt.same')") is True


def test_stages_can_be_hidden(browser: Browser, page: Path) -> None:
    browser.open(page, 1280)
    shown = (
        "[...document.querySelectorAll('.pt[data-stage=steered]')].filter(one => one.style.display !== 'none').length"
    )
    assert browser.run(shown) > 0
    browser.run("document.querySelector('input[value=steered]').click()")
    assert browser.run(shown) == 0
    browser.run("document.querySelector('input[value=steered]').click()")
    assert browser.run(shown) > 0


def test_arms_can_be_hidden_and_the_base_stays(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["study"], 1280)
    shown = "[...document.querySelectorAll('[data-arm=nll]')].filter(one => one.style.display !== 'none').length"
    base = shown.replace("[data-arm=nll]", ".pt[data-stage=base]")
    paths, before = browser.run(shown.replace("[data-arm=nll]", ".path[data-arm=nll]")), browser.run(base)
    assert browser.run(shown) > paths > 0 and before > 0
    browser.run("document.querySelector('input[value=nll]').click()")
    assert browser.run(shown) == 0 and browser.run(base) == before
    browser.run("document.querySelector('input[value=base]').click()")
    browser.run("document.querySelector('input[value=nll]').click()")
    assert browser.run(shown) > 0 and browser.run(base) == 0


def test_tables_sort_by_their_figures_both_ways(browser: Browser, page: Path) -> None:
    browser.open(page, 1280)
    table = "document.querySelector('#against-base table')"
    column = f"[...{table}.tHead.rows[0].cells].findIndex(head => head.textContent === 'd_auth')"
    values = f"[...{table}.tBodies[0].rows].map(row => parseFloat(row.cells[{column}].textContent))"
    before = browser.run(values)
    browser.run(f"{table}.tHead.rows[0].cells[{column}].querySelector('button').click()")
    assert browser.run(values) == sorted(before)
    browser.run(f"{table}.tHead.rows[0].cells[{column}].querySelector('button').click()")
    assert browser.run(values) == sorted(before, reverse=True) and len(before) > 3
    retain = f"[...{table}.tHead.rows[0].cells].findIndex(head => head.textContent === 'retain')"
    cells = f"[...{table}.tBodies[0].rows].map(row => row.cells[{retain}].textContent)"
    for _ in range(2):
        browser.run(f"{table}.tHead.rows[0].cells[{retain}].querySelector('button').click()")
        assert browser.run(cells)[-1] == "–" and browser.run(cells)[0] != "–", "a cell without a figure comes last"
