"""Surveys: frames brought to one scale, and what a questionnaire must look like."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scorings import BASE, STEERED, group_of, scoring_of

from evals.measures.survey import Survey, SurveyRow, expected_point, load_surveys
from shared.errors import SteerHealError
from shared.models import Model
from shared.vectors import Vector

LEGEND = "How much do you agree? Disagree (1); slightly (2); neutral (3); rather (4); agree (5)."


def questionnaire(folder: Path, **changed: Any) -> Path:
    folder.mkdir()
    for frame in ("forward", "inverted", "negated"):
        questions = [
            {"id": 1, "content": f"Parents are right ({frame}).", "dimension": "authority"},
            {"id": 2, "content": f"I doubt my teachers ({frame}).", "dimension": "authority"},
            {"id": 3, "content": f"I talk a lot ({frame}).", "dimension": "talk"},
        ]
        (folder / f"{frame}.json").write_text(json.dumps([{"task": f"{LEGEND} {frame}", "questions": changed.get(frame, questions)}]))  # fmt: skip
    (folder / "keying.json").write_text(json.dumps({"1": 1, "2": -1, "3": 1}))
    return folder


def peaked(point: int) -> np.ndarray:
    return np.where(np.arange(1, 6) == point, 0.0, -50.0)


def test_frames_are_brought_to_one_scale_before_they_are_averaged() -> None:
    agrees = {"forward": peaked(5), "inverted": peaked(1), "negated": peaked(1)}
    assert expected_point(agrees, 1) == pytest.approx(5) and expected_point(agrees, -1) == pytest.approx(1)
    always_five = {"forward": peaked(5), "inverted": peaked(5), "negated": peaked(5)}
    assert expected_point(always_five, 1) == pytest.approx(7 / 3)
    two_frames = {"forward": peaked(5), "inverted": peaked(5)}
    assert expected_point(two_frames, 1) == pytest.approx(3), "a taste for a number cancels"
    assert expected_point({"forward": np.log([0.1, 0.1, 0.2, 0.2, 0.4])}, 1) == pytest.approx(3.7)


def test_a_folder_is_read_with_its_frames_and_keys(tmp_path: Path) -> None:
    items = load_surveys(str(questionnaire(tmp_path / "q")))
    assert [(item.id, item.dimension, item.sign, item.points) for item in items] == [("1", "authority", 1, 5), ("2", "authority", -1, 5), ("3", "talk", 1, 5)]  # fmt: skip
    assert items[0].asked["negated"] == f"{LEGEND} negated\n\nStatement: Parents are right (negated)."
    two = load_surveys(f"{tmp_path / 'q'}+{questionnaire(tmp_path / 'r')}")
    assert len(two) == 6 and len({item.survey for item in two}) == 2


def test_what_is_no_questionnaire_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    other = questionnaire(tmp_path / "other", negated=[{"id": 1, "content": "x", "dimension": "y"}])
    for source in (str(tmp_path / "empty"), str(other), "mfq2", "embedded"):
        with pytest.raises(SteerHealError, match="questionnaire"):
            Survey(source).check()


def test_an_installed_questionnaire_is_the_same_items(packages: Path) -> None:
    """From a package in the shape of moralmaps."""
    folder = packages / "moralmaps"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "instruments.py").write_text(
        "from types import SimpleNamespace as S\n"
        "def get(name):\n"
        "    items = [S(id='7', prompt=f'I lead, {f}.', dimension='d', sign=-1, frame=f, meta={'task': f'legend {f}'}) for f in ('forward', 'inverted')]\n"
        "    return S(items=items, scale_max=5)\n"
    )
    (item,) = load_surveys("big5")
    assert (item.survey, item.id, item.sign) == ("big5", "7", -1)
    assert item.asked == {"forward": "legend forward\n\nStatement: I lead, forward.", "inverted": "legend inverted\n\nStatement: I lead, inverted."}  # fmt: skip
    assert Survey("big5").revisions(None)["survey"]  # type: ignore[arg-type]


def test_columns_are_by_dimension_and_paired(tmp_path: Path) -> None:
    def rows(name: str, scores: list[float | None]) -> list[SurveyRow]:
        return [
            SurveyRow(name=name, survey="q", id=str(k), dimension="a" if k < 2 else "b", lp={"forward": [-1.0] * 5}, score=value, mass=0.9)
            for k, value in enumerate(scores)
        ]  # fmt: skip

    measure = Survey("q")
    found = measure.compare(rows("base", [3, 4, 2, 2]), rows("healed", [2, 3, 2, None]), 200, 0).columns
    assert set(found) == set(measure.columns) and found["survey_mass"] == pytest.approx(0.9)
    first, second = found["survey"]
    assert (first["dimension"], first["score"], first["change"], first["items"]) == ("a", 2.5, -1.0, 2)
    assert (second["score"], second["change"], second["ci"], second["items"]) == (2.0, 0.0, None, 1)


@pytest.mark.slow
def test_every_item_is_asked_in_every_frame(tmp_path: Path, model: Model, vector: Vector, engine: Any) -> None:
    measure = Survey(str(questionnaire(tmp_path / "q")))
    session = measure.begin(scoring_of(tmp_path, model, vector))
    session.ask(engine, group_of(model, BASE, STEERED))
    for row in session.rows["base"]:
        assert [*row["lp"]] == ["forward", "inverted", "negated"] and 0 < row["mass"] <= 1 and 1 <= row["score"] <= 5
        frames = {frame: np.array(lp) for frame, lp in row["lp"].items()}
        assert row["score"] == pytest.approx(expected_point(frames, -1 if row["id"] == "2" else 1))
    assert [row["score"] for row in session.rows["base"]] != [row["score"] for row in session.rows["steered"]]
