"""Where a run's files come from: what each stage read, counted and took, and what differs from the run before."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from evals.measures.forced_choice.instrument import ORDERS
from evals.round import Round
from evals.rows import Scores
from evals.table import Table
from shared.config import flatten_config, frozen_at, resolve_config
from shared.console import format_number
from shared.errors import SteerHealError
from shared.records import Manifest
from shared.run import Run
from shared.schema import Config


def stages(manifests: Iterable[tuple[str, Manifest]]) -> Table:
    """One line per stage under its label, with digests shortened to what tells them apart."""
    lines = []
    for name, manifest in manifests:
        tokens = manifest.counts.get("tokens")
        rate = (
            f"{tokens} ({tokens / manifest.seconds:.0f} a second)"
            if tokens and manifest.seconds
            else format_number(None)
        )
        counts = ", ".join(
            f"{kind} {value}" for kind, value in manifest.counts.items() if isinstance(value, int) and kind != "tokens"
        )
        lines.append(
            [
                name,
                format_number(manifest.seconds, 1),
                rate,
                counts or format_number(None),
                _digests(manifest.inputs),
                _digests({path.rpartition("/")[2]: digest for path, digest in manifest.outputs.items()}),
            ]
        )
    return Table(
        "Stages",
        ["round, stage", "seconds", "tokens", "counts", "from (sha256)", "to (sha256)"],
        lines,
        "Whole digests are in the manifests.",
        prose=True,
    )


def _digests(files: Mapping[str, str]) -> str:
    """Names with the first letters of their digests, or of their revisions, which stand behind an @."""
    return ", ".join(f"{name} {digest.rpartition('@')[2][:8]}" for name, digest in files.items()) or format_number(None)


def distinct(values: Iterable[object]) -> str:
    """The distinct values in their order."""
    return "; ".join(dict.fromkeys(str(value) for value in values if value is not None)) or format_number(None)


def identified(config: Config, scores: Scores, manifests: Sequence[Manifest]) -> list[list[str]]:
    """Lines of a provenance table on the model, the forced choice and the resamples."""
    read = f"{len(scores.items)} items of {scores.vignettes}, instrument {scores.instrument}, {scores.debias} ({ORDERS[scores.debias]} orders), {scores.think} think tokens"
    return [
        ["model", f"{config.model.name}, {config.model.dtype}"],
        ["model revision", distinct(m.model.revision for m in manifests if m.model)],
        ["model fingerprint", distinct(m.settings.get("model") for m in manifests)],
        ["forced choice", read],
        ["bootstrap", f"{config.eval.bootstrap} resamples"],
    ]


def computed(manifests: Sequence[Manifest]) -> list[list[str]]:
    """Lines of a provenance table on the versions and the machine."""
    packages = dict.fromkeys(name for m in manifests for name in m.versions)
    machines = [m.hardware for m in manifests]
    return [
        ["processor", distinct(f"{m.get('processor')}, {m.get('cores')} cores, {m.get('memory_gib')} GiB" for m in machines)],
        ["instruction set", distinct(m.get("instruction_set") for m in machines)],
        ["gpu", distinct(m.get("gpu") for m in machines)],
        *[[name, distinct(m.versions.get(name) for m in manifests)] for name in packages],
    ]  # fmt: skip


def run_provenance(run: Run, rounds: Sequence[Round]) -> Table:
    """The table of what was measured, with which settings, seed and versions."""
    config, manifests = run.config, [manifest for r in rounds for manifest in r.manifests.values()]
    train = config.train
    return Table(
        "Provenance",
        ["what", "value"],
        [
            *identified(config, rounds[0].scores, manifests),
            ["seed", str(config.seed)],
            [
                "objective",
                f"{train.divergence}, lambda {train.lam:g}, tau {train.tau:g}, {train.aggregate}, reference {train.reference}",
            ],
            ["commit", distinct(manifest.commit for manifest in manifests)],
            *computed(manifests),
        ],
        prose=True,
    )


def run_before(run: Run) -> Run | None:
    """The run beside this one that was begun last before it."""
    config_file = run.folder / "config.toml"
    if not config_file.is_file():
        return None
    others = [path for path in run.folder.resolve().parent.glob("*/config.toml") if path.parent != run.folder.resolve()]
    times = {path: frozen_at(path) for path in others}
    earlier = [path for path in others if times[path] < run.begun]
    for path in sorted(earlier, key=lambda path: times[path], reverse=True):
        try:
            return Run(path.parent, resolve_config(path)[0])
        except SteerHealError:  # of another version, or not a run's
            continue
    return None


def difference(run: Run) -> Table:
    """Every key that differs from the run before: several at once cannot be told apart in the results."""
    title, columns = "Difference from the run before", ["key", "this run", "the run before"]
    if (other := run_before(run)) is None:
        return Table(
            title,
            columns,
            [],
            f"No other run in {run.folder.resolve().parent.name} was begun before this one.",
            prose=True,
        )
    new, old = flatten_config(run.config), flatten_config(other.config)
    lines = [[key, str(new[key]), str(old[key])] for key in new if new[key] != old[key]]
    note = f"The run before is {other.folder.name}." + ("" if lines else " Its settings are the same.")
    return Table(title, columns, lines, note, prose=True)
