"""The commands and their names: `steer-heal sweep` and `python -m gen.sweep` are one, and a hint shows the form that was typed."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

CONFIG, RUN = "configs/smollm2.toml", "runs/smollm2"  # the Makefile's defaults
FORM = "STEER_HEAL_FORM"  # environment: `make` or `steer-heal`, set by who began the process; unset under `python -m`
PROGRAM = "STEER_HEAL_PROGRAM"  # environment: how the console script was typed, such as .venv/bin/steer-heal


@dataclass(frozen=True)
class Command:
    """A subcommand.

    Args:
        module: holds its `main`.
        options: builds its options, as module:function, and imports nothing heavy: help and completion wait for it.
        says: one line for the list of subcommands.
    """

    module: str
    options: str
    says: str


COMMANDS = {
    "init": Command("shared.init", "shared.commandline:init_options", "the files of a trait of your own, to edit; --check looks them over"),
    "round": Command("shared.pipeline", "shared.commandline:round_options", "rounds 1 to N with all their stages, then the report"),
    "status": Command("shared.status", "shared.commandline:status_options", "runs: what is done, what is running, what comes next"),
    "extract": Command("gen.extract", "gen.commandline:extract_options", "a steering vector from a chat model"),
    "sweep": Command("gen.sweep", "gen.commandline:sweep_options", "completions over coefficients of the vector"),
    "filter": Command("gen.filter", "gen.commandline:filter_options", "keep coherent completions that enact the trait"),
    "heal": Command("train.heal", "train.commandline:heal_options", "train a LoRA on the kept rows behind the barrier"),
    "score": Command("evals.score", "evals.commandline:score_options", "the forced choice and free generations"),
    "preflight": Command("evals.preflight", "evals.commandline:preflight_options", "can a model do the forced choice, and with how many think tokens?"),
    "report": Command("evals.report", "evals.commandline:report_options", "the report of a run from its scores"),
    "compare": Command("evals.compare", "evals.commandline:compare_options", "two runs side by side, or score files against their base"),
    "export": Command("train.export", "train.commandline:export_options", "a trained round for use elsewhere"),
    "serve": Command("gen.serve", "gen.commandline:serve_options", "an OpenAI-compatible server, steered per request"),
    "play": Command("gen.play", "gen.commandline:play_options", "a page to compare base, prompted, steered and healed on"),
    "verify": Command("gen.verify", "gen.commandline:verify_options", "does steering work on this machine and this model?"),
    "study": Command("evals.study", "evals.commandline:study_options", "arms x rounds x seeds against controls"),
    "label": Command("gen.label", "gen.commandline:label_options", "kept and rejected rows for a person to judge; the filter against them"),
    "card": Command("gen.card", "gen.commandline:card_options", "the kept completions of a round as a data set"),
    "vector convert": Command("shared.convert", "shared.commandline:convert_options", "a steering vector to or from llama.cpp's control vectors"),
    "vector scan": Command("gen.scan", "gen.commandline:scan_options", "which layer carries the trait, at one relative dose"),
    "doctor": Command("shared.doctor", "shared.commandline:doctor_options", "what this machine has, what is missing"),
    "config": Command("shared.config", "shared.commandline:config_options", "every configuration key with its meaning"),
    "bench setup": Command("shared.bench", "shared.commandline:bench_options", "time of the set-up over plain pip's"),
    "bench sweep": Command("gen.bench", "gen.commandline:bench_options", "speed of the sweep, as ratios"),
    "bench heal": Command("train.bench", "train.commandline:bench_options", "speed and memory of the training, as ratios"),
    "bench score": Command("evals.bench", "evals.commandline:bench_options", "speed of the scoring, as a ratio"),
    "completion": Command("shared.completion", "shared.commandline:completion_options", "the script that completes words in a shell"),
}  # fmt: skip
CHECK_MEASURES = (
    "evals.measures.registry:check_measures"  # takes the section eval of a configuration, before it is frozen
)
NAMES = {command.module: name for name, command in COMMANDS.items()}


def imported(place: str) -> Callable[..., Any]:
    """Import a function of a package above this one, by one of the names of this file.

    Args:
        place: module:function; of a package, the function may be in its __main__.
    """
    name, _, function = place.partition(":")
    module = import_module(name)
    if not hasattr(module, function):
        module = import_module(f"{name}.__main__")
    loaded: Callable[..., Any] = getattr(module, function)
    return loaded


def form() -> str:
    """The command by which the user began this process or the one above it: make, steer-heal, or python."""
    return os.environ.get(FORM, "python")


def program() -> str:
    """The console script as it is typed: under make, whose users activate no .venv, by its path."""
    return ".venv/bin/steer-heal" if form() == "make" else os.environ.get(PROGRAM) or "steer-heal"


def interpreter() -> str:
    """This environment's Python as it is typed: by its path where no .venv is active, as under make."""
    typed = program() if form() == "make" or os.environ.get(PROGRAM) else ""
    return str(Path(typed).with_name("python")) if "/" in typed else "python"


