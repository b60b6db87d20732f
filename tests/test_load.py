"""Work at length: a sweep of 20,000 rows whose memory stays flat, and a server under 32 clients whose answers stay their own.

The figures are printed: `python -m pytest -m long tests/test_load.py -s`; about 50 minutes on two cores.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from conftest import ROOT
from serving import Server, serving

from shared.vectors import Vector

pytestmark = pytest.mark.long

PROMPTS, COEFFICIENTS, SAMPLES = 2500, (0.0, 0.5, 1.0, 1.5), 2
GROWTH = 1.05  # of memory, from the second fifth of the time to the last, beyond which it is not flat
CLIENTS, SECONDS = 32, 600
TIE = 1e-4  # nats between the two best tokens within which another batch may choose the other one
SAME = 1e-3  # nats within which a log-probability is the same


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
def server(vector: Vector, tmp_path: Path) -> Iterator[Server]:
    """Preempting, and with two slots beside those of `trait` and `minus`, for vectors that come and go."""
    blocks = ("--num-gpu-blocks-override", "48")
    with serving(vector, tmp_path, *blocks, arguments=("--slots", "4"), key="one") as running:
        yield running


def test_every_client_gets_its_own_answer_under_load(server: Server, vector: Vector, tmp_path: Path) -> None:
    """Greedy in fp32: the tokens of an answer are those it has alone, up to the first tie; an unsteered one would not be.

    Two more clients bring multiples of `trait`, ask with them at the coefficient that makes them `trait` again, and take them away.
    """
    prompts = [[1, 4093, 198, *(100 + 13 * index * place % 900 for index in range(40))] for place in range(1, 11)]
    steerings = [
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
    ]
    asks = [(prompt, steering) for prompt in prompts for steering in steerings]

    def ask(index: int, steering: dict[str, Any] | None = None) -> tuple[list[str], list[float], list[float]]:
        """Tokens, their log-probabilities, and how far ahead of the second best each was, nats."""
        prompt, steering = asks[index][0], asks[index][1] if steering is None else steering
        answer = server.client.completions.create(
            model="embedded", prompt=prompt, temperature=0, max_tokens=16, logprobs=2,
            extra_body={"vllm_xargs": steering} if steering else {},
        ).choices[0].logprobs  # fmt: skip
        assert answer is not None and answer.tokens and answer.token_logprobs and answer.top_logprobs
        ahead = [float(np.ptp(sorted(best.values())[-2:])) for best in answer.top_logprobs]
        return answer.tokens, [float(value) for value in answer.token_logprobs], ahead

    alone = [ask(index) for index in range(len(asks))]
    for place in range(0, len(asks), len(steerings)):
        mine = alone[place : place + len(steerings)]
        for k, (tokens, logprobs, _) in enumerate(mine):
            for others, levels, _ in mine[:k]:
                far = tokens != others or max(abs(a - b) for a, b in zip(logprobs, levels, strict=True)) > 2 * SAME
                assert far, "each steering must change the answer, or this test proves nothing"
    end = time.monotonic() + SECONDS

    def come_and_go(number: int) -> tuple[int, int, list[str]]:
        """A client whose vector is another multiple every time."""
        answers, full, wrong, by = 0, 0, [], 1.0
        while time.monotonic() < end:
            by = by % 7 + 0.5
            path = tmp_path / f"{number}.safetensors"
            Vector({layer: by * values for layer, values in vector.layers.items()}).save(path)
            said = server.http.post(f"/steer/vectors?name=v{number}", content=path.read_bytes())
            if said.status_code == 429:
                full += 1
                time.sleep(0.2)
                continue
            assert said.status_code == 200, said.text
            index = 2 + len(steerings) * number  # trait at 1
            _, logprobs, _ = ask(index, {"steer_vector": f"v{number}", "steer_coefficient": 1.0 / by})
            if not np.allclose(logprobs[0], alone[index][1][0], atol=SAME):
                wrong.append(f"v{number} at {by}: {logprobs[0]} against {alone[index][1][0]}")
            assert server.http.delete(f"/steer/vectors/v{number}").status_code == 200
            answers += 1
        assert answers > 10, f"{full} times the bank was full"
        return 0, 0, wrong

    def client(number: int) -> tuple[int, int, list[str]]:
        """How many answers it got, how many left the one alone at a tie, and what was wrong."""
        draws, answers, ties, wrong = random.Random(number), 0, 0, []
        while time.monotonic() < end:
            index = draws.randrange(len(asks))
            tokens, logprobs, _ = ask(index)
            wanted, levels, ahead = alone[index]
            pairs = enumerate(zip(tokens, wanted, strict=True))
            same = next((k for k, (mine, theirs) in pairs if mine != theirs), len(wanted))
            answers += 1
            if same < len(wanted):
                ties += 1
                if ahead[same] > TIE:
                    wrong.append(f"{asks[index][1]}: token {same} differs, where the best was {ahead[same]:.2e} ahead")
            if not np.allclose(logprobs[:same], levels[:same], atol=SAME):
                wrong.append(f"{asks[index][1]}: log-probabilities {logprobs[:same]} against {levels[:same]}")
        return answers, ties, wrong

    with ThreadPoolExecutor(CLIENTS + 2) as pool:
        movers = [pool.submit(come_and_go, number) for number in range(2)]
        found = [*pool.map(client, range(CLIENTS)), *(mover.result() for mover in movers)]
    answers, ties = (sum(one[place] for one in found) for place in (0, 1))
    wrong = [line for _, _, lines in found for line in lines]
    print(
        f"\n{CLIENTS} clients, {SECONDS} s: {answers} answers, {ties} that left the one alone at a tie, {len(wrong)} wrong"
    )
    assert not wrong, wrong[:5]
    assert answers > 10 * CLIENTS
