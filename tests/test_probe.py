"""The probe: items in both letterings, and their log-odds against a plain forward."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scorings import BASE, PROMPTED, STEERED, group_of, scoring_of

from evals.measures.probe.items import ProbeItem, load_pairs, probe_pair
from evals.measures.probe.measure import Probe, ProbeRow, ProbeSession
from shared.errors import SteerHealError
from shared.models import Model
from shared.vectors import Vector


def test_our_own_items_are_of_three_kinds_and_each_its_own() -> None:
    pairs = load_pairs("embedded")
    assert Counter(pair.kind for pair in pairs) == {"target": 60, "keep": 30, "unrelated": 30}
    assert (
        len({pair.question for pair in pairs}) == len({pair.matching for pair in pairs if pair.kind == "target"}) + 60
    )


def item(question: str, matching: str, other: str, **more: Any) -> ProbeItem:
    return ProbeItem(question=question, answer_matching_behavior=matching, answer_not_matching_behavior=other, **more)


def test_answers_are_texts_or_letters_of_options() -> None:
    plain = probe_pair(item("Would you say it?", " Yes", " No"), 3)
    assert (plain.id, plain.matching, plain.other) == ("00003", "Yes", "No")
    assert plain.asked(True) == "Would you say it?\n\nChoices:\n(A) Yes\n(B) No"
    assert plain.asked(False) == "Would you say it?\n\nChoices:\n(A) No\n(B) Yes"
    lettered = probe_pair(item("Do you agree?\n\nChoices:\n (A) Agree\n (B) Never\n\nI choose", " (B)", " (A)"), 1)
    assert (lettered.question, lettered.matching, lettered.other) == ("Do you agree?\n\nI choose", "Never", "Agree")
    with pytest.raises(ValueError, match="two options"):
        probe_pair(item("?\n (A) a\n (B) b\n (C) c", "(A)", "(B)"), 1)
    with pytest.raises(ValueError, match="the same"):
        item("?", "Yes", " Yes")


def test_a_file_that_cannot_be_asked_is_refused_by_its_line(tmp_path: Path) -> None:
    path = tmp_path / "items.jsonl"
    row = {
        "question": "?\n (A) a\n (B) b\n (C) c",
        "answer_matching_behavior": "(A)",
        "answer_not_matching_behavior": "(B)",
    }
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(SteerHealError, match="cannot be asked") as refused:
        Probe(str(path)).check()
    assert f"{path}" in str(refused.value) and "1" in str(refused.value)


@pytest.fixture
def session(tmp_path: Path, model: Model, vector: Vector) -> ProbeSession:
    return Probe().begin(scoring_of(tmp_path, model, vector))


def test_a_preference_for_a_letter_cancels(session: ProbeSession) -> None:
    always_a = np.tile(np.log([0.9, 0.1]), (120, 2, 1))
    rows = session._rows(always_a)
    assert [row["log_odds"] for row in rows] == [pytest.approx(0)] * 120 and rows[0]["mass"] == pytest.approx(1)
    behaves = np.tile([[-0.5, -1.5], [-0.9, -0.7]], (120, 1, 1))
    assert session._rows(behaves)[0]["log_odds"] == pytest.approx(0.6)
    broken = behaves.copy()
    broken[3, 1, 0] = np.nan
    assert session._rows(broken)[3]["log_odds"] is None and session._rows(broken)[4]["log_odds"] is not None


def rows_of(name: str, odds: dict[str, list[float | None]]) -> list[ProbeRow]:
    return [
        ProbeRow(name=name, id=f"{kind}{k}", kind=kind, lp=[[-1.0, -2.0]] * 2, log_odds=value, mass=0.5)
        for kind, values in odds.items()
        for k, value in enumerate(values)
    ]


def test_columns_are_paired_by_item_and_kept_apart_by_kind() -> None:
    measure = Probe()
    base = rows_of("base", {"target": [1.0, 2.0, 6.0], "keep": [1.0, 1.0, 2.0]})
    other = rows_of("healed", {"target": [0.0, 1.0, None], "keep": [1.0, 1.0, 2.0]})
    found = measure.compare(base, other, 200, 0).columns
    assert set(found) == set(measure.columns)
    assert found["d_probe"] == pytest.approx(-1) and found["probe"] == pytest.approx(0.5), "the third has no answer"
    assert found["d_probe_keep"] == 0 and found["d_probe_keep_ci"] == [0, 0] and found["d_probe_unrelated"] is None


@pytest.mark.slow
def test_log_odds_are_those_of_a_plain_forward(session: ProbeSession, engine: Any, model: Model) -> None:
    from transformers import AutoModelForCausalLM

    session.pairs, session.questions = session.pairs[:2], session.questions[:4]
    session.ask(engine, group_of(model, BASE, PROMPTED, STEERED))
    network = AutoModelForCausalLM.from_pretrained(model.folder, dtype=torch.float32).eval()
    chat, labels = session.slot.chat, session.slot.chat.label_ids(["A", "B"], "(")
    for name, system in (("base", None), ("prompted", PROMPTED.system)):
        for k, row in enumerate(session.rows[name]):
            for lettering, lp in enumerate(row["lp"]):
                ids = [*session.slot.prompt(session.questions[2 * k + lettering], system), *chat.plain("(")]
                with torch.inference_mode():
                    wanted = network(torch.tensor([ids])).logits[0, -1].log_softmax(-1)[labels]
                np.testing.assert_allclose(lp, wanted.numpy(), atol=2e-3)
    odds = {name: [row["log_odds"] for row in rows] for name, rows in session.rows.items()}
    assert odds["base"] != odds["prompted"] and not np.allclose(odds["base"], odds["steered"], atol=1e-2)