def command_of(module: str, *words: object) -> str:
    """The command that runs a module, as the user would type it.

    Args:
        module: such as `gen.sweep`.
        words: after it, quoted here where a shell needs that.
    """
    name = NAMES.get(module)
    begin = f"{program()} {name}" if name and form() != "python" else f"{interpreter()} -m {module}"
    return " ".join([begin, *(shlex.quote(str(word)) for word in words)])


def as_typed(text: str) -> str:
    """A hint written with `python -m` or `python -c`, in the form that the user typed."""
    text = re.sub(r"(?<![\w./-])python -c (?=[\"'])", lambda match: f"{interpreter()} -c ", text)
    return re.sub(r"python -m ((?:gen|train|evals|shared)(?:\.\w+)+)", lambda match: command_of(match[1]), text)


def setting(text: str) -> str:
    """The option that overrides configuration keys: SET under make, --set elsewhere.

    Args:
        text: such as `train.lam=0.1`.
    """
    return option("SET", "--set", text)


def option(variable: str, name: str, value: object) -> str:
    """An option with its value, as it is typed after the current command.

    Args:
        variable: what `make` calls it, such as `CONFIG`.
        name: what the command itself calls it, such as `--config`.
        value: quoted here where a shell needs that.
    """
    return _assigned(variable, str(value)) if form() == "make" else f"{name} {shlex.quote(str(value))}"


def round_command(
    run: Path | str | None = None,
    rounds: int | None = None,
    *,
    config: Path | str | None = None,
    overrides: str | None = None,
    model: str | None = None,
    mode: str | None = None,
    out: Path | str | None = None,
    rebuild: bool = False,
    target: str = "round",
    dry: bool = False,
) -> str:
    """The command that brings a run to a round, with every option it needs.

    `make` has a default for RUN and for the CONFIG of a run that is not there yet; the others are told the same.

    Args:
        run: folder of the run; None leaves the default.
        rounds: N of make; None leaves the default, 1.
        config, overrides, model: CONFIG, SET and MODEL, which begin a run; an existing one needs none of them.
        mode: EVAL, `round` or `full`.
        out: OUT of a study: the folder of its results.
        rebuild: make stages again whose settings or inputs changed.
        target: `round`, `report` (which also scores, with mode full) or `study`.
        dry: say what the round would take, and stop; `make` has no word for it.
    """
    if form() == "steer-heal" and target == "round":
        run = RUN if run is None else run
        config = CONFIG if config is None and not (Path(run) / "config.toml").is_file() else config
    chosen = [("N", "--rounds", rounds), ("RUN", "--run", run), ("CONFIG", "--config", config), ("MODEL", "--model", model), ("SET", "--set", overrides or None), ("EVAL", "--eval", mode), ("OUT", "--out", out)]  # fmt: skip
    options = [(variable, option, str(value)) for variable, option, value in chosen if value is not None]
    if form() == "steer-heal":
        words = [word for _, option, value in options for word in (option, shlex.quote(value))]
        command = ["round", "--report"] if target == "report" else [target]  # `report` alone makes no scores
        return " ".join(
            [program(), *command, *words, *(["--rebuild"] if rebuild else []), *(["--dry-run"] if dry else [])]
        )
    words = [_assigned(variable, value) for variable, _, value in options]
    return " ".join(["make", target, *words, *(["REBUILD=1"] if rebuild else [])])


def stage_command(
    run: Path | str, number: int, stage: str, *, overrides: str | None = None, rebuild: bool = False
) -> str:
    """The command that brings a run to a stage of a round: EVAL=full makes `score-full`, and nothing else does.

    Args: as of `round_command`, and the name of the stage.
    """
    mode = "full" if stage == "score-full" else None
    return round_command(run, number, overrides=overrides, mode=mode, rebuild=rebuild)


def _assigned(variable: str, value: str) -> str:
    return f"{variable}={shlex.quote(value.replace('$', '$$'))}"


def removal(*paths: Path | str, folder: bool = False) -> str:
    """The command that removes files, or folders with what is in them.

    Paths are quoted here: pasted without quotes, a name with a blank in it removes two others.
    """
    names = [f"./{path}" if str(path).startswith("-") else str(path) for path in paths]
    return "rm " + ("-r " if folder else "") + " ".join(map(shlex.quote, names))


def nearest_command(word: str, words: Iterable[str]) -> str | None:
    """The known word that a misspelt one is nearest to; None where none is near.

    Args:
        word: as it was typed.
        words: words that it may be.
    """
    from difflib import get_close_matches

    names = list(words)
    if same := [name for name in names if name.lower() == word.lower()]:
        return same[0]
    matches = get_close_matches(word, names, 1, 0.6)
    return matches[0] if matches else None
