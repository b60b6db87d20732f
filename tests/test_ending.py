"""The terminal ends with the answer and with commands that can be typed."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from synthetic_run import build

from evals.answer import card_of
from evals.ending import next_commands, show_ending, trait_name
from evals.results import results_of
from evals.scored import scored_rounds
from shared.console import console
from shared.run import Run
from shared.subcommands import command_in, options_of


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, list[dict[str, Any]]]:
    run = build(tmp_path_factory.mktemp("ending") / "run", 2, personas=True, overrides="eval.bootstrap=300")
    return run, results_of(run, scored_rounds(run, "round"))["rows"]


def test_it_prints_the_lines_of_the_card(
    made: tuple[Run, list[dict[str, Any]]], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trait, price, both verdicts and prompting: the words, figures and symbols of the page."""
    monkeypatch.setattr(console, "width", 1000)
    run, rows = made
    show_ending(run, rows, Path("page"), "full", read_for=True)
    said = capsys.readouterr().out
    card = card_of(rows)
    for line in (card.headline, *card.lines):
        assert re.search(rf"(?m)^  {line.symbol} {line.name} +{re.escape(line.text)}$", said), line
    healed = next(row for row in rows if (row["round"], row["stage"]) == (2, "healed"))
    for part in ("text_verdict_reason", "verdict_reason"):
        assert healed[part] in said
    assert f"llr_opposite is {healed['llr_opposite']:+.3f} [" in said and "the base -0.076" in said


def test_what_was_not_measured_is_said(
    made: tuple[Run, list[dict[str, Any]]], capsys: pytest.CaptureFixture[str]
) -> None:
    columns = ("llr_opposite", "d_llr_opposite", "trait_llr", "d_trait_llr", "verdict", "verdict_reason", "text_verdict", "text_verdict_reason")  # fmt: skip
    rows = [{**row, **dict.fromkeys(columns)} for row in made[1]]
    show_ending(made[0], rows, Path("page"), "full", read_for=False)
    said = " ".join(capsys.readouterr().out.split())
    assert "No text was sampled" in said and "about no foundation" in said and "there is no verdict" in said


def test_every_next_command_is_taken(made: tuple[Run, list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch) -> None:
    run = made[0]
    monkeypatch.setenv("STEER_HEAL_FORM", "steer-heal")
    monkeypatch.delenv("STEER_HEAL_PROGRAM", raising=False)
    lines = next_commands(run, 2, run.folder / "report" / "index.html", "round")
    assert len(lines) == 5
    for _, line in lines[1:]:
        program, *words = shlex.split(line)
        name = command_in(words)
        assert program == "steer-heal" and name is not None, line
        arguments = options_of(name).parse_args(words[len(name.split()) :])
        assert arguments.run == run.folder
        if name == "round" and not arguments.report:
            assert arguments.rounds == 3


def test_the_terminal(made: tuple[Run, list[dict[str, Any]]], capsys: pytest.CaptureFixture[str]) -> None:
    run, rows = made
    show_ending(run, rows, Path("runs/x/report/index.html"), "full", read_for=True)
    said = capsys.readouterr().out
    assert f"{trait_name(run)}, round 2 of" in said and "care over authority" in said
    assert said.index("trait ") < said.index("price ") < said.index("next") < said.index("runs/x/report/index.html")
    assert "another round" not in said  # EVAL=full trains nothing
