"""`steer-heal init NAME`: the files of your own trait, to edit, each with what it is for; `--check` says what is wrong with them."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import tomlkit

from shared.cli import entry
from shared.commandline import init_options
from shared.commands import CONFIG, command_of, round_command
from shared.config import resolve_config
from shared.console import say
from shared.errors import Exit, SteerHealError
from shared.preconditions import check
from shared.publish import atomic_folder
from shared.records import DATA, write_jsonl
from shared.trait_checks import near_copies, read_trait_files
from shared.trait_template import FILES, dilemmas, guide, heldout, trait_json

FOLDER = Path("traits")  # of a NAME without a folder
NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
KEYS = {
    "vector.trait": "trait.json",
    "vector.contexts": "contexts.jsonl",
    "sweep.dilemmas": "dilemmas.jsonl",
    "sweep.mundane": "mundane.jsonl",
    "eval.heldout": "heldout.jsonl",
}


def folder_of(name: str) -> Path:
    """The folder that NAME means: traits/NAME, or a path as it is.

    Raises:
        SteerHealError: the last part is no name for a folder, a configuration and a run.
    """
    path = Path(name)
    if not NAME.fullmatch(path.name):
        suggested = re.sub(r"[^a-z0-9_-]+", "-", path.name.lower()).strip("-_") or "my-trait"
        raise SteerHealError(
            "a trait needs a name that a file and a run can have",
            given=name,
            expected="lower-case letters, digits, - and _",
            next=command_of("shared.init", str(path.with_name(suggested)) if path.name else suggested),
        )
    return path if len(path.parts) > 1 else FOLDER / path


def write_trait_folder(folder: Path, config: Path) -> None:
    """Write the files of a new trait.

    Args:
        folder: that is not there yet.
        config: configuration file whose other settings the trait's configuration takes over.

    Raises:
        SteerHealError: the folder is there, or the configuration cannot be read.
    """
    if folder.exists():
        raise SteerHealError(
            "there is a trait of this name",
            given=folder,
            expected="a folder that is not there yet",
            next=f"{command_of('shared.init', '--check', folder)}, or another name",
        )
    resolve_config(config)  # refuses what is no configuration, in its own words
    with atomic_folder(folder) as out:
        (out / "trait.json").write_text(trait_json(folder.name), encoding="utf-8")
        for name in ("contexts.jsonl", "mundane.jsonl"):
            (out / name).write_bytes((DATA / name).read_bytes())
        write_jsonl(out / "dilemmas.jsonl", dilemmas())
        write_jsonl(out / "heldout.jsonl", heldout())
        (out / f"{folder.name}.toml").write_text(_settings(folder, config), encoding="utf-8")
        (out / "README.md").write_text(guide(folder, config), encoding="utf-8")


def _settings(folder: Path, config: Path) -> str:
    """The text of a configuration with the trait's files in place of its own."""
    document = tomlkit.parse(config.read_text(encoding="utf-8"))
    document.pop("study", None)
    for key, name in KEYS.items():
        section, _, field = key.partition(".")
        if section not in document:
            document.add(section, tomlkit.table())
        document[section][field] = (folder / name).as_posix()
    return tomlkit.dumps(document)


def find_config(name: str) -> Path:
    """The configuration of a trait: of NAME, of its folder, or of a file in it.

    Raises:
        SteerHealError: there is none.
    """
    path = Path(name)
    if path.is_file():
        path = path.parent
    folder = path if path.is_dir() else folder_of(name)
    config = folder / f"{folder.resolve().name}.toml"
    if not config.is_file():
        raise SteerHealError(
            "there is no such trait",
            given=config,
            expected="a folder that steer-heal init has made, with its configuration NAME.toml",
            next=command_of("shared.init", name if NAME.fullmatch(Path(name).name) else "my-trait"),
        )
    return config


def check_folder(config: Path) -> None:
    """Print what is wrong with a trait's files, and the command that runs it where nothing is.

    Raises:
        SteerHealError: a file cannot be read, a placeholder is left, or a held-out prompt is trained on.
    """
    settings, _ = resolve_config(config)
    check(settings)
    for copy in near_copies(read_trait_files(settings)):
        say(f"worth a look: {copy.place}: {copy.problem}", "yellow")
    say(f"{config.parent}: ready")
    say(f"next: {round_command(Path('runs') / config.stem, config=config)}")


def main() -> None:
    arguments = init_options().parse_args()
    if arguments.check:
        if arguments.config:
            raise SteerHealError(
                "--config goes into a new trait, and --check looks at one that is there",
                given="both",
                expected="one of the two",
                next=command_of("shared.init", "--check", arguments.name),
            )
        check_folder(find_config(arguments.name))
        return
    folder = folder_of(arguments.name)
    write_trait_folder(folder, arguments.config or Path(CONFIG))
    for name, file in FILES.items():
        say(f"{folder / name.replace('NAME', folder.name)}: {file.purpose}; edit {file.edit}")
    say("a run does not begin while a <edit: ...> is left")
    say(f"next: edit {folder}/trait.json, then {command_of('shared.init', '--check', folder)}")
    sys.exit(Exit.DONE)


if __name__ == "__main__":
    entry(main)
