"""The dose by iso-KL: the coefficient at which the steered model is a given distance from the unsteered one.

The distance is the 95th percentile, over the tokens of a few unsteered completions, of KL(steered || unsteered) over the full vocabulary.
Unlike the walk's survival it asks nothing of what is said, so that vectors of any norm, trait and layer are compared at one strength. The
engine gives log-probabilities of single tokens and no distribution, so it comes from plain forwards in fp32 of the exact student, before the
engine takes its memory. Half of a text's tokens or more are hardly moved: a mean would be theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import TypeAdapter

from gen.extract import in_fp32
from gen.forward import kl_by_token, logits_of, steered
from gen.plan import Job, prompt_key, spread_prompts
from gen.prompts import PromptRenderer
from gen.walk import largest, noted_answer
from gen.windows import Windows
from shared.commands import setting
from shared.console import console, counting, print_table
from shared.errors import SteerHealError
from shared.seeds import seed_of
from shared.vectors import Vector
from shared.work import ISO_KL_TOKENS

if TYPE_CHECKING:
    import torch

PERCENTILE = 95


@dataclass(frozen=True)
class KLProbe:
    """95th percentile and mean of the per-token KL at a coefficient, nats; None where a logit is not finite."""

    coefficient: float
    kl: float | None
    mean: float | None


@dataclass(frozen=True)
class IsoKL:
    """The coefficient found, every probe in the order it was made, and over how many tokens."""

    coefficient: float
    tokens: int
    probes: list[KLProbe]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> IsoKL:
        """Raises ValueError for what `as_dict` does not write."""
        return TypeAdapter(cls).validate_python(value)


def find_dose_by_kl(
    probe: Callable[[float], KLProbe], *, target: float, ceiling: float, steps: int
) -> tuple[float, list[KLProbe]]:
    """The ceiling if its KL is at most the target, else the edge below it, to within 2**-steps of it, with all probes.

    KL rises with the dose where a search looks. Raises SteerHealError where it is above the target at every coefficient tried.
    """
    probes: list[KLProbe] = []

    def near(coefficient: float) -> bool:
        probes.append(probe(coefficient))
        kl = probes[-1].kl
        return kl is not None and kl <= target

    largest_coefficient = largest(near, ceiling=ceiling, steps=steps)
    if largest_coefficient is None:
        tried = ", ".join(f"{'not finite' if one.kl is None else f'{one.kl:.3g}'} at {one.coefficient:g}" for one in probes)  # fmt: skip
        raise SteerHealError(
            "iso-KL found no dose: the steered model is too far from the unsteered one at every coefficient",
            given=tried,
            expected=f"at most {target:g} nats (sweep.dose_kl) at some coefficient",
            next=f"{setting(f'sweep.dose_ceiling={probes[-1].coefficient:g}')}, or a higher sweep.dose_kl",
        )
    return largest_coefficient, probes


def kl_probe(
    network: torch.nn.Module, depth: int, vector: Vector, texts: Sequence[tuple[Sequence[int], int]], generated: bool
) -> Callable[[float], KLProbe]:
    """A function from a coefficient to the KL between the steered and the unsteered network on some texts.

    Args:
        network: the model in fp32.
        depth: number of its blocks.
        vector: to steer with.
        texts: token ids of prompt and completion, with the length of the prompt.
        generated: steer from the last token of the prompt on; else the whole text.
    """
    unsteered = [logits_of(network, ids, begin).cpu().clone() for ids, begin in texts]

    def probe(coefficient: float) -> KLProbe:
        values = []
        with counting(f"iso-KL: coefficient {coefficient:g}", len(texts)) as advance:
            for (ids, begin), base in zip(texts, unsteered, strict=True):
                with steered(network, depth, vector, coefficient, begin - 1 if generated else 0):
                    values.append(kl_by_token(logits_of(network, ids, begin).cpu(), base))
                advance()
        kl = np.concatenate(values)
        if not np.isfinite(kl).all():
            return KLProbe(coefficient, None, None)
        return KLProbe(coefficient, float(np.percentile(kl, PERCENTILE)), float(kl.mean()))

    return probe


def sample(
    network: torch.nn.Module, ids: Sequence[int], tokens: int, stop: Sequence[int], temperature: float, seed: int
) -> list[int]:
    """Token ids of one completion of a prompt, sampled at a temperature, without the token that ends it."""
    import torch

    device = next(network.parameters()).device
    generator, cache, completion_ids = torch.Generator().manual_seed(seed), None, []
    step = torch.tensor([list(ids)], device=device)
    with torch.inference_mode():
        for _ in range(tokens):
            output = network(input_ids=step, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache = output.past_key_values
            shares = (output.logits[0, -1].float().cpu() / temperature).softmax(-1)
            token = int(torch.multinomial(shares, 1, generator=generator))
            if token in stop:
                break
            completion_ids.append(token)
            step = torch.tensor([[token]], device=device)
    return completion_ids


def iso_kl_of(job: Job, windows: Windows, renderer: PromptRenderer, prompts: int) -> IsoKL:
    """The iso-KL dose of a sweep: the answer that an interrupted one noted, or a search, whose answer is noted.

    Args:
        job: the sweep; windows: its folder, which keeps the note.
        renderer: of its prompts.
        prompts: how many the job has.
    """
    if (noted := noted_answer(windows, "iso_kl", IsoKL.from_dict, "iso-KL dose", "searches")) is not None:
        console.print(f"iso-KL: the interrupted sweep found {noted.coefficient:g}")
        return noted
    import torch

    settings, chat = job.config.sweep, renderer.chat
    network = in_fp32(job.origin, job.history)
    try:
        chosen = spread_prompts((prompt for _, prompt in job.prompts), prompts, settings.dose_prompts)
        texts = []
        with counting("iso-KL: unsteered completions", len(chosen)) as advance:
            for index, prompt in chosen:
                ids, seed = renderer(prompt)[0], seed_of(job.seed, "iso_kl", prompt_key(index, prompt))
                length = min(ISO_KL_TOKENS, settings.max_tokens)
                completion_ids = sample(network, ids, length, chat.stop_ids, settings.temperature, seed)
                texts.append(([*ids, *completion_ids], len(ids)))
                advance()
        texts = [(ids, begin) for ids, begin in texts if len(ids) > begin]
        if not texts:
            raise SteerHealError(
                "iso-KL has no text to measure on",
                given=f"{len(chosen)} unsteered completions, all of them empty",
                expected="a model that answers without steering",
                next=f"look at what it samples on a grid of coefficients: {setting('sweep.dose=grid')}",
            )
        generated = job.vector.metadata.get("positions", "all") == "generated"
        probe = kl_probe(network, job.origin.depth, job.vector, texts, generated)
        coefficient, probes = find_dose_by_kl(
            probe, target=settings.dose_kl, ceiling=settings.dose_ceiling, steps=settings.dose_steps
        )
    finally:
        del network
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # the engine takes its share of what is free
    answer = IsoKL(coefficient, sum(len(ids) - begin for ids, begin in texts), probes)
    windows.note("iso_kl", answer.as_dict())
    return answer


def print_iso_kl(answer: IsoKL, vector: Vector, target: float, ceiling: float) -> None:
    """Print the probes by coefficient, and the dose that was found."""
    doses = {one.coefficient: [*vector.relative_dose(one.coefficient).values()] for one in answer.probes}
    print_table(
        f"iso-KL: the coefficient with a 95th percentile of KL(steered || unsteered) of {target:g} nats, {answer.tokens} tokens",
        ["coefficient", "95th percentile", "mean", "relative dose"],
        [
            [f"{one.coefficient:g}", one.kl, one.mean, float(np.mean(doses[one.coefficient])) if doses[one.coefficient] else None]
            for one in sorted(answer.probes, key=lambda one: one.coefficient)
        ],
    )  # fmt: skip
    console.print(
        f"sampling at {answer.coefficient:g}"
        + (", the ceiling: sweep.dose_ceiling may be raised" if answer.coefficient == ceiling else "")
    )
