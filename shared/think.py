"""eval.think of a run that was not told it: the preflight's answer before round 1, frozen like any other setting.

With too few think tokens a model's answers do not follow the vignettes, and the forced choice says nothing; with more than it needs a
round takes longer. What a user sets, in a file or by SET, stands, whatever it is.
"""

from __future__ import annotations

from pathlib import Path

from shared.config import frozen_at, resolve_config, sources_of, to_toml
from shared.publish import write_text
from shared.schema import Config
from shared.traits import load_trait

FILE = "preflight.json"  # in the folder of the run
KEY, SOURCE = "eval.think", "the preflight"


def may_adopt(folder: Path) -> bool:
    """Whether the preflight may say eval.think: nobody else has, and nothing of the run is made that could depend on it.

    Args:
        folder: of the run.
    """
    is_set = sources_of(folder / "config.toml").get(KEY) not in ("default", SOURCE)
    return not is_set and not any(folder.glob("rounds/*/manifests/*.json"))


def wants_preflight(folder: Path, config: Config) -> bool:
    """Whether the runner does a preflight before round 1. It does none for a trait that the forced choice is not read for.

    Args:
        folder, config: of the run.
    """
    return may_adopt(folder) and not (folder / FILE).is_file() and load_trait(config.scored_trait).read_for is not None


def adopt(folder: Path, config: Config, think: int) -> Config:
    """Write the preflight's answer as eval.think into the frozen configuration of a run whose configuration leaves it out.

    Args:
        folder, config: of the run.
        think: tokens, as the preflight found them.

    Returns:
        The configuration as it is now frozen.
    """
    path = folder / "config.toml"
    adopted = with_think(config, think)
    sources = {**sources_of(path), KEY: SOURCE}
    write_text(path, to_toml(adopted, sources, frozen_at(path)))
    return adopted


def with_think(config: Config, think: int) -> Config:
    """A configuration with another eval.think."""
    return config.model_copy(update={"eval": config.eval.model_copy(update={"think": think})})


def with_its_think(config: Config, frozen: Path) -> Config:
    """A configuration, with eval.think taken from a frozen one.

    Unchanged where it sets eval.think itself, or where the frozen value is not from a preflight of the same model.
    """
    if "think" in config.eval.model_fields_set or sources_of(frozen).get(KEY) != SOURCE:
        return config
    old = resolve_config(frozen)[0]
    same = (old.model.name, old.model.revision) == (config.model.name, config.model.revision)
    return with_think(config, old.eval.think) if same else config
