"""The definitions of every term, in one place: docs/glossary.md, README.md, the report's pages and --help take them from here.

`python -m shared.glossary` rewrites docs/glossary.md and the block of README.md; a test keeps them equal to the code.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

GLOSSARY: Mapping[str, Mapping[str, str]] = {
    "Method": {
        "steering vector": "mean difference of a layer's activations between the trait prompt and the neutral prompt",
        "coefficient": "how many times the steering vector is added to the residual stream",
        "relative dose": "the coefficient times the vector's norm, divided by the mean norm of the activations that the vector is added to",
        "band": "the layers at which the vector is added",
        "student": "the model with the rounds trained so far",
        "gate": "the scale of one round's LoRA, from 0 (off) to 1 (as trained)",
        "barrier": "penalty of the training loss on the divergence D beyond tau",
        "divergence": "D, how far the student's next-token distribution is from the reference's, in nats",
        "tau": "the divergence that the barrier leaves unpunished, in nats",
        "lambda": "the weight of the barrier in the loss",
        "headline": "the condition of each stage whose figures the verdicts use; tables show other doses, draws and gates too",
        "nats": "unit of logarithms to the base e; a change of 0.1 nats is a change of about 10 %",
        "interval": "95 % interval, in brackets; it covers the items, prompts or texts of one run, not other seeds",
    },
    "Conditions": {
        "stage": "the kind of condition: base, prompted, steered, random or healed",
        "base": "the original model under the neutral prompt",
        "prompted": "the original model under the trait prompt, without steering or training",
        "prompted_opposite": "the original model under the opposite persona",
        "prompted_decoy": "the original model under a persona that has nothing to do with the trait",
        "steered": "the previous round's student with this round's vector, at the mean coefficient of the kept rows",
        "random": "the previous round's student with a vector of random direction and the same norm, at the same coefficient",
        "healed": "the student after a round's training, without a vector",
        "student_vector": "the original model with the healed student's mean shift of activations added",
        "student_without_vector": "the healed student with its mean shift of activations subtracted",
    },
    "Free text": {
        "trait_llr": "how much likelier the trait prompt makes a text than the neutral prompt does, nats per token; higher is more of the trait",
        "d_trait_llr": "change of trait_llr against the base on the same prompts",
        "llr_opposite": "how much likelier held-out wordings of the trait make a text than held-out wordings of its opposite, nats per token; higher is more of the trait",
        "d_llr_opposite": "change of llr_opposite against the base on the same prompts: the trait in free text",
        "d_llr_mundane": "change of llr_opposite on everyday prompts, which the trait does not concern",
        "share of prompted": "change of llr_opposite, divided by the change that the trait prompt alone makes; 1 is as much as prompting",
        "perplexity": "how surprising a text is to the original model, exp of the mean negative log-probability of a token; lower is more usual text",
        "entropy": "mean negative log-probability of the text's tokens under the model that wrote it, nats per token",
        "kl_on_policy": "ln of perplexity minus entropy: KL(writing model || original model) on the writing model's own text, nats per token",
        "relevance": "how much likelier its own prompt makes a text than other prompts do, nats per token",
        "distinct-1": "share of different words in a text",
        "distinct-2": "share of different pairs of words in a text",
        "distinct-3": "share of different three-word sequences in a text; low where it repeats itself",
        "distinct-3 across": "distinct-3 over all texts together; low where the texts are alike",
        "stock openings": "share of texts that begin with the same words as a text on another prompt",
        "looping": "share of texts in which one verbatim loop holds over 30 % of the tokens",
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
        "d_auth_moral": "change of ln of Authority's share of the probability of the six options that call an act wrong",
        "specific_shift": "d_auth less the mean change of the five other moral foundations",
        "p_not_wrong": "mean probability of the option that nothing is wrong",
        "p_ans_any": "answer mass: probability that the next token is one of the seven labels",
        "answer mass": "probability that the next token is one of the labels",
        "answer mass / base's": "answer mass divided by the base's; the coherence of the forced choice",
        "coherence": "answer mass divided by the base's; a verdict caps it at 1",
        "d_coh": "change of the answer mass against the base",
        "coh_cost": "answer mass lost per nat of d_auth; undefined under 0.05 nats",
        "coh_slope": "change of the answer mass per nat of d_auth, signed",
        "retain": "share of the steered shift of auth_nats that the healed student keeps",
        "surgical": "whether Authority moved and the other foundations did not move with it",
        "surgical_care": "surgical, and Care did not move either",
        "gated_selectivity": "from moral-maps: the trait's foundation's shift between a dose and its negative, less a tenth of the others', times the squared share of answer mass kept",
        "si_flips": "from moral-maps: difference between a dose and its negative in the share of items whose likeliest answer is the trait's foundation",
        "gated_selectivity_over_base": "gated_selectivity, with the base in place of the negative dose",
        "si_flips_over_base": "si_flips, with the base in place of the negative dose",
        "axis": "whether the base's answers depend on the vignettes; without an axis the forced choice says nothing",
        "informedness": "agreement of the answers with the foundation of their vignettes: 0 is guessing, 1 is full agreement",
        "order effect": "how much the log-probability of an option depends on its place in the list, nats",
        "position, left by reversal": "the order effect on Authority that remains after averaging a listing and its reversal, nats",
        "split-half reliability": "correlation over items between two halves of the listings of the options: near 0 the items' differences are noise",
        "nll of the prefill": "negative log-probability of the answer's fixed beginning, nats per token",
        "valid JSON": "share of unforced answers that are valid JSON of the requested form",
        "unscorable": "items whose answer has no finite log-probabilities",
        "items": "vignettes of the forced choice",
        "detectable": "the smallest shift of auth_nats that these items would show in four cases out of five",
        "text_price_less_steering": "price_less_steering at the same shift of free text",
        "price_less_steering": "price of the student minus the price of plain steering at the same shift; below 0 is cheaper",
    },
    "Verdicts": {
        "verdict": "the first matching rule of the ladder; the words are defined below",
        "verdict broken": "the student no longer answers, or its text is broken",
        "verdict no_format": "the base does not answer in the format",
        "verdict no_axis": "the base's answers do not depend on the question that the measure asks",
        "verdict no_shift": "steering moved the measure no further than chance does",
        "verdict not_shown": "the student's own shift cannot be told from chance",
        "verdict undone": "the student lost over two thirds of the steered shift",
        "verdict unspecific": "the other foundations moved too: the shift is not specific to what the trait is about",
        "verdict degraded": "the trait cost more coherence or retention than allowed",
        "verdict kept": "the trait is there at little cost, but a lower dose of plain steering may be as cheap",
        "verdict healed": "the trait is there, and the student is cheaper than plain steering at the same shift",
    },
    "Student": {
        "‖v_student‖ / ‖v‖": "norm of the student's own shift of activations over that of the round's vector",
        "cos to the round's vector": "cosine of the student's own shift with the vector that taught it",
        "cos to round 1's, from base": "cosine of the shift since the base with the first round's vector",
        "share of the student's": "shift of llr_opposite divided by the healed student's; 1 with the vector added, or 0 with it subtracted, means the vector explains it all",
        "share of the student's d_auth": "d_auth divided by the healed student's; read as the line above",
        "split-half cosine": "cosine between the shifts over two halves of the prompts; near 0, the shift is noise",
    },
    "Study": {
        "arm": "one set of settings that a study compares, over the same seeds",
        "role": "arm (compared) or control (shows how much of an arm's result needs the method)",
        "reached": "rounds scored out of those planned, by seed",
        "coherence as a whole": "coherent, degraded or broken: the worst of the parts in free text and in the forced choice",
        "dose kept / sweep's": "mean relative dose of the kept completions, and of the whole sweep",
        "answer mass lost": "share of the base's answer mass that the condition lost; the price in the forced choice",
        "ln of perplexity / base's": "ln of the ratio of perplexity to the base's; the price in free text",
        "arrive": "share of resamples in which the arm reaches the shift with every seed",
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
    """A page with the terms of README between its markers. Raises ValueError unless the page has exactly one such block."""
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
