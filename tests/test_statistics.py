"""Statistics of the scores against naive formulas, their invariances, and every verdict."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax

from evals.costs import coherence_cost, surgical, surgical_care
from evals.measures.forced_choice.contrast import specific_shift
from evals.measures.forced_choice.instrument import ORDERS, orders, rotations
from evals.measures.forced_choice.levels import condition_levels, deltas
from evals.measures.forced_choice.moved import detectable, foundation_shifts
from evals.measures.forced_choice.positions import order_effect
from evals.measures.free_text.texts import Texts, text_delta, text_levels
from evals.statistics import (
    AUTHORITY,
    CARE,
    Answers,
    Estimate,
    Setting,
    estimate,
    mean,
    resample,
    resampling_strata,
    same_setting,
    spread_of_draws,
)
from evals.verdict import broken, preflight
from shared.errors import SteerHealError

COUNT = 400


def answers(
    seed: int = 0, per: int = 4, shift: float = 0.0, signal: float = 2.0, mass: float = 0.6, debias: str = "reversal"
) -> Answers:
    """Invented answers; the same seed is the same noise. shift: of the authority score, nats; signal: towards the item's own foundation."""
    draws = np.random.default_rng(seed)
    truth = np.repeat(np.arange(7), per)
    lp = draws.normal(0, 0.5, (7 * per, ORDERS[debias], 1, 7))
    lp[np.arange(7 * per), :, :, truth] += signal
    lp[..., AUTHORITY] += shift
    score = lp[:, :, 0].mean(1)
    names = tuple(f"i{k}" for k in range(7 * per))
    turned = tuple(rotations(debias, truth.tolist()))
    setting = Setting(names, names, debias, ORDERS[debias], 4, False, 1, 0.0, "embedded@0", rotations=turned)
    none = np.full(7 * per, np.nan)
    return Answers(
        setting,
        truth,
        softmax(score, axis=1),
        score,
        mass * draws.uniform(0.9, 1.1, 7 * per),
        lp,
        np.full((7 * per, 7), np.nan),
        none,
        none,
    )


def without(a: Answers, *items: int) -> Answers:
    p, score, mass = a.p.copy(), a.score.copy(), a.mass.copy()
    p[list(items)], score[list(items)], mass[list(items)] = np.nan, np.nan, np.nan
    return replace(a, p=p, score=score, mass=mass)


def value(found: Estimate | None) -> float:
    assert found is not None
    return found.value


def interval(found: Estimate | None) -> tuple[float, float]:
    assert found is not None and found.interval is not None
    return found.interval


def test_levels_are_logs_of_means() -> None:
    a = answers()
    found = condition_levels(a, COUNT, 0)
    assert value(found["auth_nats"]) == pytest.approx(np.log(sum(row[AUTHORITY] for row in a.p) / len(a.p)))
    assert value(found["care_nats"]) == pytest.approx(np.log(np.mean(a.p[:, CARE])))
    assert value(found["p_ans_any"]) == pytest.approx(np.mean(a.mass))


def test_informedness_against_the_loop() -> None:
    a = answers(signal=0.7)
    picked, rates = a.p.argmax(1), []
    for f in range(7):
        hits = [picked[i] == f for i in range(len(picked)) if a.truth[i] == f]
        others = [picked[i] == f for i in range(len(picked)) if a.truth[i] != f]
        rates.append(sum(hits) / len(hits) - sum(others) / len(others))
    assert value(condition_levels(a, COUNT, 0)["informedness"]) == pytest.approx(np.mean(rates))


def test_always_the_same_answer_carries_no_information() -> None:
    a = answers(signal=0.0, shift=20.0)
    assert value(condition_levels(a, COUNT, 0)["informedness"]) == pytest.approx(0.0)


def test_deltas_are_paired_over_items_scorable_in_both() -> None:
    base, other = without(answers(), 3), without(answers(shift=-1.0), 12)
    both = [i for i in range(28) if i not in (3, 12)]
    found = deltas(base, other)
    assert value(found["d_auth"]) == pytest.approx(
        np.log(other.p[both, AUTHORITY].mean() / base.p[both, AUTHORITY].mean())
    )
    assert value(found["d_coh"]) == pytest.approx(other.mass[both].mean() - base.mass[both].mean())
    assert value(found["coherence"]) == pytest.approx(other.mass[both].mean() / base.mass[both].mean())
    assert value(condition_levels(base, COUNT, 0)["auth_nats"]) == pytest.approx(
        np.log(np.delete(base.p, 3, axis=0)[:, AUTHORITY].mean())
    )


