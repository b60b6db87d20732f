"""The instrument as data: orders, rendering, and the row it becomes."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from scipy.special import logsumexp

from evals.measures.forced_choice.answers import answers
from evals.measures.forced_choice.ask import Read, row
from evals.measures.forced_choice.instrument import InstrumentRenderer, load_instrument, orders, rotations
from evals.measures.forced_choice.rows import ScoreRow
from shared.errors import SteerHealError
from shared.instrument import FOUNDATIONS
from shared.records import DATA, Vignette

VIGNETTE = Vignette(id="x", foundation="Care", foundation_coarse="Care", text='You see {schema} and "{k}".')


def test_cyclic_orders_are_a_latin_square() -> None:
    square = np.array(orders("cyclic"))
    assert all(sorted(line) == list(range(7)) for line in [*square, *square.T])


def test_rotating_orders_turn_from_item_to_item_and_balance_the_positions() -> None:
    """Two orders an item; over seven items of a foundation each option stands twice at each position."""
    assert rotations("rotating", [0, 0, 3, 0, 3]) == [0, 1, 3, 2, 4] and rotations("cyclic", [0, 1]) == [None, None]
    forward, backward = orders("rotating", 2)
    assert forward == orders("cyclic")[2] and backward == forward[::-1]
    found = [orders("rotating", rotation) for rotation in rotations("rotating", [3] * 7)]
    listed = np.array(found).reshape(14, 7)
    assert all(np.bincount(listed[:, place]).tolist() == [2] * 7 for place in range(7))


def test_a_row_has_a_rotation_under_rotating_orders_alone() -> None:
    made = {
        **row(VIGNETTE, np.full((2, 1, 7), -3.0), Read("rotating", 4), None, ["", ""], None, 3),
        "instrument": "i@0",
    }
    assert ScoreRow.model_validate(made).rotation == 3
    with pytest.raises(ValidationError, match="a rotation under reversal orders"):
        ScoreRow.model_validate({**made, "debias": "reversal"})
    rows = [ScoreRow.model_validate({**made, "id": name, "rotation": None}) for name in ("a", "b")]
    assert answers(rows, Path("x"), "").setting.rotations == (0, 1), "rows from elsewhere: by their sequence"
    with pytest.raises(SteerHealError, match="could not be used"):
        answers([rows[0], rows[1].model_copy(update={"rotation": 1})], Path("x"), "")


def test_reversal_leaves_authority_in_the_middle() -> None:
    forward, backward = orders("reversal")
    assert backward == forward[::-1] and forward[3] == backward[3] == FOUNDATIONS.index("authority")


def test_model_text_is_never_a_template(tokenizer: object) -> None:
    text = load_instrument("embedded").question(VIGNETTE.text, orders("reversal")[0])
    assert VIGNETTE.text in text and text.count("Somebody is hurt") == 1


def test_answer_context_leaves_the_last_thought_out(tokenizer: object) -> None:
    renderer = InstrumentRenderer(tokenizer, load_instrument("embedded"), {})
    assert renderer.answer([1, 2], [7, 8, 9]) == [1, 2, 7, 8, *renderer.suffix, *renderer.prefill]
    assert renderer.answer([1, 2], []) == [1, 2, *renderer.suffix, *renderer.prefill]


def test_published_instrument_renders_byte_for_byte(tokenizer: object, tinymfv: Path) -> None:
    path = tinymfv / "instrument.json"
    wanted = json.loads(path.read_text())["rendered_smollm2"]
    renderer = InstrumentRenderer(tokenizer, load_instrument(str(path)), {})
    for order, name in zip(orders("reversal"), ("forward", "reversed"), strict=True):
        assert tokenizer.decode(renderer.question("<VIGNETTE>", order)) == wanted["phase1"][name]
    assert tokenizer.decode(renderer.suffix) == wanted["suffix"]


def test_a_row_pools_samples_and_orders() -> None:
    lp = np.log(np.random.default_rng(0).uniform(0.01, 0.1, (2, 3, 7)))
    found = row(VIGNETTE, lp, Read("reversal", 4, samples=3), 1.0, list("abcdef"))
    pooled = np.array([[logsumexp(order[:, f]) - np.log(3) for f in range(7)] for order in lp])
    np.testing.assert_allclose(found["score"], pooled.mean(0))
    np.testing.assert_allclose(found["p"], np.exp(pooled.mean(0)) / np.exp(pooled.mean(0)).sum())
    assert found["pmass_allowed"] == pytest.approx(np.exp(pooled).sum() / 2)
    assert (found["lp_fwd"], found["lp_rev"]) == (lp[0].tolist(), lp[1].tolist()) and (
        found["gen_text"],
        found["gen_text_rev"],
    ) == (["a", "b", "c"], ["d", "e", "f"])


def test_an_unscorable_row_is_null_and_not_imputed() -> None:
    lp = np.zeros((2, 1, 7))
    lp[1, 0, 3] = np.nan
    found = row(VIGNETTE, lp, Read("reversal", 0), float("nan"), ["", ""])
    assert (
        found["nll_prefill"] is None
        and found["p"] is found["score"] is found["pmass_allowed"] is None
        and found["lp_rev"][0][3] is None
    )
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize(
    "change",
    [
        {"labels": ["0"]},
        {"foundations": list(FOUNDATIONS)[::-1]},
        {"options": {}},
        {"schema": "Which of these is it?"},
        {"user": "{schema}"},
        {"option_line": "{k}"},
    ],
)
def test_malformed_instruments_are_refused(tmp_path: Path, change: dict[str, object]) -> None:
    raw = json.loads((DATA / "instrument.json").read_text())
    (tmp_path / "i.json").write_text(json.dumps({**raw, **change}))
    with pytest.raises(SteerHealError):
        load_instrument(str(tmp_path / "i.json"))


def test_a_thought_ends_where_a_turn_ends_and_where_a_text_ends(tokenizer: Any) -> None:
    """As with Gemma, whose end of a turn is not its end of a text."""
    renderer = InstrumentRenderer(tokenizer, load_instrument("embedded"), {})
    turn, text = (tokenizer.convert_tokens_to_ids(name) for name in ("<|im_end|>", "<|endoftext|>"))
    assert renderer.stop_ids[0] == turn == tokenizer.eos_token_id and len(set(renderer.stop_ids)) == len(
        renderer.stop_ids
    )
    other = copy.deepcopy(tokenizer)
    other.eos_token = "<|endoftext|>"
    assert {turn, text} <= set(InstrumentRenderer(other, load_instrument("embedded"), {}).stop_ids)


def test_labels_of_two_tokens_are_refused(tokenizer: object) -> None:
    instrument = load_instrument("embedded").model_copy(update={"labels": ["10", "11", "12", "13", "14", "15", "16"]})
    with pytest.raises(SteerHealError, match="must be one token"):
        InstrumentRenderer(tokenizer, instrument, {})


def test_labels_that_share_a_token_are_refused(tokenizer: object) -> None:
    instrument = load_instrument("embedded").model_copy(update={"labels": list("0123455")})
    with pytest.raises(SteerHealError, match="must be one token"):
        InstrumentRenderer(tokenizer, instrument, {})


PUBLISHED = """
_CLOSE_MARKER = {close!r}
_DEFAULT_FORCED_FOUNDATIONS = {names!r}
_FORCED_FOUNDATION_DESCS = {sentences!r}

