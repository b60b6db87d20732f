"""The dose by iso-KL: its formula, its search, and what a sweep makes of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import command
from hypothesis import given
from hypothesis import strategies as st

from gen.extract import in_fp32
from gen.forward import kl_by_token
from gen.iso_kl import IsoKL, KLProbe, find_dose_by_kl, kl_probe, sample
from gen.plan import determining, judged
from shared.config import resolve_config
from shared.errors import SteerHealError
from shared.layers import decoder_layers
from shared.models import Model
from shared.vectors import Vector


def test_kl_by_token_is_the_naive_formula() -> None:
    draws = torch.Generator().manual_seed(0)
    other, base = (4 * torch.randn(200, 30, generator=draws) for _ in range(2))
    q, p = (np.asarray(x.double().log_softmax(-1)) for x in (other, base))
    np.testing.assert_allclose(kl_by_token(other, base), (np.exp(q) * (q - p)).sum(1), rtol=1e-4)
    assert (kl_by_token(base, base) == 0).all()
    padded = torch.cat([base, torch.full((200, 2), -torch.inf)], 1)
    np.testing.assert_allclose(kl_by_token(padded, padded + 1), 0, atol=1e-6)
    base[3, 4] = torch.nan
    assert np.isnan(kl_by_token(other, base)[3])


@given(st.floats(0.07, 50.0), st.floats(0.1, 3.0))
def test_the_search_ends_at_the_target(scale: float, target: float) -> None:
    """KL of a small shift grows with its square."""
    found, probes = find_dose_by_kl(
        lambda c: KLProbe(c, scale * c * c, scale * c * c / 9), target=target, ceiling=4.0, steps=9
    )
    edge = (target / scale) ** 0.5
    assert found == 4.0 if edge >= 4.0 else found <= edge <= found * (1 + 2**-9) * (1 + 1e-9)
    assert len(probes) <= 2 * 9 + 1


def test_a_model_that_is_never_near_is_refused_with_what_was_tried() -> None:
    with pytest.raises(SteerHealError, match="iso-KL found no dose") as caught:
        find_dose_by_kl(lambda c: KLProbe(c, None if c > 2 else 7.0, None), target=1.0, ceiling=4.0, steps=2)
    assert (
        "not finite at 4, 7 at 2, 7 at 1" in caught.value.render() and "sweep.dose_ceiling=1" in caught.value.render()
    )


@pytest.mark.parametrize("generated", [False, True])
def test_a_probe_is_the_percentile_of_plain_forwards(small_model: Model, generated: bool) -> None:
    network = in_fp32(small_model, None)
    draws = np.random.default_rng(0)
    vector = Vector({layer: draws.standard_normal(192).astype(np.float32) for layer in (2, 3)})
    prompt = [3, 5, 8, 13, 21]
    texts = [([*prompt, *sample(network, prompt, 9, (), 1.0, seed)], len(prompt)) for seed in range(3)]
    probe = kl_probe(network, small_model.depth, vector, texts, generated)
    assert probe(0.0) == KLProbe(0.0, 0.0, 0.0)
    found, layers = probe(0.7), decoder_layers(network, small_model.depth)[1]
    kl = []
    for ids, begin in texts:
        logits = []
        for steer in (True, False):

            def add(_module: object, _inputs: object, output: torch.Tensor, values: np.ndarray) -> torch.Tensor:
                moved = output.clone()
                moved[0, begin - 1 if generated else 0 :] += 0.7 * torch.from_numpy(values)  # noqa: B023
                return moved

            handles = [layers[k].register_forward_hook(lambda m, i, o, v=v: add(m, i, o, v)) for k, v in vector.layers.items()] if steer else []  # fmt: skip
            with torch.inference_mode():
                logits.append(network(input_ids=torch.tensor([ids])).logits[0, begin - 1 : -1].double().log_softmax(-1))
            for handle in handles:
                handle.remove()
        kl += (logits[0].exp() * (logits[0] - logits[1])).sum(-1).tolist()
    assert len(kl) == 27 and found.kl == pytest.approx(float(np.percentile(kl, 95)), rel=1e-3)
    assert found.mean == pytest.approx(float(np.mean(kl)), rel=1e-3)
    dose, _ = find_dose_by_kl(probe, target=found.kl or 0.0, ceiling=4.0, steps=8)
    assert dose == pytest.approx(0.7, rel=0.02)


def test_a_sample_is_its_seed_s_and_ends_where_the_model_ends_it(small_model: Model) -> None:
    network = in_fp32(small_model, None)
    first, again, other = (sample(network, [4, 5, 6], 12, (), 1.0, seed) for seed in (1, 1, 2))
    assert first == again != other and len(first) == 12
    assert sample(network, [4, 5, 6], 12, (first[3],), 1.0, 1) == first[: first.index(first[3])]


@pytest.mark.parametrize(
    ("settings", "key"),
    [("sweep.dose=iso_kl sweep.survival=0.4", "survival"), ("sweep.dose=walk sweep.dose_kl=0.5", "dose_kl"), ("sweep.dose=iso_kl sweep.dose_kl=0", "dose_kl")],
)  # fmt: skip
def test_a_dose_is_searched_in_one_way(settings: str, key: str) -> None:
    with pytest.raises(SteerHealError) as caught:
        resolve_config(None, settings)
    assert f"sweep.{key}" in caught.value.render()


def test_rows_depend_on_the_search_that_found_their_dose() -> None:
    grid, walk, iso = (resolve_config(None, f"sweep.dose={dose}")[0] for dose in ("grid", "walk", "iso_kl"))
    assert (grid.searches, walk.searches, iso.searches) == (False, True, True) and walk.walks and not iso.walks
    assert {"dose_kl", "survival"} & {*determining(grid)} == set()
    assert {"dose_kl", "survival", "coefficients"} & {*determining(walk)} == {"survival"}  # as earlier versions had it
    assert {"dose_kl", "survival", "coefficients"} & {*determining(iso)} == {"dose_kl"}
    assert judged(walk) and not judged(iso), "what the filter keeps has no part in iso-KL"
    prompted = resolve_config(None, "sweep.dose=iso_kl filter.source=prompted")[0]
    assert not prompted.searches and "coefficients" in determining(prompted)


@pytest.mark.long
def test_a_sweep_samples_at_the_dose_that_iso_kl_finds(tmp_path: Path, vector: Vector) -> None:
    vector.save(tmp_path / "v.safetensors")
    (tmp_path / "p.jsonl").write_text("".join(json.dumps({"prompt": f"Name {k} rivers."}) + "\n" for k in range(2, 8)))
    done = command(
        "gen.sweep", "--model", "embedded", "--vector", tmp_path / "v.safetensors", "--prompts", tmp_path / "p.jsonl", "--dose", "iso_kl", "--kl", "0.5",
        "--out", tmp_path / "rows.jsonl", "--set", "sweep.max_tokens=12 sweep.dose_prompts=3 sweep.dose_steps=3 model.dtype=float32",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    doses = {row["coefficient"] for row in rows}
    assert len(rows) == 12 and len(doses) == 2 and 0.0 in doses and 0 < max(doses) <= 4.0
    assert "iso-KL: the coefficient with a 95th percentile" in done.stdout + done.stderr


def test_an_answer_survives_its_file() -> None:
    answer = IsoKL(0.75, 120, [KLProbe(4.0, None, None), KLProbe(0.75, 0.98, 0.1)])
    assert IsoKL.from_dict(json.loads(json.dumps(answer.as_dict()))) == answer
