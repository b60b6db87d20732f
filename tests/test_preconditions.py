"""What a configuration names is had, or the run is not begun."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from conftest import ROOT, command

from shared import preconditions
from shared.config import resolve_config
from shared.errors import SteerHealError
from shared.models import Model, cache_folder
from shared.preconditions import TRACKER_PACKAGES, check, tracker
from shared.run import open_run

CONFIG = ROOT / "configs" / "smollm2.toml"

WRONG = [
    ("vector.trait=nope.json", "vector.trait = nope.json"),
    ("vector.trait={t}/broken.json", "vector.trait = "),
    ("vector.contexts=nope.jsonl", "vector.contexts = nope.jsonl"),
    ("vector.contexts={t}/broken.json", "line 1"),
    ("vector.layers=[99]", "vector.layers = [99]"),
    ("vector.layers=[]", "vector.layers = []"),
    ("train.layers=0.9-0.1", "train.layers = 0.9-0.1"),
    ("train.layers=abc", "train.layers = abc"),
    ("train.report_to=[wanddb]", "did you mean wandb?"),
    ("train.report_to=[all]", "one of azure_ml"),
    ("train.report_to=[clearml]", "no package clearml"),
    ("model.name=embeded", "did you mean embedded?"),
    ("model.name={t}/modle", "/model?"),
    ("model.name=./nope", "no such model"),
    ("model.name=/nope/model", "no such model"),
    ("model.name=~/nope", "~ is the shell's"),
    ("model.name=nope.gguf", "no such model"),
    ("model.name={t}/there.gguf", "a GGUF file could not be read"),
    ("model.name={t}", "a folder is not a model"),
    ("model.name='no id'", "neither a model folder nor a Hugging Face id"),
    ("sweep.dilemmas=nope.jsonl", "sweep.dilemmas = nope.jsonl"),
    ("sweep.dilemmas={t}/notes.jsonl", "either prompt or messages"),
    ("sweep.dilemmas=./nope:train", "no folder ./nope"),
    ("sweep.mundane=nope.jsonl", "sweep.mundane = nope.jsonl"),
    ("eval.heldout=nope.jsonl", "eval.heldout = nope.jsonl"),
    ("eval.heldout={t}/prompts.jsonl", "no id"),
    ("eval.vignettes=nope.jsonl", "eval.vignettes = nope.jsonl"),
    ("eval.vignettes={t}/prompts.jsonl", "eval.vignettes = "),
    ("eval.instrument=nope.json", "eval.instrument = nope.json"),
    ("eval.instrument={t}/empty.json", "eval.instrument = "),
    ("eval.instrument=moralmaps", "no package moralmaps"),
    ("eval.coefficients=[0.5,0.5]", "0.5 is there twice"),
    ("eval.coefficients=[0.1234561,0.1234562]", "0.123456 is there twice"),
    ("eval.gates=[0.5,0.50]", "0.5 is there twice"),
]


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "broken.json").write_text('{"name": ')
    (tmp_path / "empty.json").write_text("{}")
    (tmp_path / "there.gguf").write_bytes(b"GGUF")
    (tmp_path / "notes.jsonl").write_text('{"note": "no prompt"}\n')
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "Name a fruit."}\n')
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    return tmp_path


@pytest.mark.parametrize(("overrides", "part"), WRONG, ids=[case for case, _ in WRONG])
def test_what_cannot_be_had_is_not_frozen_and_the_corrected_value_is_taken(
    overrides: str, part: str, files: Path
) -> None:
    run = files / "run"
    with pytest.raises(SteerHealError) as refused:
        open_run(run, CONFIG, overrides.replace("{t}", str(files)))
    assert part in refused.value.render() and not run.exists()
    key = overrides.partition("=")[0]
    assert open_run(run, CONFIG, "").config == resolve_config(CONFIG)[0], key


def test_four_bits_are_refused_where_torch_has_no_gpu_build(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Before the run, not after hours of sampling; a login node without a GPU has a build that knows one."""
    four = resolve_config(CONFIG, "train.load_in_4bit=true")[0]
    monkeypatch.setattr(preconditions, "version", lambda name: "2.13.0+cu130")
    check(four)
    monkeypatch.setattr(preconditions, "version", lambda name: "2.13.0+cpu")
    with pytest.raises(SteerHealError, match="4-bit") as caught:
        open_run(tmp_path / "run", CONFIG, "train.load_in_4bit=true")
    assert "train.load_in_4bit=false" in caught.value.next and not (tmp_path / "run").exists()


