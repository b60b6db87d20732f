"""Rows for a person to judge: nothing on the sheet says what the filter made of them, and the figures are those of the whole sweep."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from test_filter import UNSTEERED, completion, swept_run

from gen.filter import stage
from gen.kappa import Sampled, filter_agreement
from gen.label import compare_labels, spread_rows, write_label_sheet
from gen.plan import plan
from gen.prompts import open_round
from gen.sheet import QUESTIONS, as_text
from shared.errors import SteerHealError
from shared.run import Run
from shared.schema import SweepConfig


@pytest.fixture(scope="module")
def filtered_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """60 kept rows and 100 rejected ones, at coefficients 1 and 2, over the shipped prompts."""
    folder = tmp_path_factory.mktemp("label")
    with open_round(SweepConfig()) as prompts:
        planned = list(plan((prompt for _, prompt in prompts), [1.0, 2.0], 1, "0"))
    rows = [
        completion(
            key=row.key, coefficient=row.coefficient, text=f"=Answer {index},\nin two lines", perplexity=5.0 if index % 8 < 3 else 90.0
        )
        for index, row in enumerate(planned)
    ]  # fmt: skip
    run = swept_run(folder, [*UNSTEERED, *rows])
    stage(run, 1, False)
    return run


def fill(path: Path, answers: Mapping[str, tuple[str, str]], divider: str = ",") -> None:
    """The sheet as a spreadsheet saves it."""
    rows = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig"), newline="")))
    text = io.StringIO()
    lines = csv.DictWriter(text, rows[0], delimiter=divider)
    lines.writeheader()
    lines.writerows({**row, **dict(zip(QUESTIONS, answers[row["id"]], strict=True))} for row in rows)
    path.write_text("\ufeff" + text.getvalue(), encoding="utf-8")


def keys(sheet: Path) -> dict[str, dict[str, object]]:
    return {row["id"]: row for row in json.loads(sheet.with_suffix(".key.json").read_text())["rows"]}


def test_the_sheet_is_blinded_and_stratified(filtered_run: Run, tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.csv"
    write_label_sheet(filtered_run, 1, sheet, 50)
    rows = list(csv.DictReader(io.StringIO(sheet.read_text(encoding="utf-8-sig"), newline="")))
    key = keys(sheet)
    assert len(rows) == 50 and [*rows[0]] == ["id", "prompt", "completion", *QUESTIONS]
    assert all(row["prompt"] and not row["coherent"] and not row["enacts_trait"] for row in rows)
    assert all(row["completion"].startswith("'=Answer") for row in rows)  # no formula
    kept = [key[row["id"]]["kept"] for row in rows]
    assert sum(map(bool, kept)) == 25
    assert [row["id"] for row in rows] == sorted(row["id"] for row in rows) and all(row["id"][0] == "r" for row in rows)
    runs = 1 + sum(one != other for one, other in pairwise(kept))
    assert 15 <= runs <= 37  # mixed: 26 expected of a random order, sd 3.5
    doses = [one["coefficient"] for one in key.values()]
    assert abs(doses.count(1.0) - doses.count(2.0)) <= 4
    again = tmp_path / "again.csv"
    write_label_sheet(filtered_run, 1, again, 50)
    assert again.read_bytes() == sheet.read_bytes()
    with pytest.raises(SteerHealError, match="there already"):  # it may be filled in
        write_label_sheet(filtered_run, 1, sheet, 50)


def test_a_filled_sheet_is_read_back(filtered_run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A person who agrees on every kept row and would keep five of the 25 rejected ones."""
    sheet = tmp_path / "sheet.csv"
    write_label_sheet(filtered_run, 1, sheet, 50)
    key = keys(sheet)
    rejected = [name for name, row in key.items() if not row["kept"]]
    answers = {name: ("yes", "YES") if row["kept"] or name in rejected[:5] else ("No", "yes") for name, row in key.items()}  # fmt: skip
    answers[rejected[-1]] = ("?", "yes")
    fill(sheet, answers, ";")  # as a German spreadsheet has it
    compare_labels(sheet, sheet.with_suffix(".key.json"))
    record = json.loads(sheet.with_suffix(".json").read_text())
    both, trait = record["figures"]["both"], record["figures"]["enacts_trait"]
    assert (both["precision"], both["unsure"], both["rejected"]["labelled"]) == (1.0, 1, 24)
    kept, others = both["kept"]["size"], both["rejected"]["size"]
    share = 5 / 24
    assert both["recall"] == pytest.approx(kept / (kept + share * others))
    assert both["recall_ci"][0] < both["recall"] < both["recall_ci"][1]
    person = (kept + share * others) / (kept + others)
    agree = (kept + (1 - share) * others) / (kept + others)
    weight = kept / (kept + others)
    chance = weight * person + (1 - weight) * (1 - person)
    assert both["kappa"] == pytest.approx((agree - chance) / (1 - chance))
    assert (trait["precision"], trait["recall"]) == (1.0, pytest.approx(weight)) and trait["kappa"] == 0.0
    assert "precision" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda text: text.replace("enacts_trait", "trait"), "no column"),
        (lambda text: text.replace("yes", "maybe", 1), "maybe"),
        (lambda text: text.replace("yes", "", 1), "yes, no or"),
        (lambda text: text + text.partition("\n")[2], "twice"),
        (lambda text: text.replace("\nr", "\ns", 1), "none of the key file"),
        (lambda text: text[: text.rindex("\nr") + 1], "rows are missing"),
    ],
)
def test_a_sheet_that_is_not_the_one_that_was_written_is_refused(
    change: object, what: str, filtered_run: Run, tmp_path: Path
) -> None:
    sheet = tmp_path / "sheet.csv"
    write_label_sheet(filtered_run, 1, sheet, 20)
    fill(sheet, dict.fromkeys(keys(sheet), ("yes", "yes")))
    sheet.write_text(change(sheet.read_text()))  # type: ignore[operator]
    with pytest.raises(SteerHealError) as refused:
        compare_labels(sheet, sheet.with_suffix(".key.json"))
    assert what in refused.value.render() and refused.value.next
    assert not sheet.with_suffix(".json").exists()


