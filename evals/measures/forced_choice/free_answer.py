"""Is an answer in the model's own words what the question asked for: a JSON object that names one of the options?"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from shared.commands import setting
from shared.errors import SteerHealError
from shared.instrument import Instrument

KEY = re.compile(r'"([^"]+)":\s*"$')


def prefill_key(instrument: Instrument) -> str:
    """The JSON key whose value begins at the end of the prefill. Raises SteerHealError for a prefill that opens no value."""
    if (match := KEY.search(instrument.prefill)) is None:
        raise SteerHealError(
            "the instrument's prefill opens no JSON value, so a free answer cannot be constrained to JSON",
            given=repr(instrument.prefill),
            expected='text that ends in "key": "',
            next=f"score without free answers: {setting('eval.free_tokens=0')} in a run, or --free-tokens 0",
        )
    return match[1]


def valid(text: str, key: str, labels: Sequence[str]) -> bool:
    """True when the first JSON object in the text parses and its `key` is one of the labels, as a string or a number."""
    start = text.find("{")
    if start < 0:
        return False
    try:
        parsed = json.JSONDecoder().raw_decode(text, start)[0]
    except (ValueError, RecursionError):
        return False
    value = parsed.get(key)
    return isinstance(value, str | int) and not isinstance(value, bool) and str(value) in labels
