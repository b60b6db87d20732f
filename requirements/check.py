"""Does every pin of the locks have a build for each Python and architecture? Run where uv is: .venv/bin/python requirements/check.py

uv resolves each lock and lists the files of every package; torch's CPU build is left out, since it lies on PyTorch's own index.
A package with a source archive alone is built when it is installed; those are named.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import canonicalize_name, parse_wheel_filename

HERE = Path(__file__).parent
PYTHONS = ((3, 11), (3, 12), (3, 13))
LOCKS = {
    "cpu": (31, ("x86_64", "aarch64")),
    "gpu": (34, ("x86_64",)),
    "bench": (31, ("x86_64", "aarch64")),
}  # glibc 2.N
OLD = {"x86_64": ("manylinux2014", "manylinux2010", "manylinux1", "linux"), "aarch64": ("manylinux2014", "linux")}


def tags(python: tuple[int, int], architecture: str, glibc: int) -> set[Tag]:
    """What pip would take there, with that glibc."""
    platforms = [f"manylinux_2_{minor}_{architecture}" for minor in range(glibc, 4, -1)]
    platforms += [f"{name}_{architecture}" for name in OLD[architecture]]
    interpreter = f"cp{python[0]}{python[1]}"
    return {*cpython_tags(python, platforms=platforms), *compatible_tags(python, interpreter, platforms)}


def files(lines: list[str]) -> dict[tuple[str, str], list[str]]:
    """The files of every pin, by name and version."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "lock.txt").write_text("\n".join(lines))
        command = ["uv", "pip", "compile", "-q", "--universal", "--no-deps", "--python-version", "3.11"]
        command[0] = str(Path(sys.executable).with_name("uv"))
        subprocess.run(
            [*command, "-o", f"{folder}/pylock.toml", f"{folder}/lock.txt"], check=True, stdout=subprocess.DEVNULL
        )
        packages = tomllib.loads((Path(folder) / "pylock.toml").read_text())["packages"]
    names = {}
    for package in packages:
        entries = [*package.get("wheels", []), *([package["sdist"]] if "sdist" in package else [])]
        names[package["name"], package["version"]] = [
            entry.get("name") or entry["url"].rpartition("/")[2].replace("%2B", "+") for entry in entries
        ]
    return names


def main() -> None:
    missing = 0
    for lock, (glibc, architectures) in LOCKS.items():
        lines = (HERE / f"{lock}.txt").read_text().splitlines()
        lines = [line for line in lines if line and not line.startswith("#") and "+cpu" not in line]
        rows = [Requirement(line) for line in lines]
        available = files(lines)
        for python in PYTHONS:
            for architecture in architectures:
                taken = tags(python, architecture, glibc)
                environment = {"python_full_version": f"{python[0]}.{python[1]}.0", "platform_machine": architecture}
                sources, none = [], []
                for row in rows:
                    if row.marker and not row.marker.evaluate(environment):
                        continue
                    names = available[canonicalize_name(row.name), str(row.specifier).removeprefix("==")]
                    if any(parse_wheel_filename(name)[3] & taken for name in names if name.endswith(".whl")):
                        continue
                    (sources if any(not name.endswith(".whl") for name in names) else none).append(row.name)
                missing += len(none)
                where = f"{lock}.txt, Python {python[0]}.{python[1]}, {architecture}, glibc 2.{glibc}"
                print(
                    f"{where}: {f'NO BUILD of {none}' if none else 'whole'}; built here from source: {', '.join(sources) or 'none'}"
                )
    sys.exit(1 if missing else 0)


if __name__ == "__main__":
    main()
