"""Whether the files of scored rounds agree with each other, with their manifests and with the frozen configuration.

Digests prove that a file is what its stage made; this file checks that the stages worked on the same files.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from evals.round import Round
from evals.rows import OF_THE_STUDENT
from shared.commands import stage_command
from shared.errors import SteerHealError
from shared.provenance import differences
from shared.records import Manifest
from shared.run import STAGES, Run
from shared.schema import Config
from shared.tally import Tally

# What a report reads of each stage, beyond the scores.
FILES = {
    "filter": ("kept.jsonl", "rejected.jsonl"),
    "heal": ("train.jsonl", "training.json", "kl_tokens.jsonl"),
}
OF_A_ROUND = (
    "vector",
    "sweep",
    "filter",
    "kept",
    "history",
    "history before",
)  # inputs that every round has of its own
FULL = ("items", "full_items", "debias")  # of eval, which EVAL=full sets in its own way
CLOSE = 1e-9  # of sums in another order


def refuse_unrecorded(run: Run, number: int, manifests: Mapping[str, Manifest], mode: str) -> None:
    """Raise SteerHealError for a file that no manifest records, and for settings that are not the run's. mode: the step of scoring."""
    for stage, names in FILES.items():
        for name in names:
            path = (run.round(number) / name).relative_to(run.folder).as_posix()
            if path not in manifests[stage].outputs:
                raise _disagree(
                    run, number, manifests, f"{path} is not among the outputs of its manifest", f"what {stage} made"
                )
    for stage, manifest in stages_read(manifests, mode):
        if changed := list(_other_settings(run.config, stage, manifest.settings)):
            raise SteerHealError(
                f"round {number} {stage} was made with other settings than the run's",
                given="; ".join(changed),
                expected=f"those that {run.manifest(number, stage)} records",
                next=f"restore {run.folder / 'config.toml'}, or make it again: {stage_command(run.folder, number, stage, rebuild=True)}",
            )


def stages_read(manifests: Mapping[str, Manifest], mode: str) -> list[tuple[str, Manifest]]:
    """The stages whose files a report of this step of scoring reads: the round's own scores may be older than its full ones."""
    return [(stage, manifests[stage]) for stage in (*STAGES[:-1], mode) if stage in manifests]


def _other_settings(config: Config, stage: str, settings: Mapping[str, Any]) -> Iterator[str]:
    """Lines on the settings that a stage records and the configuration has too, where the two differ."""
    settings_ = config.model_dump(mode="json")
    now: dict[str, Any] = {
        **{name: settings_["model"][name] for name in ("dtype", "student", "chat_template_kwargs", "date")},
        **{name: settings_[name] for name in ("vector", "sweep", "filter", "train", "eval")},
        "sampling": [config.sweep.temperature, config.sweep.top_p],
        **({} if stage == "extract" else {"seed": config.seed}),  # extract's, of a random direction, is its own
    }
    aside = {"eval": {"bootstrap", *(FULL if stage == "score-full" else ())}, "train": {"report_to"}}
    for name in settings.keys() & now.keys():
        old, new = settings[name], now[name]
        if isinstance(old, dict) and name != "chat_template_kwargs":  # a key that one version has alone decides nothing
            both = (old.keys() & new.keys()) - aside.get(name, set())
            old, new = {key: old[key] for key in both}, {key: new[key] for key in both}
        yield from differences(old, new, name)


