"""The instrument of the forced choice as a file: options by foundation, the templates around them, the answer labels.

The published instrument (tinymfv, now moral-maps; options after Clifford et al. 2015) has the same format; the embedded one
is the project's own wording.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError, model_validator

from shared.errors import SteerHealError
from shared.lines import conversion_of, problem_of
from shared.records import Record
from shared.strict import parse_json

FOUNDATIONS = ("care", "fairness", "loyalty", "authority", "sanctity", "liberty", "social")


def foundation_of(label: str) -> int | None:
    """Canonical index of a label such as 'Authority', 'Care (e)' or 'Social Norms', None for another."""
    name = "".join(filter(str.isalpha, label.partition("(")[0].lower()))
    name = "social" if name == "socialnorms" else name
    return next((index for index, foundation in enumerate(FOUNDATIONS) if name == foundation), None)


class Instrument(Record):
    """Options by foundation in canonical order, the templates around them and the answer labels 0 to 6."""

    name: str
    foundations: list[str]
    options: dict[str, str]
    user: str
    schema_: str
    option_line: str
    think_open: str
    think_close: str
    nudge: str
    prefill: str
    labels: list[str]

    @model_validator(mode="after")
    def _canonical(self) -> Instrument:
        if (
            tuple(self.foundations) != FOUNDATIONS
            or set(self.options) != set(FOUNDATIONS)
            or len(self.labels) != len(FOUNDATIONS)
        ):
            raise ValueError(f"foundations, options and labels must be the seven of {', '.join(FOUNDATIONS)}")
        needs = {"user": ("{vignette}", "{schema}"), "schema_": ("{options}",), "option_line": ("{k}", "{sentence}")}
        if lacking := [
            f"{mark} in {name.rstrip('_')}"
            for name, marks in needs.items()
            for mark in marks
            if mark not in getattr(self, name)
        ]:
            raise ValueError(f"it would not put the whole question: no {', '.join(lacking)}")
        return self

    @property
    def identity(self) -> str:
        """Its name and a digest of all that is put to the model."""
        content = self.model_dump(exclude={"version", "name"})
        return f"{self.name}@{hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]}"

    def question(self, vignette: str, order: Sequence[int]) -> str:
        """The user turn; order[k] is the canonical index of the option listed at position k."""
        lines = [
            self.option_line.replace("{k}", label).replace("{sentence}", self.options[FOUNDATIONS[f]])
            for label, f in zip(self.labels, order, strict=True)
        ]
        return self.user.replace("{schema}", self.schema_.replace("{options}", "\n".join(lines))).replace(
            "{vignette}", vignette
        )


def read_instrument(path: Path) -> Instrument:
    """The instrument of a JSON file. Raises SteerHealError for a file that is not an instrument."""
    try:
        raw = parse_json(path.read_bytes())
        return Instrument.model_validate({**raw, "schema_": raw["schema"]})
    except (OSError, ValueError, KeyError, TypeError) as error:
        problem = problem_of(error) if isinstance(error, ValidationError | OSError) else repr(error)
        raise SteerHealError(
            "an instrument could not be read",
            given=f"{path}: {problem}",
            expected="JSON in the form of shared/data/instrument.json",
            next=conversion_of(error, path) or "set eval.instrument to such a file, to moralmaps, or to embedded",
        ) from None
