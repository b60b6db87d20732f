"""Functions of the lm-evaluation-harness task steer_heal_forced_choice: the forced choice without a thought, read at the answer slot.

    lm_eval --model hf --model_args pretrained=FOLDER --tasks steer_heal_forced_choice --include_path evals/bridges/harness

Every document is one vignette in one option order; the metrics pool the orders of an item before they average over items, as
evals.measures.forced_choice.ask does. Options go into --metadata as JSON: vignettes, instrument, debias, items (a stratified number of them),
system, chat_template_kwargs, and tokenizer where --model_args names none. Number the items by `items`, never by --limit, which
cuts an item's orders apart and is refused.

How exact: the context is the text of the very tokens that evals.measures.forced_choice.ask reads, chat template included, so that
--apply_chat_template must stay off. The harness takes text alone and tokenises it in one go, where evals.measures.forced_choice.instrument.InstrumentRenderer
tokenises part by part. On the embedded model both give the same tokens, and so the same log-probabilities; the metric `retokenised`
is the share of contexts in which they differ, 0 where the read is exact. That a label is one separate token after the context is
checked, and refused if not. With the thought, use evals.score or evals.bridges.inspect_task: multiple choice has no room for one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evals.measures.forced_choice.answers import point_estimates
from evals.measures.forced_choice.ask import Read, row
from evals.measures.forced_choice.instrument import ORDERS, InstrumentRenderer, load_instrument, orders, rotations_of
from shared.chat import Chat
from shared.errors import SteerHealError
from shared.instrument import foundation_of
from shared.models import tokenizer_folder
from shared.records import Vignette
from shared.vignettes import load_vignettes

if TYPE_CHECKING:
    from datasets import Dataset

SOURCE = Path("the harness's documents")


def documents(
    tokenizer: str | None = None,
    pretrained: str | None = None,
    model: str | None = None,
    vignettes: str = "embedded",
    instrument: str = "embedded",
    debias: str = "cyclic",
    items: int | None = None,
    system: str | None = None,
    chat_template_kwargs: dict[str, Any] | None = None,
    **_: Any,
) -> dict[str, Dataset]:
    """The split `test`: a row per vignette and order, the orders of a vignette next to each other.

    The harness passes its --model_args and --metadata together; what is not named here is the model's. Raises SteerHealError
    without the name of a tokenizer, for unknown orders, and where a label does not follow the context as one separate token.

    Args:
        tokenizer, pretrained, model: of which the first that is given names the tokenizer.
        vignettes, instrument: `embedded` or a file.
        debias: orders of the options.
        items: a stratified number of vignettes; None takes all.
        system: a system prompt for the question.
        chat_template_kwargs: passed to the chat template.
    """
    from datasets import Dataset

    name = tokenizer or pretrained or model
    if not isinstance(name, str) or debias not in ORDERS:
        raise SteerHealError(
            "the harness task cannot render its questions",
            given=f"tokenizer {name}, debias {debias}",
            expected="the name of a tokenizer with a chat template; debias 'reversal', 'rotating' or 'cyclic'",
            next='--model_args pretrained=FOLDER, or --metadata \'{"tokenizer": "FOLDER"}\'',
        )
    chat = Chat.load(tokenizer_folder(name), chat_template_kwargs)
    renderer = InstrumentRenderer(chat, load_instrument(instrument))
    rows = []
    loaded_vignettes = load_vignettes(vignettes, items)
    for vignette, rotation in zip(loaded_vignettes, rotations_of(debias, loaded_vignettes), strict=True):
        written = foundation_of(vignette.foundation_coarse)
        assert written is not None, "load_vignettes lets none but the seven through"
        for order, listing in enumerate(orders(debias, rotation)):
            ids = renderer.answer(renderer.question(vignette.text, listing, system), [])
            context = chat.tokenizer.decode(ids, clean_up_tokenization_spaces=False)
            rows.append(
                {
                    "vignette": vignette.model_dump(),
                    "instrument": renderer.instrument.identity,
                    "template": chat.arguments,
                    "context": context,
                    "labels": renderer.instrument.labels,
                    "target": listing.index(written),
                    "debias": debias,
                    "rotation": rotation,
                    "order": order,
                    "items": len(loaded_vignettes),
                    "retokenised": chat.encode(context) != ids,
                }
            )
    _check_labels(chat, rows[0]["context"], renderer)
    return {"test": Dataset.from_list(rows)}


def process_results(doc: dict[str, Any], results: Sequence[tuple[float, bool]]) -> dict[str, Any]:
    """Every metric gets the document's labels' log-probabilities, nats, in canonical order: metrics are functions of whole items."""
    listing = orders(doc["debias"], doc["rotation"])[doc["order"]]
    logprobs = [float(logprob) for logprob, _ in results]
    read = {key: value for key, value in doc.items() if key not in ("context", "labels", "target")}
    read["lp"] = [logprobs[place] for place in np.argsort(listing)]
    return dict.fromkeys(("auth_nats", "care_nats", "answer_mass", "informedness", "unscorable", "retokenised"), read)


def auth_nats(reads: Sequence[dict[str, Any]]) -> float:
    """ln of the mean probability of Authority, nats; NaN where it is undefined. reads: of `process_results`."""
    return point_estimates(_items(reads), SOURCE)["auth_nats"]


def care_nats(reads: Sequence[dict[str, Any]]) -> float:
    """ln of the mean probability of Care, nats; NaN where it is undefined. reads: of `process_results`."""
    return point_estimates(_items(reads), SOURCE)["care_nats"]


def answer_mass(reads: Sequence[dict[str, Any]]) -> float:
    """Mean probability that the next token is a label. reads: of `process_results`."""
    return point_estimates(_items(reads), SOURCE)["answer_mass"]


def informedness(reads: Sequence[dict[str, Any]]) -> float:
    """Agreement with the vignettes' foundations: 0 is guessing, 1 is perfect. reads: of `process_results`."""
    return point_estimates(_items(reads), SOURCE)["informedness"]


