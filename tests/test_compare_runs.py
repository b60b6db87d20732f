"""Two runs compared: what differs, what each came to, what each says; runs scored by different things are refused by name."""

from __future__ import annotations

import re
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from synthetic_run import NASTY, build

from evals.compare import main
from evals.compare_page import compare_page
from evals.compare_runs import dots, figures, refuse_incomparable, settings, texts_side_by_side, verdicts_of_two
from evals.evidence import shift
from evals.overlay import overlay
from evals.report.panel import svg
from evals.side import ScoredRun, read_side
from shared.config import resolve_config
from shared.errors import SteerHealError
from shared.subcommands import options_of

QUICK = "eval.bootstrap=100"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compared")
    build(folder / "a", 1, overrides=QUICK)
    build(folder / "b", 2, signal=2.0, overrides=f"{QUICK} train.lam=0.9 sweep.workers=2")
    return folder


@pytest.fixture(scope="module")
def sides(folder: Path) -> tuple[ScoredRun, ScoredRun]:
    return read_side(folder / "a", "round"), read_side(folder / "b", "round")


def test_settings_verdicts_and_figures_stand_side_by_side(sides: tuple[ScoredRun, ScoredRun]) -> None:
    one, other = sides
    refuse_incomparable(one, other, "round")
    assert sorted(row[0] for row in settings(one, other).rows) == ["sweep.workers", "train.lam"]
    assert "sweep.workers" in settings(one, other).note
    said = {row[0]: row[1:] for row in verdicts_of_two(one, other).rows}
    assert said["round 2, free text"][0] == "no such round"
    healed = other.row(1, "healed")
    assert healed is not None
    assert said["round 1, forced choice"][1] == f"{healed['verdict']}: {healed['verdict_reason']}"
    table = figures(one, other)
    rows = {row[0]: row[1:] for row in table.rows}
    assert "1 further round of one run left out" in table.note
    assert not any(name.startswith("round 2") for name in rows)
    for side, cell in zip(sides, rows["round 1 healed: perplexity"], strict=False):
        found = side.row(1, "healed")
        assert found is not None and cell.startswith(f"{found['perplexity']:.2f} [")


def test_the_difference_is_paired_over_items(sides: tuple[ScoredRun, ScoredRun]) -> None:
    rows = {row[0]: row[1:] for row in figures(*sides).rows}
    found = shift(*[side.at(1).answers["healed"] for side in sides])
    assert found is not None and found.interval is not None
    assert rows["round 1 healed: auth_nats"][2] == f"{found.value:+.3f} [{found.interval[0]:+.3f}, {found.interval[1]:+.3f}]"  # fmt: skip
    assert re.fullmatch(r"[+-]0\.\d{3} \[.*\]", rows["round 1 healed: llr_opposite"][2])
    assert rows["round 1 healed: perplexity"][2] == "–"  # nothing is paired


def test_the_page_has_every_text_once_a_model_and_no_markup_of_theirs(sides: tuple[ScoredRun, ScoredRun]) -> None:
    prompts = texts_side_by_side(*sides)
    page = compare_page("a and <b>", [settings(*sides), verdicts_of_two(*sides), figures(*sides)], prompts)
    assert len(prompts) == 6 and all(len(texts) == 2 for prompt in prompts for _, texts in prompt.texts_by_model)
    assert page.count("<section>") == 6 and "Texts side by side" in page
    assert NASTY not in page and "<b>" not in page and "<script" not in page
    assert all(f"round {count}</h4>" in page for count in (1, 2))


def test_the_chart_has_every_teacher_and_student_at_its_place(sides: tuple[ScoredRun, ScoredRun]) -> None:
    shown = dots(*sides)
    assert [(dot.side, dot.label) for dot in shown] == [
        (0, "base"), (0, "prompted"), (0, "1 steered"), (0, "1 healed"),
        (1, "1 steered"), (1, "1 healed"), (1, "2 steered"), (1, "2 healed"),
    ]  # fmt: skip
    one = overlay(shown, ("a<", "b$x$"), "llr_opposite")
    tree = ElementTree.fromstring(svg(one, "chart"))
    marks = [node for node in tree.iter() if node.get("class") == "pt"]
    assert len(marks) == len(shown) and [mark.get("data-run") for mark in marks] == ["1"] * 4 + ["2"] * 4
    titles = [title.text for mark in marks if (title := mark.find("{*}title")) is not None]
    assert str(titles[0]).startswith("a<, base: llr_opposite -0.07") and str(titles[-1]).startswith("b$x$, 2 healed")
    at = {dot.label: _place(mark) for dot, mark in zip(shown[:4], marks, strict=False)}
    assert at["base"][0] < at["prompted"][0] < at["1 healed"][0] < at["1 steered"][0], "dearer lies further right"
    assert at["prompted"][1] < at["1 steered"][1] < at["1 healed"][1] < at["base"][1], "more trait lies higher"
    bars = [node for node in tree.iter() if node.get("data-bar")]
    assert len(bars) == sum((dot.trait_ends is not None) + (dot.price_ends is not None) for dot in shown)
    assert "● a<: base: llr_opposite -0.07" in one.finding and "■ b$x$: 1 steered" in one.finding


