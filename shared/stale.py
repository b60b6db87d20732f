"""Which steps REBUILD=1 makes again: looked up beforehand in manifests, for an estimate. The stages themselves decide."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from shared.config import NOT_IN_RESULTS, flatten_config
from shared.errors import SteerHealError
from shared.publish import digest
from shared.records import Manifest, data_file
from shared.run import Run
from shared.schema import Config
from shared.sets import input_of
from shared.stages import Step

# what of a configuration a stage may depend on, by the beginnings of keys; its settings are a part of it
KEYS = {
    "extract": ("model.", "vector.", "seed"),
    "sweep": ("model.", "sweep.", "filter.", "seed"),
    "filter": ("filter.",),
    "heal": ("model.", "train.", "seed"),
    "score": ("model.", "eval.", "sweep.temperature", "sweep.top_p", "seed"),
}


def stale_steps(todo: Sequence[Step]) -> list[Step]:
    """The steps that are not done, or whose manifest is not of this configuration and of the files that are there now.

    Args:
        todo: of one run, in order. A step after one of these is one as well, as it reads what that makes, but for full scores, which
            no step reads.
    """
    stale: list[Step] = []
    made_anew = False
    for step in todo:
        if made_anew or not _intact(step):
            stale.append(step)
            made_anew = made_anew or not step.stage.startswith("score")
    return stale


def _intact(step: Step) -> bool:
    if not step.done:
        return False
    try:
        manifest = step.manifest
    except SteerHealError:  # the stage will say it
        return False
    return _same_settings(step, manifest) and not step.run.changed(manifest) and all(_same_inputs(step.run, manifest))


def _same_settings(step: Step, manifest: Manifest) -> bool:
    if manifest.config is None:  # of an earlier version
        return False
    begins = KEYS[step.stage.partition("-")[0]]
    now = {key: value for key, value in flatten_config(step.run.config).items() if key.startswith(begins)}
    return all(manifest.config.get(key) == value for key, value in now.items() if key not in NOT_IN_RESULTS)


def _same_inputs(run: Run, manifest: Manifest) -> Iterator[bool]:
    """Whether the files that a configuration names are those that were read, one by one; those of rounds are outputs of their stages."""
    now = {label: digest(path) for label, path in _files(run.config).items() if path.exists()}
    return (now[label] == value for label, value in manifest.inputs.items() if label in now)


def _files(config: Config) -> dict[str, Path]:
    return {
        "trait": data_file(config.vector.trait, "trait.json"),
        "eval trait": data_file(config.scored_trait, "trait.json"),
        **input_of("contexts", config.vector.contexts),
        **input_of("dilemmas", config.sweep.dilemmas),
        **input_of("mundane", config.sweep.mundane),
        **input_of("heldout", config.eval.heldout),
        **input_of("vignettes", config.eval.vignettes),
        **input_of("instrument", config.eval.instrument, ".json", installed=("moralmaps",)),
    }
