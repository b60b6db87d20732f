"""`make gpu`: everything that this package promises on a GPU, measured on this one, into docs/gpu.json and the table of docs/gpu.md.

Each part is a separate command, and its result is saved when it ends. After an interruption, the same command goes on with the next part.
A part that failed is made again, and so is every part when the machine, the versions or the code have changed.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from shared.cli import entry
from shared.code import digest_of_sources
from shared.commandline import gpu_options
from shared.console import console, say
from shared.errors import Exit, SteerHealError
from shared.gpu import CPU_LOCK, on_gpu, visible_gpus
from shared.machine import hardware
from shared.provenance import versions
from shared.publish import write_json, write_text
from shared.records import read_manifest
from shared.run import STAGES
from shared.strict import parse_json

VERSION = 1
ROOT = Path(__file__).parent.parent
BEGIN, END = "<!-- made by make gpu -->", "<!-- end -->"
CONFIG = "configs/smollm2.toml"
PY = sys.executable
TAIL = 6  # lines of a failed part that are kept


@dataclass(frozen=True)
class GpuPart:
    """A command, and how its result is read.

    Args:
        name: of the part.
        minutes: that it is expected to take on an H100, by reading.
        command: from the root of the checkout.
        reads: its rows, label -> text, from what it wrote; called after it ended well or not.
    """

    name: str
    minutes: int
    command: list[str]
    reads: Callable[[], dict[str, str]]


def gpu_parts(scratch: Path) -> list[GpuPart]:
    """The parts of `make gpu`. Those that show fastest that a machine does not work come first. scratch: a folder for their files."""
    report, parity, ratios, run = (scratch / name for name in ("verify.md", "parity.xml", "bench.json", "run"))
    half = "model.dtype=bfloat16"

    def bench(module: str, *words: str) -> list[str]:
        return [PY, "-m", module, *words, "--out", str(ratios)]

    return [
        GpuPart("verify", 2, [PY, "-m", "gen.verify", "--config", CONFIG, "--set", half, "--out", str(report)], lambda: of_report(report)),
        GpuPart("parity", 4, [PY, "-m", "pytest", "-m", "gpu", "tests/test_on_gpu.py", f"--junitxml={parity}"], lambda: of_tests(parity)),
        GpuPart("sampling", 4, bench("gen.throughput"), lambda: of_ratios(ratios, "steered_over_stock", "coefficients_64")),
        GpuPart("sampling, 4B", 3, bench("gen.throughput", "--shape", "qwen3-4b"), lambda: of_ratios(ratios, "sampling_qwen3_4b")),
        GpuPart("sweep", 5, bench("gen.bench", "--quick", "--only", "B"), lambda: of_ratios(ratios, "sweep_speedup")),
        GpuPart("training", 4, bench("train.bench", "--quick"), lambda: of_ratios(ratios, "heal_")),
        GpuPart("training, 4B", 4, bench("train.bench", "--shape", "qwen3-4b"), lambda: of_ratios(ratios, "healing_")),
        GpuPart("scoring", 1, bench("evals.bench", "--quick"), lambda: of_ratios(ratios, "score_")),
        GpuPart("round", 6, [PY, "-m", "shared.pipeline", "--run", str(run), "--config", CONFIG, "--set", half], lambda: run_seconds(run)),
    ]  # fmt: skip


def of_report(path: Path) -> dict[str, str]:
    """Checks of gen.verify's report."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    return {name: f"{state}, {text}" for name, state, text in cells if state in ("ok", "FAILED", "–")}


def of_tests(path: Path) -> dict[str, str]:
    """Tests of a JUnit file, by name."""
    if not path.is_file():
        return {}
    rows = {}
    for case in ElementTree.parse(path).iter("testcase"):
        kinds = [child.tag for child in case if child.tag in ("failure", "error", "skipped")]
        rows[str(case.get("name"))] = kinds[0] if kinds else "passed"
    return rows


