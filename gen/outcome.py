"""What the filter makes of a sweep: how many are kept, filter.json, the tables, and what to do where too few are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gen.rules import RULES
from shared.commands import command_of, setting
from shared.console import console, format_number, print_table
from shared.errors import SteerHealError
from shared.publish import write_json
from shared.reasons import Reason
from shared.records import VERSION, Completion, Source
from shared.schema import FilterConfig
from shared.tally import Tally
from shared.vectors import Vector


@dataclass(frozen=True)
class FilterOutcome:
    """What became of the candidates: how many there are and how many were kept by coefficient, and how often each rule rejected.

    tally is of the whole sweep, with the control.
    """

    limits: dict[str, float]
    tally: Tally = field(default_factory=Tally)
    per: Counter[float] = field(default_factory=Counter)
    alive: Counter[float] = field(default_factory=Counter)
    causes: Counter[str] = field(default_factory=Counter)

    def add(self, row: Completion, reasons: Sequence[Reason], *, candidate: bool) -> None:
        """Count a judged row. A candidate goes to one of the files; the others are a control."""
        self.tally.add(row, not reasons)
        if candidate:
            self.per[row.coefficient] += 1
            self.alive[row.coefficient] += not reasons
            self.causes.update(reason.rule for reason in reasons)

    def judge(
        self, row: Completion, source: Source, reasons_of: Callable[[Completion], list[Reason]]
    ) -> list[Reason] | None:
        """Count a row of any source.

        Args:
            row: of the sweep.
            source: filter.source, whose rows are the candidates. Other unsteered rows are a control; the rest is only counted.
            reasons_of: the filter.

        Returns:
            The reasons that a candidate is rejected for, none where it is kept; None for a row that is no candidate.
        """
        candidate = row.source == source
        if not candidate and row.source != "unsteered":
            self.tally.add(row, False)
            return None
        reasons = reasons_of(row)
        self.add(row, reasons, candidate=candidate)
        return reasons if candidate else None

    @property
    def kept(self) -> int:
        """The number of candidates kept."""
        return self.alive.total()

    @property
    def rejected(self) -> int:
        """The number of candidates rejected."""
        return self.per.total() - self.kept

    def merge(self, other: FilterOutcome) -> None:
        """Add the counts of other rows under the same limits."""
        self.tally.merge(other.tally)
        self.per.update(other.per)
        self.alive.update(other.alive)
        self.causes.update(other.causes)

    def write(self, path: Path, vector: Vector | None) -> None:
        """Write filter.json, as shared.filter_record.FilterRecord reads it."""
        record = {
            "version": VERSION,
            "limits": self.limits,
            "lines": self.tally.lines(vector),
            "causes": dict(self.causes.most_common()),
            "kept": self.kept,
            "rejected": self.rejected,
        }
        write_json(path, record)


class Starved(SteerHealError):
    """Too few rows are kept to train on."""


def refuse_starvation(result: FilterOutcome, config: FilterConfig) -> None:
    """Raise Starved when too few rows are left to train on, with the counts and what to change."""
    kept_count, sampled, kept, causes = result.kept, result.per, result.alive, result.causes
    total = sampled.total()
    if kept_count >= config.min_kept:
        return
    if not total:
        given, expected, mend = {
            "steered": (
                "rows at coefficient 0 alone",
                "rows at other coefficients, which are the candidates; those at 0 are what they are compared with",
                f"sample some, as with --coefficients 0 1: {command_of('gen.sweep', '--help')}",
            ),
            "unsteered": (
                "rows at coefficients other than 0 alone",
                "rows at coefficient 0, which are the candidates",
                setting("filter.source=steered"),
            ),
            "prompted": (
                "no rows under the trait prompt",
                "rows under the trait prompt, which are the candidates",
                f"sample some, with {setting('filter.source=prompted')} in the sweep as well: {command_of('gen.sweep', '--help')}",
            ),
        }[config.source]
        raise Starved(
            "the filter starved: there are no candidates",
            given=f"{given}, filter.source = {config.source}",
            expected=expected,
            next=mend,
        )
    ordered = causes.most_common()
    advice_of = {rule.name: rule.advice for rule in RULES}
    advice = [text for name, _ in ordered if (text := advice_of.get(name))][:2]
    mends = []
    if total < config.min_kept:  # even keeping all of them would not do
        mends.append("sample more (more prompts, sweep.samples) or lower filter.min_kept")
    if causes:
        other = " or ".join(advice) or "lower filter.min_kept"
        lower = "lower the doses in sweep.coefficients (sweep.dose=walk or iso_kl finds one), or "
        mends.append(f"{lower if config.source == 'steered' else ''}{other}")
    rejected = ", ".join(f"{name} ({count})" for name, count in ordered)
    raise Starved(
        "the filter starved: too few completions are left to train on",
        given=f"{kept_count} kept; "
        + ", ".join(
            f"{kept[c]}/{sampled[c]} {'under the trait prompt' if config.source == 'prompted' else f'at coefficient {c:g}'}"
            for c in sorted(sampled)
        )
        + (f"; rejected for {rejected}" if causes else "; none rejected"),
        expected=f"at least {config.min_kept} (filter.min_kept)",
        next=f"{'; '.join(mends)}; in a run by SET with a new RUN or REBUILD=1, on plain files by --set",
    )


def print_sweep(judged: Tally, limits: dict[str, float], config: FilterConfig, vector: Vector | None) -> None:
    """The sweep's table at the terminal.

    Args:
        judged: the sums by coefficient.
        limits: of every bound, by the rule's name.
        config: of the filter.
        vector: for the relative doses; None leaves them out.
    """
    names = ["n", "kept", "perplexity", "distinct_3", "trait_llr", "relative_dose"]
    role = "what is trained on, as a control" if config.source == "unsteered" else "a control and is never trained on"
    print_table(
        f"sweep (limits: perplexity ≤ {limits['perplexity']:.1f}, trait_llr ≥ {limits['trait_llr']:+.3f}{', the filter is off' if config.off else ''}; coefficient 0 is {role})",
        ["coefficient", "n", "kept", "perplexity", "distinct-3", "trait_llr", "relative dose"],
        [
            ["trait prompt" if line.get("prompted") else f"{line['coefficient']:g}", *[line[name] for name in names]]
            for line in judged.lines(vector)
        ],
    )


def print_reasons(result: FilterOutcome) -> None:
    """Print the number of kept rows, the reasons of the others, and the mean doses."""
    console.print(
        f"kept {result.kept} of {result.per.total()}; rejected for "
        + (", ".join(f"{name} {count}" for name, count in result.causes.most_common()) or "nothing")
    )
    if result.kept:
        kept, every = (sum(c * n for c, n in counts.items()) / counts.total() for counts in (result.alive, result.per))
        console.print(f"mean coefficient of the kept {format_number(kept)}, of the sweep {format_number(every)}")
