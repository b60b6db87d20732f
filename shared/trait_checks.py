"""What is wrong with a trait's own files: placeholders, prompts both trained on and held out, words that give a side away, lengths."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from shared.commands import command_of
from shared.console import say
from shared.errors import SteerHealError
from shared.prompts import Located, load_heldout, open_prompts, prompts_name
from shared.records import data_file
from shared.schema import Config
from shared.traits import Trait, load_trait

MARK = "<edit:"  # how a placeholder of `steer-heal init` begins
ROWS = 10_000  # of a prompt set that are looked at
ALIKE = 0.6  # share of the words of two prompts that are common to both from which they are near copies
UNEVEN = 2.0  # longest over shortest system prompt of a file, in words
BRIEF, LONG = 3, 150  # words of a prompt
FEW_HELD_OUT, FEW_PARAPHRASES = 8, 3
# Words that say nothing of a trait. Short ones (up to three letters) are passed over anyway.
_PLACE = re.compile(r"(.*?)(:| row )(\d+)", re.DOTALL)  # as `shared.sources` writes the place of a row
COMMON = frozenset(
    """
    about above after again against also always among another anybody anyone anything assistant because been before being below
    both could does doing down during each even ever every everybody everyone everything first from have having help helpful here
    himself into itself just like make more most much must never nobody none nothing only onto other others over people person
    rather same should some somebody someone something still such than that their them themselves then there these they thing
    things this those through toward under until upon very what when where whether which while whom whose will with within
    without would your yours yourself
    """.split()  # noqa: SIM905
)


@dataclass(frozen=True)
class TraitProblem:
    """What is wrong in a file.

    place: the file, with the field or rows. problem: in words. refused: a run does not begin with it; else it is worth a look.
    """

    place: str
    problem: str
    refused: bool


@dataclass(frozen=True)
class TraitFiles:
    """The trait and the prompts that a configuration names.

    prompts: rows with their places by configuration key, the first ROWS of each. own: keys whose value is not the shipped file.
    """

    config: Config
    trait: Trait
    path: str
    prompts: dict[str, list[Located]]
    own: frozenset[str]

    @property
    def trained_on(self) -> list[Located]:
        """The prompts that the vector, the sweep or the training uses: all but the held-out ones."""
        return [row for key, rows in self.prompts.items() if key != "eval.heldout" for row in rows]


def read_trait_files(config: Config, most: int = ROWS) -> TraitFiles:
    """Read what a configuration names. Raises SteerHealError for a file that cannot be read.

    Args:
        config: names the trait file and the prompt sets.
        most: rows of a prompt set that are read.
    """
    prompts = {key: list(_rows(key, value, most)) for key, value in _values(config).items() if key != "vector.trait"}
    return TraitFiles(
        config,
        load_trait(config.vector.trait),
        str(data_file(config.vector.trait, "trait.json")),
        prompts,
        _own(config),
    )


def _values(config: Config) -> dict[str, str]:
    """The trait file and the prompt sets by configuration key."""
    values = {
        "vector.trait": config.vector.trait,
        "vector.contexts": config.vector.contexts,
        "sweep.dilemmas": config.sweep.dilemmas,
        "sweep.mundane": config.sweep.mundane,
        "eval.heldout": config.eval.heldout,
    }
    if not config.sweep.n_mundane:
        del values["sweep.mundane"]
    return values


def _own(config: Config) -> frozenset[str]:
    """Keys whose value is not the shipped file."""
    return frozenset(key for key, value in _values(config).items() if value != "embedded")


def _rows(key: str, value: str, most: int) -> Iterator[Located]:
    if key == "eval.heldout":
        load_heldout(value)  # refuses rows without an id and rows that are there twice
    with open_prompts(prompts_name(value, f"{key.rpartition('.')[2]}.jsonl")) as prompts:
        yield from islice(prompts, most)


def refuse_unready(config: Config, most: int = ROWS) -> None:
    """Check the files of your own trait before a run begins with them, and print warnings.

    A configuration that names only shipped files is not checked. Args: as of `read_trait_files`.

    Raises:
        SteerHealError: a placeholder is left, or a held-out prompt is trained on.
    """
    if not _own(config):
        return
    files = read_trait_files(config, most)
    findings = [finding for check in CHECKS for finding in check(files)]
    if refused := [unready for unready in findings if unready.refused]:
        folder = Path(files.path).parent
        made_by_init = (folder / f"{folder.resolve().name}.toml").is_file()  # by `steer-heal init`
        raise SteerHealError(
            "the files of a trait are not ready for a run",
            given="; ".join(f"{unready.place}: {unready.problem}" for unready in refused),
            expected="your text in place of every placeholder, and held-out prompts that nothing is trained on",
            next=f"edit them, then {command_of('shared.init', '--check', folder) if made_by_init else 'the same command'}",
        )
    for unready in findings:
        say(f"worth a look: {unready.place}: {unready.problem}", "yellow")


def placeholders(files: TraitFiles) -> Iterator[TraitProblem]:
    """Findings on text of `steer-heal init` that nobody has edited yet, by field and row."""
    if fields := [name for name, text in _texts(files.trait.model_dump()) if MARK in text]:
        yield TraitProblem(files.path, f"placeholders in {', '.join(fields)}", True)
    for rows in files.prompts.values():
        if unedited := [place for place, row in rows if MARK in _said(row) or MARK in (row.domain or "")]:
            file, unit, _ = _PLACE.fullmatch(unedited[0]).groups()  # type: ignore[union-attr]
            numbers = ", ".join(place[len(file) + len(unit) :] for place in unedited)
            yield TraitProblem(file, f"placeholders in {'line' if unit == ':' else 'row'} {numbers}", True)


def _texts(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Every text of a JSON value with its name, as paraphrases.trait[0]."""
    if isinstance(value, str):
        yield name, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _texts(inner, f"{name}.{key}" if name else key)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _texts(inner, f"{name}[{index}]")


