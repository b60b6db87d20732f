"""The rules of the diagnosis, each on a log made for it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from evals.report.tables import last_quarter_mean
from evals.rows import TrainingStep
from shared.quarters import first_quarter, last_quarter
from shared.schema import TrainConfig
from train.diagnosis import diagnose, quarters


def log(
    ce: tuple[float, float] = (2.0, 1.5),
    heldout: list[float] | None = None,
    fired: float = 0.5,
    ratio: float = 0.3,
    **kl: float,
) -> list[dict[str, float]]:
    """Twelve steps whose cross-entropy goes from ce[0] to ce[1]; held-out cross-entropy after every fourth."""
    values = {"mean": 0.1, "rmse": 0.4, "p95": 0.6, "max": 3.0, **kl}
    rows: list[dict[str, float]] = [{"step": 0, "heldout_ce": heldout[0]}] if heldout else []
    for step in range(12):
        share = step / 11
        figures = {f"kl_{name}_{kind}": value for name in ("base", "previous") for kind, value in values.items()}
        rows.append(
            {
                "step": step + 1,
                "ce": ce[0] + share * (ce[1] - ce[0]),
                "fired": fired,
                "gradient_ratio": ratio,
                **figures,
            }
        )
        if heldout and step % 4 == 3:
            rows.append({"step": step + 1, "heldout_ce": heldout[1 + step // 4]})
    return rows


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 41])
def test_the_last_quarter_is_one_at_the_terminal_in_the_report_and_of_a_completion(count: int) -> None:
    """ceil(n / 4) values at either end, so that no series is too short to have one."""
    size = math.ceil(count / 4)
    steps = [
        dict.fromkeys(TrainingStep.model_fields, float(k)) | {"version": 1, "step": k, "fired": 0.5}
        for k in range(count)
    ]
    first, last = (float(np.mean(part)) for part in (range(size), range(count - size, count)))
    assert quarters(steps, "ce") == (pytest.approx(first), pytest.approx(last))
    assert last_quarter_mean([TrainingStep.model_validate(row) for row in steps], "ce") == pytest.approx(last)
    values = list(range(count))
    assert values[last_quarter(count)] == values[-size:] and values[first_quarter(count)] == values[:size]
    assert values[last_quarter(0)] == values[first_quarter(0)] == []


@pytest.mark.parametrize(
    ("rows", "settings", "start", "wanted", "figures"),
    [
        (log(fired=0.0, ratio=0.0, rmse=0.2), {}, 0.0, ["barrier inert"], ["tau = 0.3", "below 0.2,"]),
        (log(fired=0.0, rmse=0.2), {"divergence": "nll"}, 0.0, ["nothing stands out"], ["2.000", "1.545"][:0]),
        (log(), {"lam": 0.0}, 0.0, ["nothing stands out"], []),
        (log(ratio=0.0), {"lam": 0.0}, 0.0, ["barrier inert"], ["lambda is 0"]),
        (log(heldout=[2.0, 1.999, 1.998, 1.999]), {}, 0.0, ["nothing learned"], []),
        (log(ce=(2.0, 1.99), ratio=8.0), {}, 0.0, ["barrier dominating", "nothing learned"], ["8.0 times"]),
        (log(ce=(2.0, 1.2), ratio=8.0), {}, 0.0, ["nothing stands out"], []),
        (log(), {"aggregate": "mean"}, 0.0, ["mean diluted"], ["0.100", "0.600", "train.aggregate=rmse"]),
        (log(), {}, 0.9, ["history eroding"], ["0.900", "train.reference=previous"]),
        (log(), {"reference": "previous"}, 0.9, ["nothing stands out"], []),
        (
            log(heldout=[2.0, 1.8, 1.7, 1.9]),
            {},
            0.0,
            ["overfit"],
            ["1.700 after epoch 2", "1.900", "train.early_stop=1"],
        ),
        (
            log(heldout=[2.0, 1.8, 1.7, 1.9]),
            {"early_stop": 1},
            0.0,
            ["overfit"],
            ["the adapter kept is that of the best"],
        ),
        (log(heldout=[2.0, 1.8, 1.7, 1.705]), {}, 0.0, ["nothing stands out"], ["held out 2.000 to 1.705"]),
        (
            log(heldout=[2.0, 2.1, 2.2, 2.3]),
            {},
            0.0,
            ["overfit", "nothing learned"],
            ["held out 2.000 before, 2.100 at best"],
        ),
        (log(ce=(2.0, 2.0)), {}, 0.0, ["nothing learned"], ["2.000 to 2.000"]),
    ],
)
def test_rules(
    rows: list[dict[str, float]], settings: dict[str, object], start: float, wanted: list[str], figures: list[str]
) -> None:
    found = diagnose(rows, {"base": start, "previous": 0.0}, TrainConfig(**settings))
    assert [finding.name for finding in found] == wanted
    said = " ".join(finding.sentence for finding in found)
    assert all(figure in said for figure in figures), said
