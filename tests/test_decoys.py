"""Vectors of decoy personas: as long as the trait's, along another direction, and what a steered shift must exceed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from synthetic_run import build

from evals.conditions import before_training
from evals.decoys import decoy_vectors, personas
from evals.measures.activations import states
from evals.report.figures.base import Shown, legend_of
from evals.report.figures.registry import panels_of, pngs
from evals.results import results_of
from evals.scored import scored_rounds
from gen.extract import contexts_of, extract
from shared.chat import Chat
from shared.config import resolve_config
from shared.errors import SteerHealError
from shared.models import Model
from shared.schema import EvalConfig
from shared.traits import load_trait
from shared.vectors import cosine

SETTINGS = "vector.layers=[14,15] vector.n_contexts=6 eval.decoy_vectors=true"


def test_a_decoys_vector_is_its_own_direction_at_the_norms_of_the_trait_s(model: Model, tokenizer: object) -> None:
    config, _ = resolve_config(None, SETTINGS)
    vector = extract(model, None, config.model, config.vector)
    found = decoy_vectors(config, model, None, Chat(tokenizer), vector)
    trait = load_trait("embedded")
    assert [*found] == [f"decoy-{draw}" for draw in range(1, 1 + len(trait.decoys))]
    decoy = found["decoy-1"]
    chat, contexts = Chat(tokenizer), contexts_of(config.vector, 6)
    towards, away = (
        states(model, None, [14, 15], [chat.ids(row.turns, system) for row in contexts], 2)
        for system in (trait.decoys[0], trait.neutral)
    )
    for layer in (14, 15):
        assert decoy.norm(layer) == pytest.approx(vector.norm(layer), rel=1e-6)
        raw = (towards[layer] - away[layer]).mean(0)
        assert (cosine(raw, decoy.layers[layer]) or 0) > 1 - 1e-5
        assert abs(cosine(vector.layers[layer], decoy.layers[layer]) or 1) < 0.95
    assert decoy.metadata["trait"] == trait.decoys[0] and decoy.metadata["positions"] == vector.metadata["positions"]


def test_a_trait_file_without_decoys_is_refused(tmp_path: Path) -> None:
    trait = json.loads((Path(__file__).parent.parent / "shared/data/trait.json").read_text())
    (tmp_path / "t.json").write_text(json.dumps({**trait, "decoys": []}))
    with pytest.raises(SteerHealError, match="no decoys"):
        personas(resolve_config(None, f"vector.trait={tmp_path / 't.json'}")[0])


def test_decoys_are_conditions_beside_the_headline() -> None:
    trait = load_trait("embedded")
    asked = before_training(True, 1.25, "all", trait, EvalConfig(), 2)
    mine = [(c.name, c.vector, c.coefficient, c.draw, c.headline) for c in asked if c.stage == "decoy"]
    assert mine == [(f"decoy-{k}", f"decoy-{k}", 1.25, k, False) for k in (1, 2)]
    assert not any(c.stage == "decoy" for c in before_training(True, 1.25, "all", trait, EvalConfig()))
    assert "decoy_vectors" not in EvalConfig().determining()  # as manifests of earlier versions have it
    assert EvalConfig(decoy_vectors=True).determining()["decoy_vectors"] is True


def test_the_steered_shift_is_told_beside_a_decoy_s(tmp_path: Path) -> None:
    run = build(tmp_path / "run", 2, personas=True, decoys=2)
    rounds = scored_rounds(run, "round")
    found = results_of(run, rounds)
    decoys = [row for row in found["extra"] if row["stage"] == "decoy" and row["round"] == 1]
    assert [row["name"] for row in decoys] == ["decoy-1", "decoy-2"] and decoys[0]["coefficient"] > 0
    steered, healed = (next(row for row in found["rows"] if (row["round"], row["stage"]) == (1, stage)) for stage in ("steered", "healed"))  # fmt: skip
    assert steered["over_decoy"] == pytest.approx(steered["d_auth"] - min(row["d_auth"] for row in decoys), abs=1e-6)
    assert steered["over_decoy_ci"][1] < 0 < steered["over_decoy_llr_ci"][0] and healed["over_decoy"] is None
    assert healed["verdict"] not in (None, "no_shift")
    (said,) = [line for line in rounds[0].measures[0].sentences({}, {"steered": steered, "healed": healed}, []) if "decoy" in line]  # fmt: skip
    assert "decoy persona's vector of equal norm" in said
    shown = Shown(found["rows"], found["extra"], rounds)
    assert "decoy" in legend_of(shown)
    assert all(png.startswith(b"\x89PNG") for png in pngs(shown, panels_of(shown)).values())


def test_without_decoys_there_is_nothing_to_exceed(tmp_path: Path) -> None:
    run = build(tmp_path / "run", 1)
    (steered,) = [row for row in results_of(run, scored_rounds(run, "round"))["rows"] if row["stage"] == "steered"]
    assert steered["over_decoy"] is steered["over_decoy_ci"] is steered["over_decoy_llr"] is None