def of_ratios(path: Path, *begins: str) -> dict[str, str]:
    """Rows for the table, from a benchmark file.

    Args:
        path: of the file.
        begins: the names of the ratios to take begin with one of these.

    Returns:
        By name: the ratio with its interval and bound, and tokens per second where they were measured.
    """
    ratios = parse_json(path.read_bytes())["ratios"] if path.is_file() else {}
    rows = {}
    for name, row in ratios.items():
        if not name.startswith(begins):
            continue
        speed, peak = row.get("tokens_per_second"), row.get("peak_gib")
        text = _figure(row["median"])
        ends = "" if row["low"] is None else f" [{_figure(row['low'])}, {_figure(row['high'])}]"
        bound = "" if row.get("bound") is None else f", bound {row['bound']:g} {'met' if row['met'] else 'not met'}"
        rows[name] = (
            text
            + ends
            + bound
            + (f", {speed:,.0f} tokens/s" if speed else "")
            + (f", peak {peak:.1f} GiB" if peak else "")
        )
    return rows


def _figure(value: float) -> str:
    """A ratio to three places, tokens a second in whole numbers."""
    return f"{value:.3f}" if value < 100 else f"{value:,.0f}"


def run_seconds(folder: Path) -> dict[str, str]:
    """Seconds of the stages of a run's first round that ended."""
    rows = {}
    for stage in STAGES:
        path = folder / "rounds" / "01" / "manifests" / f"{stage}.json"
        if path.is_file():
            rows[stage] = f"{read_manifest(path, f'remove {path}').seconds:.0f} s"
    return rows


def measured_on() -> dict[str, Any]:
    """The machine, its driver and the package versions, which a result is recorded with. Raises SteerHealError without a GPU."""
    if not on_gpu():
        raise SteerHealError(
            "there is no GPU to measure",
            given=f"{hardware()['processor']}, and torch is a CPU build",
            expected="an NVIDIA GPU and the packages for one: make clean setup LOCK=gpu",
            next="make verify checks this machine without a GPU; docs/gpu.md has what was measured on one",
            code=Exit.MACHINE,
        )
    machine = hardware()
    gpus, _ = visible_gpus()
    driver = {"driver": gpus[0].driver, "gpu_memory": gpus[0].memory} if gpus else {}
    kept = {name: machine[name] for name in ("gpu", "processor", "cores", "memory_gib")}
    return {"machine": {**kept, **driver}, "versions": versions()}


def read_gpu_results(path: Path) -> dict[str, Any]:
    """The contents of docs/gpu.json; empty where the file does not exist. Raises SteerHealError for another file of that name."""
    if not path.is_file():
        return {"version": VERSION, "parts": {}}
    try:
        results = dict(parse_json(path.read_bytes()))
        if results["version"] == VERSION and isinstance(results["parts"], dict):
            return results
        problem = f"version {results['version']}"
    except (OSError, ValueError, KeyError, TypeError) as error:
        problem = repr(error)
    raise SteerHealError(
        "the results of make gpu could not be read",
        given=f"{path}: {problem}",
        expected=f"what make gpu writes, version {VERSION}",
        next=f"remove {path}; make gpu measures again",
    )


def run_parts(todo: Sequence[GpuPart], out: Path, page: Path, machine: dict[str, Any]) -> list[str]:
    """Run the parts that have no good result of this machine, versions and code; file each as it ends.

    Args:
        todo: the parts.
        out, page: docs/gpu.json and the page that gets the table.
        machine: as `measured_on` gives it, with the digest of the code.

    Returns:
        Names of the parts that failed.
    """
    results = read_gpu_results(out)
    if {name: results.get(name) for name in machine} != machine:
        results = {"version": VERSION, **machine, "parts": {}}
    for part in todo:
        earlier = results["parts"].get(part.name)
        if earlier is not None and earlier["passed"]:
            say(f"{part.name}: done, {earlier['seconds']:.0f} s")
            continue
        console.print(f"[bold]{part.name}[/], about {part.minutes} min")
        begin = time.monotonic()
        passed, tail = _run(part.command)
        rows = part.reads()
        results["parts"][part.name] = {
            "passed": passed and bool(rows),
            "seconds": round(time.monotonic() - begin, 1),
            "command": " ".join(["python", *part.command[1:]]),
            "rows": rows,
            **({} if passed else {"last_lines": tail}),
        }
        write_json(out, results)
        replace_block(page, gpu_markdown(results))
    return [part.name for part in todo if not results["parts"][part.name]["passed"]]


