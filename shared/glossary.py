"""The definitions of every term, in one place: docs/glossary.md, README.md, the report's pages and --help take them from here.

`python -m shared.glossary` writes docs/glossary.md and the block of README.md anew; a test keeps them equal to the code.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

GLOSSARY: Mapping[str, Mapping[str, str]] = {
    "Method": {
        "steering vector": "mean difference of a layer's activations between the trait prompt and the neutral prompt",
        "coefficient": "how many times the steering vector is added to the residual stream",
        "relative dose": "the coefficient times the vector's norm, over the mean norm of the activations it is added to",
        "band": "the layers at which the vector is added",
        "student": "the model with the rounds trained so far",
        "gate": "the scale of one round's LoRA, from 0 (off) to 1 (as trained)",
        "barrier": "penalty of the training loss on the divergence D beyond tau",
        "divergence": "D, how far the student's next-token distribution is from the reference's, in nats",
        "tau": "the divergence that the barrier leaves unpunished, in nats",
        "lambda": "the weight of the barrier in the loss",
        "headline": "the condition of a stage that verdicts are read from; other doses, draws and gates stand beside it",
        "nats": "unit of logarithms to the base e; a change of 0.1 nats is a change of about 10 %",
        "interval": "95 % interval, in brackets; over items, prompts or texts of one run, not over seeds",
    },
    "Conditions": {
        "stage": "the condition: base, prompted, steered, random or healed",
        "base": "the original model under the neutral prompt",
        "prompted": "the original model under the trait prompt, without steering or training",
        "prompted_opposite": "the original model under the opposite persona",
        "prompted_decoy": "the original model under a persona that has nothing to do with the trait",
        "steered": "the student of the round before, with the round's vector at the mean coefficient of the kept rows",
        "random": "the same as steered, in a random direction of the same norm",
        "healed": "the student after a round's training, without a vector",
        "student_vector": "the original model with the healed student's mean shift of activations added",
        "student_without_vector": "the healed student with its mean shift of activations subtracted",
    },
    "Free text": {
        "trait_llr": "how much likelier the trait prompt makes a text than the neutral prompt does, nats per token; higher is more of the trait",
        "d_trait_llr": "change of trait_llr against the base on the same prompts",
        "llr_opposite": "how much likelier held-out wordings of the trait make a text than held-out wordings of its opposite, nats per token; higher is more of the trait",
        "d_llr_opposite": "change of llr_opposite against the base on the same prompts: the trait in free text",
        "d_llr_mundane": "change of llr_opposite on everyday prompts, where the trait has nothing to say",
        "share of prompted": "the change of llr_opposite over that which the trait prompt alone makes; 1 is as much as prompting",
        "perplexity": "how surprising a text is to the original model, exp of the mean negative log-probability of a token; lower is more usual text",
        "entropy": "mean negative log-probability of the text's tokens under the model that wrote it, nats per token",
        "kl_on_policy": "ln of perplexity less entropy: how far the writing model is from the original on its own text, nats per token",
        "relevance": "how much likelier its own prompt makes a text than other prompts do, nats per token",
        "distinct-1": "share of different words in a text",
        "distinct-2": "share of different pairs of words in a text",
        "distinct-3": "share of different three-word sequences in a text; low where it repeats itself",
        "distinct-3 across": "distinct-3 over all texts together; low where the texts are alike",
        "stock openings": "share of texts whose opening stands in a text on another prompt",
        "looping": "share of texts of which over 30 % of the tokens lie in one verbatim loop",
        "ret_nll": "retention: change of the negative log-probability of frozen neutral texts, nats per token",
        "ret_kl": "retention: KL from the base to the condition on frozen neutral texts, nats per token; 0 is nothing lost",
    },
    "Forced choice": {
        "forced choice": "seven options after a vignette, read as the log-probabilities of their labels",
        "auth_nats": "ln of the mean probability of Authority in the forced choice, nats",
        "auth_nats [95 %]": "ln of the mean probability of Authority in the forced choice, nats, with its 95 % interval",
        "d_auth": "change of auth_nats against the base on the same items",
        "care_nats": "ln of the mean probability of Care in the forced choice, nats",
        "d_care": "change of care_nats against the base on the same items",
        "d_auth_moral": "change of ln of Authority's share of all that is called wrong",
        "specific_shift": "d_auth less the mean change of the five other moral foundations",
        "p_not_wrong": "mean probability of the option that nothing is wrong",
        "p_ans_any": "answer mass: probability that the next token is one of the seven labels",
        "answer mass": "probability that the next token is one of the labels",
        "answer mass / base's": "answer mass over the base's; the part of coherence at the answer slot",
        "coherence": "answer mass over the base's, at most 1 in a verdict",
        "d_coh": "change of the answer mass against the base",
        "coh_cost": "answer mass lost per nat of d_auth; undefined under 0.05 nats",
        "coh_slope": "change of the answer mass per nat of d_auth, signed",
        "retain": "share of the steered shift of auth_nats that the healed student keeps",
        "surgical": "whether Authority moved and the other foundations did not move with it",
        "surgical_care": "surgical, and Care stayed where it was",
        "gated_selectivity": "as moral-maps has it: shift of the foundation meant between a dose and its negative, less a tenth of the others', by the answer mass kept",
        "si_flips": "as moral-maps has it: change of the share of items whose likeliest answer is the foundation meant, between a dose and its negative",
        "gated_selectivity_over_base": "gated_selectivity with the base in the place of the negative dose",
        "si_flips_over_base": "si_flips with the base in the place of the negative dose",
        "axis": "whether the base's answers follow the vignettes at all; without it the forced choice says nothing",
        "informedness": "0 is guessing, 1 is agreement with what the vignettes are about",
        "order effect": "how much an answer depends on the place of its option in the list, nats",
        "position, left by reversal": "order effect on Authority that two reversed listings leave in, nats",
        "split-half reliability": "whether items differ by more than the listing of their options makes them differ",
        "nll of the prefill": "negative log-probability of the answer's fixed beginning, nats per token",
        "valid JSON": "share of unforced answers that are the JSON asked for",
        "unscorable": "items whose answer has no finite log-probabilities",
        "items": "vignettes of the forced choice",
        "detectable": "the shift of auth_nats that these items would have shown four times in five",
        "text_price_less_steering": "price_less_steering at one shift of free text",
        "price_less_steering": "what the student paid less what plain steering pays at the same shift; below 0 is cheaper",
    },
    "Verdicts": {
        "verdict": "the first rule of the ladder that matches; see the words below",
        "verdict broken": "the student no longer answers, or its text is broken",
        "verdict no_format": "the base does not answer in the format",
        "verdict no_axis": "the base's answers do not depend on what the measure is about",
        "verdict no_shift": "steering did not move the measure further than chance",
        "verdict not_shown": "the student's own shift is not shown",
        "verdict undone": "the student lost over two thirds of the steered shift",
        "verdict unspecific": "everything moved, and not what the trait is about",
        "verdict degraded": "the trait cost more coherence or retention than is allowed",
        "verdict kept": "the trait is there at little cost, but a lower dose of plain steering may be as cheap",
        "verdict healed": "the trait is there, and the student is cheaper than plain steering at the same shift",
    },
    "Student": {
        "‖v_student‖ / ‖v‖": "norm of the student's own shift of activations over that of the round's vector",
        "cos to the round's vector": "cosine of the student's own shift with the vector that taught it",
        "cos to round 1's, from base": "cosine of the shift since the base with the first round's vector",
        "share of the student's": "shift of llr_opposite over the healed student's; with the vector added 1 is enough, with it subtracted 0 is all",
        "share of the student's d_auth": "d_auth over the healed student's, read in the same way",
        "split-half cosine": "cosine of the shifts over two halves of the prompts: near 0 it is noise",
    },
    "Study": {
        "arm": "one set of settings that a study compares, over the same seeds",
        "role": "arm, which is compared, or control, which shows what the arms are worth",
        "reached": "rounds scored of those planned, by seed",
        "coherence as a whole": "coherent, degraded or broken: the worst of the parts of text and answer slot",
        "dose kept / sweep's": "mean relative dose of the kept completions, and of the whole sweep",
        "answer mass lost": "what of the base's answer mass the condition has lost; the price along the forced choice",
        "ln of perplexity / base's": "ln of perplexity over the base's; the price along free text",
        "arrive": "share of resamples in which the arm reaches the shift in all seeds",
    },
    "Sweep and training": {
        "n": "completions sampled",
        "kept": "completions that passed every rule of the filter",
        "relative dose, kept": "mean relative dose of the kept completions",
        "rows": "completions trained on",
        "steps": "optimiser steps",
        "ce": "cross-entropy of the rows trained on, nats per token",
        "first ce": "cross-entropy at the first step, nats per token",
        "held out, first": "cross-entropy of rows that are not trained on, before the first step",
        "held out, last": "cross-entropy of rows that are not trained on, after the last step",
        "D to base at the start": "divergence from the original model before the first step, nats",
        "fired": "share of steps at which the barrier was on",
        "gradient ratio": "norm of the barrier's gradient over that of the cross-entropy",
    },
}


def definition(term: str) -> str | None:
    """The definition of a term, None for a word that is not in the glossary."""
    return next((terms[term] for terms in GLOSSARY.values() if term in terms), None)


def define(term: str) -> str:
    """The definition of a term, for a help text. Raises KeyError for a word that is not in the glossary."""
    meaning = definition(term)
    if meaning is None:
        raise KeyError(term)
    return meaning


def words(*terms: str) -> str:
    """The definitions of several terms in one line, for the end of a command's help. Raises KeyError as `define` does."""
    return "; ".join(f"{term}: {define(term)}" for term in terms) + "."


