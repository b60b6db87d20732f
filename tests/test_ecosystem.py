"""The forced choice in Inspect and in lm-evaluation-harness: the numbers of evals.forced_choice where a route is exact."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT

from evals.forced_choice import Condition, Read, forced_choice
from evals.instrument import Renderer, load_instrument
from evals.vignettes import load_vignettes
from shared.models import Model
from shared.records import Vignette, stratified

pytestmark = pytest.mark.slow
ITEMS = 7


def vignettes() -> list[Vignette]:
    return stratified(load_vignettes("embedded"), ITEMS, "foundation_coarse")


def wanted(engine: Any, tokenizer: Any, read: Read, condition: Condition) -> list[dict[str, Any]]:
    renderer = Renderer(tokenizer, load_instrument("embedded"), {})
    return forced_choice(engine, renderer, vignettes(), [condition], read, tokenizer, lambda: None)[condition.name]


def levels_of(rows: Sequence[dict[str, Any]]) -> tuple[float, float, float]:
    p = np.array([row["p"] for row in rows])
    return (
        float(np.log(p[:, 3].mean())),
        float(np.log(p[:, 0].mean())),
        float(np.mean([r["pmass_allowed"] for r in rows])),
    )


def inspected(folder: Path, model: Any, **options: Any) -> Any:
    import inspect_ai

    from evals.inspect_task import forced_choice as task

    return inspect_ai.eval(task(**options), model=model, display="none", log_dir=str(folder), log_level="error")[0]


def rows_of(log: Any) -> list[dict[str, Any]]:
    assert log.status == "success", log.error
    return [sample.scores["foundations"].metadata for sample in log.samples]


def same(rows: Sequence[dict[str, Any]], expected: Sequence[dict[str, Any]]) -> None:
    assert [row["id"] for row in rows] == [row["id"] for row in expected]
    difference = np.abs(np.array([row["lp"] for row in rows]) - np.array([row["lp"] for row in expected])).max()
    print(f"largest difference of an lp: {difference:.1e} nats")
    assert difference < 1e-3
    for row, other in zip(rows, expected, strict=True):
        assert {key: row[key] for key in other if key not in ("lp", "lp_fwd", "lp_rev", "p", "score", "margin", "pmass_allowed")} == {
            key: other[key] for key in other if key not in ("lp", "lp_fwd", "lp_rev", "p", "score", "margin", "pmass_allowed")
        }  # fmt: skip


def metrics_of(log: Any) -> dict[str, float]:
    return {name: found.value for name, found in log.results.scores[0].metrics.items()}


def test_the_harness_reads_the_same_slot(engine: Any, tokenizer: Any, model: Model) -> None:
    import lm_eval
    from lm_eval.tasks import TaskManager

    name, options = "steer_heal_forced_choice", {"pretrained": str(model.folder), "dtype": "float32"}
    manager = TaskManager(
        include_path=ROOT / "evals" / "harness",
        include_defaults=False,
        metadata={**options, "items": ITEMS, "debias": "reversal"},
    )
    found = lm_eval.simple_evaluate(
        model="hf", model_args=options, tasks=[name], task_manager=manager, batch_size=8, device="cpu", log_samples=True
    )
    results, samples = found["results"][name], found["samples"][name]
    expected = wanted(engine, tokenizer, Read("reversal", 0), Condition("base", "base"))
    lp = {(sample["doc"]["id"], sample["doc"]["order"]): sample["auth_nats"]["lp"] for sample in samples}
    difference = max(
        np.abs(np.array(lp[row["id"], order]) - np.array(row["lp"][order][0])).max()
        for row in expected
        for order in (0, 1)
    )
    print(f"largest difference of an lp: {difference:.1e} nats")
    assert difference < 1e-3 and len(lp) == 2 * ITEMS
    assert all(sample["arguments"][0][0] == sample["doc"]["context"] for sample in samples)
    names = ("auth_nats", "care_nats", "answer_mass")
    assert [results[f"{key},none"] for key in names] == pytest.approx(levels_of(expected), abs=1e-3)
    assert results["unscorable,none"] == 0 and results["retokenised,none"] == 0.0
