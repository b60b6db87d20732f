"""Configuration read and written: defaults, then a TOML file, then SET; unknown keys are refused, every value has its source."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import tomlkit
from pydantic import ValidationError
from tomlkit.items import Item, Table

from shared.commandline import config_options
from shared.commands import CONFIG, command_of, form, nearest_command, option, setting
from shared.errors import SteerHealError, in_one_line
from shared.overrides import flatten, merge_values, parse_overrides
from shared.schema import Config, Section
from shared.strict import Convertible, decode, parse_toml

# where and how a run's stages run, and nothing of what they make: these may change in a run that has begun
NOT_IN_RESULTS = {"model.gpu_memory", "train.report_to", "sweep.workers", "cluster.address"}

# tables and keys of a file that are no part of the configuration: arms over it (evals/study/plan.py), when its run was begun
BESIDE = ("study", "begun")


def resolve_config(path: Path | None, overrides: str = "", model: str | None = None) -> tuple[Config, dict[str, str]]:
    """Read a configuration.

    Args:
        path: of the file; None for the defaults.
        overrides: SET, which goes before the file.
        model: model.name, which goes before that of the file.

    Returns:
        The configuration, and the source of every dotted key: 'default', the name of the file, 'SET' or 'MODEL'. A table such as
        model.chat_template_kwargs has the source that changed it last; each key in it has a source too.
    """
    origins: dict[str, tuple[Any, str]] = {}
    if path is not None:
        try:
            tree = parse_toml(path.read_bytes())
        except FileNotFoundError:
            raise SteerHealError(
                "no configuration file",
                given=path,
                expected="a TOML file",
                next=f"the same command with {option('CONFIG', '--config', _like(path))}",
            ) from None
        except (OSError, ValueError, RecursionError) as error:
            raise SteerHealError(
                "a configuration file could not be read", given=f"{path}: {in_one_line(error)}", expected="TOML", next=error.command(path) if isinstance(error, Convertible) else f"mend {path}"
            ) from None  # fmt: skip
        for name in BESIDE:
            tree.pop(name, None)
        origins.update({key: (value, str(path)) for key, value in flatten(tree).items()})
    inside = {key: dict.fromkeys(value, source) for key, (value, source) in origins.items() if isinstance(value, dict)}
    for key, value in parse_overrides(overrides).items():
        if isinstance(value, dict):
            inside.setdefault(key, {}).update(dict.fromkeys(value, "SET"))
        origins[key] = (merge_values(origins[key][0] if key in origins else None, value), "SET")
    if model is not None:
        if (other := origins.get("model.name")) and other[1] == "SET" and other[0] != model:
            raise SteerHealError(
                "two models are named", given=f"{other[0]} by model.name, and {model}", expected="one", next="leave one out"
            )  # fmt: skip
        origins["model.name"] = (model, "MODEL")
    nested: dict[str, Any] = {}
    for key, (value, _) in origins.items():
        section, dot, name = key.partition(".")
        if dot and isinstance(nested.setdefault(section, {}), dict):
            nested[section][name] = value
        else:
            nested[key] = value
    try:
        config = Config.model_validate(nested)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if not any(name in origins for name in (key, key.rpartition(".")[0])):  # a table that is none has keys that are
            key = next((name for name in origins if name.startswith(f"{key}.")), key)
        value, source = _origin(key, origins) or (first["input"], "the defaults")
        # a table is judged as one, by a message that begins with the key that is wrong
        if isinstance(value, dict) and (leaf := _first_word(first["msg"])) in inside.get(key, {}):
            value, source = {leaf: value[leaf]}, inside[key][leaf]
        meant = nearest_command(key, flatten_config(Config())) if first["type"] == "extra_forbidden" else None
        raise SteerHealError(
            f"there is no configuration key {key}"
            if first["type"] == "extra_forbidden"
            else f"configuration key {key}: {first['msg'].removeprefix('Value error, ')}",
            given=f"{value!r} from {source if form() == 'make' else {'SET': '--set', 'MODEL': '--model'}.get(source, source)}",
            expected=f"did you mean {meant}?" if meant else _expected(key),
            next=_mended(key, meant, overrides, source),
        ) from None
    sources = {key: origins[key][1] if key in origins else "default" for key in flatten_config(config)}
    sources |= {f"{key}.{name}": origin for key, names in inside.items() for name, origin in names.items()}
    return config, sources


def _first_word(message: str) -> str:
    """The key that a validator's message begins with, such as a of `a.b is the text 'true'`."""
    return re.split(r"[.\s,]", message.removeprefix("Value error, "), maxsplit=1)[0]


