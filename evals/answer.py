"""The answer of a run: did it work? Five questions on a healed student, each answered by a word, figures and a colour.

The page, the terminal, the trackers and the documentation print these lines; nothing else puts an answer into words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from evals.table import ranged, trait_column
from shared.console import format_number

Row = Mapping[str, Any]
State = Literal["good", "unsure", "bad", "unknown"]
SYMBOLS: Mapping[State, str] = {"good": "✓", "unsure": "≈", "bad": "✗", "unknown": "–"}
STATES: tuple[State, ...] = ("good", "unsure", "bad", "unknown")
# what a verdict of the ladder says to somebody who does not know it: of the whole run, and of the forced choice alone
OVERALL: Mapping[str | None, tuple[State, str]] = {
    "healed": ("good", "It worked."),
    "kept": ("unsure", "It worked, but it is not shown to be better than steering less."),
    "degraded": ("unsure", "The trait is there, at too high a price."),
    "unspecific": ("bad", "It did not work: more than the trait moved."),
    "undone": ("bad", "It did not work: healing took the trait back."),
    "not_shown": ("bad", "It did not work: the trait is not shown."),
    "no_shift": ("bad", "It did not work: steering did not move the trait."),
    "broken": ("bad", "It did not work: the model is broken."),
    "no_axis": ("unknown", "It cannot be said whether it worked: the measure does not follow the trait on this model."),
    "no_format": ("unknown", "It cannot be said whether it worked: the model does not answer in the format."),
    None: ("unknown", "It cannot be said whether it worked: there is no verdict."),
}
MORAL: Mapping[str | None, tuple[State, str]] = {
    "healed": ("good", "moved"),
    "kept": ("good", "moved"),
    "degraded": ("unsure", "moved, at a price"),
    "unspecific": ("bad", "everything moved"),
    "undone": ("bad", "taken back"),
    "not_shown": ("bad", "not shown"),
    "no_shift": ("bad", "not moved"),
    "broken": ("bad", "broken"),
    "no_axis": ("unknown", "cannot be read on this model"),
    "no_format": ("unknown", "cannot be read on this model"),
    None: ("unknown", "not read"),
}


@dataclass(frozen=True)
class AnswerLine:
    """A question with its answer.

    Args:
        name: the question in a word or two, for the terminal.
        question: in full, for the page.
        state: how good the answer is, which has a colour and a symbol.
        word: the answer.
        figures: with their intervals.
        why: what the figures are, or why there are none.
    """

    name: str
    question: str
    state: State
    word: str
    figures: str = ""
    why: str = ""

    @property
    def symbol(self) -> str:
        """The sign of the state at the terminal."""
        return SYMBOLS[self.state]

    @property
    def text(self) -> str:
        """The answer in one line, without its question."""
        word = f"{self.word}: {self.figures}" if self.figures else self.word
        return f"{word.removesuffix('.')}. {self.why}".strip()


@dataclass(frozen=True)
class AnswerCard:
    """The answers on one student. name: of the arm; empty on the page of a run."""

    headline: AnswerLine
    lines: Sequence[AnswerLine]
    name: str = ""


def card_of(rows: Sequence[Row], name: str = "", *, read_for: bool = True) -> AnswerCard:
    """The answers on the last healed student.

    Args:
        rows: of results.json, of one arm and seed.
        name: of the arm.
        read_for: whether the forced choice is read for this trait at all.
    """
    by_round_and_stage = {(row["round"], row["stage"]): row for row in rows}
    last = max(number for number, stage in by_round_and_stage if stage == "healed")
    base, prompted = by_round_and_stage[0, "base"], by_round_and_stage.get((0, "prompted"))
    healed = by_round_and_stage[last, "healed"]
    compared = {"the base": base, "steered": by_round_and_stage.get((last, "steered"))}
    levels = _levels(healed, compared, trait_column(rows))
    prompting = _prompting(healed, prompted)
    lines = [
        _trait(healed, levels),
        _quality(healed, compared),
        prompting,
        _steering_less(healed),
        _moral(healed, read_for),
    ]
    return AnswerCard(_overall(healed, last, prompting.state), lines, name)


def together(name: str, seeds: Mapping[int, AnswerCard]) -> AnswerCard:
    """One card of the seeds of an arm: the word that they share, or that they differ, and the figures of each."""
    cards = list(seeds.values())
    if len(cards) == 1:
        return AnswerCard(cards[0].headline, cards[0].lines, name)
    lines = [_shared({seed: card.lines[index] for seed, card in seeds.items()}) for index in range(len(cards[0].lines))]
    headline = _shared({seed: card.headline for seed, card in seeds.items()})
    each = " ".join(f"Seed {seed}: {card.headline.word} {card.headline.why}" for seed, card in seeds.items())
    return AnswerCard(replace(headline, figures="", why=each), lines, name)


def _shared(lines: Mapping[int, AnswerLine]) -> AnswerLine:
    of_all = list(lines.values())
    first = of_all[0]
    same = {line.word for line in of_all} == {first.word}
    worst = max((line.state for line in of_all), key=STATES.index)
    word = first.word if same else "The seeds differ."
    figures = "; ".join(f"seed {seed}: {'' if same else line.word + ' '}{line.figures or '–'}" for seed, line in lines.items())  # fmt: skip
    why = first.why if len({line.why for line in of_all}) == 1 else ""
    if not any(line.figures for line in of_all) and same:
        return replace(first, state=worst, why=why)
    return replace(first, state=first.state if same else "unsure", word=word, figures=figures, why=why)


def _known(verdict: str | None, words: Mapping[str | None, tuple[State, str]]) -> tuple[State, str]:
    return words.get(verdict, ("unknown", f"The verdict is {verdict}."))


def _overall(healed: Row, last: int, prompting: State) -> AnswerLine:
    """By the verdict on free text, which holds for any trait; by the forced choice where there is none. Where the trait prompt alone
    does more, nothing has been gained by training."""
    by = "free text" if healed["text_verdict"] is not None else "the forced choice"
    verdict = healed["text_verdict"] if healed["text_verdict"] is not None else healed["verdict"]
    reason = healed["text_verdict_reason"] if healed["text_verdict"] is not None else healed["verdict_reason"]
    state, word = _known(verdict, OVERALL)
    if prompting == "bad" and verdict in ("healed", "kept", "degraded"):
        state, word = "unsure", f"{word} The trait prompt alone does more."
    because = f", because {reason}" if reason else ""
    return AnswerLine("answer", "Did it work?", state, word, "", f"After round {last}, by {by}: {verdict or 'no verdict'}{because}.")  # fmt: skip


def _sentence(reason: str | None) -> str:
    """A reason as a sentence; the name of a figure keeps its small letter."""
    if not reason:
        return ""
    first = reason.split()[0]
    return f"{reason if '_' in first else reason[0].upper() + reason[1:]}."


def _levels(healed: Row, compared: Mapping[str, Row | None], column: str) -> str:
    """The level of a measure, and those of the conditions that it is compared with, as a sentence; empty where it has none."""
    if healed.get(column) is None:
        return ""
    others = [
        f"{name} {format_number(row.get(column), 3, signed=True)}" for name, row in compared.items() if row is not None
    ]
    return f" {column} is {ranged(dict(healed), column, f'{column}_ci', 3, signed=True)}; {', '.join(others)}."


def _trait(healed: Row, levels: str) -> AnswerLine:
    name, question = "trait", "Is the trait in its free text?"
    unread = "" if healed["text_verdict"] or not healed.get("text_verdict_reason") else f" No verdict: {healed['text_verdict_reason']}."  # fmt: skip
    held_out = healed.get("d_llr_opposite") is not None
    field = "d_llr_opposite" if held_out else "d_trait_llr"
    interval = healed[f"{field}_ci"]
    if healed[field] is None or interval is None:
        return AnswerLine(
            name, question, "unknown", "not measured", "", f"No text was sampled, or it has no figures.{levels}{unread}"
        )
    state, word = _sign(interval, "yes", "not shown", "the opposite")
    wordings = "held-out wordings of the trait against its opposite" if held_out else "the trait prompt that also made the vector"  # fmt: skip
    figures = ranged(dict(healed), field, f"{field}_ci", 3, signed=True)
    return AnswerLine(name, question, "bad" if state == "unsure" else state, word, f"{figures} nats per token", f"Change of {field[2:]} against the base, under {wordings}.{levels}{unread}")  # fmt: skip


def _sign(interval: Sequence[float], above: str, neither: str, below: str) -> tuple[State, str]:
    """By an interval around 0 where above is good."""
    if interval[0] > 0:
        return "good", above
    return ("bad", below) if interval[1] < 0 else ("unsure", neither)


def _quality(healed: Row, compared: Mapping[str, Row | None]) -> AnswerLine:
    coherence: Mapping[str, tuple[State, str]] = {"coherent": ("good", "within the limits"), "degraded": ("unsure", "worse"), "broken": ("bad", "broken")}  # fmt: skip
    state, word = coherence.get(healed["coherence_verdict"], ("unknown", str(healed["coherence_verdict"])))
    others = [f"{name} {format_number(row['perplexity'], 2)}" for name, row in compared.items() if row is not None]
    figures = [f"perplexity {ranged(dict(healed), 'perplexity', 'perplexity_ci', 2)} ({', '.join(others)})"]
    why = "" if state == "good" else _sentence(healed["coherence_reason"])
    if not healed["damages"]:
        why = f"{why} Retention on neutral text was not measured."
    for damage in healed["damages"]:
        figures.append(damage["reason"])
        if damage["state"] == "broken":
            state, word = "bad", "broken"
        elif damage["state"] == "degraded" and state == "good":
            state, word = "unsure", f"{damage['subject']} has changed"
    return AnswerLine("price", "Are text quality and retention kept?", state, word, "; ".join(figures), why.strip())


def _prompting(healed: Row, prompted: Row | None) -> AnswerLine:
    name, question = "prompting", "Is it better than prompting?"
    if prompted is None:
        return AnswerLine(name, question, "unknown", "not measured", "", "The prompted base was not scored.")
    price = f"Perplexity {format_number(healed['perplexity'], 2)}, prompted {format_number(prompted['perplexity'], 2)}."
    interval = healed.get("share_of_prompted_ci")
    if healed.get("share_of_prompted") is not None and interval is not None:
        state, word = _sign([end - 1 for end in interval], "more trait", "not told apart", "less trait")
        figures = f"{ranged(dict(healed), 'share_of_prompted', 'share_of_prompted_ci', 2)} of the prompt's shift"
        return AnswerLine(name, question, state, word, figures, price)
    mine, other = healed["d_trait_llr_ci"], prompted["d_trait_llr_ci"]
    if mine is None or other is None:
        return AnswerLine(name, question, "unknown", "not measured", "", "There is no interval to compare.")
    state, word = _sign([mine[0] - other[1], mine[1] - other[0]], "more trait", "not told apart", "less trait")
    figures = f"{ranged(dict(healed), 'd_trait_llr', 'd_trait_llr_ci', 3, signed=True)} against {ranged(dict(prompted), 'd_trait_llr', 'd_trait_llr_ci', 3, signed=True)} nats per token"  # fmt: skip
    return AnswerLine(name, question, state, word, figures, f"By trait_llr, which favours the prompt. {price}")


def _steering_less(healed: Row) -> AnswerLine:
    name, question = "steering less", "Is it better than steering less?"
    text = healed.get("text_price_less_steering") is not None
    field = "text_price_less_steering" if text else "price_less_steering"
    price = healed.get("text_price" if text else "price")
    interval = healed.get(f"{field}_ci")
    if healed.get(field) is None or interval is None:
        why = "No doses of plain steering were scored around the student's shift."
        return AnswerLine(name, question, "unknown", "not measured", "", why)
    state, word = _sign([-interval[1], -interval[0]], "cheaper", "not told apart", "dearer")
    shift = "free text" if text else "the forced choice"
    figures = ranged(dict(healed), field, f"{field}_ci", 3, signed=True)
    return AnswerLine(name, question, state, word, figures, f"{price}, less that of a lower dose at the same shift of {shift}; below 0 is cheaper.")  # fmt: skip


def _moral(healed: Row, read_for: bool) -> AnswerLine:
    name, question = "forced choice", "Do its moral choices follow?"
    if not read_for:
        return AnswerLine(
            name, question, "unknown", "not read", "", "The trait is about no foundation that it asks for."
        )
    state, word = _known(healed["verdict"], MORAL)
    figures = f"d_auth {ranged(dict(healed), 'd_auth', 'd_auth_ci', 3, signed=True)} nats" if healed["d_auth"] is not None else ""  # fmt: skip
    reason = healed["verdict_reason"]
    why = f"{healed['verdict']}, because {reason}." if healed["verdict"] and reason else _sentence(reason)
    return AnswerLine(name, question, state, word, figures, why)
