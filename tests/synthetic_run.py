"""A run folder of invented numbers in the real shapes, for the tests of the report."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

import numpy as np
from conftest import command

from evals.measures.forced_choice.ask import Read, row
from evals.measures.forced_choice.instrument import ORDERS, rotations_of
from evals.measures.measure import with_condition_names
from evals.rows import OF_THE_STUDENT
from evals.study.plan import read_plan
from evals.study.stopped import STOPPED
from shared.filter_record import FILTER_RECORD
from shared.instrument import FOUNDATIONS
from shared.publish import write_json, write_text
from shared.reasons import Reason
from shared.records import Completion, Identity, Vignette, write_jsonl
from shared.run import Run, open_run
from shared.stage import Stage

IDENTITY = Identity(name="embedded", revision=None, fingerprint="feedface")
LABELS = dict(
    zip(FOUNDATIONS, ["Care", "Fairness", "Loyalty", "Authority", "Sanctity", "Liberty", "Social Norms"], strict=True)
)
NASTY = '<script>alert(1)</script> & "quoted" | [bold]text[/bold]'
LIMITS = {"perplexity": 19.5, "loop": 0.3, "trait_llr": -0.1}
SETTINGS = "eval.bootstrap=300 eval.think=4 train.tau=0.3 train.lam=0.3"
# stage -> (shift of the authority score, nats; factor on the answer mass; perplexity; trait_llr)
EFFECTS = {
    "base": (0.0, 1.0, 4.3, -0.07),
    "prompted": (-0.4, 1.02, 5.0, 0.15),
    "prompted_opposite": (0.4, 1.0, 5.0, -0.2),
    "prompted_decoy": (-0.1, 1.0, 5.0, -0.06),
    "steered": (-1.0, 0.97, 8.6, 0.08),
    "random": (-0.1, 0.98, 8.0, -0.03),
    "decoy": (-0.3, 0.98, 8.2, 0.0),
    "student_vector": (-0.4, 0.99, 5.5, 0.02),
    "student_without_vector": (-0.2, 0.99, 5.2, -0.01),
    "healed": (-0.8, 0.99, 6.1, 0.07),
}


# as round 2's training.json has it; round 1 stands for a file of an earlier version
AGREEMENT = {
    "rows": 21, "tokens": 830, "student": {"mean": 2.5e-6, "largest": 4e-5, "key": "k", "position": 3, "token": NASTY}, "original": None, "effect": 0.25,
    "mean_bound": 1e-4, "largest_bound": 1e-2, "note": None,
}  # fmt: skip


def vignettes(per: int = 4) -> list[Vignette]:
    return [
        Vignette(
            id=f"{name}-{k}",
            foundation=LABELS[name],
            foundation_coarse=LABELS[name],
            text="x",
            condition="other_violate",
        )
        for name in FOUNDATIONS
        for k in range(per)
    ]


def answers(
    stage: str, read: Read, signal: float, mass: float | None = None, grow: float = 1.0, dead: bool = False
) -> list[dict]:
    """Score rows through the scorer's own row function; the noise is the same under every stage."""
    shift, factor, _, _ = EFFECTS[stage]
    draws = np.random.default_rng(7)
    rows = []
    for vignette, rotation in zip(vignettes(), rotations_of(read.debias, vignettes()), strict=True):
        logits = draws.normal(0, 0.6, (ORDERS[read.debias], 1, 7))
        logits[..., [label == vignette.foundation for label in LABELS.values()]] += signal
        logits[..., FOUNDATIONS.index("authority")] += shift * grow + draws.normal(0, 0.05)
        lp = (
            logits
            - np.log(np.exp(logits).sum(-1, keepdims=True))
            + np.log(draws.uniform(0.5, 0.6) * (factor if mass is None else mass))
        )
        made = row(
            vignette,
            np.full_like(lp, np.nan) if dead else lp,
            read,
            3.0,
            ["thought"] * ORDERS[read.debias],
            None,
            rotation,
        )
        rows.append({**made, "instrument": "embedded@0", "free_text": "{", "free_valid": False})
    return rows