def _place(mark: ElementTree.Element) -> tuple[float, float]:
    """Where a point is drawn, pixels from the left and from above."""
    use = mark.find(".//{*}use")
    assert use is not None
    return float(use.get("x") or 0), float(use.get("y") or 0)


def test_the_chart_of_one_dot_is_drawn_and_of_none_left_out(sides: tuple[ScoredRun, ScoredRun]) -> None:
    page = compare_page("x", [], [], overlay(dots(*sides)[:1], ("<a>", "b"), "x"))
    assert page.count("<svg") == 1 and "■ b: no figures." in page and "<a>" not in page and "style=" in page
    assert "<script" not in page and "http://" not in page.replace("http://www.w3.org/", "")
    assert "<svg" not in compare_page("x", [], [])


def test_the_command_line(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def compare(*words: object) -> str:
        monkeypatch.setattr(sys, "argv", ["evals.compare", *map(str, words)])
        main()
        return re.sub(r"\s+", " ", capsys.readouterr().out)

    said = compare(folder / "a", folder / "b", "--page", tmp_path / "page.html")
    assert "Settings that differ" in said and "train.lam" in said and "Figures" in said
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")
    for words, part in (
        ([folder / "a"], "two runs are compared"),
        ([folder / "a", folder / "a"], "compared with itself"),
        ([folder / "a", folder / "bb"], "there is no such run"),
        ([folder / "a", folder / "b", "--base", "x.jsonl"], "options of score files do not go with runs"),
        ([], "options are missing"),
    ):
        with pytest.raises(SteerHealError, match=part):
            compare(*words)


def test_runs_scored_by_other_settings_are_refused_with_a_command_that_makes_them_alike(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STEER_HEAL_FORM", "steer-heal")
    monkeypatch.delenv("STEER_HEAL_PROGRAM", raising=False)
    other = build(tmp_path / "c", 1, debias="reversal", overrides=f"{QUICK} eval.generation_tokens=48 model.dtype=float32")  # fmt: skip
    one, two = read_side(folder / "a", "round"), read_side(other.folder, "round")
    with pytest.raises(SteerHealError, match="scored differently") as refused:
        refuse_incomparable(one, two, "round")
    given = str(refused.value.given)
    for part in ("debias: rotating and reversal", "eval.generation_tokens: ", "model.dtype: "):
        assert part in given
    words = shlex.split(refused.value.next)
    arguments = options_of(words[1]).parse_args(words[2:])
    again = resolve_config(arguments.config, arguments.set)[0]
    assert again.eval.debias == "rotating" and again.eval.generation_tokens == one.run.config.eval.generation_tokens
    assert again.model.dtype == one.run.config.model.dtype and again.train == two.run.config.train


def test_runs_of_another_model_trait_or_held_out_prompts_are_refused(sides: tuple[ScoredRun, ScoredRun]) -> None:
    one, other = sides
    first = one.at(1)
    manifest = first.manifests["score"]
    assert manifest.model is not None
    manifest = manifest.model_copy(
        update={
            "model": manifest.model.model_copy(update={"fingerprint": "0" * 64}),
            "inputs": {**manifest.inputs, "trait": "1" * 64},
        }
    )
    asked = [row.model_copy(update={"prompt": "Another?"}) if row.prompt_id == "h3" else row for row in first.data["free_text"]["base"]]  # fmt: skip
    data = {**first.data, "free_text": {**first.data["free_text"], "base": asked}}
    changed = replace(one, rounds=[replace(first, data=data, manifests={**first.manifests, "score": manifest})])
    theirs = other.at(1).manifests["score"]
    theirs = theirs.model_copy(update={"inputs": {**theirs.inputs, "eval trait": "2" * 64}})
    rounds = [replace(other.at(1), manifests={**other.at(1).manifests, "score": theirs}), other.at(2)]
    with pytest.raises(SteerHealError) as refused:
        refuse_incomparable(changed, replace(other, rounds=rounds), "round")
    given = str(refused.value.given)
    assert "trait file: 111111111111 and 222222222222" in given and "held-out prompts: 6 and 6, 5 in common" in given
    assert "(000000000000) and " in given
