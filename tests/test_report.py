"""The report of a run folder with invented numbers in the real shapes, as a user would make it."""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import math
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, command
from synthetic_run import NASTY, build

from evals.results import results_of
from evals.scored import READ, scored_rounds
from shared.errors import SteerHealError
from shared.publish import digest, write_json
from shared.records import write_jsonl
from shared.report_record import verified_results
from shared.run import STAGES, Run
from shared.stage import Stage

LISTED = (
    "arm seed round stage coefficient auth_nats auth_ci care_nats care_ci p_ans_any coherence perplexity perplexity_ci distinct_3 trait_llr trait_llr_ci n_items "
    "d_auth d_auth_ci d_care d_care_ci d_coh d_coh_ci coh_cost retain surgical surgical_care verdict verdict_reason informedness unscorable "
    "auth_moral auth_moral_ci d_auth_moral d_auth_moral_ci p_not_wrong specific_shift specific_shift_ci authority_contrast authority_contrast_ci random_rank_p increment "
    "increment_ci retain_ci text_verdict text_verdict_reason price price_less_steering price_less_steering_ci"
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, str]:
    run = build(tmp_path_factory.mktemp("run"))
    done = command("evals.report", "--run", run.folder)
    assert done.returncode == 0, done.stderr
    return run, done.stdout


def results(run: Run, mode: str, up_to: int | None = None) -> dict[str, Any]:
    return results_of(run, scored_rounds(run, mode, up_to))


def rows_of(run: Run, mode: str = "round") -> dict[tuple[int, str], dict[str, Any]]:
    return {(row["round"], row["stage"]): row for row in results(run, mode)["rows"]}


def numbers(value: object) -> list[float]:
    if isinstance(value, dict):
        return [number for inner in value.values() for number in numbers(inner)]
    if isinstance(value, list):
        return [number for inner in value for number in numbers(inner)]
    return [float(value)] if isinstance(value, (int, float)) else []


def edit(run: Run, number: int, change: Any, name: str) -> None:
    """Change a score file and the digest that its manifest holds."""
    folder = run.round(number) / "scores"
    rows = [json.loads(line) for line in (folder / name).read_text().splitlines()]
    write_jsonl(folder / name, [change(row) for row in rows])
    restamp(run, number)


def restamp(run: Run, number: int) -> None:
    """Make the manifests of a round say what its files are now."""
    for stage in STAGES:
        path = run.manifest(number, stage)
        manifest = json.loads(path.read_text())
        manifest["outputs"] = {name: digest(run.folder / name) for name in manifest["outputs"]}
        read = {label: digest(run.round(number) / name) for label, (_, name) in READ.get(stage, {}).items()}
        write_json(path, {**manifest, "inputs": {**manifest["inputs"], **read}})


def test_files_and_terminal(made: tuple[Run, str]) -> None:
    run, said = made
    folder = run.folder / "report"
    assert sorted(path.name for path in folder.iterdir()) == [
        "doses.png",
        "index.html",
        "profile.png",
        "report.json",
        "results.csv",
        "results.json",
        "results.md",
        "run.tex",
        "training.png",
        "trajectory.png",
    ]
    assert (folder / "trajectory.png").read_bytes().startswith(b"\x89PNG")
    assert "2 healed" in said and "Wall seconds" in said and "index.html" in said
    assert said.index("0 base") < said.index("1 steered") < said.index("1 random") < said.index("1 healed")


def test_schema(made: tuple[Run, str]) -> None:
    found = json.loads(
        (made[0].folder / "report" / "results.json").read_text(), parse_constant=lambda name: pytest.fail(name)
    )
    stages = [(row["round"], row["stage"]) for row in found["rows"]]
    assert stages == [
        (0, "base"),
        (0, "prompted"),
        *[(r, stage) for r in (1, 2) for stage in ("steered", "random", "healed")],
    ]
    assert [row["name"] for row in found["extra"]] == ["random-2", "steered-0.75"] * 2
    for row in [*found["rows"], *found["extra"]]:
        assert set(LISTED.split()) <= set(row) and set(row) == set(found["rows"][0])
        assert row["arm"] == "kl_rev" and row["seed"] == 0
        assert row["coefficient"] == (0.0 if row["stage"] in ("base", "prompted", "healed") else row["coefficient"])
    assert all(math.isfinite(number) for number in numbers(found))
    assert "NaN" not in (made[0].folder / "report" / "results.json").read_text()


