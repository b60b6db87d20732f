"""Can a model do the task, and with how many think tokens? The base alone, scored at several budgets, before anything is steered.

At each budget: whether the choice of the trait's foundation follows the vignettes (authority_contrast), whether the model answers in the
format, and what a condition costs. The rule is `evals.verdict.preflight`, the one that a round's verdict begins with.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from evals.commandline import preflight_options
from evals.conditions import Condition, Weights
from evals.intervals import estimate_of, mean_of
from evals.measures.forced_choice.answers import answers
from evals.measures.forced_choice.ask import Read
from evals.measures.forced_choice.cached import cached_or_asked, free_of
from evals.measures.forced_choice.checks import refuse_sampling_options, refuse_too_long
from evals.measures.forced_choice.contrast import contrast
from evals.measures.forced_choice.instrument import ORDERS, InstrumentRenderer, load_instrument
from evals.measures.forced_choice.rows import ScoreRow
from evals.statistics import AUTHORITY, Answers, Estimate, interval_text
from evals.verdict import preflight
from gen.students import ServedStudent
from shared.chat import Chat
from shared.cli import configured, entry
from shared.commands import setting
from shared.console import console, print_table, say
from shared.context import fitted
from shared.errors import SteerHealError
from shared.instrument import FOUNDATIONS, Instrument
from shared.locks import hold
from shared.models import resolve_model
from shared.outputs import guard
from shared.publish import write_json
from shared.records import Vignette
from shared.run import Run, open_run
from shared.schema import Config
from shared.think import FILE, adopt, may_adopt
from shared.traits import load_trait
from shared.vignettes import load_vignettes

VERSION = 1


@dataclass(frozen=True)
class Budget:
    """The forced choice of the base with a given number of think tokens.

    contrast: log odds of the foundation on its own items less those on the others, nats; mass: of the seven labels in the next token;
    on_foundation, on_not_wrong: of the foundation and of the seventh option among the labels; each with its 95 % interval over items,
    None where no item is scorable. seconds: of the scoring. refused: None, no_format or no_axis, and reason its sentence.
    """

    think: int
    contrast: Estimate | None
    mass: Estimate | None
    on_foundation: Estimate | None
    on_not_wrong: Estimate | None
    seconds: float
    refused: str | None
    reason: str | None


def budget_of(answers: Answers, think: int, seconds: float, foundation: int = AUTHORITY) -> Budget:
    """The figures and the verdict of one budget, from the base's answers. seconds: how long they took. foundation: index in FOUNDATIONS."""
    keep = answers.scorable
    p, strata = answers.p[keep], answers.truth[keep]

    def level(values: Any) -> Estimate | None:
        return estimate_of(mean_of(values), strata) if keep.any() else None

    refusal = preflight(answers, foundation)
    return Budget(
        think,
        contrast(answers, foundation),
        level(answers.mass[keep]),
        level(p[:, foundation]),
        level(p[:, -1]),
        seconds,
        refusal.state if refusal else None,
        refusal.reason if refusal else None,
    )


def scan(
    model: Any,
    renderer: InstrumentRenderer,
    vignettes: Sequence[Vignette],
    reads: Sequence[Read],
    base: ServedStudent,
    foundation: int = AUTHORITY,
) -> Iterator[Budget]:
    """One budget after the other, each from an empty prefix cache, so that none is timed with the questions of the one before."""
    weights = Weights("the base", base, [Condition("base", "base")])
    tokenizer = renderer.chat.tokenizer
    cached_or_asked(model, renderer, vignettes[:1], weights, reads[0], tokenizer, None, None)  # what is compiled, is
    for read in reads:
        model.reset_cache()
        start = time.monotonic()
        rows = cached_or_asked(model, renderer, vignettes, weights, read, tokenizer, None, None)["base"]
        seconds = time.monotonic() - start
        base_answers = answers([ScoreRow.model_validate(row) for row in rows], None, "the same command")  # type: ignore[arg-type]
        yield budget_of(base_answers, read.think, seconds, foundation)