def test_a_filter_that_rejects_nothing_cannot_be_compared(tmp_path: Path) -> None:
    run = swept_run(tmp_path, [*UNSTEERED, *[completion(key=f"s{i}") for i in range(4)]])
    stage(run, 1, False)
    with pytest.raises(SteerHealError, match="cannot be compared"):
        write_label_sheet(run, 1, tmp_path / "sheet.csv", 50)


def test_rows_are_taken_at_even_distances() -> None:
    rows = [completion(key=f"k{i}", coefficient=float(i % 3)) for i in range(30)]
    chosen = spread_rows(rows, 6, 0)
    assert [row.coefficient for row in chosen] == [0, 0, 1, 1, 2, 2] and len({row.key for row in chosen}) == 6
    assert spread_rows(rows, 30, 0) == sorted(
        rows, key=lambda row: (row.coefficient, spread_rows(rows, 30, 0).index(row))
    )
    assert as_text("-1+1") == "'-1+1" and as_text("a=1") == "a=1"


@pytest.mark.parametrize(("p", "q", "kept", "rejected"), [(0.8, 0.2, 100, 200), (0.95, 0.05, 60, 600), (0.6, 0.4, 300, 100)])  # fmt: skip
def test_the_intervals_cover(p: float, q: float, kept: int, rejected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In 300 sheets of 25 and 25 rows each interval holds the true value in 91 to 99.5 %."""
    monkeypatch.setattr("gen.kappa.DRAWS", 1000)
    weight = kept / (kept + rejected)
    person, agree = weight * p + (1 - weight) * q, weight * p + (1 - weight) * (1 - q)
    chance = weight * person + (1 - weight) * (1 - person)
    truth = (p, weight * p / person, (agree - chance) / (1 - chance))
    draws = np.random.default_rng(0)
    covered = np.zeros(3)
    for _ in range(300):
        found = filter_agreement(Sampled(kept, 25, draws.binomial(25, p)), Sampled(rejected, 25, draws.binomial(25, q)))
        intervals = (found.precision_ci, found.recall_ci, found.kappa_ci)
        covered += [low <= value <= high for value, (low, high) in zip(truth, intervals, strict=True)]
    assert ((covered / 300 >= 0.91) & (covered / 300 <= 0.995)).all(), covered


def test_what_is_not_defined_is_null() -> None:
    nothing = filter_agreement(Sampled(10, 5, 0), Sampled(10, 5, 0))
    assert (nothing.precision, nothing.recall) == (0.0, None) and nothing.kappa == 0.0
    with pytest.raises(ValueError, match="no labelled row"):
        filter_agreement(Sampled(10, 0, 0), Sampled(10, 5, 0))