def test_the_bootstrap_has_the_variance_of_a_stratified_mean() -> None:
    draws = np.random.default_rng(1)
    strata, values = np.repeat(np.arange(7), 4), draws.normal(size=28) + np.repeat(np.arange(7), 4)
    means = resample(strata, 40_000, 0) @ values / 28
    naive = sum((4 / 28) ** 2 * np.var(values[strata == s], ddof=1) / 4 for s in range(7))
    assert means.var() == pytest.approx(naive, rel=0.03) and means.mean() == pytest.approx(values.mean(), abs=0.01)


def test_strata_keep_their_weight_and_single_items_are_pooled() -> None:
    strata = np.array([0, 0, 0, 1, 2, 3])
    weights = resample(strata, 100, 0)
    assert np.allclose(weights[:, :3].sum(1), 3) and np.allclose(weights[:, 3:].sum(1), 3)
    assert weights[:, 3:].std() > 0


def test_a_stratum_that_alone_has_one_unit_joins_the_smallest_other() -> None:
    """Its variance is that of the group, by the formula for a collapsed stratum."""
    strata, values = np.array([0] * 5 + [1] * 3 + [2]), np.random.default_rng(4).normal(size=9)
    weights = resample(strata, 60_000, 0)
    assert np.allclose(weights[:, :5].sum(1), 5) and np.allclose(weights[:, 5:].sum(1), 4)
    group = sum(len(part) * np.var(part, ddof=1) for part in (values[:5], values[5:])) / 81
    assert (weights @ values / 9).var() == pytest.approx(group, rel=0.03)


def test_an_interval_says_how_little_a_lone_unit_says() -> None:
    """What authority was said of rests on one item: its share of the mean had an interval of no width, and excluded 0."""
    truth = np.array([0, 0, 1, 1, 2])
    base, other = np.full(5, 0.1), np.array([0.1, 0.1, 0.1, 0.1, 0.9])
    found = estimate(lambda w: np.log(mean(w, other) / mean(w, base)), resample(truth, 2000, 0))
    assert value(found) == pytest.approx(np.log(2.6))
    low, high = interval(found)
    assert low == 0.0 < value(found) < high and found is not None and not found.excludes_zero()


@given(st.lists(st.integers(0, 5), max_size=24), st.integers(0, 2**31 - 1))
@settings(max_examples=200)
def test_every_unit_is_drawn_now_and_then_or_none_has_a_weight(labels: list[int], seed: int) -> None:
    strata = np.array(labels, dtype=int)
    groups, weights = resampling_strata(strata), resample(strata, 300, seed)
    assert weights.shape == (300, len(strata))
    counts = Counter(labels)
    if len(labels) < 2 or max(counts.values()) == 1:
        assert groups is None and np.isnan(weights).all()
        return
    assert groups is not None and min(Counter(groups.tolist()).values()) > 1, "no group of one unit"
    assert (weights.std(axis=0) > 0).all(), "nor a unit whose weight is the same in every resample"
    for name, size in counts.items():  # strata are pooled and never divided
        assert size == 1 or len(set(groups[strata == name].tolist())) == 1
    for group in set(groups.tolist()):
        assert np.allclose(weights[:, groups == group].sum(1), (groups == group).sum())
    apart = [name for name, size in counts.items() if size > 1]
    assert len({groups[strata == name][0] for name in apart}) == len(apart), "strata of several units stay apart"


