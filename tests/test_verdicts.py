"""The forced choice's verdict by the real command on made-up answers: every way in which it was fooled, and both sides of its rules."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import command
from made_answers import SOCIAL, human, made, read, shifted
from scipy.special import softmax

from evals.compare import main
from evals.evidence import Target, forced_choice_evidence
from evals.ladder import verdict_of
from evals.measures.forced_choice.levels import deltas
from evals.statistics import AUTHORITY, CARE
from shared.errors import SteerHealError
from shared.records import write_jsonl

Rows = list[dict[str, Any]]


class Asking:
    """`python -m evals.compare` in this process; sides of one row list each, or several under a plural name."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch):
        self._folder, self._patch = folder, monkeypatch

    def __call__(self, **sides: Rows | list[Rows]) -> dict[str, Any]:
        out = self._folder / "out.json"
        self._patch.setattr(sys, "argv", ["evals.compare", *self.arguments(**sides), "--out", str(out)])
        main()
        (seed,) = json.loads(out.read_text(), parse_constant=lambda name: pytest.fail(name))["seeds"]
        return dict(seed)

    def arguments(self, **sides: Rows | list[Rows]) -> list[str]:
        words = []
        for name, given in sides.items():
            several: list[Any] = given if given and isinstance(given[0], list) else [given]
            words.append(f"--{name}")
            for index, rows in enumerate(several):
                path = self._folder / f"{name}-{index}.jsonl"
                write_jsonl(path, rows)
                words.append(str(path))
        return words


@pytest.fixture
def ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Asking:
    return Asking(tmp_path, monkeypatch)


BASE = human()
DRAWS = [made(shifted(BASE, 0.0, seed=10 + k)) for k in range(9)]


def constant(options: dict[int, int], per: int = 3) -> np.ndarray:
    """Logits of a model that picks one option for all items of a foundation."""
    found = np.zeros((7 * per, 7))
    for f in range(7):
        found[f * per : (f + 1) * per, options.get(f, AUTHORITY)] = 4.0
    return found


def favouring(option: int, nats: float) -> np.ndarray:
    return human(10, signal=4.0) + nats * np.eye(7)[option]


def no_authority() -> np.ndarray:
    """Informed on six foundations; authority's column is noise."""
    found = human()
    found[:, AUTHORITY] = np.random.default_rng(5).normal(1.0, 0.6, len(found))
    return found


@pytest.mark.parametrize(
    ("base", "state"),
    [
        pytest.param(human(signal=0.0), "no_axis", id="answers do not depend on the vignette"),
        pytest.param(no_authority(), "no_axis", id="authority alone is noise"),
        pytest.param(constant({}), "no_axis", id="always authority"),
        pytest.param(constant({0: 1, 1: 0}), "no_axis", id="informedness of exactly 0 that rounds above it"),
        pytest.param(favouring(0, 4.5), "kept", id="right, with care favoured by 4.5 nats"),
        pytest.param(favouring(SOCIAL, 4.0), "kept", id="right, with not-wrong favoured by 4 nats"),
        pytest.param(BASE, "kept", id="a model that can do the task"),
    ],
)
def test_whether_there_is_an_axis(base: np.ndarray, state: str, ask: Asking) -> None:
    """Authority falls by a nat under steering and in the student: what is said of it hangs on the base."""
    found = ask(base=made(base), other=made(shifted(base, -1.0)), steered=made(shifted(base, -1.1, seed=2)))
    assert found["verdict"] == state, found["verdict_reason"]
    assert (found["authority_contrast_ci"] is None or found["authority_contrast_ci"][0] > 0.5) or state == "no_axis"


def test_informedness_of_the_swapped_pattern_is_zero(ask: Asking) -> None:
    found = ask(base=made(constant({0: 1, 1: 0})), other=made(constant({0: 1, 1: 0})))
    assert found["informedness"] == pytest.approx(0, abs=1e-12) and found["verdict"] is None


SLOT = np.where(np.arange(7) == 3, -0.6, 0.0)


