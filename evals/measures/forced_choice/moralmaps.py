"""The published instrument out of an installed `moralmaps`: the one file that imports it.

Its wording is not a table but arguments inside `guided_rollout_forced_choice`, so that function is called with a recorder in the
place of its model run, once for every order; what it would have put to a model becomes an Instrument, which is then rendered and compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from unittest import mock

from shared.errors import SteerHealError
from shared.instrument import Instrument

LABELS = [str(k) for k in range(7)]
USER = "{vignette}\n\n{schema}"
THINK_OPEN = "<think>\n"


class _Recorded(Exception):
    """Carries (schema, nudge, prefill) out of the call."""


class _Characters:
    """A tokenizer of single characters: the function looks its labels up before it runs the model."""

    def encode(self, text: str, **_: Any) -> list[int]:
        return [ord(character) for character in text]


def published_instrument() -> Instrument:
    """Raises SteerHealError where moralmaps is missing or has another shape."""
    try:
        from moralmaps import guided
    except ImportError:
        raise SteerHealError(
            "the published instrument is not installed",
            given="no package moralmaps",
            expected="moralmaps beside this package, or its instrument as a JSON file",
            next="pip install git+https://github.com/wassname/moral-maps, or --instrument FILE",
        ) from None
    try:
        names = list(guided._DEFAULT_FORCED_FOUNDATIONS)
        sentences = dict(guided._FORCED_FOUNDATION_DESCS)
        schema, nudge, prefill = _asked(guided, names)
        instrument = Instrument.model_validate(
            {
                "name": "moralmaps",
                "foundations": names,
                "options": sentences,
                "user": USER,
                **_template(schema, names, sentences),
                "think_open": THINK_OPEN,
                "think_close": guided._CLOSE_MARKER,
                "nudge": nudge,
                "prefill": prefill,
                "labels": LABELS,
            }
        )
        backward = _asked(guided, names[::-1])[0]
    except (AttributeError, KeyError, ValueError, TypeError) as error:
        raise _other(repr(error)) from None
    if instrument.question("", range(len(names))[::-1]) != USER.replace("{vignette}", "").replace("{schema}", backward):
        raise _other("its schema in reversed order is not the template's")
    return instrument


def installed_revision() -> str:
    """A digest of what the installed moralmaps puts to a model: its version may stand for several commits."""
    return published_instrument().identity


def _asked(guided: Any, names: Sequence[str]) -> tuple[str, str, str]:
    def record(
        model: Any, tokenizer: Any, prompts: Any, schema: str, budget: int, *, scoring_slots: Any, **_: Any
    ) -> None:
        raise _Recorded(schema, *scoring_slots[0])

    with mock.patch.object(guided, "_rollout_natural_or_forced", record):
        try:
            guided.guided_rollout_forced_choice(None, _Characters(), ["x"], foundations=list(names))
        except _Recorded as found:
            schema, nudge, prefill = found.args
            return schema, nudge, prefill
    raise ValueError("guided_rollout_forced_choice asked nothing")


def _template(schema: str, names: Sequence[str], sentences: dict[str, str]) -> dict[str, str]:
    """schema_ and option_line: the schema with its block of option lines taken out, and the first line as a pattern."""
    lines = schema.split("\n")
    indices = [index for index, line in enumerate(lines) if any(sentence in line for sentence in sentences.values())]
    if indices != list(range(indices[0], indices[0] + len(names))):
        raise ValueError("the options are not one line each, one after another")
    pattern = lines[indices[0]].replace(sentences[names[0]], "{sentence}").replace('"0"', '"{k}"')
    return {
        "schema_": "\n".join([*lines[: indices[0]], "{options}", *lines[indices[-1] + 1 :]]),
        "option_line": pattern,
    }


def _other(problem: str) -> SteerHealError:
    return SteerHealError(
        "the installed moralmaps has another interface than the one this package reads",
        given=problem,
        expected="moralmaps.guided as of commit 01e9026",
        next="write its wording to a JSON file, as python -m evals.score --help says: --instrument FILE",
    )
