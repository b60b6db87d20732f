"""One source of definitions: docs/glossary.md, README.md and --help say what the code holds."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from conftest import ROOT

from evals.ladder import VERDICTS
from shared.config import described_keys
from shared.glossary import CLOSE, GLOSSARY, OPEN, define, definition, glossary_page, main, with_glossary
from shared.subcommands import options_of


def test_the_page_is_what_the_code_holds() -> None:
    assert (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8") == glossary_page(), "type: make docs"


def test_the_readme_has_the_same_definitions() -> None:
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    assert page == with_glossary(page), "type: make docs"
    assert f"**tau**: {define('tau')}." in page
    stale = page.replace(define("tau"), "a stale definition")
    assert stale != page and with_glossary(stale) == page
    for broken in (page.replace(OPEN, ""), page.replace(CLOSE, ""), page + OPEN + CLOSE):
        with pytest.raises(ValueError, match="not one block"):
            with_glossary(broken)


def test_one_command_writes_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text(f"before\n{OPEN}old\n{CLOSE}\nafter\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    main()
    assert (tmp_path / "docs" / "glossary.md").read_text(encoding="utf-8") == glossary_page()
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert text.startswith(f"before\n{OPEN}- **steering vector**: ") and text.endswith(f"{CLOSE}\nafter\n")


@pytest.mark.parametrize(
    ("key", "term"),
    [
        ("sweep.coefficients", "coefficient"),
        ("filter.perplexity_ratio", "perplexity"),
        ("filter.distinct_3_quantile", "distinct-3"),
        ("filter.trait_llr_quantile", "trait_llr"),
        ("train.divergence", "divergence"),
        ("train.lam", "lambda"),
        ("train.tau", "tau"),
        ("eval.gates", "gate"),
    ],
)
def test_a_setting_explains_its_term_in_the_glossarys_words(key: str, term: str) -> None:
    assert define(term) in dict(described_keys())[key]


@pytest.mark.parametrize(
    ("command", "terms"),
    [
        ("score", ("auth_nats", "care_nats", "p_ans_any", "informedness", "gate", "coefficient")),
        ("preflight", ("axis", "answer mass")),
        ("compare", ("d_auth", "specific_shift", "price_less_steering", "informedness", "interval")),
        ("sweep", ("coefficient",)),
        ("serve", ("gate",)),
        ("export", ("gate",)),
    ],
)
def test_help_explains_terms_in_the_glossarys_words(command: str, terms: tuple[str, ...]) -> None:
    text = " ".join(options_of(command).format_help().split())
    assert not [term for term in terms if " ".join(define(term).split()) not in text]


def test_a_word_that_is_not_in_the_glossary_cannot_be_explained() -> None:
    with pytest.raises(KeyError):
        define("no such term")


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