def _mended(key: str, meant: str | None, overrides: str, source: str) -> str:
    """What to type about a key that does not do. meant: the key that it was meant to be."""
    listed = f"`{command_of('shared.config')}` lists every key with its meaning"
    if meant and source == "SET" and overrides.count(key) == 1:
        return f"{setting(overrides.replace(key, meant))}; {listed}"
    if source in ("SET", "MODEL", "the defaults"):
        return listed
    return f"write {meant or 'another key'} in {source}; {listed}" if meant else f"{listed}; then edit {source}"


def _origin(key: str, origins: dict[str, tuple[Any, str]]) -> tuple[Any, str] | None:
    """The value, with its source, of the key that an error is at, or else of what holds it."""
    parts = key.split(".")
    above = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((origins[name] for name in above if name in origins), None)


def _like(path: Path) -> str:
    """The configuration file beside a missing one, or of this package, that its name is nearest to."""
    files = [str(file) for folder in (path.parent, Path("configs")) for file in sorted(folder.glob("*.toml"))]
    return nearest_command(str(path), files) or CONFIG


def _expected(key: str) -> str:
    section, _, name = key.partition(".")
    field = Config.model_fields.get(section)
    kind = type(field.default) if field else None
    if kind is not None and issubclass(kind, Section):
        name = name.split(".")[0]
        if name in kind.model_fields:
            return kind.model_fields[name].description or name
        return f"one of {', '.join(f'{section}.{known}' for known in kind.model_fields)}"
    return f"one of {', '.join(Config.model_fields)}"


def flatten_config(config: Config) -> dict[str, Any]:
    """Every dotted key with its value."""
    return flatten(config.model_dump())


def to_toml(config: Config, sources: dict[str, str], begun: datetime | None = None) -> str:
    """The resolved configuration; the comment after a value is its source. None is left out: TOML has no null.

    begun: when the run was begun that has this configuration.
    """

    def sourced(key: str, value: Any) -> Any:
        item = tomlkit.item(value)
        if isinstance(item, Table) and value:
            entries: Any = item.value
            for name in value:
                entries.item(name).comment(sources.get(f"{key}.{name}", sources[key]))
        else:
            item.comment(sources[key])
        return item

    document = tomlkit.document()
    if begun is not None:
        document.add("begun", begun)
    for key, value in config.model_dump().items():
        if isinstance(value, dict):
            section = tomlkit.table()
            for name, inner in value.items():
                if inner is not None:
                    section.add(name, sourced(f"{key}.{name}", inner))
            document.add(key, section)
        else:
            document.add(key, sourced(key, value))
    return tomlkit.dumps(document)


def frozen_at(path: Path) -> datetime:
    """When the run of a frozen configuration was begun: what is written there, or else its file's age, as a version before left it."""
    try:
        written = parse_toml(path.read_bytes()).get("begun")
    except (OSError, ValueError, RecursionError):
        written = None
    if isinstance(written, datetime):
        return written if written.tzinfo else written.replace(tzinfo=UTC)
    return datetime.fromtimestamp(path.stat().st_mtime, UTC)


def sources_of(path: Path) -> dict[str, str]:
    """The sources that a frozen configuration has after its values."""
    document = tomlkit.parse(decode(path.read_bytes()))
    items: dict[str, Any] = {}
    for key in document:
        item = document.item(key)
        if isinstance(item, Table):
            for name in item.value:
                items[f"{key}.{name}"] = inner = item.value.item(name)
                if isinstance(inner, Table):
                    items.update({f"{key}.{name}.{deeper}": inner.value.item(deeper) for deeper in inner.value})
        elif isinstance(item, Item):
            items[key] = item
    return {key: item.trivia.comment.lstrip("# ") for key, item in items.items() if item.trivia.comment}


def described_keys() -> Iterator[tuple[str, str]]:
    """Every dotted key with its meaning."""
    for section, field in Config.model_fields.items():
        if isinstance(field.default, Section):
            for name, inner in type(field.default).model_fields.items():
                yield f"{section}.{name}", inner.description or name
        else:
            yield section, field.description or section


def main() -> None:
    from shared.console import print_table

    arguments = config_options().parse_args()
    config, sources = resolve_config(getattr(arguments, "config", None), getattr(arguments, "set", ""))
    values = flatten_config(config)
    changed = hasattr(arguments, "config") or hasattr(arguments, "set")
    rows = [
        [key, repr(values[key]), *([sources[key]] if changed else []), meaning] for key, meaning in described_keys()
    ]
    print_table("configuration keys", ["key", *(["value", "source"] if changed else ["default"]), "meaning"], rows)


if __name__ == "__main__":
    from shared.cli import entry

    entry(main)
