"""Numbers made wrong on purpose in the files of a scored run, with manifests that vouch for them: every way is refused by what it is."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import command
from synthetic_run import build
from test_report import restamp, results

from evals.measures.forced_choice.ask import Read, row
from evals.measures.forced_choice.labels import answer_of
from evals.measures.measure import with_condition_names
from shared.config import resolve_config
from shared.errors import SteerHealError
from shared.prompts import load_heldout
from shared.publish import write_json
from shared.records import Vignette, write_jsonl
from shared.run import Run
from shared.vignettes import load_vignettes

Row = dict[str, Any]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("run"), rounds=2).folder


@pytest.fixture
def run(two: Path, tmp_path: Path) -> Run:
    folder = tmp_path / "run"
    shutil.copytree(two, folder)
    return Run(folder, resolve_config(folder / "config.toml")[0])


def rows(name: str, change: Callable[[list[Row]], list[Row]]) -> Callable[[Run], None]:
    def edit(run: Run) -> None:
        path = run.round(1) / name
        write_jsonl(path, change([json.loads(line) for line in path.read_text().splitlines()]))

    return edit


def each(name: str, change: Callable[[Row], Row], of: str | None = None) -> Callable[[Run], None]:
    return rows(name, lambda found: [r | change(r) if of in (None, r.get("name")) else r for r in found])


def record(name: str, change: Callable[[Row], object], number: int = 1) -> Callable[[Run], None]:
    def edit(run: Run) -> None:
        path = run.round(number) / name
        value = json.loads(path.read_text())
        change(value)
        write_json(path, value)

    return edit


def swapped(run: Run) -> None:
    one, other = (run.round(1) / "scores" / f"{name}.jsonl" for name in ("healed", "steered"))
    text = one.read_text()
    one.write_text(other.read_text())
    other.write_text(text)


HEALED, TEXTS, SCORES = "scores/healed.jsonl", "scores/generations.jsonl", "scores/scores.json"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        # forced choice
        (each(HEALED, lambda r: {"p": r["p"][::-1]}), "p does not follow from lp"),
        (each(HEALED, lambda r: {"score": [x / math.log(2) for x in r["score"]]}), "score does not follow from lp"),
        (each(HEALED, lambda r: {"pmass_allowed": r["pmass_allowed"] / 2}), "pmass_allowed does not follow from lp"),
        (each(HEALED, lambda r: {"lp": [[[x - 1 for x in s] for s in o] for o in r["lp"]]}), "does not follow from lp"),
        (each(HEALED, lambda r: {"foundation": "Care"}), "the foundation of 24 items"),
        (each(HEALED, lambda r: {"label": [0.0] * 6 + [1.0]}), "the raters' label of 28 items"),
        (each(HEALED, lambda r: {"text": r["id"]}), "the text of 28 items"),
        (rows(HEALED, lambda found: [found[0] | {"free_valid": None}, *found[1:]]), "free_valid of some rows alone"),
        (each(HEALED, lambda r: {"free_valid": None}), "healed has no free answers"),
        (swapped, "rows of healed"),
        # free text
        (rows(TEXTS, lambda found: found[:-1]), "only in one: ('h5', 1)"),
        (rows(TEXTS, lambda found: [r for r in found if r["name"] != "healed"]), "0 generations of healed against 12"),
        (each(TEXTS, lambda r: {"prompt": "Another"}, "healed"), "12 generations of healed against 12"),
        (each(TEXTS, lambda r: {"nll": r["nll"] / math.log(2)}), "the logarithm of perplexity is"),
        (each(TEXTS, lambda r: {"nll": r["nll"] / r["tokens"]}), "the logarithm of perplexity is"),
        (each(TEXTS, lambda r: {"perplexity": 2.0}), "the logarithm of perplexity is"),
        (each(TEXTS, lambda r: {"tokens": 80}), "80 tokens, and 40 completion_ids"),
        (each(TEXTS, lambda r: {"distinct_3": 0.5}), "distinct_3 is 0.5"),
        (each(TEXTS, lambda r: {"loop_share": 0.9}), "loop_share is 0.9"),
        (each(TEXTS, lambda r: {"tokens": 0, "completion_ids": []}), "a text without tokens"),
        # the sweep, the filter and the dose
        (record(SCORES, lambda v: v["sweep"][1].update(kept=56)), "kept at coefficient 0.75 is 56"),
        (record(SCORES, lambda v: v["sweep"][2].update(n=60)), "n at coefficient 1 is 60"),
        (record(SCORES, lambda v: v["sweep"][1].update(perplexity=2.0)), "perplexity at coefficient 0.75 is 2.0"),
        (record(SCORES, lambda v: v["sweep"][1].update(trait_llr=0.5)), "trait_llr at coefficient 0.75 is 0.5"),
        (record(SCORES, lambda v: v["sweep"][1].update(relative_dose=9.0)), "not in proportion to their coefficients"),
        (record(SCORES, lambda v: v["sweep"].pop(1)), "n at coefficient 0.75 is None"),
        (record(SCORES, lambda v: v["sweep"].append(v["sweep"][1])), "two coefficients of the sweep"),
        (rows("kept.jsonl", lambda found: found[1:]), "as counted in kept.jsonl and rejected.jsonl"),
        (each("kept.jsonl", lambda r: {"reasons": [{"rule": "loop", "value": 1.0, "limit": 0.3}]}), "reasons of each rejected row"),
        (each("rejected.jsonl", lambda r: {"reasons": []}), "reasons of each rejected row"),
        (rows("rejected.jsonl", lambda found: [*found, found[0] | {"key": "another"}]), "n at coefficient 0.75 is 56"),
        (record("filter.json", lambda v: v["causes"].update(loop=99)), "causes of filter.json: {"),
        # conditions
        (record(SCORES, lambda v: v["conditions"][2].update(coefficient=2.0)), "steered at coefficient 2.0"),
        (record(SCORES, lambda v: v["conditions"][0].update(coefficient=1.0)), "base at coefficient 1"),
        (record(SCORES, lambda v: v["conditions"][5].update(draw=3)), "random-2 is not random at draw 3"),
        (record(SCORES, lambda v: v["conditions"][5].update(headline=True)), "the headline of random is named random"),
        (record(SCORES, lambda v: v["conditions"].append(v["conditions"][5])), "two conditions of one name"),
        (record(SCORES, lambda v: v.update(round=2)), "round of scores.json: 2"),
        (record(SCORES, lambda v: v.update(instrument="other")), "instrument of scores.json: other"),
        # training
        (rows("train.jsonl", lambda found: [*found, *found[-5:]]), "out of order or twice"),
        (rows("train.jsonl", lambda found: [found[0], found[2], found[1], *found[3:]]), "out of order or twice"),
        (rows("train.jsonl", lambda found: found[:20]), "last step of train.jsonl: 19"),
        (rows("train.jsonl", lambda found: found[:1]), "last step of train.jsonl: None"),
        (each("train.jsonl", lambda r: {"ce": 1.0, "heldout_ce": 1.0}), "either ce, of a step, or heldout_ce"),
        (each("train.jsonl", lambda r: {"kl_base_mean": 1.9} if "kl_base_mean" in r else {}), "the mean is at most"),
        (record("training.json", lambda v: v.update(tau=3.0)), "tau of training.json: 3.0"),
        (record("training.json", lambda v: v.update(divergence="nll")), "divergence of training.json: nll"),
        (each("kl_tokens.jsonl", lambda r: {"key": "another"}), "kl_tokens.jsonl has 'another'"),
        # activations
        (record(SCORES, lambda v: v["student"].append(v["student"][0])), "two layers of the student"),
    ],
)  # fmt: skip
def test_a_number_that_another_contradicts_is_refused(run: Run, change: Callable[[Run], None], said: str) -> None:
    change(run)
    restamp(run, 1)
    with pytest.raises(SteerHealError) as refused:
        results(run, "round", 1)
    assert said in refused.value.render()


def manifest(stage: str, change: Callable[[Row], object], number: int = 2) -> Callable[[Run], None]:
    return record(f"manifests/{stage}.json", change, number)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (manifest("sweep", lambda v: v["model"].update(fingerprint="another")), "sweep had the model another"),
        (manifest("score", lambda v: v["settings"].update(model="another")), "score had the model another"),
        (manifest("heal", lambda v: v["model"].update(name="Qwen/Qwen3-4B")), "heal had the model Qwen/Qwen3-4B"),
        (manifest("filter", lambda v: v["inputs"].update(unsteered="another")), "filter read another unsteered"),
        (manifest("filter", lambda v: v["outputs"].pop("rounds/02/rejected.jsonl")), "not among the outputs"),
        (manifest("heal", lambda v: v["outputs"].pop("rounds/02/train.jsonl")), "not among the outputs"),
        (manifest("heal", lambda v: v.update(round=1)), "its manifest is of round 1, heal"),
        (manifest("heal", lambda v: v.update(stage="filter")), "its manifest is of round 2, filter"),
        (manifest("heal", lambda v: v["counts"].update(rows=91)), "rows of the manifest: 90"),
        (manifest("filter", lambda v: v["counts"].update(kept=1)), "kept of the manifest: 118"),
        (manifest("score", lambda v: v["counts"].update(generations=1)), "generations of the manifest: 60"),
        (manifest("extract", lambda v: v["counts"].update(layers=3)), "layers of the manifest: 2"),
        (manifest("heal", lambda v: v["settings"].update(train={"divergence": "wd"})), "train.divergence = 'kl_rev' (was 'wd')"),
        (manifest("score", lambda v: v["settings"].update(seed=4)), "seed = 0 (was 4)"),
        (manifest("sweep", lambda v: v["settings"].update(dtype="int4")), "(was 'int4')"),
        (manifest("score", lambda v: v["settings"].update(sampling=[0.1, 1.0])), "sampling"),
    ],
)  # fmt: skip
def test_stages_that_were_made_of_different_things_are_refused(
    run: Run, change: Callable[[Run], None], said: str
) -> None:
    change(run)
    with pytest.raises(SteerHealError) as refused:
        results(run, "round")
    assert said in refused.value.render()


@pytest.mark.parametrize("label", ["trait", "vignettes", "heldout"])
def test_a_file_from_outside_is_the_same_in_every_round(run: Run, label: str) -> None:
    for number, digest in ((1, "one"), (2, "other")):
        manifest("score", lambda v, digest=digest: v["inputs"].update({label: digest}), number)(run)
    with pytest.raises(SteerHealError, match=f"score read another {label}, other"):
        results(run, "round")


def test_held_out_prompts_are_the_same_in_every_round(run: Run) -> None:
    path = run.round(2) / TEXTS
    path.write_text(path.read_text().replace("Dilemma 3", "Dilemma three"))
    restamp(run, 2)
    with pytest.raises(SteerHealError, match="generations of steered"):
        results(run, "round")


def test_a_frozen_configuration_that_was_edited_is_refused_by_the_command(two: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(two, folder)
    settings = resolve_config(folder / "config.toml")[0].eval.model_dump()
    record("manifests/score.json", lambda v: v["settings"].update(eval=settings))(Run(folder, resolve_config(None)[0]))
    frozen = folder / "config.toml"
    frozen.write_text(
        frozen.read_text().replace("think = 4", "think = 8").replace("bootstrap = 300", "bootstrap = 100")
    )
    done = command("evals.report", "--run", folder)
    assert done.returncode == 2 and "eval.think = 8 (was 4)" in done.stderr and "bootstrap" not in done.stderr
    assert not (folder / "report").exists()


def test_an_answer_is_what_its_log_probabilities_come_to() -> None:
    """By hand: two orders of two samples; a sample's probabilities are averaged, an order's logarithms."""
    import numpy as np

    first, second, third = np.full(7, 0.1), np.array([0.3] + [0.05] * 6), np.array([0.02] * 6 + [0.5])
    found = answer_of(np.log(np.array([[first, second], [third, third]])))
    orders = np.array([(first + second) / 2, third])
    geometric = np.sqrt(orders[0] * orders[1])
    assert np.allclose(found.p, geometric / geometric.sum()) and np.allclose(found.score, np.log(geometric))
    assert math.isclose(found.mass, orders.sum() / 2)
    vignette = Vignette(id="v", foundation="Care", foundation_coarse="Care", text="x")
    made = row(vignette, np.log(np.array([[first], [third]])), Read("reversal", 0), None, ["", ""])
    assert made["pmass_allowed"] == pytest.approx((0.7 + 0.62) / 2)


def test_an_item_or_a_prompt_under_two_ids_is_refused(tmp_path: Path) -> None:
    """It would weigh double in every mean, beside intervals that take it for two."""
    path = tmp_path / "rows.jsonl"
    vignette = {"foundation": "Care", "foundation_coarse": "Care", "text": "You see a man kick a dog."}
    write_jsonl(path, [vignette | {"id": "a"}, vignette | {"id": "b", "text": f"{vignette['text']} "}])
    with pytest.raises(SteerHealError, match="a vignette is there twice"):
        load_vignettes(str(path))
    write_jsonl(path, [{"id": "a", "prompt": "Why?"}, {"id": "b", "messages": [{"role": "user", "content": "Why?"}]}])
    with pytest.raises(SteerHealError, match="a held-out prompt is there twice"):
        load_heldout(str(path))


def test_rows_of_a_round_have_the_name_of_their_condition() -> None:
    assert with_condition_names({"base": [{"id": "a"}], "healed": [{"id": "a"}]}, dtype="float32") == {
        name: [{"name": name, "id": "a", "dtype": "float32"}] for name in ("base", "healed")
    }
