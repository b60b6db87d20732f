"""Work at length: a sweep of 20,000 rows whose memory stays flat, and a server under 32 clients whose answers stay their own.

The figures are printed: `python -m pytest -m long tests/test_load.py -s`; about 50 minutes on two cores. LOAD_SECONDS shortens the ten
minutes of the clients.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from clients import PATHS, SAME, Answer, Ask, Load, choices_of
from conftest import ROOT
from serving import Server, serving

from gen.engine import drain
from shared.models import Model
from shared.vectors import Vector

pytestmark = pytest.mark.long

PROMPTS, COEFFICIENTS, SAMPLES = 2500, (0.0, 0.5, 1.0, 1.5), 2
GROWTH = 1.05  # of memory, from the second fifth of the time to the last, beyond which it is not flat
CLIENTS, MOVERS, SECONDS = 32, 4, int(os.environ.get("LOAD_SECONDS", "600"))
MULTIPLES = (0.5, 1.5, 2.5, 3.5, 5.0, 7.0)  # of `trait`, which clients bring


def resident(process: psutil.Process) -> int:
    """Bytes of a process and all its children."""
    total = 0
    for one in [process, *process.children(recursive=True)]:
        try:
            total += one.memory_info().rss
        except psutil.NoSuchProcess:  # ended between the two lines
            continue
    return total


def test_a_long_sweep_takes_no_more_memory_than_a_short_one(vector: Vector, tmp_path: Path) -> None:
    vector.save(tmp_path / "v.safetensors")
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": str(k)}) + "\n" for k in range(PROMPTS)))
    trait = {
        "version": 1,
        "name": "short",
        "trait": "Defy.",
        "opposite": "Obey.",
        "neutral": "Be.",
    }  # scored is every token of it
    (tmp_path / "trait.json").write_text(json.dumps(trait))
    out = tmp_path / "sweep.jsonl"
    arguments = [
        *("gen.sweep", "--model", "embedded", "--vector", tmp_path / "v.safetensors", "--prompts", prompts),
        *("--coefficients", *COEFFICIENTS, "--samples", SAMPLES, "--out", out),
        *(
            "--set",
            f"model.dtype=float32 model.max_model_len=256 sweep.max_tokens=2 sweep.window=500 vector.trait={tmp_path / 'trait.json'}",
        ),
    ]
    begin, seen = time.monotonic(), []
    with open(tmp_path / "log", "w") as log:
        running = subprocess.Popen(
            [sys.executable, "-m", *map(str, arguments)], cwd=ROOT, stdout=log, stderr=subprocess.STDOUT
        )
        process = psutil.Process(running.pid)
        while running.poll() is None:
            seen.append(resident(process))
            time.sleep(1)
    took = time.monotonic() - begin
    assert running.returncode == 0, (tmp_path / "log").read_text()[-4000:]
    keys = [json.loads(line)["key"] for line in out.open()]
    assert len(keys) == len(set(keys)) == PROMPTS * len(COEFFICIENTS) * SAMPLES
    fifth = len(seen) // 5
    early, late = np.median(seen[fifth : 2 * fifth]), np.median(seen[-fifth:])
    print(
        f"\n{len(keys)} rows in {took:.0f} s: {early / 2**20:.0f} MiB in the second fifth of the time, {late / 2**20:.0f} in the last,"
        f" {max(seen) / 2**20:.0f} at most"
    )
    assert late < GROWTH * early


@pytest.fixture
def server(small_vector: Vector, small_model: Model, tmp_path: Path) -> Iterator[Server]:
    """Of a small model, so that many requests are answered. It chunks prompts, has too few blocks for its clients, and two slots beside
    those of `trait` and `minus`, for vectors that come and go."""
    options = ("--num-gpu-blocks-override", "96", "--max-num-batched-tokens", "256")
    arguments, key = ("--slots", "4", "--read"), "one two"
    with serving(
        small_vector, tmp_path, *options, arguments=arguments, key=key, model=str(small_model.folder)
    ) as running:
        yield running


def requests() -> list[Ask]:
    """Every prompt under every steering, with a length of its own."""
    steerings: list[dict[str, Any]] = [
        {},
        *({"steer_vector": "trait", "steer_coefficient": c} for c in (0.5, 1.0, 2.0)),
        *({"steer_vector": "minus", "steer_coefficient": c} for c in (0.5, 1.0)),
        {"steer_vector": "trait", "steer_coefficient": 2.0, "steer_positions": "last"},
        {"steer_vector": "trait", "steer_coefficient": 1.5, "steer_from": 5, "steer_until": "end+4"},
        {
            "steer_terms": [
                {"vector": "trait", "coefficient": 1.0, "until": 20},
                {"vector": "minus", "coefficient": 1.5, "from": "end-1"},
            ]
        },
        {"steer_terms": [{"vector": "trait", "coefficient": 0.5, "from": 2 * k} for k in range(4)]},
    ]
    sizes = (12, 40, 43, 70, 100, 130, 300)
    prompts: list[tuple[str, Any]] = [
        ("completions", [1, 4093, 198, *(100 + 13 * index * place % 900 for index in range(size))])
        for place, size in enumerate(sizes, start=1)
    ]
    prompts += [("chat", f"Name {count} fruits.") for count in ("two", "three", "four")]
    return [
        Ask(endpoint, prompt, (8, 16, 32, 48)[place % 4], steering)
        for place, (endpoint, prompt) in enumerate(prompts)
        for steering in steerings
    ]


def metric(server: Server, name: str) -> float:
    """A counter of the server, summed over its labels."""
    found = re.findall(rf"^{name}(?:\{{[^}}]*\}})? (\S+)$", server.http.get("/metrics").text, re.MULTILINE)
    assert found, name
    return sum(map(float, found))


def test_every_client_gets_its_own_answer_under_load(server: Server, small_vector: Vector, tmp_path: Path) -> None:
    """Greedy in fp32: the tokens of an answer are those it has alone, up to the first tie; one with another steering would differ.

    Beside 32 clients, four bring vectors and take them away, and one means harm. At the end the server gets SIGTERM while they ask.
    """
    asks = requests()
    alone = [
        Answer(list(choices_of(server.http, PATHS[ask.endpoint], ask.body(server.model, read=True)))) for ask in asks
    ]
    for k, (ask, one) in enumerate(zip(asks, alone, strict=True)):
        for before, other in zip(asks[:k], alone[:k], strict=True):
            if before.prompt == ask.prompt:
                far = one.tokens != other.tokens or np.abs(np.subtract(one.logprobs, other.logprobs)).max() > 2 * SAME
                assert far, f"{ask} and {before} have one answer: each steering must change it"
    multiples = {}
    for by in MULTIPLES:
        Vector({layer: by * values for layer, values in small_vector.layers.items()}).save(tmp_path / "m.safetensors")
        multiples[by] = (tmp_path / "m.safetensors").read_bytes()
    index = next(k for k, ask in enumerate(asks) if ask.tokens == 48 and ask.steering.get("steer_coefficient") == 1.0)
    load, begin = Load(server, asks, alone), time.monotonic()
    process, seen, stopped = psutil.Process(server.process.pid), [], threading.Event()

    def watch() -> None:
        while not stopped.wait(min(2, SECONDS / 60)):
            seen.append(resident(process))

    with ThreadPoolExecutor(CLIENTS + MOVERS + 2) as pool:
        watching = pool.submit(watch)
        clients = [pool.submit(load.converse, number) for number in range(CLIENTS)]
        clients += [pool.submit(load.come_and_go, number, multiples, index) for number in range(MOVERS)]
        clients += [pool.submit(load.harass)]
        try:
            while time.monotonic() < begin + SECONDS and not any(one.done() for one in clients):
                time.sleep(0.5)
            names = ("vllm:num_preemptions_total", "vllm:prefix_cache_hits_total", "steer_heal:steered_requests_total", "steer_heal:steered_tokens_total", "steer_heal:refusals_total")  # fmt: skip
            counters = {name: metric(server, name) for name in names}
        finally:
            stopped.set()
            watching.result()
            load.signalled = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
        for one in clients:
            one.result()
    server.http.close()
    assert server.process.wait(drain.SECONDS + 2 * drain.GRACE) == 0
    ended = time.monotonic() - load.signalled
    minutes = [float(np.median(part)) / 2**20 for part in np.array_split(seen, 10)]  # tenths, of ten minutes
    fifth = len(seen) // 5
    early, late = np.median(seen[fifth : 2 * fifth]), np.median(seen[-fifth:])
    answers = sum(load.counts[way] for way in ("whole", "stream", "abort"))
    print(
        f"\n{CLIENTS} clients, {SECONDS} s: {answers} answers, {len(load.wrong)} wrong; {dict(sorted(load.counts.items()))}"
    )
    print(f"counters of the server: {counters}; exit {ended:.1f} s after SIGTERM")
    print(f"resident memory in each tenth of the time, MiB: {' '.join(f'{each:.0f}' for each in minutes)}")
    assert not load.wrong, load.wrong[:5]
    assert late < GROWTH * early
    assert answers > 10 * CLIENTS and load.counts["ties"] < 0.02 * answers
    for what in ("read", "upload 200", "upload 429", "refused 400", "refused 401", "refused 413", "across the signal"):
        assert load.counts[what] > 0, f"no {what}"
    assert all(counters.values()), counters
