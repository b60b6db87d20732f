"""Retention: the distance of two distributions against the naive formula, and of a steered network against an oracle."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hooked import Hooked
from scorings import BASE, LATER, PROMPTED, STEERED, group_of, scoring_of

from evals.measures.retention.measure import ANSWER, Retention, RetentionRow, RetentionSession, first_sweep_rows
from gen.forward import distance
from gen.prompts import open_round
from shared.chat import neutral_for
from shared.errors import SteerHealError
from shared.models import Model
from shared.records import Completion, write_jsonl
from shared.vectors import Vector


def test_distance_is_the_naive_formula() -> None:
    draws = torch.Generator().manual_seed(0)
    p, q = (4 * torch.randn(300, 50, generator=draws) for _ in range(2))
    targets = torch.randint(0, 50, (300,), generator=draws).tolist()
    found = distance(p, q, targets)
    a, b = (np.asarray(x.double().log_softmax(-1)) for x in (p, q))
    at = (np.arange(300), targets)
    assert found.tokens == 300 and found.nll is not None and found.nll_base is not None
    assert found.nll == pytest.approx(-b[at].sum(), rel=1e-6) and found.nll_base == pytest.approx(
        -a[at].sum(), rel=1e-6
    )
    assert found.kl == pytest.approx((np.exp(a) * (a - b)).sum(), rel=1e-5)
    assert distance(p, p, targets).kl == 0


def test_what_is_not_finite_has_no_distance_and_a_padded_head_has() -> None:
    p = torch.randn(3, 8)
    bad = p.clone()
    bad[1, 2] = float("nan")
    assert distance(p, bad, [0, 1, 2]).kl is None and distance(bad, p, [0, 1, 2]).nll is None
    padded = torch.cat([p, torch.full((3, 2), -torch.inf)], 1)
    assert distance(padded, padded + 1, [0, 1, 2]).kl == pytest.approx(0, abs=1e-6)


def test_the_passages_are_a_hundred_or_so_of_many_kinds() -> None:
    rows = Retention().passages()
    kinds = {row.kind for row in rows}
    assert 100 <= len(rows) <= 120 and {"prose", "arithmetic", "list", "code"} <= kinds and ANSWER not in kinds
    assert len({row.text for row in rows}) == len(rows)


def rows_of(name: str, nll: list[float | None], kl: list[float | None], tokens: list[int]) -> list[RetentionRow]:
    return [
        RetentionRow(name=name, id=f"t{k}", kind="code" if k else "prose", tokens=n, nll=a, nll_base=float(n), kl=b)
        for k, (a, b, n) in enumerate(zip(nll, kl, tokens, strict=True))
    ]


def test_columns_are_weighted_by_tokens() -> None:
    measure = Retention()
    base = rows_of("base", [100, 300], [0, 0], [100, 300])
    other = rows_of("healed", [110, 330], [2, 12], [100, 300])
    found = measure.compare(base, other, 200, 0).columns
    assert tuple(found) == measure.columns
    assert found["ret_kl"] == pytest.approx(14 / 400) and found["ret_nll"] == pytest.approx(0.1)
    assert [round(part["ret_kl"], 3) for part in found["ret_by_kind"]] == [0.02, 0.04]
    assert measure.compare(base, base, 200, 0).columns["ret_kl"] == 0
    dead = rows_of("healed", [110, None], [2, None], [100, 300])
    assert measure.compare(base, dead, 200, 0).columns["ret_kl"] is None
    with pytest.raises(SteerHealError, match="different things"):
        measure.refuse_unpaired(base, other[:1])


@pytest.mark.parametrize(("kl", "word"), [(0.01, "kept"), (0.1, "degraded"), (0.5, "broken")])
def test_the_report_says_what_neutral_text_lost(kl: float, word: str) -> None:
    measure, base = Retention(), rows_of("base", [100, 300], [0, 0], [100, 300])
    other = rows_of("healed", [110, 330], [kl * 100, kl * 300], [100, 300])
    place = {"round": 1, "coefficient": None, "gate": 1.0, "draw": None}
    rows = [
        {**place, "stage": "base", "round": 0, **measure.compare(base, base, 200, 0).columns},
        {**place, "stage": "healed", **measure.compare(base, other, 200, 0).columns},
        {**place, "stage": "prompted", "round": 0, **dict.fromkeys(measure.columns)},
    ]
    (table,) = measure.tables(rows, [])
    assert table.columns == ["round, stage", "ret_nll", "ret_kl", "prose", "code"]
    assert [line[0] for line in table.rows] == ["0 base", "1 healed"], "a system prompt has no retention"
    assert table.rows[1][2].startswith(f"{kl:.4f} [") and table.rows[1][3:] == [f"{kl:.4f}"] * 2
    (sentence,) = measure.sentences(rows[0], {"healed": rows[1]}, [])
    assert f"the healed model is {kl:.3f} [" in sentence and f": {word} (" in sentence


@pytest.fixture
def session(tmp_path: Path, model: Model, vector: Vector) -> RetentionSession:
    """Over three passages, and a mundane answer among rows that are none."""
    scoring = scoring_of(tmp_path, model, vector, "sweep.n_mundane=2")
    with open_round(scoring.config.sweep.model_copy(update={"n_dilemmas": 0})) as prompts:
        asked = next(iter(prompts))[1]
    ids = scoring.chat.ids(asked.turns, neutral_for(asked.turns, scoring.trait.neutral))
    row = Completion(
        key="m/0/0", prompt_ids=ids, completion_ids=scoring.chat.plain("Soak the lentils."), text="x", finish_reason="stop", coefficient=0.0, sample=0, seed=1,
        perplexity=2.0, perplexity_last_quarter=2.0, trait_llr=0.0, distinct_3=1.0,
    )  # fmt: skip
    others = [
        {"key": "m/1/0", "coefficient": 1.0},
        {"key": "d/0/0", "prompt_ids": [1, 2]},
        {"key": "m/0/1", "completion_ids": []},
    ]
    write_jsonl(first_sweep_rows(scoring.run), [row, *(row.model_copy(update=other) for other in others)])
    session = Retention().begin(scoring)
    assert [text.id for text in session.texts if text.kind == ANSWER] == ["m/0/0"]
    session.texts = [*session.texts[:3], session.texts[-1]]
    return session


@pytest.mark.slow
def test_a_steered_network_is_the_oracle_s(session: RetentionSession, model: Model, vector: Vector) -> None:
    """At every position of a passage; with positions = generated from the end of the prompt of an answer on."""
    session.before_engine([group_of(model, BASE, STEERED, LATER, PROMPTED)])
    assert [*session.rows] == ["base", "steered", "steered-2"], "a system prompt has no place before a passage"
    assert all(row["kl"] == 0 and row["nll"] == row["nll_base"] for row in session.rows["base"])
    oracle = Hooked(model.folder, vector)
    for name, at in (("steered", 0), ("steered-2", session.texts[-1].start)):
        for text, row in zip(session.texts, session.rows[name], strict=True):
            start = at if text.kind == ANSWER else 0
            p = oracle.logprobs(text.ids, 0.0).double().numpy()[text.begin - 1 : -1]
            q = oracle.logprobs(text.ids, 1.5, start).double().numpy()[text.begin - 1 : -1]
            assert row["tokens"] == len(text.ids) - text.begin and row["kl"] > 0.1
            assert row["kl"] == pytest.approx((np.exp(p) * (p - q)).sum(), rel=1e-3)
            targets = (np.arange(len(p)), text.ids[text.begin :])
            assert row["nll"] == pytest.approx(-q[targets].sum(), rel=1e-4)
    assert session.rows["steered-2"][-1]["kl"] != pytest.approx(session.rows["steered"][-1]["kl"], rel=1e-3)


def test_a_text_that_does_not_fit_is_refused_before_a_model_is_loaded(
    tmp_path: Path, model: Model, vector: Vector
) -> None:
    scoring = scoring_of(
        tmp_path,
        model,
        vector,
        "model.max_model_len=64 sweep.max_tokens=32 eval.generation_tokens=32 train.max_length=64",
    )
    with pytest.raises(SteerHealError, match="too long"):
        Retention().begin(scoring)


def test_rows_of_other_texts_are_not_taken_from_the_cache(session: RetentionSession) -> None:
    row = {"version": 1, "kind": "prose", "nll": 1.0, "nll_base": 1.0, "kl": 0.0}
    rows = [{**row, "id": text.id, "tokens": len(text.ids) - text.begin} for text in session.texts]
    session.check(rows)
    with pytest.raises(ValueError, match="other texts"):
        session.check(rows[::-1])
    before = session.prompts(BASE)
    session.texts[0] = replace(session.texts[0], ids=[*session.texts[0].ids, 5])
    assert session.prompts(BASE) != before