def refuse_other_counts(run: Run, r: Round, mode: str) -> None:
    """Raise SteerHealError where the files of a round differ in what they count, or in what was sampled, kept or asked."""
    step, train = r.manifests[mode], run.config.train
    scored = r.scores.conditions
    counts = [
        ("round of scores.json", r.scores.round, r.number),
        *_of(r.manifests["filter"], kept=len(r.kept), rejected=len(r.rejected)),
        *_of(r.manifests["heal"], rows=r.training.examples, heldout=r.training.heldout, steps=r.training.steps, tokens=r.training.tokens),
        *_of(step, items=len(r.scores.items), conditions=len(scored), generations=sum(map(len, r.generations.values()))),
        *[(f"{name} of training.json", getattr(r.training, name), getattr(train, name)) for name in ("divergence", "aggregate", "reference", "tau")],
        *[(f"{name} of scores.json", getattr(r.scores, name), getattr(run.config.eval, name)) for name in ("instrument", "vignettes", "think")],
        *_of(r.manifests["extract"], layers=len(r.scores.student) or (None if run.config.eval.contexts else r.manifests["extract"].counts.get("layers"))),
        ("last step of train.jsonl", r.steps[-1].step if r.steps else None, r.training.steps),
    ]  # fmt: skip
    for what, count, expected in counts:
        if count != expected:
            raise _disagree(run, r.number, r.manifests, f"{what}: {count}", f"{expected}")
    for what, rows in (("steps", r.steps), ("held-out rows", r.heldout)):
        places = [row.step for row in rows]
        if any(after <= before for before, after in pairwise(places)):
            raise _disagree(
                run, r.number, r.manifests, f"{what} of train.jsonl out of order or twice", "steps that rise"
            )
    _swept(run, r)
    _asked(run, r.number, [(line.name, r) for line in scored])


def _of(manifest: Manifest, **counts: Any) -> Iterator[tuple[str, Any, Any]]:
    """A count, as found and as a manifest records it; a manifest from elsewhere may lack it."""
    return (
        (f"{name} of the manifest", counts[name], manifest.counts[name]) for name in counts if name in manifest.counts
    )


def _swept(run: Run, r: Round) -> None:
    """The sweep by coefficient against the rows kept and rejected, of which it is the sum; the dose against the rows kept."""
    if shared := {row.key for row in r.kept} & {row.key for row in r.rejected}:
        raise _disagree(
            run, r.number, r.manifests, f"{sorted(shared)[0]} is kept and rejected", "each row in one of the two files"
        )
    if wrong := next((row for row in r.kept if row.reasons), None) or next(
        (row for row in r.rejected if not row.reasons), None
    ):
        raise _disagree(
            run,
            r.number,
            r.manifests,
            f"{wrong.key}, reasons {wrong.reasons}",
            "reasons of each rejected row, and of no other",
        )
    source = run.config.filter.source
    lines = {line.coefficient: line for line in r.scores.sweep if line.source == source}
    tally = Tally()
    for rows, kept in ((r.kept, True), (r.rejected, False)):
        for row in rows:
            tally.add(row, kept)
    recomputed = {line["coefficient"]: line for line in tally.lines()}
    for coefficient in sorted(recomputed.keys() | lines.keys()):
        for name in ("n", "kept", "perplexity", "distinct_3", "trait_llr"):
            ours = recomputed[coefficient][name] if coefficient in recomputed else None
            theirs = getattr(lines[coefficient], name) if coefficient in lines else None
            if not _close(ours, theirs):
                raise _disagree(
                    run,
                    r.number,
                    r.manifests,
                    f"{name} at coefficient {coefficient:g} is {theirs} in scores.json",
                    f"{ours}, as counted in kept.jsonl and rejected.jsonl",
                )
    if r.causes != r.counted_causes:
        raise _disagree(
            run,
            r.number,
            r.manifests,
            f"causes of filter.json: {dict(r.causes)}",
            f"{dict(r.counted_causes)}, as rejected.jsonl comes to",
        )
    dose = float(np.mean([row.coefficient for row in r.kept])) if r.kept else None
    for line in r.scores.conditions:
        if line.stage not in ("steered", "random", "decoy", *OF_THE_STUDENT) and line.coefficient:
            raise _disagree(run, r.number, r.manifests, f"{line.name} at coefficient {line.coefficient:g}", "no vector")
        at_dose = line.stage in ("random", "decoy") or (line.stage == "steered" and line.headline)
        if at_dose and not _close(line.coefficient, dose):
            raise _disagree(
                run,
                r.number,
                r.manifests,
                f"{line.name} at coefficient {line.coefficient}",
                f"{dose}, the mean of the rows kept",
            )
    slopes = [
        line.relative_dose / abs(line.coefficient)
        for line in r.scores.sweep
        if line.coefficient and line.relative_dose is not None
    ]
    if not all(_close(slope, slopes[0]) for slope in slopes):
        raise _disagree(
            run,
            r.number,
            r.manifests,
            "relative doses that are not in proportion to their coefficients",
            "|c| ‖v‖ / mean ‖h‖ of one vector",
        )
    length = {row.key: len(row.completion_ids) for row in r.kept}
    if strange := next((row.key for row in r.tokens if length.get(row.key) != len(row.tokens)), None):
        raise _disagree(
            run, r.number, r.manifests, f"kl_tokens.jsonl has {strange!r}", "completions kept, token for token"
        )


