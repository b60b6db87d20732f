"""`make doctor`: what this machine has, what is missing, and what to type.

It runs where nothing else does: with any Python, without .venv or in a broken one. So it imports the standard library alone,
and what may be absent only where it is asked about; torch and the stages are imported by child processes, whose death it reports.
"""

from __future__ import annotations

import subprocess
import sys

from shared.checks import in_environment
from shared.commandline import doctor_options
from shared.environment_checks import the_environment
from shared.errors import BEGIN, SteerHealError, in_one_line
from shared.machine_checks import the_hardware, the_system
from shared.stage_checks import the_stages


def main() -> None:
    try:
        arguments = doctor_options().parse_args()
    except SteerHealError as refused:
        print(refused.render(), file=sys.stderr)
        sys.exit(refused.code)
    errors: list[SteerHealError] = []
    warnings: list[SteerHealError] = []
    parts = [
        ("machine", "the system", the_system()),
        ("", "the hardware", the_hardware(arguments.run)),
        ("environment", "the environment", the_environment()),
    ]
    if in_environment() and not arguments.quick:
        parts.append(
            (
                "stages, each imported by a separate process: about a minute in all",
                "the stages",
                the_stages(_importing),
            )
        )
    for title, part, rows in parts:
        if title:
            print(title, flush=True)
        try:
            for row in rows:
                mark = "!!" if row.error else "! " if row.warning else "ok"
                print(f"  {mark}  {row.name:<18} {row.value}", flush=True)
                errors += [row.error] if row.error else []
                warnings += [row.warning] if row.warning else []
        except (OSError, ValueError, subprocess.SubprocessError) as error:  # one part says so, and the others go on
            errors.append(
                SteerHealError(f"{part} could not be looked at", given=in_one_line(error), next="make clean setup")
            )
    for warning in warnings:
        print(warning.render().replace(BEGIN, "warning: ", 1), file=sys.stderr)
    for problem in errors:
        print(problem.render(), file=sys.stderr)
    if errors:
        sys.exit(2)
    print("nothing is missing; next: make round N=1")


def _importing(name: str) -> None:
    print(f"  ..  {name:<18} importing", flush=True)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
