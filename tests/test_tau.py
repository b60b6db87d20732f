"""tau of an arm as a share of another's late D: what is read, when, and what the cell says of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from synthetic_run import IDENTITY, STUDY, arm

from evals.study.drive import drive
from evals.study.plan import read_plan
from evals.study.tau import late_d, logged_divergence, parse_tau
from shared.config import resolve_config, sources_of
from shared.errors import SteerHealError
from shared.publish import write_text
from shared.run import Run
from shared.stage import Stage
from shared.stages import Step

HALF = 'tau = "half of nll\'s late D"'
D = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.701, 0.9]  # by step; the last quarter's mean is 0.8005


def written(folder: Path, *, more: str = HALF, set: str = "train.divergence=kl_rev", seeds: str = "[0]") -> Path:
    """STUDY with kl_rev's tau from nll."""
    text = STUDY.replace(arm("kl_rev", "train.divergence=kl_rev"), arm("kl_rev", set, more)).replace("[0, 1]", seeds)
    path = folder / "study.toml"
    write_text(path, text)
    return path


def train(run: Run, values: list[float] = D) -> None:
    """Round 1's log, with held-out rows between its steps, and its manifest."""
    log = run.round(1) / "train.jsonl"
    rows = [{"step": step, "ce": 1.0, **{f"kl_base_{kind}": value * (1 + (kind == "p95")) for kind in ("mean", "rmse", "p95", "max")}} for step, value in enumerate(values, start=1)]  # fmt: skip
    rows.insert(3, {"step": 3, "heldout_ce": 1.0})
    write_text(log, "".join(json.dumps({"version": 1, **row}) + "\n" for row in rows))
    Stage(run, 1, "heal", settings={}, inputs={}, outputs=[log]).finish(IDENTITY)


def test_tau_is_a_share_of_the_d_of_the_last_quarter(tmp_path: Path) -> None:
    path, runs = written(tmp_path), tmp_path / "runs"
    nll, waiting, *_ = read_plan(path, runs).cells
    assert waiting.waits and not nll.waits and waiting.tau_words == "half of nll's late D, in nll-s0"
    train(nll.run)
    assert late_d(nll.run, nll.config) == pytest.approx(0.8005)
    cell = read_plan(path, runs).cells[1]
    assert (cell.waits, cell.config.train.tau) == (False, 0.4002)  # to four digits, the even one
    assert cell.folder == waiting.folder and cell.sources == {"train.tau": "half of nll's late D, in nll-s0"}
    p95 = read_plan(written(tmp_path, set="train.divergence=kl_rev train.aggregate=p95"), runs).cells[1]
    assert p95.config.train.tau == pytest.approx(0.8005)  # by the arm's own aggregate
    log = nll.run.round(1) / "train.jsonl"
    log.write_text(log.read_text().replace("0.701", "0.8"))
    with pytest.raises(SteerHealError, match="is not what it made"):
        read_plan(path, runs)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"more": 'tau = "half of nll"'}, "is not of the form"),
        ({"more": 'tau = "half of wd\'s late D"'}, "no arm wd of seed 0 before it"),
        ({"more": 'tau = "half of kl_rev\'s late D"'}, "no arm kl_rev of seed 0 before it"),
        ({"set": "train.divergence=kl_rev train.tau=0.2"}, "its set has a train.tau as well"),
        ({"set": "train.divergence=js"}, "its D is js, and nll logs kl_rev"),
    ],
)
def test_an_arm_that_cannot_take_its_tau_is_refused(changes: dict[str, str], said: str, tmp_path: Path) -> None:
    with pytest.raises(SteerHealError, match="could not be read") as refused:
        read_plan(written(tmp_path, **changes), tmp_path / "runs")
    assert said in str(refused.value.given)


def test_words_of_a_share() -> None:
    assert [parse_tau(f"{words} nll's late D").share for words in ("half of", "a third of", "a quarter of", "twice", "0.8 of", "1.5 of")] == [1 / 2, 1 / 3, 1 / 4, 2.0, 0.8, 1.5]  # fmt: skip
    assert parse_tau("half of kl_rev-0.3's late D").arm == "kl_rev-0.3"
    assert [logged_divergence(name) for name in ("nll", "wd", "kl_fwd", "js")] == ["kl_rev", "kl_rev", "kl_fwd", "js"]


def performed(monkeypatch: pytest.MonkeyPatch, stops: str = "") -> list[tuple[str, int, str, float]]:
    """Stages that take no time, each with the tau of its run; the heal of a cell named `stops` fails."""
    done: list[tuple[str, int, str, float]] = []

    def perform(step: Step) -> SteerHealError | None:
        run = step.run
        done.append((run.folder.name, step.number, step.stage, run.config.train.tau))
        if step.stage == "heal" and run.folder.name == stops:
            return SteerHealError("out of luck", given="a die", expected="six", next="again")
        if (step.number, step.stage) == (1, "heal"):
            train(run)
        else:
            Stage(run, step.number, step.stage, settings={}, inputs={}, outputs=[]).finish(IDENTITY)
        return None

    monkeypatch.setattr("evals.study.drive._perform", perform)
    return done


def test_a_waiting_cell_is_begun_with_its_number_and_says_where_it_is_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, runs, done = written(tmp_path, seeds="[0, 1]"), tmp_path / "runs", performed(monkeypatch)
    assert drive(read_plan(path, runs)) == {}
    taus = {name: {tau for cell, *_, tau in done if cell == name} for name, *_ in done}
    assert taus == {"nll-s0": {0.3}, "nll-s1": {0.3}, "random-s0": {0.3}, "kl_rev-s0": {0.4002}, "kl_rev-s1": {0.4002}}
    assert [(number, stage) for name, number, stage, _ in done if name == "kl_rev-s1"][-1] == (2, "score-full")
    frozen = (runs / "kl_rev-s1" / "config.toml").read_text()
    assert "tau = 0.4002 # half of nll's late D, in nll-s1" in frozen
    assert sources_of(runs / "kl_rev-s1" / "config.toml")["train.tau"].startswith("half of nll's")
    assert resolve_config(runs / "kl_rev-s1" / "config.toml")[0].train.tau == 0.4002
    again = read_plan(path, runs)
    assert not any(cell.waits for cell in again.cells) and np.isclose(again.cells[1].config.train.tau, 0.4002)
    done.clear()
    assert drive(again) == {} and done == []


def test_a_cell_whose_reference_stopped_stops_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, runs = written(tmp_path), tmp_path / "runs"
    performed(monkeypatch, stops="nll-s0")
    stopped = drive(read_plan(path, runs))
    assert "an arm's tau has no source" in stopped["kl_rev-s0"] and "out of luck" in stopped["nll-s0"]
    assert not (runs / "kl_rev-s0" / "config.toml").exists()
    performed(monkeypatch)  # the same command, with better luck
    assert drive(read_plan(path, runs)) == {} and read_plan(path, runs).cells[1].config.train.tau == 0.4002