def least_budget(budgets: Sequence[Budget]) -> Budget | None:
    """The fewest think tokens with which the model can do the task, None where it cannot at any budget."""
    return min((budget for budget in budgets if budget.refused is None), key=lambda budget: budget.think, default=None)


def budget_sentence(budgets: Sequence[Budget], items: int, foundation: int = AUTHORITY) -> str:
    """The result of the budgets in a sentence. items: vignettes that were asked; foundation: its index in FOUNDATIONS."""
    name, budget = FOUNDATIONS[foundation], least_budget(budgets)
    tried = ", ".join(str(candidate.think) for candidate in sorted(budgets, key=lambda candidate: candidate.think))
    if budget is None:
        closest = max(budgets, key=lambda candidate: candidate.contrast.interval[0] if candidate.contrast and candidate.contrast.interval else float("-inf"))  # fmt: skip
        return (
            f"There is no budget among {tried} think tokens at which this model can do the task: the forced choice would say nothing about {name}. "
            f"At {closest.think} think tokens: {closest.reason}. Take another model, or try more think tokens or items."
        )
    assert budget.contrast is not None
    return (
        f"{budget.think} think tokens are the fewest of {tried} at which this model can do the task: its log odds of {name} are by "
        f"{interval_text(budget.contrast, 2)} nats higher on vignettes of {name} than on the others. "
        f"A condition of {items} items then takes {budget.seconds:.0f} s on this machine."
    )


def print_budgets(budgets: Sequence[Budget], items: int, debias: str, foundation: int) -> None:
    """Print the figures of every budget of think tokens. foundation: its index in FOUNDATIONS."""
    name = FOUNDATIONS[foundation]
    print_table(
        f"the base on {items} items, {debias} orders",
        ["think tokens", f"{name} contrast", "answer mass", f"mass on {name}", "mass on not wrong", "s a condition", "can do it"],
        [
            [
                budget.think,
                *[
                    interval_text(value) if value else None
                    for value in (budget.contrast, budget.mass, budget.on_foundation, budget.on_not_wrong)
                ],
                f"{budget.seconds:.1f}",
                budget.refused or "yes",
            ]
            for budget in budgets
        ],
    )  # fmt: skip
    for budget in budgets:
        if budget.reason:
            console.print(f"{budget.think} think tokens, {budget.refused}: {budget.reason}", markup=False)


def foundation_of_trait(name: str) -> int:
    """Index of the foundation that a trait is read for. Raises SteerHealError for a trait that is about none of them."""
    trait = load_trait(name)
    if trait.read_for is None:
        raise SteerHealError(
            "the forced choice says nothing of this trait",
            given=f"vector.trait = {name}: no read_for",
            expected='the foundation it is read for, such as "read_for": {"foundation": "authority", "sign": -1}, in the trait file',
            next=f"write it there, or preflight the embedded trait: {setting('vector.trait=embedded')}",
        )
    return FOUNDATIONS.index(trait.read_for.foundation)


@dataclass(frozen=True)
class PreflightPlan:
    """What a preflight scores: the base of a configuration on vignettes, at each read. out: the file of its figures."""

    config: Config
    vignettes: list[Vignette]
    instrument: Instrument
    reads: list[Read]
    out: Path | None


def plan_of_options(arguments: Any, config: Config) -> PreflightPlan:
    """The subject of a preflight by the command line."""
    model = {"name": arguments.model or config.model.name, "dtype": arguments.dtype or config.model.dtype}
    config = config.model_copy(update={"model": config.model.model_copy(update=model)})
    reads = [Read(arguments.debias, think, seed=config.seed) for think in sorted(set(arguments.think))]
    vignettes, instrument = load_vignettes(arguments.vignettes, arguments.items), load_instrument(arguments.instrument)
    return PreflightPlan(config, vignettes, instrument, reads, arguments.out)