# The terms of the README, a line each.
README = (
    ("steering vector", "coefficient"),
    ("student", "healed"),
    ("barrier", "tau", "gate"),
    ("trait_llr", "llr_opposite"),
    ("forced choice", "auth_nats", "axis"),
    ("perplexity", "ret_kl"),
)
OPEN, CLOSE = "<!-- glossary -->\n", "<!-- /glossary -->"


def glossary_page() -> str:
    """docs/glossary.md."""
    parts = [
        "# Glossary\n\nThe report's pages, `--help` and these docs use these words. [verdicts.md](verdicts.md) has the formulas.\n"
    ]
    for group, terms in GLOSSARY.items():
        lines = "\n".join(f"- **{term}**: {meaning}." for term, meaning in terms.items())
        parts.append(f"## {group}\n\n{lines}\n")
    return "\n".join(parts)


def with_glossary(page: str) -> str:
    """A page with the terms of README between its markers. Raises ValueError for a page that has not exactly one such block."""
    before, opened, rest = page.partition(OPEN)
    _, closed, after = rest.partition(CLOSE)
    if not opened or not closed or OPEN in after or CLOSE in after:
        raise ValueError(f"not one block between {OPEN.strip()} and {CLOSE}")
    lines = [" ".join(f"**{term}**: {define(term)}." for term in terms) for terms in README]
    return f"{before}{OPEN}{''.join(f'- {line}{chr(10)}' for line in lines)}{CLOSE}{after}"


def main() -> None:
    """Write docs/glossary.md and the glossary of README.md, below the working folder."""
    from shared.console import say  # the schema imports this file, and these import the schema
    from shared.publish import write_text

    readme, page = Path("README.md"), Path("docs/glossary.md")
    write_text(readme, with_glossary(readme.read_text(encoding="utf-8")))
    write_text(page, glossary_page())
    say(f"wrote {page} and the glossary of {readme}")


if __name__ == "__main__":
    main()