def generations(stage: str, name: str, grow: float = 1.0, mundane: bool = False) -> list[dict]:
    _, _, perplexity, trait_llr = EFFECTS[stage]
    draws = np.random.default_rng(3)
    rows = []
    for prompt in range(6):
        for sample in range(2):
            tokens, nll = 40, float(np.log(perplexity * grow**0.5)) + draws.normal(0, 0.1)
            rows.append(
                {
                    "version": 1, "name": name, "prompt_id": f"h{prompt}", "prompt": f"Dilemma {prompt} {NASTY}", "sample": sample, "text": f"{stage} says {NASTY}",
                    "kind": "mundane" if mundane and prompt > 3 else None,
                    "completion_ids": list(range(tokens * len(rows), tokens * (1 + len(rows)))), "finish_reason": "length", "nll": nll * tokens, "tokens": tokens, "perplexity": float(np.exp(nll)),
                    "trait_llr": (llr := trait_llr * grow + draws.normal(0, 0.03)), "llr_opposite": llr, "own_nll": 0.9 * nll * tokens, "relevance": 0.5, "distinct_1": 1.0, "distinct_2": 1.0, "distinct_3": 1.0, "loop_share": 0.0,
                }
            )  # fmt: skip
    return rows


def completion(key: str, coefficient: float, perplexity: float, reasons: list[Reason]) -> Completion:
    return Completion(
        key=key, prompt_ids=[1], completion_ids=[2, 3], text=f"rejected {NASTY}", finish_reason="length", coefficient=coefficient, sample=0, seed=1, perplexity=perplexity,
        perplexity_last_quarter=50.0, trait_llr=0.05, distinct_3=0.95, reasons=reasons,
    )  # fmt: skip


def swept(number: int, all_kept: bool = False) -> tuple[list[dict[str, Any]], list[Completion], list[Completion]]:
    """The lines of a sweep by coefficient, and the rows kept and rejected that they are the sums of."""
    unsteered = [(0.0, 56, 0, 3.9)]
    steered = [(0.75, 56, 50, 5.0), (1.0, 56, 44, 5.9), (1.5, 56, 20, 9.0), (2.0, 56, 6 - number, 19.0)]
    if all_kept:
        steered = [(c, n, n, perplexity) for c, n, _, perplexity in steered]
    why = [
        [Reason(rule="perplexity", value=40.0, limit=LIMITS["perplexity"])],
        [Reason(rule="loop", value=0.5, limit=LIMITS["loop"]), Reason(rule="refusal", text=NASTY)],
    ]
    kept = [
        completion(f"kept{c:g}-{k}{NASTY}", c, perplexity, [])
        for c, _, count, perplexity in steered
        for k in range(count)
    ]
    rejected = [
        completion(f"k{c:g}-{k}", c, perplexity, why[k % 2])
        for c, n, count, perplexity in steered
        for k in range(n - count)
    ]
    keys = ("coefficient", "n", "kept", "perplexity", "distinct_3", "trait_llr", "relative_dose")
    lines = [dict(zip(keys, (*line, 0.95, 0.05, 0.4 * line[0]), strict=True)) for line in unsteered + steered]
    return lines, kept, rejected


def build(
    folder: Path,
    rounds: int = 2,
    *,
    debias: str = "rotating",
    signal: float = 2.5,
    full: bool = False,
    mass: dict[str, float] | None = None,
    extra: bool = True,
    overrides: str = "",
    dead: Set[int] = frozenset(),
    all_kept: bool = False,
    personas: bool = False,
    decoys: int = 0,
    cause: bool = False,
    mirrored: bool = False,
) -> Run:
    """Write a scored run. overrides: of its configuration. signal: nats towards the item's own foundation; mass: factor on a stage's
    answer mass; dead: rounds whose student's log-probabilities are NaN; all_kept: the filter rejects nothing; personas: with the
    controls of the prompted base, mundane prompts, and text of the first random direction alone; decoys: vectors of other personas;
    cause: the student's own vector added and subtracted; mirrored: steered at -0.75 as well, which moves the other way."""
    run = open_run(folder, None, f"{SETTINGS} eval.debias={debias} {overrides}")
    for number in range(1, rounds + 1):
        _round(
            run,
            number,
            "cyclic" if full else debias,
            signal,
            full,
            mass or {},
            extra,
            number in dead,
            all_kept,
            personas,
            decoys,
            cause,
            mirrored,
        )
    return run