def test_rows_agree_with_the_score_files(made: tuple[Run, str]) -> None:
    run, _ = made
    rows = rows_of(run)
    base, steered, healed = rows[0, "base"], rows[1, "steered"], rows[1, "healed"]
    scored = [json.loads(line) for line in (run.round(1) / "scores" / "steered.jsonl").read_text().splitlines()]
    assert steered["auth_nats"] == pytest.approx(math.log(sum(row["p"][3] for row in scored) / len(scored)))
    assert steered["d_auth"] == pytest.approx(steered["auth_nats"] - base["auth_nats"])
    assert healed["retain"] == pytest.approx(healed["d_auth"] / steered["d_auth"])
    assert healed["coh_cost"] == pytest.approx(abs(healed["d_coh"] / healed["d_auth"]))
    assert healed["verdict"] == "healed" and "retain" in healed["verdict_reason"]
    assert rows[2, "healed"]["d_auth"] == pytest.approx(rows[2, "healed"]["auth_nats"] - base["auth_nats"])
    assert base["d_auth"] == 0 and base["coherence"] == 1 and base["retain"] is None and base["verdict"] is None


def test_csv_holds_the_rows(made: tuple[Run, str]) -> None:
    run, _ = made
    with open(run.folder / "report" / "results.csv", newline="") as handle:
        lines = list(csv.DictReader(handle))
    assert [line["headline"] for line in lines] == ["1"] * 8 + ["0"] * 4
    assert float(lines[2]["auth_ci_low"]) < float(lines[2]["auth_nats"]) < float(lines[2]["auth_ci_high"])
    assert lines[0]["retain"] == ""


