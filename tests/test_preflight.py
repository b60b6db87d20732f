"""The preflight over think budgets: what it reads from made-up answers, and a scan on the embedded model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import command
from made_answers import SOCIAL, human, made, read

from evals.measures.forced_choice.ask import Read, forced_choice
from evals.measures.forced_choice.instrument import InstrumentRenderer, load_instrument
from evals.preflight import Budget, budget_of, budget_sentence, foundation_of_trait, least_budget, scan
from evals.statistics import AUTHORITY, Estimate
from evals.verdict import AXIS, preflight
from gen.students import ServedStudent
from shared.chat import Chat
from shared.errors import SteerHealError
from shared.models import Model
from shared.records import DATA
from shared.vignettes import load_vignettes


def budget(think: int, logits: np.ndarray, mass: float = 0.8) -> Budget:
    return budget_of(read(made(logits, mass=mass)), think, 10.0 + think)


def test_the_least_budget_with_an_axis_is_named_with_its_cost() -> None:
    blind = human(signal=0.0)
    budgets = [budget(48, human()), budget(0, human(), mass=0.3), budget(4, blind), budget(16, human())]
    assert [one.refused for one in budgets] == [None, "no_format", "no_axis", None]
    found = least_budget(budgets)
    assert found is not None and found.think == 16
    assert found.contrast is not None and found.contrast.interval is not None and found.contrast.interval[0] > AXIS
    words = budget_sentence(budgets, 28)
    assert words.startswith("16 think tokens are the fewest of 0, 4, 16, 48") and "takes 26 s" in words


def test_where_there_is_none_it_says_so_and_what_was_closest() -> None:
    budgets = [budget(0, human(signal=0.0)), budget(4, human(), mass=0.3)]
    words = budget_sentence(budgets, 28)
    assert least_budget(budgets) is None and words.startswith("There is no budget among 0, 4 think tokens")
    assert "At 4 think tokens: the base gives the seven labels 0.300" in words


def test_figures_are_those_of_the_answers() -> None:
    logits = human()
    p = np.exp(logits - np.logaddexp.reduce(logits, 1)[:, None])
    found = budget(4, logits)
    for value, wanted in ((found.on_foundation, p[:, AUTHORITY]), (found.on_not_wrong, p[:, SOCIAL])):
        assert value is not None and value.value == pytest.approx(wanted.mean(), rel=1e-6)
        assert value.interval is not None and value.interval[0] < value.value < value.interval[1]
    assert found.mass is not None and found.mass.value == pytest.approx(0.8)


def test_nothing_passes_by_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    a = read(made(human()))
    for end, passes in ((AXIS, False), (AXIS + 8e-18, False), (AXIS + 1e-12, False), (AXIS + 1e-6, True)):
        monkeypatch.setattr("evals.verdict.contrast", lambda *_, end=end: Estimate(1.0, (end, 2.0)))
        refusal = preflight(a)
        assert (refusal is None) == passes and (passes or refusal.state == "no_axis")  # type: ignore[union-attr]


def test_a_scan_of_the_embedded_model_reads_what_a_score_reads(engine: object, model: Model) -> None:
    chat = Chat.load(model.folder)
    renderer, items = InstrumentRenderer(chat, load_instrument("embedded")), load_vignettes("embedded", 7)
    reads = [Read("rotating", think) for think in (0, 2)]
    budgets = list(scan(engine, renderer, items, reads, ServedStudent(model.folder)))
    assert [one.think for one in budgets] == [0, 2] and all(one.seconds > 0 for one in budgets)
    from evals.conditions import Condition

    rows = forced_choice(engine, renderer, items, [Condition("base", "base")], reads[1], chat.tokenizer, lambda: None)  # type: ignore[arg-type]
    again = budget_of(read(rows["base"]), 2, budgets[1].seconds)
    assert again.mass is not None and budgets[1].mass is not None
    assert again.mass.value == pytest.approx(budgets[1].mass.value, abs=1e-5)
    assert again.refused == budgets[1].refused


def test_a_trait_without_a_foundation_is_refused_and_another_is_read(tmp_path: Path) -> None:
    trait = json.loads((DATA / "trait.json").read_text())
    assert foundation_of_trait("embedded") == AUTHORITY
    path = tmp_path / "trait.json"
    path.write_text(json.dumps({**trait, "read_for": {"foundation": "care", "sign": 1}}))
    assert foundation_of_trait(str(path)) == 0
    path.write_text(json.dumps({key: value for key, value in trait.items() if key != "read_for"}))
    with pytest.raises(SteerHealError, match="says nothing of this trait"):
        foundation_of_trait(str(path))
    done = command("evals.preflight", "--model", "embedded", "--set", f"vector.trait={path}")
    assert done.returncode and "read_for" in done.stderr
