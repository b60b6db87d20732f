"""The scan over layers: one relative dose everywhere, the figures of what was said, and which layer is named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import command

from gen.commandline import scan_options
from gen.prompts import PromptRenderer
from gen.scan import UNSTEERED, ScanSampling, chosen, estimated, sample_and_score, scan_places
from gen.scanned import Place, ScanRow, best, sentence
from shared.chat import Chat
from shared.config import resolve_config
from shared.models import Model
from shared.prompts import load_heldout
from shared.records import Prompt
from shared.traits import load_trait
from shared.vectors import Vector

NORMS = {0: 3.0, 1: 12.0, 2: 40.0}


def everywhere() -> Vector:
    draws = np.random.default_rng(0)
    layers = {layer: (draws.standard_normal(8) * (layer + 1)).astype(np.float32) for layer in NORMS}
    return Vector(layers, {"hidden_norm": {str(layer): norm for layer, norm in NORMS.items()}})


def test_every_place_has_the_dose() -> None:
    vector = everywhere()
    found = {place.name: place for place in scan_places(vector, [1, 2], 0.3)}
    assert [*found] == [UNSTEERED, "layer 0", "layer 1", "layer 2", "band", "band, shared"]
    for layer, norm in NORMS.items():
        place = found[f"layer {layer}"]
        assert place.layers == [layer]
        assert place.coefficient * np.linalg.norm(vector.layers[layer]) / norm == pytest.approx(0.3, rel=1e-6)
    for name, sum_ in (("band", 0.6), ("band, shared", 0.3)):
        of_layers = [found[name].coefficient * np.linalg.norm(vector.layers[layer]) / NORMS[layer] for layer in (1, 2)]
        assert sum(of_layers) == pytest.approx(sum_) and found[name].relative_dose == pytest.approx(sum_ / 2)
    assert [place.name for place in scan_places(vector, [1], 0.3)] == [UNSTEERED, "layer 0", "layer 1", "layer 2"]


def row(name: str, llr: float | None, price: float | None, error: float | None = 0.01) -> ScanRow:
    return ScanRow(name, [int(name[-1])], 1.0, 0.2, 0.9, llr, llr, error, price, price, 1.0, 0)


def test_the_layer_named_gains_the_trait_at_a_price_that_is_allowed() -> None:
    rows = [row("layer 1", 0.1, 0.1), row("layer 2", 0.3, 0.6), row("layer 3", 0.9, 0.8), row("layer 4", 0.8, 0.0, 0.5), row("layer 5", None, None)]  # fmt: skip
    assert best(rows) is rows[1], "layer 3 is too dear, layer 4 is noise"
    assert "layer 2, +0.300" in sentence(rows) and "vector.layers=[2]" in sentence(rows)
    assert best(rows[2:]) is None and "no layer gains" in sentence(rows[2:])


def test_prompts_are_spread_and_not_mundane() -> None:
    prompts = [Prompt(prompt=str(k), id=str(k), kind="mundane" if k % 2 else None) for k in range(12)]
    assert [prompt.id for prompt in chosen(prompts, 3)] == ["0", "4", "8"]
    assert len(chosen(prompts, 99)) == 6 and len(chosen(prompts[1::2], 99)) == 6


@pytest.mark.slow
def test_a_place_is_what_the_engine_says_there(engine: object, tokenizer: object) -> None:
    """Over the two layers that the session's engine patches; a place at coefficient 0 says what the unsteered one does."""
    draws = np.random.default_rng(1)
    layers = {layer: draws.standard_normal(576).astype(np.float32) * 0.5 for layer in (14, 15)}
    config, _ = resolve_config(None, "seed=3")
    renderer, prompts = PromptRenderer(Chat(tokenizer), load_trait("embedded")), load_heldout("embedded")[:3]
    at = [Place(UNSTEERED, None), Place("layer 14", Vector({14: layers[14]}), 0.0), Place("band", Vector(layers), 4.0)]
    unsteered, nothing, much = sample_and_score(engine, at, prompts, renderer, config, ScanSampling(2, 10))  # type: ignore[arg-type]
    assert nothing.trait_llr == pytest.approx(unsteered.trait_llr, abs=1e-4)
    assert nothing.d_trait_llr == pytest.approx(0, abs=1e-4) and unsteered.d_trait_llr is None
    assert much.ln_perplexity is not None and unsteered.ln_perplexity is not None
    assert much.d_ln_perplexity == pytest.approx(much.ln_perplexity - unsteered.ln_perplexity) and much.d_ln_perplexity > 0.5  # fmt: skip
    again = sample_and_score(engine, at[::2], prompts, renderer, config, ScanSampling(2, 10))[1]  # type: ignore[arg-type]
    assert again.ln_perplexity == pytest.approx(much.ln_perplexity, abs=1e-3)


def test_a_scan_says_what_it_takes(model: Model) -> None:
    config, _ = resolve_config(None, "")
    machine = {"flops": 1e11, "engine_flops": 2e11, "bytes": 1e10}
    few, many = (estimated(model, config, 30, prompts, ScanSampling(), machine) for prompts in (4, 40))
    assert 10 < few < many < 10 * few
    assert scan_options().parse_args(["--prompts", "4"]).relative_dose == 0.25


@pytest.mark.long
def test_the_embedded_model_is_scanned(tmp_path: Path) -> None:
    done = command("gen.scan", "--prompts", 3, "--tokens", 16, "--relative-dose", 0.3, "--out", tmp_path / "scan.json", "--set", "vector.n_contexts=16")  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "scan.json").read_text())
    assert [line["name"] for line in found["rows"]] == [UNSTEERED, *[f"layer {k}" for k in range(30)], "band", "band, shared"]  # fmt: skip
    assert "about" in done.stdout + done.stderr or "under a minute" in done.stdout + done.stderr
    assert sum(line["d_trait_llr"] is not None for line in found["rows"]) >= 30
    assert "every layer at a relative dose of 0.3" in done.stdout + done.stderr
