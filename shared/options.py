"""The options of a command: those that stages share, help without empty defaults, and refusals in the form of ours."""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from shared import outputs, strict
from shared.commands import command_of, nearest_command
from shared.errors import SteerHealError
from shared.outputs import Paths, guard
from shared.strict import NUMBER

# The section of the configuration that a stage reads, where several have a key of one name.
SECTIONS = {
    "gen.extract": "vector",
    "gen.sweep": "sweep",
    "gen.filter": "filter",
    "train.heal": "train",
    "evals.score": "eval",
}
CHOICE = re.compile(r"invalid choice: (.*) \(choose from (.*)\)$", re.DOTALL)


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Defaults that say something."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        empty = any(action.default is value for value in (None, False, argparse.SUPPRESS)) or action.default == []
        return action.help if empty else super()._get_help_string(action)


class _Once(argparse._StoreAction):
    """An option whose second value would take the place of the first in silence, and is refused."""

    def __call__(
        self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: str | None = None
    ) -> None:
        if (option := option_string) is not None:
            if self.dest in parser.given:
                raise SteerHealError(
                    "an option is there twice",
                    given=option,
                    expected=f"{option} once, with all its values after it" if self.nargs else f"{option} once",
                    next='--set "train.lam=0.1 train.tau=0.3"' if option == "--set" else f"leave one {option} out",
                )
            parser.given.add(self.dest)
        super().__call__(parser, namespace, values, option_string)


class OptionGroup:
    """A titled group of options, whose actions are remembered."""

    def __init__(self, options: Options, title: str):
        self._options, self._group = options, options.add_argument_group(title)
        self.actions: list[argparse.Action] = []

    def add_argument(
        self, *names: str, reads: Paths | None = None, writes: Paths | None = None, **settings: Any
    ) -> argparse.Action:
        """reads and writes: what paths a value names, for the guard of `shared.outputs`."""
        action = self._options.declare(self._group.add_argument(*names, **settings), reads, writes)
        self.actions.append(action)
        return action