def arm(name: str, set: str, *more: str) -> str:
    return "\n".join(["[[study.arm]]", f'name = "{name}"', f'set = "{set}"', *more]) + "\n"


CONTROL = 'role = "control"'
STUDY = f"""
[study]
title = "A study"
rounds = 2
seeds = [0, 1]
machine = "a machine"
seconds = {{ extract = 1, sweep = 10, filter = 0, heal = 100, score = 50, score-full = 60 }}
{arm("nll", "train.divergence=nll")}
{arm("kl_rev", "train.divergence=kl_rev")}
{arm("random", "vector.direction=random", CONTROL, "rounds = 1", "seeds = [0]")}
[eval]
bootstrap = 300
think = 4
[train]
tau = 0.3
lam = 0.3
"""


def build_study(
    folder: Path, *, dead: Mapping[str, Set[int]] = {}, starved: Mapping[str, int] = {}, without: Set[str] = frozenset()
) -> None:
    """study.toml, and runs/ with every cell scored but those without. dead: by cell, rounds whose student answers nothing; starved:
    the last scored round of cells whose filter left too little in the next."""
    folder.mkdir(exist_ok=True)
    (folder / "study.toml").write_text(STUDY)
    plan = read_plan(folder / "study.toml", folder / "runs")
    for cell in plan.cells:
        if cell.name in without:
            continue
        last = starved.get(cell.name, cell.rounds)
        built = build(
            folder / "built" / cell.name, last, overrides=cell.overrides, dead=dead.get(cell.name, frozenset())
        )
        if cell.rounds == last:
            build(folder / "built" / cell.name, last, full=True, overrides=cell.overrides)
        shutil.copytree(built.folder, cell.folder)
        open_run(cell.folder, plan.file, cell.overrides, rebuild=True)
        if cell.name in starved:
            said = "error: the filter starved: <b>too few</b>\n  given: 3"
            write_json(cell.folder / STOPPED, {"version": 1, "round": last + 1, "stage": "filter", "said": said})


def published(study: Path, out: Path, *more: str) -> Any:
    return command(
        "evals.study", "--config", study / "study.toml", "--run", study / "runs", "--out", out, "--report", *more
    )