def test_what_no_stage_reads_need_not_be_there() -> None:
    check(resolve_config(CONFIG, "sweep.n_mundane=0 sweep.mundane=nope.jsonl")[0])


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*smollm2.toml")), ids=lambda path: path.stem)
def test_shipped_configurations_of_the_embedded_model_can_be_begun(path: Path) -> None:
    check(resolve_config(path)[0])


def test_a_model_without_a_chat_template_is_refused(tmp_path: Path) -> None:
    whole = next(cache_folder().glob("smollm2-135m-instruct-*"))
    bare = tmp_path / "base"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        os.symlink(whole / name, bare / name)
    with pytest.raises(SteerHealError, match="no chat template"):
        check(resolve_config(CONFIG, f"model.name={bare}")[0])
    for path in whole.iterdir():
        if not (bare / path.name).exists():
            shutil.copyfile(path, bare / path.name)
    check(resolve_config(CONFIG, f"model.name={bare}")[0])


def test_a_setting_of_a_begun_run_is_checked_as_well(tmp_path: Path) -> None:
    open_run(tmp_path / "run", CONFIG, "")
    before = (tmp_path / "run" / "config.toml").read_bytes()
    with pytest.raises(SteerHealError, match="tracker"):
        open_run(tmp_path / "run", None, "train.report_to=[wanddb]")
    assert (tmp_path / "run" / "config.toml").read_bytes() == before


def test_the_trackers_are_those_of_transformers() -> None:
    code = "from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK as known; print(*known)"
    done = command_of_python(code)
    assert set(done.split()) == set(TRACKER_PACKAGES)


def command_of_python(code: str) -> str:
    import subprocess
    import sys

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return done.stdout


def test_what_a_new_run_names_is_looked_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[str] = []

    def looking(name: str) -> None:
        looked.append(name)
        tracker(name)

    monkeypatch.setattr(preconditions, "tracker", looking)
    settings = "train.report_to=[tensorboard]"
    begun = open_run(tmp_path / "run", CONFIG, settings)
    begun.check()
    assert looked == ["tensorboard"]
    open_run(tmp_path / "run").check()
    assert looked == ["tensorboard"] * 2, "one that goes on is looked at again"


def test_the_embedded_model_is_described_as_it_will_be_dequantised(model: Model) -> None:
    assert model.text_config.items() <= json.loads((model.folder / "config.json").read_text()).items()
    assert (model.depth, model.hidden, model.context) == (30, 576, 8192)


def test_a_long_prompt_set_is_not_read_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preconditions, "ROWS", 3)
    rows = [json.dumps({"prompt": str(k)}) for k in range(3)]
    (tmp_path / "long.jsonl").write_text("\n".join([*rows, "not read here"]))
    check(resolve_config(CONFIG, f"sweep.dilemmas={tmp_path}/long.jsonl")[0])


# A refusal waits for none of these; the engine and the trainer take ten seconds and more to import.
HEAVY = ("torch", "transformers", "vllm", "unsloth", "datasets", "matplotlib", "scipy")
PROBE = f"""
import runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
finally:
    print("loaded:", *[name for name in {HEAVY} if name in sys.modules])
"""