def _asked(run: Run, number: int, conditions: Sequence[tuple[str, Round]]) -> None:
    """The same held-out prompts, so often, of every condition: a mean over others is another number."""
    first: list[tuple[str, int, str]] | None = None
    free: bool | None = None
    for name, r in conditions:
        if name not in r.generations:  # a random direction beyond the first
            continue
        prompts = sorted((row.prompt_id, row.sample, row.prompt) for row in r.generations[name])
        asked_in_json = bool(np.isfinite(r.answers[name].valid).all())
        first, free = prompts if first is None else first, asked_in_json if free is None else free
        if asked_in_json != free:
            raise _disagree(
                run,
                number,
                r.manifests,
                f"{name} has {'' if asked_in_json else 'no '}free answers",
                "those of every condition, or of none",
            )
        if prompts != first:
            differ = sorted({*prompts} ^ {*first})
            raise _disagree(
                run,
                number,
                r.manifests,
                f"{len(prompts)} generations of {name} against {len(first)}; only in one: {differ[0][:2]}",
                "the same held-out prompts and samples under every condition",
            )


def refuse_mixed_rounds(run: Run, rounds: Sequence[Round], mode: str) -> None:
    """Raise SteerHealError unless the stages of all rounds had one model, one setting each, and the same files from outside."""
    first = rounds[0].manifests
    makers = {"first vector": ("extract", "vector.safetensors"), "unsteered": ("sweep", "sweep.jsonl")}  # of round 1
    fingerprints = {
        label: first[maker].outputs[(run.round(1) / name).relative_to(run.folder).as_posix()]
        for label, (maker, name) in makers.items()
    }
    model: str | None = None
    for r in rounds:
        for stage, manifest in stages_read(r.manifests, mode):
            if manifest.model is not None and manifest.model.name != run.config.model.name:
                raise _disagree(
                    run,
                    r.number,
                    r.manifests,
                    f"{stage} had the model {manifest.model.name}",
                    f"model.name of the run, {run.config.model.name}",
                )
            for recorded in _models(manifest):
                model = model or recorded
                if recorded != model:
                    raise _disagree(
                        run,
                        r.number,
                        r.manifests,
                        f"{stage} had the model {recorded[:12]}",
                        f"{model[:12]}, as the stages before it",
                    )
            for label, digest in manifest.inputs.items():
                if label not in OF_A_ROUND and fingerprints.setdefault(label, digest) != digest:
                    raise _disagree(
                        run,
                        r.number,
                        r.manifests,
                        f"{stage} read another {label}, {digest[:12]}",
                        f"{fingerprints[label][:12]}, as the stages before it",
                    )
    _asked(run, rounds[-1].number, [(line.name, r) for r in rounds for line in r.scores.conditions])


def _models(manifest: Manifest) -> Iterable[str]:
    """Fingerprints of the original model that a manifest has."""
    if manifest.model is not None:
        yield manifest.model.fingerprint
    if isinstance(recorded := manifest.settings.get("model"), str):
        yield recorded


def _close(one: float | None, other: float | None) -> bool:
    if one is None or other is None:
        return one is other
    return math.isclose(one, other, rel_tol=CLOSE, abs_tol=CLOSE)


def _disagree(run: Run, number: int, manifests: Mapping[str, Manifest], given: str, expected: str) -> SteerHealError:
    step = "score-full" if "score-full" in manifests else "score"
    return SteerHealError(
        f"the files of round {number} do not agree",
        given=given,
        expected=expected,
        next=f"restore them, or make the round again: {stage_command(run.folder, number, step, rebuild=True)}",
    )
