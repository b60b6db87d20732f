"""What must hold before a configuration is frozen: every path, name, layer and tracker in it can be had.

Cheap things come first and the model last: its weights are downloaded only for a configuration that is right otherwise.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

from shared.commands import CHECK_MEASURES, imported, nearest_command, setting
from shared.context import fitted, refuse_lengths
from shared.errors import SteerHealError
from shared.instrument import read_instrument
from shared.models import resolve_model
from shared.prompts import load_heldout, open_prompts, prompts_name
from shared.records import data_file
from shared.schema import Config, band
from shared.trait_checks import refuse_unready
from shared.traits import load_trait
from shared.vignettes import load_vignettes

ROWS = 10_000  # of a prompt set that are read here; the stage reads all of them before it asks a model

# Names that transformers reports to, with the packages of which one must be installed for each.
TRACKER_PACKAGES: dict[str, tuple[tuple[str, ...], ...]] = {
    "azure_ml": (("azureml",),),
    "clearml": (("clearml",),),
    "codecarbon": (("codecarbon",),),
    "comet_ml": (("comet_ml",),),
    "dagshub": (("dagshub",), ("mlflow",)),
    "dvclive": (("dvclive",),),
    "flyte": (("flytekit",),),
    "kubeflow": (),  # a service, told by the environment
    "mlflow": (("mlflow",),),
    "neptune": (("neptune",),),
    "swanlab": (("swanlab",),),
    "tensorboard": (("tensorboard", "tensorboardX"),),
    "trackio": (("trackio",),),
    "wandb": (("wandb",),),
}


def check(config: Config, *, weights: bool = True) -> Config:
    """Look for all that a configuration names; without weights, for a dry run, the model's configuration and tokenizer alone.

    Returns:
        The configuration, with the model's context for a model.max_model_len that nobody set and that is beyond it.

    Raises:
        SteerHealError: the first thing that cannot be had or does not fit.
    """
    vector, sweep, judged, model = config.vector, config.sweep, config.eval, config.model
    for name in config.train.report_to:
        tracker(name)
    with _key("vector.trait", vector.trait):
        load_trait(vector.trait)
    if judged.trait is not None:
        with _key("eval.trait", judged.trait):
            load_trait(judged.trait)
    with _key("vector.contexts", vector.contexts):
        _prompts(vector.contexts, "contexts.jsonl")
    with _key("eval.heldout", judged.heldout):
        load_heldout(judged.heldout)
    with _key("eval.instrument", judged.instrument):
        _instrument(judged.instrument)
    with _key("eval.vignettes", judged.vignettes):
        load_vignettes(judged.vignettes)
    imported(CHECK_MEASURES)(judged)
    with _key("sweep.dilemmas", sweep.dilemmas):
        _prompts(sweep.dilemmas, "dilemmas.jsonl")
    if sweep.n_mundane:
        with _key("sweep.mundane", sweep.mundane):
            _prompts(sweep.mundane, "mundane.jsonl")
    refuse_unready(config, ROWS)
    with _key("model.name", model.name):
        described = resolve_model(model.name, model.revision, weights=False)
        described.chats()
        depth, _ = described.depth, described.hidden
    config = fitted(config, described.context)
    refuse_lengths(config)
    trainable(config, described.context)
    student_shifts(config, depth)
    if weights:
        with _key("model.name", model.name):
            resolve_model(model.name, model.revision)
    return config


def student_shifts(config: Config, depth: int) -> None:
    """Raise SteerHealError for bands that the model does not have, and where eval.student_vector is set and there can be no such vector:
    without contexts, or where all layers that are trained lie above the vector's.

    Args:
        config: of a run.
        depth: of the model, blocks.
    """
    read = band(config.vector.layers, depth, "vector.layers")
    trained = band(config.train.layers, depth, "train.layers")
    if not config.eval.student_vector:
        return
    if not config.eval.contexts:
        raise SteerHealError(
            "the student's vector needs contexts to be averaged over",
            given="eval.student_vector = true, eval.contexts = 0",
            expected="eval.contexts of 1 or more",
            next=setting("eval.contexts=64"),
        )
    if min(trained) > max(read):
        raise SteerHealError(
            "training does not reach the layers of the vector",
            given=f"train.layers from {min(trained)} on, vector.layers up to {max(read)}",
            expected="a trained layer at or below the vector's last, so that the student's activations differ there",
            next=setting("eval.student_vector=false"),
        )


def trainable(config: Config, context: int | None, held_out: int | None = None) -> None:
    """Raise SteerHealError for settings with which no student is trained.

    Args:
        config: of a run or of `train.heal` on plain files.
        context: longest sequence that the model knows, tokens; None where that is not known.
        held_out: number of rows held out of the data; None before there are data.
    """
    train = config.train
    if config.model.dtype == "float16":  # a round's factors are fp32, but what flows back to them is not
        raise SteerHealError(
            "training in float16 is not supported: it would need loss scaling",
            given="model.dtype = float16",
            expected="bfloat16 or float32, in which small gradients do not vanish",
            next=f"{setting('model.dtype=bfloat16')} (on a GPU that knows float16 alone: float32)",
        )
    if train.load_in_4bit and _without_gpus():
        raise SteerHealError(
            "4-bit weights need a GPU, and this torch has none",
            given=f"train.load_in_4bit = true, torch {version('torch')}",
            expected="false on a CPU, or the packages for a GPU: make clean setup LOCK=gpu",
            next=setting("train.load_in_4bit=false"),
        )
    if context is not None and train.max_length > context:
        raise SteerHealError(
            "train.max_length is beyond the model's context",
            given=train.max_length,
            expected=f"at most {context}",
            next=setting(f"train.max_length={context}"),
        )
    if train.early_stop and train.steps:
        raise SteerHealError(
            "a training cannot both stop early and take a fixed number of steps",
            given=f"train.early_stop = {train.early_stop}, train.steps = {train.steps}",
            expected="one of the two",
            next=setting("train.early_stop=0"),
        )
    if train.early_stop and not (train.heldout if held_out is None else held_out):
        raise SteerHealError(
            "early stopping needs held-out rows: there is nothing to stop early by",
            given=f"train.early_stop = {train.early_stop}, train.heldout = {train.heldout:g}"
            + ("" if held_out is None else ", and no prompt of these data is held out"),
            expected="train.heldout above 0, and several prompts",
            next=setting("train.early_stop=0"),
        )


def _without_gpus() -> bool:
    """Whether the installed torch is a build for CPUs alone: known without importing it."""
    try:
        return version("torch").endswith("+cpu")
    except PackageNotFoundError:
        return False


@contextmanager
def _key(key: str, value: str) -> Iterator[None]:
    """Name the key in the errors of what reads its value."""
    try:
        yield
    except SteerHealError as error:
        error.given = f"{key} = {value}" + ("" if error.given in (None, value, repr(value)) else f"; {error.given}")
        raise


def tracker(name: str) -> None:
    """Raise SteerHealError for a name that transformers does not report to, and for one whose package is not here."""
    if name not in TRACKER_PACKAGES:
        meant = nearest_command(name, TRACKER_PACKAGES)
        raise SteerHealError(
            "there is no such tracker",
            given=f"train.report_to = {name}",
            expected=f"did you mean {meant}?" if meant else f"one of {', '.join(TRACKER_PACKAGES)}",
            next=setting(f"train.report_to=[{meant or ''}]"),
        )
    if lacking := [names[0] for names in TRACKER_PACKAGES[name] if not any(map(find_spec, names))]:
        raise SteerHealError(
            "a tracker is not installed",
            given=f"train.report_to = {name}: no package {lacking[0]}",
            expected="an installed package, or an empty train.report_to",
            next=f".venv/bin/python -m pip install {lacking[0]}, or {setting('train.report_to=[]')}",
        )
    _login(name)


def _login(name: str) -> None:
    """Raise SteerHealError for W&B without an account: it asks for one at the terminal, hours into a run, or ends the training."""
    alone = os.environ.get("WANDB_MODE", "").lower() in ("offline", "disabled", "dryrun")
    if name == "wandb" and not (alone or os.environ.get("WANDB_API_KEY") or (Path.home() / ".netrc").is_file()):
        raise SteerHealError(
            "W&B has no account to report to",
            given="train.report_to = wandb: no WANDB_API_KEY and no ~/.netrc",
            expected="an account, or WANDB_MODE=offline, which writes into the folder wandb",
            next=".venv/bin/wandb login, or export WANDB_MODE=offline",
        )


def _instrument(name: str) -> None:
    if name != "moralmaps":
        read_instrument(data_file(name, "instrument.json"))
    elif find_spec("moralmaps") is None:
        raise SteerHealError(
            "the published instrument is not installed",
            given="no package moralmaps",
            expected="moralmaps beside this package, its instrument as a JSON file, or embedded",
            next=setting("eval.instrument=embedded"),
        )


def _prompts(name: str, embedded: str) -> None:
    """Read the first rows of a prompt set."""
    with open_prompts(prompts_name(name, embedded)) as prompts:
        for _ in islice(prompts, ROWS):
            pass