class Options(argparse.ArgumentParser):
    """A parser whose refusals are SteerHealErrors that name the nearest option or choice.

    file_options: the options that a stage takes instead of a run; None for a command that has none.
    """

    def __init__(self, module: str, description: str, **settings: Any):
        self.module = module
        self.names: list[str] = []
        self.given: set[str] = set()  # options of this command line
        self.file_options: OptionGroup | None = None
        self.reads: dict[str, Paths] = {}
        self.writes: dict[str, Paths] = {}
        super().__init__(
            prog=command_of(module),
            description=description,
            formatter_class=_Help,
            exit_on_error=False,
            **settings,
        )
        for name in (None, "store"):
            self.register("action", name, _Once)
        # argparse's own pattern takes -5e-1 and -1. for options, and -0.5,0.5, about which there is a hint
        self._negative_number_matcher = re.compile(rf"(?:{NUMBER.pattern})(?:,(?:{NUMBER.pattern}))*,?\Z", NUMBER.flags)

    def add_argument(
        self, *names: Any, reads: Paths | None = None, writes: Paths | None = None, **settings: Any
    ) -> argparse.Action:
        """reads and writes: what paths a value names, for the guard of `shared.outputs`."""
        return self.declare(super().add_argument(*names, **settings), reads, writes)

    def declare(self, action: argparse.Action, reads: Paths | None, writes: Paths | None) -> argparse.Action:
        """Keep what an option reads and writes. Raises TypeError for an --out that does not say."""
        if "--out" in action.option_strings and writes is None:
            raise TypeError(f"{self.prog}: --out does not say what it writes")
        self.names += action.option_strings
        self.reads.update({action.dest: reads} if reads else {})
        self.writes.update({action.dest: writes} if writes else {})
        return action

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """The arguments, and in `outputs` the paths that they write. Raises SteerHealError where those meet what is read."""
        words = sys.argv[1:] if args is None else list(args)
        for word in words:
            readable(word)
        self.given.clear()
        try:
            arguments, strange = self.parse_known_args(words, namespace)
        except argparse.ArgumentError as error:
            raise self._refusal(error.argument_name, error.message, words) from None
        if strange:
            raise self._unknown(strange, words)
        guard(self._paths(self.writes, arguments), ())
        alone = {
            name: paths for name, paths in self.writes.items() if name not in self.reads
        }  # not a folder gone on with
        arguments.outputs = self._paths(alone, arguments)
        guard(arguments.outputs, self._paths(self.reads, arguments))
        return arguments

    @staticmethod
    def _paths(kinds: dict[str, Paths], arguments: argparse.Namespace) -> list[Path]:
        files: list[Path] = []
        for name, paths in kinds.items():
            value = getattr(arguments, name, None)
            for item in value if isinstance(value, list) else [] if value is None else [value]:
                files += paths(str(item))
        return files

    def error(self, message: str) -> NoReturn:
        raise self._refusal(None, message, sys.argv[1:])

    def _refusal(self, name: str | None, message: str, words: Sequence[str]) -> SteerHealError:
        help_ = f"{self.prog} --help"
        if choice := CHOICE.search(message):
            value, known = choice[1].strip("'\""), [word.strip(" '\"") for word in choice[2].split(",")]
            meant = nearest_command(value, known)
            return SteerHealError(
                f"no such choice for {name}" if name else "no such choice",
                given=value,
                expected=f"one of {', '.join(known)}" + (f"; did you mean {meant}?" if meant else ""),
                next=help_,
            )
        if message.startswith("the following arguments are required: "):
            if strange := [word for word in words if word.startswith("--") and not self._knows(word)]:
                return self._unknown(strange, words)  # of the required one, most likely
            missing = message.partition(": ")[2]
            return SteerHealError(
                "options are missing", given=shlex.join(words) or "none", expected=missing, next=help_
            )
        if message.startswith("ambiguous option: "):
            given, _, matches = message.removeprefix("ambiguous option: ").partition(" could match ")
            return SteerHealError("an option is ambiguous", given=given, expected=f"one of {matches}", next=help_)
        if (spaced := _spaced(words)) != list(words) and " number " in message:
            return SteerHealError(
                f"option {name} could not be read",
                given=shlex.join(words),
                expected="several numbers with spaces between them",
                next=f"{self.prog} {shlex.join(spaced)}",
            )
        return SteerHealError(
            f"option {name} could not be read" if name else "the command line could not be read",
            given=shlex.join(words) or "none",
            expected=message,
            next=help_,
        )

    def _knows(self, word: str) -> bool:
        """Whether a word is an option, the beginning of one, or `--`."""
        return any(name.startswith(word.partition("=")[0]) for name in self.names) or word == "--"

    def _unknown(self, strange: Sequence[str], words: Sequence[str]) -> SteerHealError:
        word = strange[0]
        if not word.startswith("-"):
            return SteerHealError(
                "a word that belongs to no option",
                given=" ".join(strange),
                expected=f"options alone, or {self.usage}" if self.usage else "options alone",
                next=f"{self.prog} --help",
            )
        name, equals, value = word.partition("=")
        if "--set" in self.names and (key := self._key(name)):
            return self._setting(key, words)
        meant = nearest_command(name, (known for known in self.names if known.startswith("--")))
        corrected = [meant + equals + value if meant and given == word else given for given in words]
        return SteerHealError(
            "no such option",
            given=name,
            expected=f"did you mean {meant}?" if meant else "an option of this command",
            next=f"{self.prog} {shlex.join(corrected)}" if meant else f"{self.prog} --help",
        )

    def _key(self, name: str) -> str | None:
        """The configuration key that an option of another name was meant for; of several of one name the one of this stage."""
        from shared.overrides import flatten
        from shared.schema import Config

        typed = name.lstrip("-").replace("-", "_")
        keys = [key for key in flatten(Config().model_dump()) if key.rpartition(".")[2] == typed]
        section = SECTIONS.get(self.module)
        return next((key for key in keys if key.partition(".")[0] == section), keys[0] if len(keys) == 1 else None)

    def _setting(self, key: str, words: Sequence[str]) -> SteerHealError:
        """The error about an option that is a setting, with the command line that sets it."""
        name = key.rpartition(".")[2]
        index = next(i for i, word in enumerate(words) if word.partition("=")[0].lstrip("-").replace("-", "_") == name)
        option, equals, value = words[index].partition("=")
        rest = [*words[:index], *words[index + 1 :]]
        if not equals and rest[index : index + 1] and not rest[index].startswith("--"):
            value = rest.pop(index)
        setting = f"{key}={value}"
        if "--set" in rest[:-1]:
            rest[rest.index("--set") + 1] += f" {setting}"
        else:
            rest += ["--set", setting]
        return SteerHealError(
            "no such option",
            given=option,
            expected=f"it is a setting: --set {key}=VALUE",
            next=f"{self.prog} {shlex.join(rest)}",
        )