class Tags(HTMLParser):
    VOID = frozenset({"meta", "img", "input"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_page_is_whole_and_model_text_stays_text(made: tuple[Run, str]) -> None:
    page = (made[0].folder / "report" / "index.html").read_text()
    tags = Tags()
    tags.feed(page)
    assert not tags.open
    names = {tag for tag, _ in tags.seen}
    assert not names & {"link", "iframe"} and [tag for tag, _ in tags.seen].count("script") == 1
    assert hashlib.sha256((ROOT / "evals" / "report" / "templates" / "page.js").read_bytes()).digest() in {
        base64.b64decode(found) for found in re.findall(r"script-src 'sha256-([^']+)'", page)
    }
    ids = [attributes["id"] for _, attributes in tags.seen if "id" in attributes]
    assert len(ids) == len(set(ids)) and "img" not in names
    for tag, attributes in tags.seen:
        for name in ("href", "xlink:href", "aria-labelledby"):
            target = attributes.get(name)
            if target is not None and not (tag == "a" and target.startswith("data:text/csv;")):
                assert target.removeprefix("#") in ids and (name == "aria-labelledby" or target.startswith("#"))
    assert page.count("<script") == 1 and "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "http-equiv" in page and "default-src 'none'" in page
    assert (
        "healed says" in page and "steered says" in page and "base says" in page and "rejected &lt;script&gt;" in page
    )


def test_training_is_shown(made: tuple[Run, str]) -> None:
    """Curves, the diagnosis in the reading, and every token of the strip with its figures, deeper where KL is higher."""
    page = (made[0].folder / "report" / "index.html").read_text()
    assert "Round 2: cross-entropy (nats)" in page and "It was on at 67 % of the steps." in page
    assert "training, overfit: the held-out cross-entropy rises &lt;script" in page
    strip = page[page.index('class="strip"') :]
    assert (
        'title="KL to the original 0.010, to the previous student 0.000, cross-entropy 1.000" style="background:rgba(213,94,0,0.01)">Take<'
        in strip
    )
    assert '<span class="over" title="KL to the original 1.500' in strip and "rgba(213,94,0,0.60)" in strip
    assert "held out, first" in page and "gradient ratio" in page
    assert "made by an earlier version" in page and "over 830 tokens of 21 rows, in nats: student: mean 2.5e-06" in page


def test_the_answer_comes_first(made: tuple[Run, str]) -> None:
    """The card, one prompt before and after, the picture, and then the groups in their order."""
    page = (made[0].folder / "report" / "index.html").read_text()
    marks = ["It worked, but it is not shown", "Is the trait in its free text?", "Is it better than prompting?", "Is it better than steering less?",
        "Do its moral choices follow?", "before and after", "What it gives and what it costs", 'id="results"', 'id="measures"', 'id="texts"', 'id="training"', 'id="record"']  # fmt: skip
    places = [page.index(mark) for mark in marks]
    assert places == sorted(places)
    assert "Dilemma 0 &lt;script&gt;" in page[places[5] : places[6]]


def test_every_technical_column_is_defined(made: tuple[Run, str]) -> None:
    page = (made[0].folder / "report" / "index.html").read_text()
    heads = re.findall(r'<th scope="col"[^>]*><button[^>]*>(.*?)</button></th>', page)
    assert len(heads) > 60
    bare = {head for head in heads if "<abbr" not in head}
    assert not [head for head in bare if "_" in head], bare
    assert any('<abbr title="change of auth_nats' in head for head in heads)


def test_a_table_has_its_figures_as_csv(made: tuple[Run, str]) -> None:
    page = (made[0].folder / "report" / "index.html").read_text()
    found = dict(re.findall(r'<a download="([\w-]+)\.csv" href="data:text/csv;charset=utf-8;base64,([^"]+)"', page))
    lines = list(csv.DictReader(base64.b64decode(found["against-base"]).decode().splitlines()))
    row = rows_of(made[0])[1, "healed"]
    shown = next(line for line in lines if line["round, stage"] == "1 healed")
    assert float(shown["d_auth"]) == pytest.approx(row["d_auth"], abs=6e-4)
    assert [float(shown[f"d_auth {end}"]) for end in ("low", "high")] == pytest.approx(row["d_auth_ci"], abs=6e-4)
    assert lines[0]["retain"] == lines[0]["retain low"] == ""


def test_markdown_reads_and_counts(made: tuple[Run, str]) -> None:
    text = (made[0].folder / "report" / "results.md").read_text()
    for heading in (
        "Verdicts",
        "Reading",
        "Levels",
        "Against base",
        "Sweep",
        "Survivors",
        "Rejections",
        "Healing",
        "Sampler and trainer",
        "Wall seconds",
        "Provenance",
    ):
        assert f"## {heading}\n" in text
    assert "| perplexity | 53 | 53 |" in text and "| 1 | 119 of 224 | 1.021 | 1.312 |" in text
    assert "feedface" in text and "turn from item to item" in text and "mostly low doses survive" in text
    assert "lies below that of a random direction" in text and "<script" not in text


def test_up_to_a_round(made: tuple[Run, str]) -> None:
    run, _ = made
    assert max(row["round"] for row in results(run, "round", 1)["rows"]) == 1
    with pytest.raises(SteerHealError, match="make round N=3"):
        results(run, "round", 3)


def test_no_scores(tmp_path: Path) -> None:
    run = build(tmp_path / "run", rounds=0)
    done = command("evals.report", "--run", run.folder)
    assert done.returncode == 2 and f"make round N=1 RUN={run.folder}" in done.stderr and "Traceback" not in done.stderr
    assert not (run.folder / "report").exists()
    done = command("evals.report", "--run", tmp_path / "nowhere")
    assert done.returncode == 2 and "make round N=1" in done.stderr


def test_full_scores_are_their_own(tmp_path: Path) -> None:
    run = build(tmp_path, rounds=1)
    with pytest.raises(SteerHealError, match=r"make report RUN=\S+ EVAL=full"):
        results(run, "full")
    shutil.rmtree(run.round(1))
    build(tmp_path, rounds=1, full=True)
    rows = results(run, "full")["rows"]
    assert rows[0]["n_items"] == 28 and scored_rounds(run, "full")[0].scores.debias == "cyclic"


@pytest.mark.parametrize("full", [False, True])
def test_edited_scores_are_made_again_by_the_hint(full: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """EVAL=full alone makes those of EVAL=full, by every check that may meet them."""
    monkeypatch.setenv("STEER_HEAL_FORM", "make")
    run, step = build(tmp_path, rounds=1, full=full), "score-full" if full else "score"
    again = f"make round N=1 RUN={run.folder}{' EVAL=full' if full else ''} REBUILD=1"
    path = run.round(1) / ("scores-full" if full else "scores") / "scores.json"
    before = path.read_bytes()
    path.write_bytes(before + b" ")
    with pytest.raises(SteerHealError, match="was edited") as of_run:
        run.verify(1, step)
    with pytest.raises(SteerHealError, match="was edited") as of_stage:
        Stage(run, 1, step, settings={}, inputs={}, outputs=[]).done()
    assert of_run.value.next.endswith(again) and of_stage.value.next.endswith(again)
    manifest = run.manifest(1, step)
    note = json.loads(manifest.read_text())
    strange = json.dumps({**json.loads(before), "round": 2}).encode()
    for content, problem in ((b"{}", "could not be read"), (strange, "do not agree")):
        path.write_bytes(content)
        manifest.write_text(json.dumps({**note, "outputs": {k: digest(run.folder / k) for k in note["outputs"]}}))
        with pytest.raises(SteerHealError, match=problem) as of_report:
            scored_rounds(run, "full" if full else "round")
        assert of_report.value.next.endswith(again)


def test_no_moral_signal_is_said(tmp_path: Path) -> None:
    run = build(tmp_path, rounds=1, signal=0.0, extra=False)
    rows = rows_of(run)
    assert (
        rows[0, "base"]["verdict"] == rows[1, "healed"]["verdict"] == "no_axis"
        and "contrast on authority" in rows[1, "healed"]["verdict_reason"]
    )
    assert command("evals.report", "--run", tmp_path).returncode == 0
    assert "carries no moral signal" in (tmp_path / "report" / "results.md").read_text()


def test_an_incoherent_student_is_broken_and_has_no_cost(tmp_path: Path) -> None:
    row = rows_of(build(tmp_path, rounds=1, mass={"healed": 0.6}))[1, "healed"]
    assert (
        row["verdict"] == "broken"
        and "0.600" in row["verdict_reason"]
        and row["coh_cost"] is None
        and row["coh_slope"] is None
    )


def test_unscorable_items_are_counted_and_the_report_stands(tmp_path: Path) -> None:
    run = build(tmp_path, rounds=1)

    def spoil(row: dict) -> dict:
        lost = row["id"].endswith("-0")
        return (
            {**row, "p": None, "score": None, "pmass_allowed": None, "lp": [[[None] * 7] for _ in row["lp"]]}
            if lost
            else row
        )

    edit(run, 1, spoil, "healed.jsonl")
    row = rows_of(run)[1, "healed"]
    assert (row["unscorable"], row["n_paired"], row["n_items"]) == (7, 21, 28) and row["verdict"] == "degraded"
    edit(run, 1, lambda row: spoil({**row, "id": "x-0"}) | {"id": row["id"]}, "steered.jsonl")
    edit(
        run,
        1,
        lambda row: (
            {
                **row,
                **{"tokens": 0, "completion_ids": [], "nll": 0.0, "perplexity": None},
                **dict.fromkeys(("trait_llr", "llr_opposite", "relevance", "distinct_3")),
                "own_nll": 0.0,
            }
            if row["name"] == "healed"
            else row
        ),
        "generations.jsonl",
    )
    rows = rows_of(run)
    assert (
        rows[1, "steered"]["auth_nats"] is None
        and rows[1, "steered"]["auth_ci"] is None
        and rows[1, "steered"]["verdict"] == "broken"
    )
    assert (
        rows[1, "healed"]["verdict"] == "broken"
        and rows[1, "healed"]["n_empty"] == 12
        and rows[1, "healed"]["retain"] is None
    )
    done = command("evals.report", "--run", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "NaN" not in (tmp_path / "report" / "results.json").read_text()
    assert "7 of 28 in healed of round 1" in (tmp_path / "report" / "results.md").read_text()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda row: {**row, "foundation": "Tidiness"}, "Tidiness"),
        (lambda row: {**row, "id": f"other-{row['id']}"}, "scores.json"),
        (lambda row: {**row, "lp": row["lp"][:1]}, "shape"),
        (lambda row: {**row, "p": "high"}, "healed.jsonl:1"),
    ],
)
def test_malformed_scores_are_named(tmp_path: Path, change: Any, said: str) -> None:
    run = build(tmp_path, rounds=1)
    edit(run, 1, change, "healed.jsonl")
    with pytest.raises(SteerHealError, match=said):
        results(run, "round")


def test_edited_and_outdated_scores_are_refused(tmp_path: Path) -> None:
    run = build(tmp_path, rounds=2)
    path = run.manifest(1, "score")
    manifest = json.loads(path.read_text())
    write_json(path, {"version": 1})
    with pytest.raises(SteerHealError, match="settings: Field required"):
        results(run, "round")
    write_json(path, {**manifest, "inputs": {"history": "another"}})
    with pytest.raises(SteerHealError, match="score was made from another vector"):
        results(run, "round")
    write_json(path, manifest)
    (run.round(2) / "scores" / "healed.jsonl").write_text("{}\n")
    with pytest.raises(SteerHealError, match="REBUILD=1"):
        results(run, "round")


@pytest.mark.parametrize(
    ("stage", "label"), [("extract", "history"), ("sweep", "history"), ("heal", "history"), ("score", "history before")]
)
def test_rounds_that_do_not_build_on_each_other_are_refused(stage: str, label: str, tmp_path: Path) -> None:
    run = build(tmp_path, rounds=2)
    path = run.manifest(2, stage)
    manifest = json.loads(path.read_text())
    write_json(path, {**manifest, "inputs": {**manifest["inputs"], label: "another"}})
    with pytest.raises(SteerHealError, match=f"{stage} of round 2 was made on another round 1"):
        results(run, "round")


def test_full_scores_do_not_need_those_of_the_round(tmp_path: Path) -> None:
    """As after REBUILD=1 EVAL=full, which leaves the round's own scores as they were."""
    build(tmp_path, rounds=1)
    run = build(tmp_path, rounds=1, full=True)
    path = run.manifest(1, "score")
    manifest = json.loads(path.read_text())
    other = {"settings": {"model": "another", "seed": 9}, "inputs": {**manifest["inputs"], "history": "another"}}
    write_json(path, {**manifest, **other})
    assert results(run, "full")["rows"]
    with pytest.raises(SteerHealError, match="score was made from another history"):
        results(run, "round")


def test_scores_of_what_was_made_again_since_are_refused(tmp_path: Path) -> None:
    run = build(tmp_path, rounds=1)
    (run.round(1) / "history" / "gates.json").write_text("[0.5]")
    path = run.manifest(1, "heal")
    manifest = json.loads(path.read_text())
    write_json(path, {**manifest, "outputs": {name: digest(run.folder / name) for name in manifest["outputs"]}})
    with pytest.raises(SteerHealError, match="score was made from another history"):
        results(run, "round")
    path.unlink()
    with pytest.raises(SteerHealError, match="manifest could not be read"):
        results(run, "round")


def test_rounds_scored_differently_are_not_compared(tmp_path: Path) -> None:
    run = build(tmp_path, rounds=2)
    path = run.round(2) / "scores" / "scores.json"
    write_json(path, {**json.loads(path.read_text()), "think": 16})
    for rows in path.parent.glob("*.jsonl"):
        rows.write_text(rows.read_text().replace('"think_tokens": 4', '"think_tokens": 16'))
    restamp(run, 2)
    with pytest.raises(SteerHealError, match=r"think of scores\.json: 16"):
        results(run, "round")


def test_nothing_rejected(tmp_path: Path) -> None:
    run = build(tmp_path, rounds=1, all_kept=True)
    assert not (run.round(1) / "rejected.jsonl").read_text()
    done = command("evals.report", "--run", tmp_path)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "report" / "index.html").read_text()
    assert "None." in page and NASTY not in page