def _run(command: Sequence[str]) -> tuple[bool, list[str]]:
    """Whether a command ended well, and the last lines of what it said, which is shown as it comes."""
    lines: list[str] = []
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace") as process:  # fmt: skip
        assert process.stdout is not None
        for line in process.stdout:
            sys.stdout.write(line)
            lines = [*lines, line.rstrip()][-TAIL:]
    return process.returncode == 0, [line for line in lines if line.strip()]


def gpu_markdown(results: dict[str, Any]) -> str:
    """The results as Markdown: machine and versions, then a table with a row for every result."""
    machine, installed = results["machine"], results["versions"]
    known = {"vllm", "torch", "transformers", "unsloth", "peft", "triton", "flashinfer-python", "steer-heal"}
    lines = [
        f"{machine['gpu']}, {machine.get('gpu_memory', 'memory not known')}, driver {machine.get('driver', 'not known')}; "
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gib']} GiB.",
        "",
        ", ".join(f"{name} {version}" for name, version in installed.items() if name in known) + ".",
        "",
        "| part | what | result |",
        "| --- | --- | --- |",
    ]
    for name, part in results["parts"].items():
        state = (
            "passed"
            if part["passed"]
            else f"FAILED: {_cell('; '.join(part.get('last_lines', ['it wrote no result'])))}"
        )
        lines.append(f"| **{name}** | {part['seconds']:.0f} s | {state} |")
        lines += [f"| | {_cell(what)} | {_cell(text)} |" for what, text in part["rows"].items()]
    return "\n".join(lines)


def _cell(text: str) -> str:
    """Text of a cell: no bar would end it, no line break."""
    return " ".join(text.replace("|", "/").split())


def replace_block(page: Path, text: str) -> None:
    """Replace the text between the two marks of a page. Raises SteerHealError where the page lacks them."""
    old = page.read_text(encoding="utf-8") if page.is_file() else ""
    before, begin, rest = old.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SteerHealError(
            "a page has no place for the table",
            given=page,
            expected=f"a line {BEGIN} and, below it, a line {END}",
            next=f"git checkout {page}",
        )
    write_text(page, f"{before}{BEGIN}\n{text}\n{END}{after}")


def _wanted(todo: Sequence[GpuPart], only: Sequence[str]) -> Iterator[GpuPart]:
    return (part for part in todo if not only or part.name in only)


def main() -> None:
    options = gpu_options()
    arguments = options.parse_args()
    machine = measured_on()
    if arguments.ready:
        return
    machine["code"] = digest_of_sources([ROOT / name for name in ("gen", "train", "evals", "shared")])
    scratch = arguments.scratch.resolve() / str(machine["code"])[:12]  # a run of other code could not be gone on with
    scratch.mkdir(parents=True, exist_ok=True)
    todo = list(_wanted(gpu_parts(scratch), arguments.only))
    failed = run_parts(todo, arguments.out, arguments.page, machine)
    say(f"wrote {arguments.out} and the table of {arguments.page}")
    if failed:
        raise SteerHealError(
            "a part of make gpu failed",
            given=", ".join(failed),
            expected="every part passed",
            next=f"its last lines stand in {arguments.out}; make gpu makes the failed parts again, {CPU_LOCK}",
            code=Exit.MACHINE,
        )


if __name__ == "__main__":
    entry(main)
