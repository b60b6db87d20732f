"""The forced choice against the published evaluator's rows, through the real command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import command

pytestmark = pytest.mark.slow


def test_rows_equal_the_reference(tinymfv: Path, tmp_path: Path) -> None:
    reference = [
        json.loads(line) for line in (tinymfv / "reference_smollm2_classic_t4_bs1.jsonl").read_text().splitlines()
    ]
    settings, wanted = reference[0]["settings"], {row["id"]: row for row in reference[1:]}
    lines = (tinymfv / "vignettes_classic_other_violate.jsonl").read_text().splitlines()
    chosen = [line for line in lines if json.loads(line)["id"] in wanted]
    (tmp_path / "v.jsonl").write_text("\n".join(chosen))
    done = command(
        "evals.score", "--model", "embedded", "--instrument", tinymfv / "instrument.json", "--vignettes", tmp_path / "v.jsonl",
        "--debias", "reversal", "--think", settings["think"], "--dtype", settings["dtype"], "--out", tmp_path / "rows.jsonl",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [json.loads(line)["id"] for line in chosen] and len(rows) == len(wanted) == 21
    for row in rows:
        ours = wanted[row["id"]]
        np.testing.assert_allclose(row["p"], ours["p"], atol=1e-4)
        for key in ("lp_fwd", "lp_rev", "score", "nll_prefill"):
            np.testing.assert_allclose(row[key], ours[key], atol=1e-3, err_msg=key)
        assert row["pmass_allowed"] == pytest.approx(ours["pmass_allowed"], abs=1e-4)
        assert (row["gen_text"], row["gen_text_rev"]) == (ours["gen_fwd"], ours["gen_rev"])
        assert row["foundation"] == ours["foundation"] and row["condition"] is None