def unscorable(reads: Sequence[dict[str, Any]]) -> float:
    """The number of items without finite log-probabilities. reads: of `process_results`."""
    return point_estimates(_items(reads), SOURCE)["unscorable"]


def retokenised(reads: Sequence[dict[str, Any]]) -> float:
    """Share of the contexts whose text, tokenised in one go, is not the tokens of evals.measures.forced_choice.ask."""
    return float(np.mean([read["retokenised"] for read in reads]))


def _items(reads: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row of evals.measures.forced_choice.ask for every item. Raises SteerHealError where an item lacks an order."""
    by_id: dict[str, dict[int, dict[str, Any]]] = {}
    for read in reads:
        by_id.setdefault(read["vignette"]["id"], {})[read["order"]] = read
    if by_id and len(by_id) != (wanted_items := reads[0]["items"]):
        raise SteerHealError(
            "not all items were asked",
            given=f"{len(by_id)} of {wanted_items} items, the first in the file and so of one foundation",
            expected=f"all {wanted_items}",
            next="leave --limit out and set the number of items, which are then stratified: --metadata '{\"items\": 28}'",
        )
    rows = []
    for name, frames in by_id.items():
        first = next(iter(frames.values()))
        expected = range(ORDERS[first["debias"]])
        if lacking := [order for order in expected if order not in frames]:
            raise SteerHealError(
                "an item was not asked in every order",
                given=f"{name}: orders {', '.join(map(str, lacking))} are missing",
                expected=f"all {len(expected)} orders of {first['debias']}",
                next="leave --limit out and set the number of items: --metadata '{\"items\": 28}'",
            )
        lp = np.array([[frames[order]["lp"]] for order in expected])
        vignette = Vignette.model_validate(first["vignette"])
        score_row = row(vignette, lp, Read(first["debias"], 0), None, [""] * len(expected), rotation=first["rotation"])
        rows.append({**score_row, "instrument": first["instrument"], "template": first["template"]})
    return rows


def _check_labels(chat: Chat, context: str, renderer: InstrumentRenderer) -> None:
    """The harness moves blanks at the context's end into the answer, and merges across its edge would make another answer of it."""
    before = chat.encode(context)
    for label, token in zip(renderer.instrument.labels, renderer.label_ids, strict=True):
        if context != context.rstrip() or chat.encode(context + label) != [*before, token]:
            raise SteerHealError(
                "an answer label is not one separate token after the question",
                given=f"{label!r} after {context[-20:]!r}",
                expected="the tokens of the question, followed by one token of the label",
                next="use evals.score, which tokenises part by part, or an instrument with another prefill",
            )