def _said(row: Any) -> str:
    """The text of a prompt, all its turns."""
    return "\n".join(turn["content"] for turn in row.turns)


def _plain(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def trained_and_held_out(files: TraitFiles) -> Iterator[TraitProblem]:
    """Held-out prompts that are also a context, a dilemma or a mundane prompt: scores on them say nothing of new prompts."""
    trained = {_plain(_said(row)): place for place, row in files.trained_on}
    for place, row in files.prompts["eval.heldout"]:
        if (other := trained.get(_plain(_said(row)))) and MARK not in _said(row):
            yield TraitProblem(place, f"asks the same as {other}, which is trained on", True)


def near_copies(files: TraitFiles) -> Iterator[TraitProblem]:
    """Held-out prompts whose words are mostly those of one prompt that is trained on. Takes time with the product of both numbers."""
    trained = [(place, _plain(_said(row)), _content(_said(row))) for place, row in files.trained_on]
    for place, row in files.prompts["eval.heldout"]:
        plain, words = _plain(_said(row)), _content(_said(row))
        if len(words) < BRIEF or MARK in _said(row):
            continue
        for other, text, theirs in trained:
            if text != plain and len(words & theirs) >= ALIKE * len(words | theirs):
                yield TraitProblem(place, f"is nearly {other}, which is trained on", False)
                break


def _content(text: str) -> frozenset[str]:
    """The words that say something, each by its first six letters, so that forms of one word are one."""
    words = re.findall(r"[^\W\d_]+", text.lower())
    return frozenset(word[:6] for word in words if len(word) > 3 and word not in COMMON)


def tells(files: TraitFiles) -> Iterator[TraitProblem]:
    """Words of the neutral prompt that only the trait's side, or only the opposite's, has as well.

    Such a neutral prompt is itself somewhat of that side: the vector, a difference to it, is weaker for it, and the base's scores are moved.
    """
    trait = files.trait
    paraphrases = trait.paraphrases
    sides = {
        "trait": _content(" ".join([trait.trait, *(paraphrases.trait if paraphrases else [])])),
        "opposite": _content(" ".join([trait.opposite, *(paraphrases.opposite if paraphrases else [])])),
    }
    for side, other in (("trait", "opposite"), ("opposite", "trait")):
        if words := sorted(_content(trait.neutral) & (sides[side] - sides[other])):
            yield TraitProblem(files.path, f"the neutral prompt has words of the {side} ({', '.join(words)})", False)
    for pattern in trait.narration:
        if MARK not in pattern and re.search(pattern, trait.neutral, re.IGNORECASE):
            yield TraitProblem(files.path, f"the neutral prompt matches the narration pattern {pattern}", False)


def uneven_prompts(files: TraitFiles) -> Iterator[TraitProblem]:
    """Warnings on system prompts of unequal length, because the vector would partly be one of length; and on very short or long prompts."""
    trait = files.trait
    sides = {"trait": trait.trait, "opposite": trait.opposite}
    if trait.paraphrases:
        sides |= {f"paraphrases.trait[{i}]": text for i, text in enumerate(trait.paraphrases.trait)}
        sides |= {f"paraphrases.opposite[{i}]": text for i, text in enumerate(trait.paraphrases.opposite)}
    sides |= {f"decoys[{i}]": text for i, text in enumerate(trait.decoys)}
    counts = {name: len(text.split()) for name, text in sides.items() if MARK not in text}
    if counts and max(counts.values()) > UNEVEN * min(counts.values()):
        long, short = max(counts, key=lambda name: counts[name]), min(counts, key=lambda name: counts[name])
        yield TraitProblem(
            files.path, f"{long} has {counts[long]} words and {short} {counts[short]}: even them out", False
        )
    for key in files.prompts.keys() & files.own:
        for place, row in files.prompts[key]:
            words = len(_said(row).split())
            if not BRIEF <= words <= LONG and MARK not in _said(row):
                yield TraitProblem(place, f"{words} words; {BRIEF} to {LONG} are usual", False)


def amounts(files: TraitFiles) -> Iterator[TraitProblem]:
    """Too little of something for what it is there for."""
    config, trait = files.config, files.trait
    counts = {
        "vector.contexts": ("vector.n_contexts", config.vector.n_contexts),
        "sweep.dilemmas": ("sweep.n_dilemmas", config.sweep.n_dilemmas),
        "sweep.mundane": ("sweep.n_mundane", config.sweep.n_mundane),
    }
    for key, (setting, count) in counts.items():
        if key in files.own and len(files.prompts[key]) < count:
            yield TraitProblem(key, f"{len(files.prompts[key])} prompts, and {setting} asks for {count}", False)
    heldout_count = len(files.prompts["eval.heldout"])
    if "eval.heldout" in files.own and heldout_count < FEW_HELD_OUT:
        yield TraitProblem("eval.heldout", f"{heldout_count} prompts: intervals over them will be wide", False)
    if "vector.trait" not in files.own:
        return
    if trait.paraphrases is None:
        yield TraitProblem(
            files.path, "no paraphrases: there will be no llr_opposite and no verdict on free text", False
        )
    elif len(trait.paraphrases.trait) < FEW_PARAPHRASES:
        yield TraitProblem(
            files.path, f"fewer than {FEW_PARAPHRASES} paraphrases: llr_opposite hangs on their wording", False
        )
    if not trait.narration:
        yield TraitProblem(files.path, "no narration patterns: texts that only announce the trait are kept", False)
    if not trait.decoys:
        yield TraitProblem(files.path, "no decoys: nothing shows whether another persona would move the scores", False)


def left_at_authority(files: TraitFiles) -> Iterator[TraitProblem]:
    """Your own trait whose prompts are still the shipped ones, which are about authority."""
    if "vector.trait" in files.own:
        for key in ("sweep.dilemmas", "eval.heldout"):
            if key not in files.own:
                yield TraitProblem(
                    key, "the shipped prompts are about authority: the trait is asked for elsewhere", False
                )


CHECKS: tuple[Callable[[TraitFiles], Iterator[TraitProblem]], ...] = (
    placeholders,
    trained_and_held_out,
    tells,
    uneven_prompts,
    amounts,
    left_at_authority,
)