@pytest.mark.parametrize(
    "line",
    [
        "gen.extract --model ./nope --out {t}/new/v.safetensors",
        "gen.extract --model embedded --out {t}/new/v.safetensors --set vector.trait=nope.json",
        "gen.extract --model embedded --out {t}/new/v.safetensors --set vector.layers=[99]",
        "gen.extract --model embedded --out /proc/new/v.safetensors",
        "gen.sweep --model embedded --vector nope.safetensors --prompts {t}/prompts.jsonl --coefficients 0 --out {t}/new/s.jsonl",
        "gen.sweep --model embedded --vector {t}/v.safetensors --prompts nope.jsonl --coefficients 0 --out {t}/new/s.jsonl",
        "gen.filter --in nope --out {t}/new",
        "gen.serve --vector trait=nope.safetensors",
        "gen.serve --vector trait={t}/v.safetensors --adapter nope",
        "gen.verify --model nope.gguf",
        "train.heal --model ./nope --data {t}/prompts.jsonl --out {t}/new/a",
        "train.heal --model embedded --data nope.jsonl --out {t}/new/a",
        "train.heal --model embedded --data {t}/prompts.jsonl --history nope --out {t}/new/a",
        "train.heal --model embedded --data {t}/prompts.jsonl --out {t}/new/a --set train.report_to=[wanddb]",
        "train.export --model embedded --adapter {t} --as round --out {t}/new",
        "evals.score --model embedded --adapter nope --out {t}/new/s.jsonl",
        "evals.score --model embedded --vignettes nope.jsonl --out {t}/new/s.jsonl",
        "evals.report --run nope",
        "evals.compare --base nope.jsonl --other nope.jsonl",
        "evals.study --config nope.toml --run {t}/new --out {t}/new",
        "shared.pipeline --run {t}/new --set vector.layers=[99]",
        "shared.pipeline --run {t}/new --set train.layers=0.9-0.1",
        "shared.pipeline --run {t}/new --set train.max_length=100000",
        "shared.pipeline --run {t}/new --set model.dtype=float16",
        "shared.pipeline --run {t}/new --set 'train.early_stop=2 train.heldout=0'",
        "train.heal --model embedded --data {t}/prompts.jsonl --out {t}/new/a --set model.dtype=float16",
        "train.heal --model embedded --data {t}/prompts.jsonl --out {t}/new/a --set train.max_length=100000",
        "train.heal --model embedded --data {t}/prompts.jsonl --out {t}/new/a --set train.layers=0.9-0.1",
    ],
)
def test_a_refusal_waits_for_no_heavy_import_and_leaves_no_folder(line: str, files: Path) -> None:
    """With a cold cache as well: what is refused does not wait for the embedded model to be dequantised."""
    import shlex
    import subprocess
    import sys

    import numpy as np

    from shared.vectors import Vector

    Vector({14: np.ones(576, dtype=np.float32)}).save(files / "v.safetensors")
    words = shlex.split(line.replace("{t}", str(files)))
    environment = {**os.environ, "STEER_HEAL_CACHE": str(files / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *words], capture_output=True, text=True, cwd=ROOT, env=environment
    )
    assert done.stderr.startswith("error: ") and "  next: " in done.stderr, done.stderr
    assert "loaded:\n" in done.stdout, done.stdout
    assert not (files / "new").exists() and not (files / "cache").exists()


@pytest.mark.parametrize(
    "line",
    [
        "gen.sweep --coefficients 0,1",
        "gen.filter --in nope --out {t}/new",
        "gen.verify --model nope.gguf",
        "evals.report --run nope",
        "shared.pipeline --run {t}/new --set train.lamda=1",
        "shared.pipeline --run {t}/new --set model.max_model_len=100000",
        "train.heal --model embedded --data nope.jsonl --out {t}/new/a",
    ],
)
def test_a_refusal_takes_less_than_two_seconds(line: str, tmp_path: Path) -> None:
    """Of a processor's time, which other work beside it does not lengthen much; the least of three tries."""
    import subprocess
    import sys

    words = [sys.executable, "-m", *line.replace("{t}", str(tmp_path)).split()]
    took = []
    while len(took) < 3 and not (took and min(took) < 2):
        with open(tmp_path / "err", "wb") as said:
            process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=said)
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 2, (tmp_path / "err").read_text()
        took.append(usage.ru_utime + usage.ru_stime)
    assert min(took) < 2, took


def test_a_typing_error_of_a_stage_names_what_was_meant() -> None:
    done = command("gen.sweep", "--vectr", "v", "--model", "embedded")
    assert done.returncode == 2 and "did you mean --vector?" in done.stderr
    assert "next:     python -m gen.sweep --vector v --model embedded" in done.stderr
