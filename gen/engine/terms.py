"""The terms of a steered request as it writes them: vectors, coefficients and windows, read and checked without an engine.

One term is spelt by the fields steer_vector, steer_coefficient, steer_positions, steer_from and steer_until. steer_terms holds more:
a list, or its JSON as text, of objects {"vector", "coefficient", "positions", "from", "until"}.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gen.engine.steering import END, TERMS
from shared.errors import SteerHealError

PREFIX = "steer_"
LIST = "steer_terms"
READ = "steer_read"  # no term: the vector that the residual stream is projected on
FIELDS = ("vector", "coefficient", "positions", "from", "until")
KEYS = (*(PREFIX + field for field in FIELDS), LIST, READ)
POSITIONS = ("all", "generated", "last")
UNKNOWN = 2**30  # tokens of a prompt that is not tokenised yet: more than any has
_RELATIVE = re.compile(r"end([+-][0-9]{1,9})?")
_PLACE = 'a position from 0, or one from the end of the prompt: "end-3", "end", "end+20"'


@dataclass(frozen=True)
class RequestedTerm:
    """A term as a request writes it. start and end are its `from` and `until`; None where it does not say."""

    vector: str
    coefficient: float
    positions: str | None = None
    start: Any = None
    end: Any = None

    def window(self, prompt_tokens: int, default: str) -> tuple[int, int]:
        """The absolute positions it applies to, start <= position < end.

        The last token of the prompt yields the first sampled one, so `generated` starts there: from prompt_tokens on that one
        would be unsteered.

        Args:
            prompt_tokens: the length of the prompt.
            default: the positions where the term names none.

        Raises:
            SteerHealError: an unknown spelling, a window without a position, or one whose absolute start is not in the prompt.
        """
        positions = self.positions or default
        if positions == "last" and (self.start is not None or self.end is not None):
            raise refuse_term("a window is given twice", "positions 'last' with from or until", "one of them")
        start = 0 if positions == "all" else prompt_tokens - 1
        end = prompt_tokens if positions == "last" else END
        if self.start is not None:
            start = _position(self.start, prompt_tokens)
            if start < 0 or (isinstance(self.start, int) and start >= prompt_tokens):
                raise refuse_term(
                    "steering starts outside the prompt",
                    self.start,
                    f'a position from 0 to {prompt_tokens - 1}, or "end+N" for one after the prompt',
                )
        if self.end is not None:
            end = min(_position(self.end, prompt_tokens), END)
        if end <= start:
            raise refuse_term("a window has no position", f"from {start} until {end}", "from < until")
        return start, end


def _position(value: Any, prompt_tokens: int) -> int:
    if isinstance(value, str) and (relative := _RELATIVE.fullmatch(value)):
        return prompt_tokens + int(relative[1] or 0)
    if isinstance(value, bool) or not isinstance(value, int):
        raise refuse_term("a position of a window is not understood", value, _PLACE)
    return value


def read_terms(arguments: Mapping[str, Any]) -> list[RequestedTerm]:
    """The terms of a request's steering fields, in its order.

    Args:
        arguments: the fields, by names of KEYS and no other.

    Raises:
        SteerHealError: a term without a vector or a coefficient, values of another kind, no term or more than TERMS.
    """
    single = {key.removeprefix(PREFIX): value for key, value in arguments.items() if key != LIST}
    terms = [_term(single)] if single else []
    if LIST in arguments:
        terms += [_term(each) for each in _listed(arguments[LIST])]
    if not 1 <= len(terms) <= TERMS:
        raise refuse_term("too many terms, or none", f"{len(terms)} terms", f"1 to {TERMS}")
    return terms


def _listed(value: Any) -> list[Mapping[str, Any]]:
    """The entries of steer_terms. JSON's usual readers keep the last of a key that is there twice; here it is an error."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) < len(pairs):
            raise ValueError("a key is there twice")
        return dict(pairs)

    if isinstance(value, str):
        try:
            value = json.loads(value, object_pairs_hook=once)
        except (ValueError, RecursionError) as error:
            raise refuse_term(f"{LIST} is no JSON", f"{value[:200]}: {error}", _LIST) from None
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
        raise refuse_term(f"{LIST} is no list of objects", value, _LIST)
    return value


_LIST = '[{"vector": "NAME", "coefficient": 1.0}, ...]'


def _term(fields: Mapping[str, Any]) -> RequestedTerm:
    if unknown := sorted(map(str, set(fields) - set(FIELDS))):
        raise refuse_term("a field of a term is unknown", unknown[0], ", ".join(FIELDS))
    if not {"vector", "coefficient"} <= set(fields):
        raise refuse_term(
            "a steered request names a vector and a coefficient", dict(fields), "steer_vector and steer_coefficient"
        )
    coefficient = fields["coefficient"]
    if isinstance(coefficient, bool) or not isinstance(coefficient, int | float) or coefficient != coefficient:
        raise refuse_term("a coefficient is not a finite number", coefficient, "a finite number")
    positions = fields.get("positions")
    if "positions" in fields and positions not in POSITIONS:
        raise refuse_term("steering positions are unknown", positions, ", ".join(map(repr, POSITIONS)))
    for place in ("from", "until"):
        if place in fields:
            _position(fields[place], 0)
    return RequestedTerm(fields["vector"], coefficient, positions, fields.get("from"), fields.get("until"))


def refuse_term(what: str, given: object, expected: str, next: str = "mend the request") -> SteerHealError:
    """The error of a request's steering."""
    return SteerHealError(what, given=repr(given), expected=expected, next=next)
