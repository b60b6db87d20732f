"""One source of definitions: docs/glossary.md says what the code holds."""

from __future__ import annotations

from collections import Counter

from conftest import ROOT

from evals.ladder import VERDICTS
from shared.glossary import GLOSSARY, definition, markdown


def test_the_page_is_what_the_code_holds() -> None:
    assert (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8") == markdown(), (
        "python -m shared.glossary > docs/glossary.md"
    )


def test_a_term_has_one_definition_that_is_a_phrase() -> None:
    terms = Counter(term for group in GLOSSARY.values() for term in group)
    assert not [term for term, count in terms.items() if count > 1]
    for term in terms:
        meaning = definition(term)
        assert meaning and not meaning.endswith(".") and len(meaning) < 200, term
    assert definition("no such term") is None


def test_every_verdict_and_stage_is_defined() -> None:
    stages = ("base", "prompted", "prompted_opposite", "prompted_decoy", "steered", "random", "healed")
    assert not [word for word in (*(f"verdict {name}" for name in VERDICTS), *stages) if definition(word) is None]
