"""A frozen configuration, and stages that are skipped, refused or made again."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from conftest import ROOT
from synthetic_run import IDENTITY

from shared.errors import SteerHealError
from shared.pipeline import Pipeline, Took
from shared.records import Manifest
from shared.run import Run, open_run
from shared.schema import Config
from shared.stage import Stage
from shared.stages import Step

CONFIG = Path(__file__).parent.parent / "configs" / "smollm2.toml"


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return open_run(tmp_path / "run", CONFIG, "")


def job(run: Run, rebuild: bool = False, **settings: object) -> Stage:
    (run.folder / "in.txt").touch()
    return Stage(
        run,
        1,
        "sweep",
        settings=settings,
        inputs={"input": run.folder / "in.txt"},
        outputs=[run.round(1) / "out.txt"],
        rebuild=rebuild,
    )


def make(stage: Stage, content: str = "x") -> None:
    stage.outputs[0].parent.mkdir(parents=True, exist_ok=True)
    stage.outputs[0].write_text(content)
    stage.finish(IDENTITY, rows=1)


def test_what_changes_no_row_may_change_in_a_run_that_has_begun(run: Run) -> None:
    found = open_run(run.folder, CONFIG, "model.gpu_memory=0.5")
    assert found.config.model.gpu_memory == 0.5 and open_run(run.folder).config.model.gpu_memory == 0.5
    with pytest.raises(SteerHealError, match="differs") as refused:
        open_run(run.folder, CONFIG, "model.gpu_memory=0.4 train.lam=0.9")
    assert "gpu_memory" not in str(refused.value.given) and open_run(run.folder).config.model.gpu_memory == 0.5


def test_configuration_is_frozen(run: Run) -> None:
    assert open_run(run.folder).config == run.config
    assert open_run(run.folder, CONFIG, "").config == run.config
    with pytest.raises(SteerHealError) as caught:
        open_run(run.folder, CONFIG, "train.lam=0.9")
    assert "train.lam = 0.9 (was 0.3)" in caught.value.render() and "REBUILD=1" in caught.value.render()
    assert open_run(run.folder, CONFIG, "train.lam=0.9", rebuild=True).config.train.lam == 0.9
    assert open_run(run.folder).config.train.lam == 0.9


def test_a_folder_without_configuration_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(SteerHealError, match="make round"):
        open_run(tmp_path)


def test_intact_is_skipped(run: Run) -> None:
    assert not job(run, a=1).done()
    make(job(run, a=1))
    assert job(run, a=1).done()


def test_stale_is_refused_and_rebuilt_on_demand(run: Run) -> None:
    for stage in (lambda **k: job(run, a=2, b={"c": [1, 2]}, **k), lambda **k: job(run, a=1, b={"c": [1, 3]}, **k)):
        make(job(run, a=1, b={"c": [1, 2]}))
        with pytest.raises(SteerHealError, match="was "):
            stage().done()
        assert not stage(rebuild=True).done()
        assert not stage().done(), "a rebuild that was interrupted goes on without REBUILD=1"


def test_edited_or_missing_output_is_named(run: Run) -> None:
    make(job(run))
    (run.round(1) / "out.txt").write_text("edited")
    with pytest.raises(SteerHealError, match=r"rounds/01/out\.txt was edited"):
        job(run).done()
    (run.round(1) / "out.txt").unlink()
    with pytest.raises(SteerHealError, match="is missing"):
        job(run).done()


def test_changed_input_is_refused(run: Run) -> None:
    make(job(run))
    (run.folder / "in.txt").write_text("other")
    with pytest.raises(SteerHealError, match="input input changed"):
        job(run).done()


def test_missing_input_names_the_next_command(run: Run) -> None:
    with pytest.raises(SteerHealError, match="make round N=1"):
        Stage(run, 1, "filter", settings={}, inputs={"sweep": run.folder / "none"}, outputs=[])


def test_a_broken_manifest_is_refused(run: Run) -> None:
    make(job(run))
    run.manifest(1, "sweep").write_text("{")
    with pytest.raises(SteerHealError, match="manifest"):
        job(run).done()


def test_a_link_that_leads_out_of_a_run_is_refused(run: Run, tmp_path: Path) -> None:
    """What a stage writes there would be written elsewhere."""
    (tmp_path / "elsewhere").mkdir()
    run.round(1).mkdir(parents=True)
    (run.round(1) / "inside").symlink_to(run.folder / "config.toml")
    open_run(run.folder)
    (run.round(1) / "healing").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SteerHealError, match="a link that leads out") as refused:
        open_run(run.folder)
    assert "healing" in str(refused.value.given)
    (tmp_path / "alias").symlink_to(run.folder)
    (run.round(1) / "healing").unlink()
    open_run(tmp_path / "alias")  # a run on another disk


def after(run: Run) -> Stage:
    """The stage that reads what `job` makes."""
    return Stage(run, 1, "filter", settings={}, inputs={"sweep": run.round(1) / "out.txt"}, outputs=[])


def test_a_stage_reads_what_the_one_before_it_finished(run: Run) -> None:
    first = job(run)
    first.outputs[0].parent.mkdir(parents=True)
    first.outputs[0].write_text("x")
    with pytest.raises(SteerHealError, match="of a stage that did not finish"):
        after(run)
    make(first)
    after(run)
    first.outputs[0].write_text("edited by hand")
    with pytest.raises(SteerHealError, match="was edited") as refused:
        after(run)
    assert "out.txt" in str(refused.value.given)
    with pytest.raises(SteerHealError, match=r"output rounds/01/out.txt was edited"):
        run.verify(1, "sweep")


def test_what_a_making_leaves_behind_goes_while_the_run_is_held(run: Run) -> None:
    seen: list[bool] = []
    held = run.folder / ".lock"
    for _ in range(2):  # made, and found done
        stage = job(run)
        stage.clean = lambda: seen.append(held.exists())
        stage.done() or make(stage)
    assert seen == [True, True] and not held.exists()


def test_a_round_has_one_name(run: Run) -> None:
    make(job(run))
    stranger = run.folder / "rounds" / "1" / "manifests"
    stranger.mkdir(parents=True)
    (stranger / "sweep.json").write_text("{}")
    assert run.rounds("sweep") == [1]


def test_a_link_that_leads_to_itself_is_no_traceback(run: Run) -> None:
    (run.folder / "a").symlink_to(run.folder / "a")
    assert open_run(run.folder).config == run.config


def test_what_differs_is_told_as_it_is(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """A chat template's arguments may look like the terminal's markup."""
    make(job(run, end="[/INST]"))
    assert not job(run, rebuild=True, end="[/bold]").done()
    assert "end = '[/bold]' (was '[/INST]')" in capsys.readouterr().out


def test_rows_of_a_cache_are_not_promised_to_be_the_same_bytes(run: Run) -> None:
    stage = job(run)
    make(stage)
    promised = json.loads(stage.path.read_text())["deterministic"]
    stage.finish(IDENTITY, rows=1, exact=False)
    found = json.loads(stage.path.read_text())
    assert promised is True and found["deterministic"] is False and found["counts"] == {"rows": 1}


def test_a_run_goes_on_with_its_frozen_configuration(tmp_path: Path) -> None:
    begun = open_run(tmp_path / "run", CONFIG, "train.lam=0.7")
    for overrides in (None, "", "train.lam=0.7", "train.tau=0.3"):
        assert open_run(tmp_path / "run", None, overrides).config == begun.config
    with pytest.raises(SteerHealError) as refused:
        open_run(tmp_path / "run", None, "train.tau=0.9 model.gpu_memory=0.5", rounds=2)
    assert refused.value.given == "train.tau = 0.9 (was 0.3)"
    frozen = tmp_path / "run" / "config.toml"
    assert f"go on with the frozen one: make round N=2 RUN={tmp_path}/run;" in refused.value.next
    assert (
        f"make round N=2 RUN={tmp_path}/run-2 CONFIG={frozen} SET='train.tau=0.9 model.gpu_memory=0.5'"
        in refused.value.next
    )
    other = open_run(tmp_path / "run-2", frozen, "train.tau=0.9")
    assert (other.config.train.lam, other.config.train.tau) == (0.7, 0.9)
    assert open_run(tmp_path / "run", None, "train.tau=0.9", rebuild=True).config.train.lam == 0.7


def test_a_model_of_its_own_begins_a_run_and_is_not_taken_for_another(tmp_path: Path) -> None:
    open_run(tmp_path / "run", CONFIG, model="embedded")
    with pytest.raises(SteerHealError) as refused:
        open_run(tmp_path / "run", CONFIG, model="Qwen/Qwen3-0.6B")
    assert refused.value.given == "model.name = 'Qwen/Qwen3-0.6B' (was 'embedded')"
    assert f"make round RUN={tmp_path}/qwen3-0.6b CONFIG={CONFIG} MODEL=Qwen/Qwen3-0.6B" in refused.value.next
    with pytest.raises(SteerHealError, match="two models"):
        open_run(tmp_path / "other", CONFIG, "model.name=a/b", model="embedded")


def test_when_a_run_was_begun_is_written_once(tmp_path: Path) -> None:
    run = open_run(tmp_path / "run", CONFIG, "")
    begun = run.begun
    frozen = tmp_path / "run" / "config.toml"
    os.utime(frozen, (0, 0))
    assert open_run(tmp_path / "run", None, "model.gpu_memory=0.5").begun == begun
    assert open_run(tmp_path / "run", None, "train.lam=0.9", rebuild=True).begun == begun
    text = frozen.read_text()
    assert "gpu_memory = 0.5 # SET" in text and f'name = "embedded" # {CONFIG}' in text, "sources stay"


def test_a_run_of_the_version_before_was_begun_when_its_file_was_written(tmp_path: Path) -> None:
    run = open_run(tmp_path / "run", CONFIG, "")
    frozen = tmp_path / "run" / "config.toml"
    frozen.write_text("".join(line for line in frozen.read_text().splitlines(True) if not line.startswith("begun")))
    os.utime(frozen, (1_700_000_000, 1_700_000_000))
    assert run.begun == datetime.fromtimestamp(1_700_000_000, UTC)
    assert open_run(tmp_path / "run", None, "model.gpu_memory=0.5").begun == datetime.fromtimestamp(1_700_000_000, UTC)
    assert frozen.read_text().startswith("begun = 2023-11-14T22:13:20Z")


def test_a_stage_counts_from_the_start_of_its_process(tmp_path: Path) -> None:
    """So that its own line, its manifest, `status` and the table of a round say the same seconds, start-up and imports among them."""
    code = """