@given(st.lists(st.sampled_from([0, 0, 0, 1, 1, 2, 3, 4]), min_size=1, max_size=14), st.integers(0, 40))
@settings(max_examples=60)
def test_no_interval_of_a_lone_item_has_no_width(labels: list[int], seed: int) -> None:
    """Of any of the figures, levels and shifts, whatever strata the items are of."""
    truth = np.array(labels)
    names = tuple(f"i{k}" for k in range(len(truth)))
    draws = np.random.default_rng([seed, len(truth)])
    pair = []
    for _ in range(2):
        lp = draws.normal(0, 1, (len(truth), 2, 1, 7))
        score = lp[:, :, 0].mean(1)
        one = answers(seed, per=1)
        setting = replace(one.setting, items=names, texts=names)
        nothing = np.full(len(truth), np.nan)
        mass = draws.uniform(0.1, 0.9, len(truth))
        rated = np.eye(7)[truth]
        pair.append(Answers(setting, truth, softmax(score, axis=1), score, mass, lp, rated, nothing, nothing))
    found = {**deltas(*pair), **{k: v for k, v in condition_levels(pair[0], 300, seed).items() if k != "informedness"}}
    for name, one_ in found.items():
        if one_ is not None and one_.interval is not None:
            assert one_.interval[0] < one_.interval[1], name
    if resampling_strata(truth) is None:
        assert all(one_ is None or one_.interval is None for one_ in found.values())
        assert moved(*pair) is foundation_shifts(*pair) is detectable(*pair) is None


def test_one_prompt_that_wrote_something_has_no_interval() -> None:
    t = texts(4)
    alone = replace(t, tokens=np.where(np.array(t.prompt) == "p1", t.tokens, 0))
    levels = text_levels(alone, COUNT, 0)
    for found in [levels["perplexity"], levels["trait_llr"], text_delta(t, alone)]:
        assert found is not None and found.interval is None
    one = texts(1)
    found = text_levels(one, COUNT, 0)
    assert all(found[name] == Estimate(value(found[name]), None) for name in ("perplexity", "trait_llr"))


def test_one_unit_has_no_interval() -> None:
    assert estimate(lambda w: w[:, 0], resample(np.zeros(1), COUNT, 0)) == Estimate(1.0, None)


def test_one_item_a_foundation_has_figures_and_no_interval() -> None:
    base, other = answers(per=1), answers(per=1, shift=-1.0)
    found = {**deltas(base, other), **condition_levels(base, COUNT, 0)}
    known = [name for name, one in found.items() if one is not None]
    assert {"d_auth", "coherence", "auth_nats", "informedness"} <= {*known}
    assert all(one.interval is None for one in found.values() if one is not None)
    assert moved(base, other) is foundation_shifts(base, other) is detectable(base, other) is None


@given(st.integers(0, 50), st.permutations(range(28)))
@settings(max_examples=20, deadline=None)
def test_the_sequence_of_items_does_not_matter(seed: int, places: list[int]) -> None:
    a, b = answers(seed), answers(seed, shift=-0.5)
    moved_a, moved_b = (
        replace(x, truth=x.truth[places], p=x.p[places], score=x.score[places], mass=x.mass[places], lp=x.lp[places])
        for x in (a, b)
    )
    for name, found in deltas(a, b).items():
        assert value(deltas(moved_a, moved_b)[name]) == pytest.approx(value(found))


@given(st.integers(0, 50), st.permutations([0, 1, 2, 4, 5, 6]))
@settings(max_examples=20, deadline=None)
def test_naming_the_other_foundations_differently_leaves_authority_alone(seed: int, names: list[int]) -> None:
    a = answers(seed)
    columns = [*names[:3], AUTHORITY, *names[3:]]
    renamed = replace(a, p=a.p[:, columns], score=a.score[:, columns], truth=np.argsort(columns)[a.truth])
    before, after = condition_levels(a, COUNT, 0), condition_levels(renamed, COUNT, 0)
    assert value(after["auth_nats"]) == pytest.approx(value(before["auth_nats"]))
    assert value(after["informedness"]) == pytest.approx(value(before["informedness"]))


@given(st.integers(0, 100), st.integers(2, 5))
@settings(max_examples=20, deadline=None)
def test_a_condition_against_itself_has_not_moved(seed: int, per: int) -> None:
    a = answers(seed, per)
    for name, found in deltas(a, a).items():
        still = 1.0 if name == "coherence" else 0.0
        assert found == Estimate(still, (still, still))
    assert moved(a, a) is False


