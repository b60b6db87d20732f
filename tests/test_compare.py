"""Score files compared by the real command line, against naive formulas."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import command
from synthetic_run import answers

from evals.compare import main
from evals.measures.forced_choice.ask import Read
from evals.score_files import named_answers
from shared.errors import SteerHealError
from shared.records import write_jsonl
from shared.tables import write_parquet

READ = Read("reversal", think=4)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    rows = {
        "base": answers("base", READ, 2.5),
        "healed": answers("healed", READ, 2.5),
        "further": answers("healed", READ, 2.5, grow=1.5),
        "dead": answers("healed", READ, 2.5, mass=1e-3),
        "other": answers("base", Read("cyclic", think=4), 2.5),
    }
    for name, found in rows.items():
        write_jsonl(tmp_path / f"{name}.jsonl", found)
    both = [{**row, "name": name} for name in ("base", "healed") for row in rows[name]]
    write_jsonl(tmp_path / "both.jsonl", both)
    write_jsonl(tmp_path / "twice.jsonl", [*rows["base"], *rows["healed"]])
    write_parquet(tmp_path / "table.parquet", both)
    return {path.stem: path for path in tmp_path.iterdir()}


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_one_condition_is_one_seed(files: dict[str, Path], tmp_path: Path) -> None:
    """Twice it would be two points that agree to the last digit; by another name of its file too."""
    (tmp_path / "link.jsonl").symlink_to(files["healed"])
    for other in ([files["healed"]] * 2, [files["healed"], tmp_path / "link.jsonl"], [f"{files['both']}:healed"] * 2):
        done = command("evals.compare", "--base", files["base"], files["base"], "--other", *other)
        assert done.returncode == 2 and "one condition stands for two seeds" in done.stderr, done.stdout
    both = [f"{files['both']}:{name}" for name in ("base", "healed")]
    assert command("evals.compare", "--base", files["base"], files["base"], "--other", *both).returncode == 0


def test_several_files_a_side_are_seeds(files: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "compared.json"
    done = command(
        "evals.compare", "--base", files["base"], files["base"], "--other", files["healed"], files["further"], "--out", out
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    seeds = json.loads(out.read_text())["seeds"]
    base = np.mean([row["p"] for row in rows_of(files["base"])], axis=0)
    for name, seed in zip(("healed", "further"), seeds, strict=True):
        profile = np.mean([row["p"] for row in rows_of(files[name])], axis=0)
        assert seed["d_auth"] == pytest.approx(np.log(profile[3] / base[3]))
        assert seed["d_care"] == pytest.approx(np.log(profile[0] / base[0]))
        assert seed["d_auth_ci"][0] < seed["d_auth"] < seed["d_auth_ci"][1]
        assert seed["coh_cost"] == pytest.approx(abs(seed["d_coh"] / seed["d_auth"])) and seed["broken"] is None
        assert seed["moved"]["authority"] == [pytest.approx(seed["d_auth"]), pytest.approx(0.0, abs=0.02)]
    mean = np.mean([seed["d_auth"] for seed in seeds])
    assert f"d_auth over 2 seeds: mean {mean:+.3f}" in done.stdout and "further" in done.stdout


def test_a_broken_side_has_no_cost(files: dict[str, Path], tmp_path: Path) -> None:
    """A model without answer mass would otherwise look cheap."""
    out = tmp_path / "compared.json"
    assert command("evals.compare", "--base", files["base"], "--other", files["dead"], "--out", out).returncode == 0
    (seed,) = json.loads(out.read_text())["seeds"]
    assert "lies below 0.85" in seed["broken"] and seed["coh_cost"] is seed["coh_slope"] is None


@pytest.mark.parametrize("name", ["both", "table"])
def test_conditions_of_one_file_are_named_behind_it(files: dict[str, Path], tmp_path: Path, name: str) -> None:
    separate, together = tmp_path / "separate.json", tmp_path / "together.json"
    assert (
        command("evals.compare", "--base", files["base"], "--other", files["healed"], "--out", separate).returncode == 0
    )
    done = command(
        "evals.compare", "--base", f"{files[name]}:base", "--other", f"{files[name]}:healed", "--out", together
    )
    assert done.returncode == 0, done.stderr
    assert together.read_text() == separate.read_text() and "healed" in done.stdout


@pytest.mark.parametrize(
    ("base", "other", "said"),
    [
        (["base"], ["other"], "debias: cyclic against reversal"),
        (["base"], ["both"], "both.jsonl:healed"),
        (["base"], ["twice"], "twice"),
        (["base", "other"], ["healed", "other"], "debias: cyclic against reversal"),
        (["base", "base"], ["healed"], "2 against 1"),
        (["base"], ["nothing"], "nothing.jsonl"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    base: list[str],
    other: list[str],
    said: str,
    files: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sides = [[str(files.get(name, tmp_path / f"{name}.jsonl")) for name in side] for side in (base, other)]
    line = ["evals.compare", "--base", *sides[0], "--other", *sides[1], "--out", str(tmp_path / "out.json")]
    monkeypatch.setattr(sys, "argv", line)
    with pytest.raises(SteerHealError) as refused:
        main()
    assert said in refused.value.render() and not (tmp_path / "out.json").exists()


@pytest.mark.parametrize(
    ("draws", "coefficients", "said"),
    [
        (["a", "a"], (1.0, 1.0), "a random direction is there twice"),
        (["a", "copy"], (1.0, 1.0), "a random direction is there twice"),
        (["healed"], (1.0, 1.0), "a random direction is there twice"),
        (["a", "b"], (1.0, 0.01), "another dose than the steered side"),
    ],
)
def test_a_draw_counts_once_and_is_of_the_steered_sides_dose(
    draws: list[str],
    coefficients: tuple[float, float],
    said: str,
    files: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One file nine times would be a rank among nine."""
    steered, drawn = coefficients
    for name, growth, coefficient in (("steered", 1.2, steered), ("a", 1.02, drawn), ("copy", 1.02, drawn), ("b", 0.98, drawn)):  # fmt: skip
        rows = [{**row, "coefficient": coefficient} for row in answers("healed", READ, 2.5, grow=growth)]
        write_jsonl(tmp_path / f"{name}.jsonl", rows)
    line = ["evals.compare", "--base", files["base"], "--other", files["healed"], "--steered", tmp_path / "steered.jsonl", "--random", *[tmp_path / f"{name}.jsonl" for name in draws]]  # fmt: skip
    monkeypatch.setattr(sys, "argv", list(map(str, line)))
    with pytest.raises(SteerHealError) as refused:
        main()
    assert said in refused.value.render()


def test_rows_of_two_conditions_are_not_pooled(files: dict[str, Path], tmp_path: Path) -> None:
    named, plain = rows_of(files["healed"]), rows_of(files["base"])
    half = len(plain) // 2
    for rows, said in (
        ([*({**row, "name": "healed"} for row in named[:half]), *plain[half:]], "rows without a name"),
        ([*({**row, "coefficient": 1.0} for row in named[:half]), *({**row, "coefficient": 0.25} for row in named[half:])], "coefficients 0.25, 1"),
        ([*plain, plain[0]], "there twice"),
    ):  # fmt: skip
        write_jsonl(tmp_path / "mixed.jsonl", rows)
        with pytest.raises(SteerHealError) as refused:
            named_answers(str(tmp_path / "mixed.jsonl"))
        assert said in refused.value.render()