def _round(
    run: Run,
    number: int,
    debias: str,
    signal: float,
    full: bool,
    mass: dict[str, float],
    extra: bool,
    dead: bool,
    all_kept: bool,
    personas: bool,
    decoys: int,
    cause: bool,
    mirrored: bool,
) -> None:
    here, grow = run.round(number), number**0.5
    read = Read(debias, think=4)
    scores = here / ("scores-full" if full else "scores")
    sweep, kept_rows, rejected_rows = swept(number, all_kept)
    dose = float(np.mean([row.coefficient for row in kept_rows]))
    conditions = [
        ("steered", "steered", dose, None, True),
        ("random", "random", dose, 1, True),
        ("healed", "healed", 0.0, None, True),
    ]
    if number == 1 or full:
        conditions = [("base", "base", 0.0, None, True), ("prompted", "prompted", 0.0, None, True), *conditions]
        if personas:
            conditions[2:2] = [
                (name, name, 0.0, draw, True) for name, draw in (("prompted_opposite", None), ("prompted_decoy", 1))
            ]
    if extra:
        conditions += [("random", "random-2", dose, 2, False), ("steered", "steered-0.75", 0.75, None, False)]
    conditions += [("decoy", f"decoy-{draw}", dose, draw, False) for draw in range(1, decoys + 1)]
    if cause:
        conditions += [(name, name, coefficient, None, False) for name, coefficient in OF_THE_STUDENT.items()]
    if mirrored:
        conditions.append(("steered", "steered--0.75", -0.75, None, False))
    texts: list[dict] = []
    for stage, name, coefficient, _, _ in conditions:
        part = grow * (0.7 if name != stage else 1.0)
        way = -part if stage == "steered" and coefficient < 0 else part
        rows = answers(stage, read, signal, mass.get(stage), way, dead and stage == "healed")
        write_jsonl(
            scores / f"{name}.jsonl", with_condition_names({name: rows}, model="feedface", dtype="float32")[name]
        )
        if not personas or name != "random-2":
            texts += generations(stage, name, part, personas)
    write_jsonl(scores / "generations.jsonl", texts)
    write_json(
        scores / "scores.json",
        {
            "version": 1, "round": number, "instrument": "embedded", "vignettes": "embedded", "debias": debias, "think": 4,
            "items": [vignette.id for vignette in vignettes()], "foundations": list(FOUNDATIONS),
            "conditions": [dict(zip(("stage", "name", "coefficient", "draw", "headline"), condition, strict=True)) for condition in conditions],
            "sweep": sweep,
            "student": [{"layer": layer, "norm_ratio": 0.4, "cos_teacher": 0.3, "cos_round_1": 0.2, "split_half": 0.9} for layer in (14, 15)],
        },
    )  # fmt: skip
    write_jsonl(here / "rejected.jsonl", rejected_rows)
    write_jsonl(here / "kept.jsonl", kept_rows)
    causes = Counter(reason.rule for row in rejected_rows for reason in row.reasons)
    record = {
        "limits": LIMITS,
        "lines": sweep,
        "causes": causes,
        "kept": len(kept_rows),
        "rejected": len(rejected_rows),
    }
    write_json(here / FILTER_RECORD, {"version": 1, **record})
    kl = {
        f"kl_{name}_{kind}": value
        for name in ("base", "previous")
        for kind, value in (("mean", 0.1), ("rmse", 0.2), ("p95", 0.5), ("max", 2.0))
    }
    steps = [
        {
            "step": step, "epoch": step / 10, "loss": 2.0 - step / 40, "ce": 1.9 - step / 40, **kl, "kl_base_rmse": 0.2 + step / 100,
            "barrier": 0.05, "fired": float(step > 10), "gradient_ratio": 0.4, "learning_rate": 1e-4, "grad_norm": 1.0, "tokens": 100,
        }
        for step in range(1, 31)
    ]  # fmt: skip
    heldout = [{"step": 10 * epoch, "epoch": float(epoch), "heldout_ce": 2.0 - epoch / 10} for epoch in range(4)]
    write_jsonl(here / "train.jsonl", [heldout[0], *steps, *heldout[1:]])
    write_json(
        here / "training.json",
        {
            "version": 1, "divergence": run.config.train.divergence, "aggregate": "rmse", "reference": "base", "lam": 0.3, "tau": 0.3, "load_in_4bit": False, "examples": 90, "heldout": 10,
            "tokens": 4000, "steps": 30, "start": {"base": 0.0, "previous": 0.0}, "shrink": 0.0, **({"agreement": AGREEMENT} if number > 1 else {}),
            "findings": [{"name": "overfit", "sentence": f"the held-out cross-entropy rises {NASTY}"}],
        },
    )  # fmt: skip
    write_jsonl(
        here / "kl_tokens.jsonl",
        [{"key": kept_rows[0].key, "prompt": "p", "tokens": ["Take", NASTY], "ce": [1.0, 2.0], "kl_base": [0.01, 1.5], "kl_previous": [0.0, 0.1]}],
    )  # fmt: skip
    write_text(here / "history" / "gates.json", json.dumps([1.0] * number))
    write_text(here / "vector.safetensors", f"vector {number}")
    write_text(here / "sweep.jsonl", f"sweep {number}")
    vector, sweep_, kept, history = (
        here / name for name in ("vector.safetensors", "sweep.jsonl", "kept.jsonl", "history")
    )
    before = run.round(number - 1) / "history"
    earlier = {"history": before} if number > 1 else {}
    settings = {"model": "feedface"}
    step = "score-full" if full else "score"
    for stage, inputs, outputs in [
        ("extract", earlier, [vector]),
        ("sweep", {"vector": vector, **earlier}, [sweep_]),
        ("filter", {"sweep": sweep_}, [kept, here / "rejected.jsonl", here / FILTER_RECORD]),
        (
            "heal",
            {"kept": kept, **earlier},
            [history, here / "train.jsonl", here / "training.json", here / "kl_tokens.jsonl"],
        ),
        (
            step,
            {
                "vector": vector,
                "filter": here / FILTER_RECORD,
                "kept": kept,
                "history": history,
                **({"history before": before} if earlier else {}),
            },
            [scores],
        ),
    ]:
        Stage(run, number, stage, settings=settings if stage == step else {}, inputs=inputs, outputs=outputs).finish(
            IDENTITY
        )
