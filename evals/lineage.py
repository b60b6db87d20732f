"""Where a run's files come from: what each stage read, counted and took, and what differs from the run before."""

from __future__ import annotations

from collections.abc import Sequence

from evals.scored import Round
from evals.tables import Table
from shared import config as configuration
from shared.console import number
from shared.errors import SteerHealError
from shared.run import Run


def stages(rounds: Sequence[Round]) -> Table:
    """One line per stage of a round, with digests shortened to what tells them apart."""
    lines = []
    for r in rounds:
        for stage, manifest in r.manifests.items():
            tokens = manifest.counts.get("tokens")
            rate = (
                f"{tokens} ({tokens / manifest.seconds:.0f} a second)" if tokens and manifest.seconds else number(None)
            )
            counts = ", ".join(f"{name} {value}" for name, value in manifest.counts.items() if isinstance(value, int) and name != "tokens")  # fmt: skip
            lines.append(
                [
                    f"{r.number} {stage}",
                    number(manifest.seconds, 1),
                    rate,
                    counts or number(None),
                    ", ".join(f"{name} {digest[:8]}" for name, digest in manifest.inputs.items()) or number(None),
                    ", ".join(f"{name.rpartition('/')[2]} {digest[:8]}" for name, digest in manifest.outputs.items())
                    or number(None),
                ]
            )
    return Table(
        "Stages",
        ["round, stage", "seconds", "tokens", "counts", "from (sha256)", "to (sha256)"],
        lines,
        "Whole digests are in the manifests.",
        prose=True,
    )


def before(run: Run) -> Run | None:
    """The run beside this one whose configuration was frozen last before its own."""
    own = run.folder / "config.toml"
    if not own.is_file():
        return None
    others = [path for path in run.folder.resolve().parent.glob("*/config.toml") if path.parent != run.folder.resolve()]
    earlier = [path for path in others if path.stat().st_mtime_ns < own.stat().st_mtime_ns]
    for path in sorted(earlier, key=lambda path: path.stat().st_mtime_ns, reverse=True):
        try:
            return Run(path.parent, configuration.resolve(path)[0])
        except SteerHealError:  # of another version, or not a run's
            continue
    return None


def difference(run: Run) -> Table:
    """Every key that differs from the run before: several at once cannot be told apart in the results."""
    title, columns = "Difference from the run before", ["key", "this run", "the run before"]
    if (other := before(run)) is None:
        return Table(
            title,
            columns,
            [],
            f"No other run in {run.folder.resolve().parent.name} was begun before this one.",
            prose=True,
        )
    new, old = configuration.flat(run.config), configuration.flat(other.config)
    lines = [[key, str(new[key]), str(old[key])] for key in new if new[key] != old[key]]
    note = f"The run before is {other.folder.name}." + ("" if lines else " Its settings are the same.")
    return Table(title, columns, lines, note, prose=True)
