"""Which fields a steering server reads over HTTP: what would be ignored in silence is refused, with the name of the right field.

vLLM's request models take any field and leave out what they do not know, so that steering in the wrong place, in other letters or
under another project's name would answer unsteered.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from gen.engine.requests import meant
from gen.engine.terms import KEYS, READ
from shared.errors import SteerHealError

XARGS = "vllm_xargs"
# JSON schemas name properties of their own: what the model is to write, not what the server is to do. They are found in these fields
# under these keys
DESCRIBING = frozenset({"functions", "response_format", "structured_outputs", "text", "tool_choice", "tools"})
SCHEMAS = frozenset({"input_schema", "json", "json_schema", "parameters", "schema", "schema_"})


def misplaced_steering(
    request: BaseModel, client_fields: frozenset[str] = frozenset(), *, strict: bool
) -> SteerHealError | None:
    """The error of a steering field in a place that is not read, which names the right place; None for a good request.

    Args:
        request: a parsed request of vLLM's, whose model_extra holds the fields that it does not know.
        client_fields: fields that the endpoint's client sends and vLLM ignores, such as `store`.
        strict: refuse every unknown field, as a steering server does, and not only those that mean to steer.
    """
    for name in request.model_extra or {}:
        if meant(name) or (strict and name not in client_fields):
            return _refusal("the request has a field that this endpoint does not read", name)
    for name in getattr(request, XARGS, None) or {}:
        if name not in KEYS and (strict or meant(name)):
            return _refusal(f"{XARGS} has a field that is not read", name)
    for name, value in request:  # a pydantic model yields its fields, known and unknown
        passed = SCHEMAS if name in DESCRIBING else frozenset()
        if name != XARGS and (place := next(_steering(value, name, passed), None)):
            return _refusal("steering is not read inside another field", place)
    return None


def _steering(value: Any, path: str, passed: frozenset[str]) -> Iterator[str]:
    """Paths of the keys inside a value that mean to steer; what is under the keys passed is not looked at."""
    if isinstance(value, BaseModel):
        value = dict(value)
    if isinstance(value, dict):
        for key, inner in value.items():
            if meant(str(key)):
                yield f"{path}.{key}"
            elif key not in passed:
                yield from _steering(inner, f"{path}.{key}", passed)
    elif isinstance(value, list | tuple):
        for inner in value:
            if not isinstance(inner, str | int | float):  # token ids, texts
                yield from _steering(inner, path, passed)


def _refusal(what: str, name: str) -> SteerHealError:
    word = re.sub("[^a-z]+", "_", name.rpartition(".")[2].lower()).strip("_")
    keys = [key for key in KEYS if key != READ or "read" in word]
    meant = difflib.get_close_matches(word, keys, 1) or difflib.get_close_matches(f"steer_{word}", keys, 1)
    hint = f"{XARGS}.{meant[0]}? Steering" if meant else "steering"
    return SteerHealError(
        what,
        given=name,
        expected=f"{hint} is asked for in the body's {XARGS}, by {', '.join(KEYS)}",
        next=f'leave it out, or write "{XARGS}": {{"steer_vector": "NAME", "steer_coefficient": 1.0}}',
    )