def _spaced(words: Sequence[str]) -> list[str]:
    """A command line with "1,2" split into the words "1" and "2"."""
    apart: list[str] = []
    for word in words:
        name, _, value = word.rpartition("=") if word.startswith("--") else ("", "", word)
        parts = value.removesuffix(",").split(",")
        several = "," in value and all(NUMBER.fullmatch(part) for part in parts)
        apart += [*([name] if name else []), *parts] if several else [word]
    return apart


def readable(word: str) -> str:
    """A word of a command line. Raises SteerHealError for one that is not UTF-8, which no message and no record could name, and for a NUL."""
    try:
        word.encode("utf-8")
        problem = "a NUL" if "\0" in word else None
    except UnicodeEncodeError:
        problem = "not UTF-8"
    if problem:
        raise SteerHealError(
            "a word of the command line could not be read",
            given=f"{word!a}: {problem}",
            expected="text in UTF-8, names of files too",
            next="give the file another name: mv -- OLD NEW",
        )
    return word


def finite_number(text: str) -> float:
    """A finite number; -0 is 0."""
    try:
        return strict.parse_number(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def whole(text: str) -> int:
    """A whole number from 0 on."""
    if not (text.isascii() and text.isdigit() and int(text[:20]) < 2**31):
        raise argparse.ArgumentTypeError(f"a whole number from 0, below 2**31, not {text!r}")
    return int(text)


def positive(text: str) -> int:
    """A whole number from 1 on."""
    if whole(text) < 1:
        raise argparse.ArgumentTypeError(f"a whole number from 1, not {text!r}")
    return whole(text)


def port(text: str) -> int:
    """A TCP port from a command line, 1 to 65535."""
    if not 1 <= whole(text) <= 65535:
        raise argparse.ArgumentTypeError(f"a port from 1 to 65535, not {text!r}")
    return whole(text)


def share(text: str) -> float:
    """A number from 0 to 1."""
    if not 0 <= (value := finite_number(text)) <= 1:
        raise argparse.ArgumentTypeError(f"a number from 0 to 1, not {text!r}")
    return value


def overrides(text: str) -> str:
    """Overrides of the configuration. Raises SteerHealError for a key that is there twice."""
    if text.count("=") > 1:
        from shared.overrides import refuse_repeated

        refuse_repeated(text)
    return text


def parser(module: str, description: str, *, stage: bool = True) -> Options:
    """Options of a stage inside a run, or of a command that only reads the configuration.

    Args:
        module: whose `main` takes the options, such as `gen.sweep`.
        description: for the head of its help.
        stage: whether it is a stage, with --run, --round and --rebuild in addition to --config and --set.
    """
    options = Options(module, description)
    run = OptionGroup(options, "in a run" if stage else "configuration")
    if stage:
        run.add_argument(
            "--run",
            type=Path,
            reads=outputs.list_run_inputs,
            metavar="DIR",
            default=argparse.SUPPRESS,
            help="run directory",
        )
        run.add_argument("--round", type=whole, metavar="K", default=argparse.SUPPRESS, help="round, from 1")
    run.add_argument(
        "--config",
        type=Path,
        reads=outputs.parse_path,
        metavar="FILE",
        default=argparse.SUPPRESS,
        help="configuration file; in a run it begins the run, or must equal its frozen one"
        if stage
        else "configuration file",
    )
    run.add_argument(
        "--set", type=overrides, default=argparse.SUPPRESS, metavar='"a.b=1 ..."', help="overrides of the configuration"
    )
    if stage:
        run.add_argument(
            "--rebuild", action="store_true", help="make the stage again where its settings or inputs changed"
        )
    return options


def add_file_options(options: Options) -> OptionGroup:
    """The group of options that a stage takes instead of a run."""
    options.file_options = OptionGroup(options, "on plain files")
    return options.file_options


def benchmark(module: str, description: str, quick: str) -> Options:
    """The options that every benchmark has; quick says what --quick leaves out."""
    options = Options(module, description)
    options.add_argument(
        "--out",
        type=Path,
        writes=outputs.output_file(".json"),
        default=Path("docs/bench.json"),
        help="file to put the ratios into",
    )
    options.add_argument("--quick", action="store_true", help=f"a smoke test: {quick}")
    return options