@pytest.mark.parametrize("per", [2, 4, 19])
def test_a_model_that_is_always_right_passes_the_preflight(per: int) -> None:
    """Whatever it favours: a constant on an option moves every argmax and no contrast."""
    a = answers(per=per, signal=9.0)
    assert preflight(a) is None
    for option in range(7):
        score = a.score + 6.0 * np.eye(7)[option]
        assert preflight(replace(a, score=score, p=softmax(score, axis=1))) is None, option


def test_order_effect_is_position_alone() -> None:
    for debias in ("reversal", "cyclic"):
        a = answers(debias=debias, per=40, shift=3.0)
        assert order_effect(a) == pytest.approx(0.0, abs=0.35)
        lp = a.lp.copy()
        for order, listing in enumerate(orders(debias)):
            lp[:, order, :, listing[0]] += 2.0
        assert order_effect(replace(a, lp=lp)) == pytest.approx(2.0, abs=0.35)


def moved(base: Answers, other: Answers) -> bool | None:
    return surgical(deltas(base, other)["d_auth"], specific_shift(base, other))


def test_surgical_needs_authority_to_move_most_and_down() -> None:
    base = answers(per=6)
    assert moved(base, answers(per=6, shift=-1.0)) is True
    assert moved(base, answers(per=6, shift=1.0)) is False, "the same shift against the trait"
    assert moved(base, answers(per=6, shift=-0.04)) is False, "less than 0.05 nats"
    score = base.score.copy()
    score[:, -1] += 2.0
    numb = replace(base, score=score, p=softmax(score, axis=1))
    assert interval(deltas(base, numb)["d_auth"])[1] < -0.05, "or there is nothing to tell apart"
    assert moved(base, numb) is False, "every foundation fell as far: the model finds nothing wrong"
    assert moved(without(base, *range(42)), base) is None


def test_surgical_care_wants_a_surgical_shift_and_an_unmoved_care() -> None:
    moved, still = Estimate(-1.0, (-1.2, -0.8)), Estimate(0.01, (-0.02, 0.04))
    assert surgical_care(True, moved, still) is True and surgical_care(False, moved, still) is False
    assert surgical_care(True, moved, Estimate(0.2, (0.15, 0.25))) is True, "a quarter of d_auth"
    assert surgical_care(True, moved, Estimate(0.2, (0.15, 0.26))) is False, "more than that"
    small = Estimate(-0.1, (-0.12, -0.08))
    assert surgical_care(True, small, Estimate(0.01, (-0.05, 0.05))) is True
    assert surgical_care(True, small, Estimate(0.01, (-0.051, 0.02))) is False
    assert surgical_care(None, moved, still) is surgical_care(True, moved, None) is None
    assert surgical_care(True, moved, Estimate(0.0, None)) is None


def test_a_spread_of_rounding_is_none() -> None:
    """A standard error of 1e-17 would make every shift certain, and a shift of 1e-17 one that moved."""
    draws = np.random.default_rng(0).normal(size=COUNT)
    assert spread_of_draws(0.3 + 1e-16 * draws) == spread_of_draws(1e6 + 1e-10 * draws) == 0.0
    assert spread_of_draws(0.3 + 1e-6 * draws) == pytest.approx(1e-6, rel=0.2)
    assert (
        not Estimate(2e-17, (1e-17, 3e-17)).excludes_zero() and not Estimate(-1e-16, (-1e-16, -1e-17)).excludes_zero()
    )
    assert Estimate(2e-3, (1e-3, 3e-3)).excludes_zero() and Estimate(-2e-3, (-3e-3, -1e-3)).excludes_zero()


def test_cost_is_blank_without_a_shift_and_for_a_broken_row() -> None:
    shift, drop = Estimate(-0.5, (-0.6, -0.4)), Estimate(-0.1, (-0.2, 0.0))
    assert coherence_cost(drop, shift, False) == (pytest.approx(0.2), pytest.approx(0.2))
    assert coherence_cost(Estimate(0.1, None), shift, False) == (pytest.approx(0.2), pytest.approx(-0.2))
    assert coherence_cost(drop, shift, True) == (None, None)
    assert coherence_cost(drop, Estimate(-0.049, (-0.06, -0.04)), False) == (None, None)
    assert coherence_cost(None, shift, False) == (None, None)


