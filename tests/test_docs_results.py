"""Numbers that the documentation quotes are those of the committed results, and one command makes them."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT, command
from synthetic_run import build

from evals.docs_results import publish_docs
from evals.paper import paper
from evals.quoted import BLOCK, BLOCKS, RUN, render_blocks
from shared.errors import SteerHealError
from shared.run import Run

PAGES = [ROOT / "README.md", ROOT / "docs" / "results.md"]
COMMITTED = ROOT / "docs" / "run"
PAGE = "before\n" + "".join(f"<!-- results: {name} -->\nold 0.123\n<!-- /results -->\n" for name in BLOCKS) + "after\n"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = build(tmp_path_factory.mktemp("published") / "run", 2, personas=True, overrides="eval.bootstrap=100")
    assert command("evals.report", "--run", run.folder).returncode == 0
    return run


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_quotes_the_committed_results(page: Path) -> None:
    assert BLOCK.search(page.read_text())
    if not (COMMITTED / "results.json").is_file():
        pytest.skip("no run's results are committed yet: make docs-results RUN=...")
    assert page.read_text() == render_blocks(page.read_text(), page, COMMITTED), "type: make docs-results RUN=..."


def test_one_command_makes_every_block(made: Run, tmp_path: Path) -> None:
    page, out = tmp_path / "page.md", tmp_path / "docs" / "run"
    page.write_text(PAGE)
    assert publish_docs(made, out, [page]) == [page]
    text = page.read_text()
    assert "0.123" not in text and text.startswith("before\n") and text.endswith("after\n")
    rows = json.loads((out / "results.json").read_text())["rows"]
    healed = next(row for row in rows if (row["round"], row["stage"]) == (2, "healed"))
    for part in (f"{healed['llr_opposite']:+.3f} [", f"{healed['perplexity']:.2f} [", healed["text_verdict_reason"]):
        assert part in text
    assert "(docs/run/trajectory.png)" in text and "Rounds 1 to 2" in text and "care over authority" in text
    assert "prompted_decoy" in text and text.count("| 0 prompted ") == 3
    report = made.folder / "report"
    assert {path.name for path in out.iterdir()} == {RUN, *(path.name for path in report.iterdir())} - {"report.json"}
    assert publish_docs(made, out, [page]) == [], "made again, it is the same"


def test_an_edited_number_is_seen(made: Run, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    publish_docs(made, tmp_path / "run", [page])
    text = page.read_text()
    edited = text.replace(" at perplexity ", " at perplexity 1", 1)
    assert edited != text and render_blocks(edited, page, tmp_path / "run") == text


@pytest.mark.parametrize(
    "text",
    [
        "<!-- results: nonsense -->\n<!-- /results -->\n",
        "<!-- results: table -->\nno end\n",
        "<!-- results: table -->\n<!-- results: answer -->\n<!-- /results -->\n",
    ],
)
def test_a_block_that_cannot_be_made_is_refused_before_anything_is_written(
    text: str, made: Run, tmp_path: Path
) -> None:
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(SteerHealError, match="block of results") as refused:
        publish_docs(made, tmp_path / "run", [page])
    assert "summary" in str(refused.value.expected) and not (tmp_path / "run").exists()


def test_an_edited_report_is_refused(made: Run, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(made.folder, copy)
    path = copy / "report" / "results.json"
    path.write_text(path.read_text().replace('"round": 2', '"round": 3'))
    with pytest.raises(SteerHealError, match="not of the scores"):
        publish_docs(Run(copy, made.config), tmp_path / "out", [])
    shutil.rmtree(copy / "report")
    with pytest.raises(SteerHealError, match="no report"):
        publish_docs(Run(copy, made.config), tmp_path / "out", [])


def test_the_table_for_a_paper(made: Run) -> None:
    text = (made.folder / "report" / "run.tex").read_text()
    rows = json.loads((made.folder / "report" / "results.json").read_text())["rows"]
    body = text.partition("\\midrule\n")[2].partition("\\bottomrule")[0]
    assert text.startswith("% In the preamble:") and len(body.splitlines()) == len(rows)
    assert all(line.count("&") == 4 and line.endswith(r" \\") for line in body.splitlines())
    healed = next(row for row in rows if (row["round"], row["stage"]) == (2, "healed"))
    assert f"${healed['perplexity']:.2f}$" in text and "trajectory.png" in text
    assert "prompted\\_decoy" in body and "landscape" not in text


def test_what_was_not_measured_is_a_dash() -> None:
    names = ("perplexity", "perplexity_ci", "trait_llr", "trait_llr_ci", "auth_nats", "auth_ci", "verdict", "text_verdict")  # fmt: skip
    row = {**dict.fromkeys(names), "round": 0, "stage": "base", "coefficient": 0.0, "gate": None, "draw": None}
    assert "0 base & -- & -- & -- & -- " in paper([row], "A 50 % run_1.")
    assert r"A 50 \% run\_1." in paper([row], "A 50 % run_1.")


def test_latex_compiles_it(made: Run, tmp_path: Path) -> None:
    if (latex := shutil.which("pdflatex")) is None:
        pytest.skip("there is no pdflatex here")
    for name in ("run.tex", "trajectory.png"):
        shutil.copyfile(made.folder / "report" / name, tmp_path / name)
    whole = "\\documentclass{article}\n\\usepackage[margin=1in]{geometry}\n\\usepackage{booktabs,graphicx}\n\\begin{document}\n\\input{run}\n\\end{document}\n"
    (tmp_path / "paper.tex").write_text(whole)
    done = subprocess.run([latex, "-interaction=nonstopmode", "-halt-on-error", "paper.tex"], cwd=tmp_path, capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull" not in (tmp_path / "paper.log").read_text()
