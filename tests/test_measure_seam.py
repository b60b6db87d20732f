"""What holds for every measure, and the whole one of docs/measures.md, from its requests to the report."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from conftest import ROOT, command
from scorings import BASE, LATER, PROMPTED, STEERED, group_of, scoring_of
from synthetic_run import build

from evals import results
from evals.conditions import condition_line
from evals.measures import registry
from evals.measures.measure import Measure
from evals.measures.probe.measure import Probe
from evals.measures.registry import ALWAYS, MEASURES, check_measures, measures_of
from evals.report.__main__ import tables_of
from evals.report.reading import run_reading
from evals.results import ORDER, results_of
from evals.rows import Scores
from evals.scored import scored_rounds
from shared.config import resolve_config
from shared.errors import SteerHealError
from shared.models import Model
from shared.schema import EvalConfig
from shared.vectors import Vector


def test_a_configuration_names_measures_and_their_sources() -> None:
    assert tuple(measure.name for measure in measures_of(EvalConfig())) == ALWAYS
    config = resolve_config(None, "eval.measures=[survey=a+b,retention]")[0].eval
    assert [(m.name, m.source) for m in measures_of(config)][3:] == [("retention", "embedded"), ("survey", "a+b")]
    for names, said in (
        (["retenton"], "did you mean retention?"),
        (["probe", "probe=x.jsonl"], "twice"),
        (["free_text"], "which every round has"),
    ):
        with pytest.raises(SteerHealError) as refused:
            measures_of(EvalConfig(measures=names))
        assert said in str(refused.value)
    with pytest.raises(SteerHealError) as refused:
        measures_of(EvalConfig(measures=["probe", "retenton"]))
    assert "eval.measures=[probe,retention]" in refused.value.next
    with pytest.raises(SteerHealError, match="nowhere"):
        check_measures(EvalConfig(measures=["probe=nowhere.jsonl"]))


def test_no_two_measures_share_a_name_a_file_or_a_column() -> None:
    columns = [column for measure in MEASURES for column in measure.columns]
    assert len(set(columns)) == len(columns) and not {"arm", "verdict", "coherence_verdict"} & {*columns}
    assert len({measure.name for measure in MEASURES}) == len({measure().file for measure in MEASURES}) == len(MEASURES)


def test_a_column_of_a_measure_that_was_not_taken_is_null(tmp_path: Path) -> None:
    run = build(tmp_path / "run", 1)
    rounds = scored_rounds(run, "round")
    for row in (rows := results_of(run, rounds))["rows"] + rows["extra"]:
        assert tuple(row)[: len(ORDER)] == ORDER
        others = [column for measure in MEASURES if measure.name not in ALWAYS for column in measure.columns]
        assert all(row[column] is None for column in others)
    for measure in rounds[0].measures:
        if measure.columns:
            data = rounds[0].data[measure.name]
            for other in ("base", "healed"):
                assert {*measure.compare(data["base"], data[other], 100, 0).columns} == {*measure.columns}


def example() -> str:
    """The Python block of docs/measures.md."""
    return (ROOT / "docs" / "measures.md").read_text().split("```python\n")[1].split("```")[0]


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    path = tmp_path / "truth.py"
    path.write_text(example())
    spec = importlib.util.spec_from_file_location("truth", path)
    assert spec is not None and spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "truth", made)
    spec.loader.exec_module(made)
    return made


def test_the_example_is_short() -> None:
    assert 40 < len(example().splitlines()) < 80


def test_the_example_passes_the_checks_of_the_packages(tmp_path: Path) -> None:
    """As a new file among them would."""
    (tmp_path / "truth.py").write_text(example())
    done = command("ruff", "check", "--config", ROOT / "pyproject.toml", "--no-cache", tmp_path / "truth.py")
    assert done.returncode == 0, done.stdout
    done = command(
        "ruff", "format", "--check", "--config", ROOT / "pyproject.toml", "--no-cache", tmp_path / "truth.py"
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("which", ["truth", "probe"])
def test_a_measure_goes_from_its_requests_to_the_report(
    which: str,
    module: ModuleType,
    tmp_path: Path,
    model: Model,
    vector: Vector,
    engine: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for place in (registry, results):
        monkeypatch.setattr(place, "MEASURES", (*MEASURES, module.Truth))
    measure: Measure = measures_of(EvalConfig(measures=[which]))[-1]
    if which == "truth":
        with pytest.raises(SteerHealError, match="takes no source"):
            measures_of(EvalConfig(measures=["truth=items.jsonl"]))
    session = measure.begin(scoring_of(tmp_path, model, vector))
    if isinstance(measure, Probe):
        session.pairs, session.questions = (
            session.pairs[::15],
            [q for p in session.pairs[::15] for q in (p.asked(True), p.asked(False))],
        )
    asked = [
        BASE,
        PROMPTED,
        STEERED,
        replace(STEERED, stage="healed", name="healed"),
        replace(LATER, stage="random", name="random", headline=True),
    ]
    session.ask(engine, group_of(model, *asked))
    session.judge(engine)
    folder = tmp_path / "scores"
    folder.mkdir()
    assert session.write(folder) == {}
    scores = Scores.model_construct(conditions=[_line(condition) for condition in asked])
    data = measure.read(folder, scores, "make round N=1")
    assert [*data] == [condition.name for condition in asked] and all(data.values())
    run = build(tmp_path / "report", 1, extra=False)
    (round_,) = scored_rounds(run, "round")
    round_ = replace(round_, measures=[*round_.measures, measure], data={**round_.data, measure.name: data})
    found = results_of(run, [round_])
    at = {row["stage"]: row for row in found["rows"]}
    change = f"d_{measure.name}"
    assert (
        at["base"][change] == 0
        and at["steered"][change] not in (0, None)
        and at["steered"][change] == at["healed"][change]
    )
    table = next(table for table in tables_of(run, [round_], found, "round") if table.title.lower() == measure.name)
    assert len(table.rows) == 5 and all(len(line) == len(table.columns) for line in table.rows)
    said = [line for line in run_reading(found["rows"], [], [round_]) if "two-way items" in line]
    assert len(said) == (which == "probe")
    with pytest.raises(SteerHealError, match="file of scores"):
        measure.read(folder, Scores.model_construct(conditions=[_line(BASE)]), "make round N=1")


def _line(condition: Any) -> Any:
    from evals.rows import ConditionLine

    return ConditionLine.model_construct(**condition_line(condition))


@pytest.mark.slow
def test_rows_come_from_the_cache_the_second_time(
    module: ModuleType, tmp_path: Path, model: Model, vector: Vector, engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STEER_HEAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("evals.cache.code_of", lambda name: name)  # the example is no module of the packages
    group = group_of(model, BASE, STEERED)
    first, again = (module.Truth().begin(scoring_of(tmp_path, model, vector, cached=True)) for _ in range(2))
    first.ask(engine, group)
    again.ask(None, group)
    assert first.taken == 0 and again.taken == 2 and again.rows == first.rows