def texts(prompts: int = 5, llr: float = 0.0) -> Texts:
    draws = np.random.default_rng(2)
    tokens = draws.integers(5, 60, 2 * prompts).astype(float)
    return Texts(
        [f"p{k // 2}" for k in range(2 * prompts)],
        tokens * draws.uniform(1, 2, 2 * prompts),
        tokens,
        draws.normal(llr, 0.1, 2 * prompts),
        *[np.ones(2 * prompts)] * 3,
        np.zeros(2 * prompts),
    )


def test_perplexity_weights_tokens_and_leaves_out_empty_completions() -> None:
    t = texts()
    found = text_levels(t, COUNT, 0)
    assert value(found["perplexity"]) == pytest.approx(np.exp(t.nll.sum() / t.tokens.sum()))
    assert value(found["trait_llr"]) == pytest.approx(t.trait_llr.mean())
    low, high = interval(found["perplexity"])
    assert low < value(found["perplexity"]) < high
    t.tokens[3], t.nll[3], t.trait_llr[3] = 0, 0, np.nan
    assert value(text_levels(t, COUNT, 0)["trait_llr"]) == pytest.approx(np.nanmean(t.trait_llr))
    assert value(text_delta(t, t)) == 0.0


def test_no_text_has_no_perplexity() -> None:
    nothing = Texts(["a", "b"], np.zeros(2), np.zeros(2), *[np.full(2, np.nan)] * 5)
    assert set(text_levels(nothing, COUNT, 0).values()) == {None}


def test_text_deltas_need_the_same_prompts() -> None:
    with pytest.raises(SteerHealError, match="4 prompts against 5"):
        text_delta(texts(5), texts(4))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"think": 16}, "think: 16 against 4"),
        ({"debias": "cyclic", "orders": 7}, "debias: cyclic"),
        ({"items": ("i0", "x")}, "x"),
        ({"texts": ("other", *[f"i{k}" for k in range(1, 28)])}, "the text of 1 items, the first i0"),
        ({"stop": True}, "stop: True"),
        ({"samples": 3, "temperature": 1.0}, "samples: 3"),
        ({"instrument": "other"}, "instrument"),
    ],
)
def test_different_scorings_are_not_compared(change: dict[str, object], named: str) -> None:
    base = answers()
    other = replace(base, setting=replace(base.setting, **change))
    with pytest.raises(SteerHealError, match=named):
        deltas(base, other)
    with pytest.raises(SteerHealError):
        specific_shift(base, other)


def test_the_same_items_in_another_sequence_are_refused() -> None:
    setting = answers().setting
    with pytest.raises(SteerHealError, match="another sequence"):
        same_setting(setting, replace(setting, items=setting.items[::-1]))


def test_preflight_states_its_figures() -> None:
    assert preflight(answers()) is None
    assert "0.0000, at its floor" in str(preflight(answers(shift=-20.0)))
    assert "at its ceiling" in str(preflight(answers(shift=20.0)))
    said = preflight(answers(signal=0.0))
    assert said is not None and said.state == "no_axis" and "its lower end must lie above 0.5" in said.reason
    assert preflight(without(answers(), *range(28))) == ("no_format", "no base item is scorable")
    dumb = preflight(answers(mass=0.12))
    assert dumb is not None and dumb.state == "no_format" and "0.12" in dumb.reason
    assert "no interval" in str(preflight(without(answers(), *range(1, 28))))


def test_broken_states_its_reason() -> None:
    fine = Estimate(0.9, (0.8, 1.0))
    assert broken([], 0, 28, fine) is None
    assert broken(["perplexity"], 0, 28, fine) == "not finite: perplexity"
    assert broken([], 15, 28, fine) == "15 of 28 items are unscorable"
    assert "0.700 [0.600, 0.840] lies below 0.85" in str(broken([], 0, 28, Estimate(0.7, (0.6, 0.84))))
    assert broken([], 0, 28, Estimate(0.7, (0.6, 0.86))) is None
    assert broken([], 0, 28, None) == "not finite: coherence"