import sys, time
from pathlib import Path
time.sleep(0.5)  # as heavy imports
from shared.cli import entry
from shared.records import Identity
from shared.run import open_run
from shared.stage import Stage
def main():
    run = open_run(Path(sys.argv[1]), Path(sys.argv[2]))
    Stage(run, 1, "extract", settings={}, inputs={}, outputs=[]).finish(Identity(name="m", revision=None, fingerprint="0" * 64))
entry(main)
"""
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "run", CONFIG], cwd=ROOT, capture_output=True, text=True
    )
    wall = time.monotonic() - begun
    manifest = Step(Run(tmp_path / "run", Config()), 1, "extract").manifest
    assert 0.5 < manifest.seconds < wall + 0.05 and f"done in {manifest.seconds:.1f} s" in done.stdout


def test_the_table_of_a_round_has_the_seconds_of_the_manifests(capsys: pytest.CaptureFixture[str]) -> None:
    plain = {"version": 1, "settings": {}, "inputs": {}, "outputs": {}, "counts": {}, "commit": None, "versions": {}, "hardware": {}}  # fmt: skip
    manifest = Manifest.model_validate({**plain, "seconds": 12.34, "peak_memory_gib": 1.5})
    run = Run(Path("r"), Config())
    Pipeline(run, took=[Took(Step(run, 1, "heal"), manifest, 10.0)]).show()
    assert re.search(r"round 1 · heal\W+12\.3\W+10\W+1\.5", capsys.readouterr().out)