def plan_of_run(run: Run, thinks: Sequence[int]) -> PreflightPlan:
    """The subject of a preflight by a run, at these budgets of think tokens."""
    config, settings = run.config, run.config.eval
    reads = [
        Read(settings.debias, think, seed=config.seed, stop=settings.stop and think > 0)
        for think in sorted(set(thinks))
    ]
    vignettes, instrument = load_vignettes(settings.vignettes, settings.items), load_instrument(settings.instrument)
    return PreflightPlan(config, vignettes, instrument, reads, run.folder / FILE)


def reads_that_fit(subject: PreflightPlan, renderer: InstrumentRenderer, longest: int) -> list[Read]:
    """The reads of a run whose questions, thoughts and free answers fit into the context. Raises SteerHealError where not even the first does."""
    free, systems = free_of(subject.config.eval.free_tokens), [None, load_trait(subject.config.scored_trait).trait]
    refuse_too_long(renderer, subject.vignettes, subject.reads[0], free, longest, systems)
    rooms = []
    for read in subject.reads:
        try:
            refuse_too_long(renderer, subject.vignettes, read, free, longest, systems)
        except SteerHealError as error:
            console.print(f"{read.think} think tokens are not tried: {error.given}", markup=False)
            break
        rooms.append(read)
    return rooms


def main() -> None:
    options = preflight_options()
    arguments = options.parse_args()
    run = None
    if arguments.run is not None:
        if mixed := sorted(options.given - {"run", "think"}):
            raise SteerHealError(
                "options that a run has settings for",
                given=", ".join(f"--{name}" for name in mixed),
                expected="--run, and --think",
                next=f"leave them out: {options.prog} --run {shlex.quote(str(arguments.run))}",
            )
        run = open_run(arguments.run)
    subject = plan_of_run(run, arguments.think) if run else plan_of_options(arguments, configured(arguments))
    config, vignettes = subject.config, subject.vignettes
    foundation = foundation_of_trait(config.scored_trait if run else config.vector.trait)
    for read in subject.reads:
        refuse_sampling_options(read)
    origin = resolve_model(config.model.name, config.model.revision)
    config = fitted(config, origin.context)
    guard(arguments.outputs, [origin.place])
    if run:
        run.hold()
    elif subject.out:
        hold(subject.out)
    chat = Chat.load(origin.folder, config.model.chat_template_kwargs, run.day if run else config.model.day)
    renderer = InstrumentRenderer(chat, subject.instrument)
    longest, reads = config.model.max_model_len, subject.reads
    if run:
        reads = reads_that_fit(subject, renderer, longest)
    else:
        refuse_too_long(renderer, vignettes, reads[-1], None, longest, [None])
    base = ServedStudent(origin.folder, fingerprint=origin.fingerprint)
    from gen.engine.engine import engine

    with engine(
        origin.folder,
        layers=[0],
        dtype=config.model.dtype,
        max_model_len=longest,
        gpu_memory=config.model.gpu_memory,
        tensor_parallel=config.model.tensor_parallel,
        seed=config.seed,
        students=[base],
    ) as model:
        model.serve(base)
        budgets = list(scan(model, renderer, vignettes, reads, base, foundation))
    debias = reads[0].debias
    print_budgets(budgets, len(vignettes), debias, foundation)
    words, budget = budget_sentence(budgets, len(vignettes), foundation), least_budget(budgets)
    console.print(words, markup=False)
    if subject.out:
        record = {
            "version": VERSION,
            "model": origin.identity.model_dump(),
            "dtype": config.model.dtype,
            "foundation": FOUNDATIONS[foundation],
            "items": len(vignettes),
            "orders": ORDERS[debias],
            "debias": debias,
            "budgets": [asdict(candidate) for candidate in budgets],
            "least": budget.think if budget else None,
            "sentence": words,
        }
        write_json(subject.out, record)
        say(f"wrote {subject.out}")
    if run is None:
        if budget:
            console.print(f"a run with it: {setting(f'eval.think={budget.think}')}", markup=False)
    elif budget and may_adopt(run.folder):
        run.config = adopt(run.folder, run.config, budget.think)
        say(f"eval.think = {budget.think} from here on, in {run.folder / 'config.toml'}")
    else:
        say(f"eval.think stays {run.config.eval.think}")


if __name__ == "__main__":
    entry(main)