def test_a_run_of_an_earlier_version_has_its_report(tmp_path: Path) -> None:
    """Its filter wrote no filter.json, and sentences for reasons; its scores name the sweep among their inputs."""
    run = build(tmp_path, rounds=1)
    path = run.round(1) / "rejected.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    write_jsonl(
        path, [{**row, "reasons": ["perplexity: 40.00, at most 19.50", "loop: 0.50 of the tokens"]} for row in rows]
    )
    (run.round(1) / "filter.json").unlink()
    for stage, part, label in (("filter", "outputs", "rounds/01/filter.json"), ("score", "inputs", "filter")):
        manifest = json.loads(run.manifest(1, stage).read_text())
        del manifest[part][label]
        write_json(run.manifest(1, stage), manifest)
    (digests := json.loads(run.manifest(1, "filter").read_text()))["outputs"]["rounds/01/rejected.jsonl"] = digest(path)
    write_json(run.manifest(1, "filter"), digests)
    done = command("evals.report", "--run", tmp_path)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "report" / "index.html").read_text()
    assert "perplexity: 40.00, at most 19.50; loop: 0.50 of the tokens" in page
    assert f"| perplexity | {len(rows)} |" in (tmp_path / "report" / "results.md").read_text()


def test_half_a_character_is_refused_with_its_line(tmp_path: Path) -> None:
    """No tokenizer writes one, and no file of ours can hold it."""
    run = build(tmp_path, rounds=1)
    path = run.round(1) / "scores" / "generations.jsonl"
    path.write_text(path.read_text().replace("healed says", "healed says \\ud83d"))
    restamp(run, 1)
    done = command("evals.report", "--run", tmp_path)
    assert done.returncode == 2 and "generations.jsonl:" in done.stderr and "surrogates" in done.stderr


