"""Shared fixtures: the embedded model, and one steered engine for the whole session."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from serving import Server, serving

from shared.cli import quiet
from shared.models import Model, cache_folder, resolve_model
from shared.vectors import Vector

# A shell gives what it runs in the background a SIGINT that is ignored, and so would every process be that a test interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# What `make test` hands the makes below it would have them print the folders that they enter.
for name in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS"):
    os.environ.pop(name, None)

quiet()
if worker := os.environ.get("PYTEST_XDIST_WORKER"):  # before torch is imported, and for every command that a test runs
    share = max(1, len(os.sched_getaffinity(0)) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"]))
    os.environ["OMP_NUM_THREADS"] = str(share)
    os.environ["UNSLOTH_COMPILE_LOCATION"] = str(cache_folder() / f"unsloth_compiled_{worker}")
else:
    _ = resolve_model("embedded").folder  # built, where it is not yet, before two workers ask for it
settings.register_profile(
    "busy", deadline=None
)  # the time of one example says more about the machine than about the code
settings.load_profile("busy")
ROOT = Path(__file__).parent.parent
LAYERS = [14, 15]
# Files that use the fixtures engine or server, as test_layout.py checks; the last one ends the server.
ENGINE = ["test_serve", "test_ecosystem", "test_reading", "test_forced_choice", "test_free_text", "test_measure_seam", "test_preflight", "test_probe", "test_survey", "test_terms", "test_agreement_stage", "test_cache", "test_scan", "test_engine", "test_proxy", "test_drain"]  # fmt: skip
# Of the others those that take longest, by a measurement.
LONGEST = ["test_pipeline", "test_train", "test_engine_variants", "test_sweep", "test_steer_api", "test_resume", "test_verify", "test_export", "test_setup", "test_study", "test_parity", "test_cli", "test_report"]  # fmt: skip


SHARING = pytest.StashKey[
    dict[str, bool]
]()  # by collected file: whether a test of it uses the fixtures engine or server


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """Whole files to each worker of `make test`, and those that share an engine or a server to one, so that it is started once."""
    from xdist.scheduler import LoadScopeScheduling

    class Files(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = Path(nodeid.split("::")[0]).stem
            return "engine" if file in ENGINE else file

    return Files(config, log)


def _shares_engine(item: pytest.Item) -> bool:
    """Whether a test uses the fixtures engine or server of this file, and not one of its own file with such a name."""
    fixtures = item._fixtureinfo.name2fixturedefs  # type: ignore[attr-defined]
    return any(fixtures[name][-1].func.__module__ == __name__ for name in ("engine", "server") if name in fixtures)


@pytest.hookimpl(tryfirst=True)  # before any test is deselected
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The longest files first, so that two workers end at about the same time."""
    config.stash[SHARING] = {item.path.stem: False for item in items} | {
        item.path.stem: True for item in items if _shares_engine(item)
    }
    first = [*ENGINE, *LONGEST]
    items.sort(key=lambda item: first.index(item.path.stem) if item.path.stem in first else len(first))


@pytest.fixture(scope="session")
def model() -> Model:
    return resolve_model("embedded")


def random_model(folder: Path, **sizes: int) -> Model:
    """The embedded model's tokenizer and architecture with six narrow layers of random weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    embedded = resolve_model("embedded").folder
    config = AutoConfig.from_pretrained(embedded)
    config.update({"hidden_size": 192, "intermediate_size": 384, "num_hidden_layers": 6, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 32, "initializer_range": 0.1, **sizes})  # fmt: skip
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:6]
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    AutoTokenizer.from_pretrained(embedded).save_pretrained(folder)
    return resolve_model(str(folder))


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A round on it takes seconds. For tests of what training does with a model, and not of what the model says."""
    return random_model(tmp_path_factory.mktemp("small_model"))


@pytest.fixture(scope="session")
def shallow_model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """The first six of the embedded model's thirty layers with its embeddings: it has something to forget, and a third of the work.

    For tests of training whose bounds are of real weights.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    embedded = resolve_model("embedded").folder
    network = AutoModelForCausalLM.from_pretrained(embedded, dtype=torch.float32, num_hidden_layers=6)
    folder = tmp_path_factory.mktemp("shallow_model")
    network.save_pretrained(folder)
    AutoTokenizer.from_pretrained(embedded).save_pretrained(folder)
    return resolve_model(str(folder))


@pytest.fixture(scope="session")
def tokenizer(model: Model) -> object:
    from shared.chat import load_tokenizer

    return load_tokenizer(str(model.folder))


@pytest.fixture(scope="session")
def vector() -> Vector:
    """A direction strong enough to move what the model says."""
    draws = np.random.default_rng(0)
    return Vector({layer: draws.standard_normal(576).astype(np.float32) * 0.4 for layer in LAYERS})


@pytest.fixture(scope="session")
def small_vector() -> Vector:
    """A direction for the small model."""
    draws = np.random.default_rng(0)
    return Vector({layer: draws.standard_normal(192).astype(np.float32) * 0.4 for layer in (3, 4)})


@pytest.fixture(scope="session")
def engine(model: Model, vector: Vector) -> Iterator[object]:
    """fp32, small blocks so that the prefix cache is hit, a small token budget so that prompts are chunked."""
    import gen.engine.engine

    small = {"max_model_len": 1024, "max_num_batched_tokens": 256, "kv_cache_memory_bytes": 512 << 20}
    with gen.engine.engine.engine(model.folder, layers=LAYERS, dtype="float32", read=True, **small) as built:
        built.load("v", vector)
        yield built


@pytest.fixture(scope="session")
def server(vector: Vector, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server in fp32 that steers and reads, with the vector as `trait` and its negative as `minus`.

    Its cache is so small that a few long requests are preempted. It takes 4 GiB.
    """
    blocks = ("--num-gpu-blocks-override", "48")
    with serving(vector, tmp_path_factory.mktemp("serve"), *blocks, arguments=("--read",)) as running:
        yield running


@pytest.fixture(scope="session")
def tinymfv() -> Path:
    folder = os.environ.get("TINYMFV_DIR")
    if not folder:
        pytest.skip(
            "TINYMFV_DIR is not set: the published vignettes and reference values are not part of the repository"
        )
    return Path(folder)


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder whose packages can be imported; a package moralmaps that a test wrote there is forgotten after it."""

    def forget() -> None:
        for name in [name for name in sys.modules if name.partition(".")[0] == "moralmaps"]:
            del sys.modules[name]

    monkeypatch.syspath_prepend(tmp_path)
    forget()
    yield tmp_path
    forget()


def command(*arguments: object, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run `python -m ...` as a user would."""
    return subprocess.run([sys.executable, "-m", *map(str, arguments)], capture_output=True, text=True, cwd=cwd)


def heal(data: Path, out: Path, overrides: str, model: object = "embedded") -> subprocess.CompletedProcess[str]:
    """Run train.heal on plain files."""
    return command("train.heal", "--model", model, "--data", data, "--out", out, "--set", overrides)