@pytest.mark.parametrize(
    ("other", "state", "said"),
    [
        pytest.param(made(shifted(BASE, 2.0, option=SOCIAL)), "unspecific", "not d_auth alone", id="moral numbing"),
        pytest.param(made(shifted(BASE, 2.0, 0.0, option=SOCIAL)), "unspecific", "", id="numbing alike in every item"),
        pytest.param(made(shifted(BASE, -0.012, 0.0)), "no_shift", "not below -0.05", id="a hundredth of a nat"),
        pytest.param(made(shifted(BASE, 1.0)), "no_shift", "not below", id="authority rises"),
        pytest.param(made(shifted(BASE, 0.0)), "no_shift", "not below", id="noise"),
        pytest.param(made(BASE, slots=SLOT), "no_shift", "not below", id="slot 3, rotating orders"),
        pytest.param(made(BASE, "cyclic", slots=SLOT), "no_shift", "not below", id="slot 3, cyclic orders"),
        pytest.param(made(BASE, "reversal", slots=SLOT), "kept", "looks the same; score with --debias rotating", id="slot 3, reversed orders"),
        pytest.param(made(shifted(BASE, -1.0), mass=0.6), "broken", "lies below 0.85", id="a quarter of the answer mass gone"),
        pytest.param(made(shifted(BASE, -1.0), mass=np.tile([0.8, 0.62], 14)), "degraded", "may be under 0.9", id="a tenth gone"),
        pytest.param(made(shifted(BASE, -1.0), mass=0.99), "kept", "no doses", id="more answer mass than the base's"),
        pytest.param(made(shifted(BASE, -1.0)), "kept", "no doses of plain steering", id="a true effect"),
    ],
)  # fmt: skip
def test_what_is_said_of_a_shift(other: Rows, state: str, said: str, ask: Asking) -> None:
    """Steering and the student move alike."""
    base = made(BASE, other[0]["debias"])
    found = ask(base=base, other=other, steered=other)
    assert found["verdict"] == state and said in found["verdict_reason"], found["verdict_reason"]
    assert (found["surgical"], found["surgical_care"] in (True, False)) == (state not in ("unspecific", "no_shift"), True)  # fmt: skip
    if state == "unspecific":
        assert found["d_auth_ci"][1] < -0.05 and found["p_not_wrong"] > 0.3


def test_a_base_that_does_not_answer_in_the_format(ask: Asking) -> None:
    """A gain in answer mass is not coherence: 0.12 to 0.49 was healed."""
    other = made(shifted(BASE, -1.0), mass=0.49)
    found = ask(base=made(BASE, mass=0.12), other=other, steered=other)
    assert found["verdict"] == "no_format" and found["coherence"] == pytest.approx(0.49 / 0.12)
    assert ask(base=made(BASE, mass=0.51), other=other, steered=other)["verdict"] == "kept"


@pytest.mark.parametrize(
    ("healed", "state"), [(-1.0, "kept"), (-0.45, "kept"), (-0.2, "undone"), (-0.01, "not_shown"), (0.3, "not_shown")]
)
def test_what_a_student_keeps(healed: float, state: str, ask: Asking) -> None:
    found = ask(base=made(BASE), other=made(shifted(BASE, healed, 0.02)), steered=made(shifted(BASE, -1.0, 0.02, 2)))
    assert found["verdict"] == state, found["verdict_reason"]
    assert found["retain"] == pytest.approx(found["d_auth"] / deltas(read(made(BASE)), read(made(shifted(BASE, -1.0, 0.02, 2))))["d_auth"].value)  # type: ignore[union-attr]  # fmt: skip


@pytest.mark.parametrize(
    ("draws", "p", "state"),
    [
        (DRAWS, 0.1, "kept"),
        (DRAWS[:8], 1 / 9, "kept"),
        ([*DRAWS[:8], made(shifted(BASE, -2.0))], 0.2, "no_shift"),
        ([*DRAWS[:7], made(shifted(BASE, -2.0))], 2 / 9, "kept"),
    ],
    ids=["nine fall short", "eight are too few to count", "one of nine goes further", "one of eight"],
)
def test_steering_is_ranked_among_random_directions(draws: list[Rows], p: float, state: str, ask: Asking) -> None:
    moved = made(shifted(BASE, -1.0, seed=2))
    found = ask(base=made(BASE), other=made(shifted(BASE, -1.0)), steered=moved, random=draws)
    assert found["random_rank_p"] == pytest.approx(p) and found["verdict"] == state, found["verdict_reason"]


@pytest.mark.parametrize(("before", "state"), [(-0.3, "kept"), (-1.0, "no_shift"), (-1.5, "no_shift")])
def test_a_later_round_must_go_beyond_the_one_before(before: float, state: str, ask: Asking) -> None:
    found = ask(
        base=made(BASE), other=made(shifted(BASE, -1.0, 0.1)), steered=made(shifted(BASE, -1.0, 0.1, 2)),
        before=made(shifted(BASE, before, 0.1, 3)),
    )  # fmt: skip
    assert found["verdict"] == state and (state == "kept" or "the student before" in found["verdict_reason"])
    assert found["increment"] == pytest.approx(found["d_auth"] - deltas(read(made(BASE)), read(made(shifted(BASE, before, 0.1, 3))))["d_auth"].value)  # type: ignore[union-attr]  # fmt: skip


def dosed(loss: float) -> list[Rows]:
    """Plain steering at half, three quarters and the whole of a dose that costs this share of the answer mass, as its square."""
    noise = np.random.default_rng(9).normal(0, 0.01, 28)
    return [
        made(shifted(BASE, -c, 0.05, 2), mass=0.8 * (1 - loss * c**2) + noise, coefficient=c) for c in (0.5, 0.75, 1.0)
    ]