def test_a_card_takes_no_number_that_the_report_did_not_write(made: tuple[Run, str], tmp_path: Path) -> None:
    """results.json is edited by hand, or the scores are made again behind it, or another round is scored."""
    shutil.copytree(made[0].folder, tmp_path / "run")
    run = Run(tmp_path / "run", made[0].config)
    results, score = run.folder / "report" / "results.json", run.manifest(2, "score")
    assert verified_results(run, "again") == results
    written = results.read_text()
    results.write_text(written.replace("0.", "1.", 1))
    with pytest.raises(SteerHealError, match=r"report is not of the scores") as caught:
        verified_results(run, "again")
    assert "results.json was edited" in str(caught.value.given) and caught.value.next == "again"
    results.write_text(written)
    manifest = score.read_text()
    write_json(score, {**json.loads(manifest), "seconds": 7.5})
    with pytest.raises(SteerHealError, match=r"rounds/02/manifests/score\.json was made again"):
        verified_results(run, "again")
    score.write_text(manifest)
    run.manifest(3, "score").parent.mkdir(parents=True)
    run.manifest(3, "score").write_text(manifest)
    with pytest.raises(SteerHealError, match=r"rounds/03/manifests/score\.json is not in it"):
        verified_results(run, "again")
    shutil.rmtree(run.round(3))
    (run.folder / "report" / "report.json").unlink()
    with pytest.raises(SteerHealError, match="record of a report"):
        verified_results(run, "again")
    shutil.rmtree(run.folder / "report")
    assert verified_results(run, "again") is None