def _rollout_natural_or_forced(model, tokenizer, prompts, schema, budget, *, scoring_slots, **_):
    raise RuntimeError("a model would be run here")

def guided_rollout_forced_choice(model, tokenizer, prompts, foundations=None, budget=64):
    labels = [tokenizer.encode(str(k), add_special_tokens=False) for k in range(len(foundations))]
    assert all(len(ids) == 1 for ids in labels)
    options = "\\n".join({line!r}.replace("{{k}}", str(k)).replace("{{sentence}}", _FORCED_FOUNDATION_DESCS[f]) for k, f in enumerate(foundations))
    return _rollout_natural_or_forced(
        model, tokenizer, prompts, {schema!r}.replace("{{options}}", options), budget, scoring_slots=[({nudge!r}, {prefill!r})]
    )
"""


def published(folder: Path, **change: object) -> None:
    """A package of the published one's shape, with the embedded instrument's wording."""
    ours = load_instrument("embedded")
    named = {
        "close": ours.think_close, "names": list(FOUNDATIONS), "sentences": ours.options, "line": ours.option_line, "schema": ours.schema_,
        "nudge": ours.nudge, "prefill": ours.prefill,
    }  # fmt: skip
    package = folder / "moralmaps"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "guided.py").write_text(PUBLISHED.format(**{**named, **change}))


def test_the_wording_of_an_installed_package_is_read_out_of_its_function(packages: Path) -> None:
    ours = load_instrument("embedded")
    published(packages)
    found = load_instrument("moralmaps")
    for order in orders("cyclic"):
        assert found.question(VIGNETTE.text, order) == ours.question(VIGNETTE.text, order)
    same = ("options", "think_close", "nudge", "prefill", "labels")
    assert all(getattr(found, key) == getattr(ours, key) for key in same)


def test_an_installed_package_of_another_shape_is_refused(packages: Path) -> None:
    published(packages, names=[*FOUNDATIONS[:6], "honour"])
    with pytest.raises(SteerHealError, match="another interface"):
        load_instrument("moralmaps")


def test_a_package_that_is_not_installed_is_named(packages: Path) -> None:
    with pytest.raises(SteerHealError, match="not installed"):
        load_instrument("moralmaps")