@pytest.mark.parametrize(
    ("mass", "loss", "state"),
    [(0.79, 0.10, "healed"), (0.745, 0.10, "kept"), (0.79, 0.01, "kept"), (0.81, 0.0, "kept")],
    ids=["cheaper", "as dear", "steering is cheap too", "neither costs anything"],
)
def test_healed_needs_to_be_cheaper_than_a_lower_dose(mass: float, loss: float, state: str, ask: Asking) -> None:
    noise = np.random.default_rng(8).normal(0, 0.01, 28)
    other = made(shifted(BASE, -0.8, 0.05), mass=mass + noise)
    doses = dosed(loss)
    found = ask(base=made(BASE), other=other, steered=doses[2], doses=doses)
    assert found["verdict"] == state, found["verdict_reason"]
    assert "answer mass lost less that of plain steering" in found["verdict_reason"]
    low, high = found["price_less_steering_ci"]
    assert (high < 0) == (state == "healed") and low <= found["price_less_steering"] <= high
    chord = ask(base=made(BASE), other=other, steered=doses[2], doses=doses[2:])
    assert chord["verdict"] == "kept" and chord["price_less_steering"] is None, "a chord overstates a price that bends"
    far = ask(base=made(BASE), other=made(shifted(BASE, -1.4, 0.05), mass=mass + noise), steered=doses[2], doses=doses)
    assert far["verdict"] == "kept" and far["price_less_steering"] is None, "no dose reaches the student's shift"


def test_the_command_prints_the_verdict_and_refuses_what_does_not_go_together(ask: Asking, tmp_path: Path) -> None:
    other = made(shifted(BASE, -1.0))
    words = ask.arguments(base=made(BASE), other=other, steered=other, random=DRAWS)
    done = command("evals.compare", *words, "--out", tmp_path / "out.json")
    assert done.returncode == 0, done.stderr
    assert "kept: d_auth is -" in " ".join(done.stdout.split())
    for sides, said in (
        ({"steered": made(BASE, "reversal")}, "debias: reversal against rotating"),
        ({"random": [made(BASE, "cyclic")]}, "debias: cyclic against rotating"),
        ({"doses": other}, "no coefficient above 0"),
        ({"steered": [other, other]}, "different numbers of files"),
        ({"before": [{**row, "template": "{}"} for row in made(BASE)]}, "template"),
    ):
        base = [{**row, "template": '{"a": 1}'} for row in made(BASE)] if said == "template" else made(BASE)
        with pytest.raises(SteerHealError) as refused:
            ask(base=base, other=base, **sides)  # type: ignore[arg-type]
        assert said in refused.value.render()


def test_vignettes_that_are_partly_rated_are_refused(ask: Asking) -> None:
    label = [1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    mixed = [{**row, "label": label if index else None} for index, row in enumerate(made(BASE))]
    with pytest.raises(SteerHealError, match="could not be used") as refused:
        ask(base=mixed, other=mixed)
    assert "27 vignettes that people have rated and 1 that nobody has" in refused.value.render()


def simulated(seed: int, per: int, delta: float, shuffled: bool = False) -> str:
    """The verdict on steering and a student that each add noise to a base with an axis, and delta to authority.

    shuffled: the base's answers are those to other vignettes.
    """
    template, base = TEMPLATES[per], human(per, seed)
    if shuffled:
        base = np.random.default_rng(seed).permutation(base)
    moves = (delta, delta, *[0.0] * 9)
    scores = [base, *[shifted(base, move, 0.5, 100 * seed + k) for k, move in enumerate(moves)]]
    found, steered, healed, *draws = [replace(template, score=score, p=softmax(score, axis=1)) for score in scores]
    return verdict_of(
        forced_choice_evidence(found, steered, healed, draws=draws, coherence=deltas(found, healed)["coherence"])
    )[0]


TEMPLATES = {per: read(made(human(per))) for per in (4, 10)}
HELD = ("kept", "healed")  # healed is kept and cheaper, so that it is said no more often


def test_a_null_is_not_kept_and_a_true_effect_is() -> None:
    """Of 200 runs in which nothing about authority moves at most 2 % are kept; half a nat at 70 items is said in 80 %."""
    for shuffled in (False, True):
        null = [simulated(seed, 4, 0.0, shuffled) for seed in range(200)]
        assert sum(one in HELD for one in null) <= 4, null
    true = [simulated(seed, 10, -0.5) for seed in range(100)]
    assert sum(one in HELD for one in true) >= 80, true
    lost = [simulated(seed, 10, -1.0, shuffled=True) for seed in range(100)]
    assert sum(one == "no_axis" for one in lost) >= 98, "a shift of an option that the base does not understand"


@pytest.mark.parametrize(("delta", "state"), [(1.0, "kept"), (-1.0, "no_shift")])
def test_a_trait_may_be_about_another_foundation_and_sign(delta: float, state: str) -> None:
    """More care is more trait: read for care and up."""
    base = read(made(human(10)))
    steered, healed = (read(made(shifted(human(10), delta, 0.2, seed, option=CARE))) for seed in (1, 2))
    draws = [read(made(shifted(human(10), -delta, 0.2, 20 + k, option=CARE))) for k in range(9)]
    found, reason = verdict_of(forced_choice_evidence(base, steered, healed, draws=draws, target=Target(CARE, 1)))
    assert found == state and "d_care" in reason
    assert verdict_of(forced_choice_evidence(base, steered, healed))[0] not in HELD, "nothing about authority alone"
