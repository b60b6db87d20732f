"""make gpu: refused without a GPU in plain words, resumed part by part, and its table from results that were made up."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, command

from shared.commandline import GPU_PARTS
from shared.errors import SteerHealError
from shared.gpu_report import (
    BEGIN,
    END,
    GpuPart,
    gpu_markdown,
    gpu_parts,
    of_ratios,
    of_report,
    of_tests,
    read_gpu_results,
    replace_block,
    run_parts,
    run_seconds,
)

HERE: dict[str, Any] = {
    "machine": {"gpu": "NVIDIA H100", "processor": "AMD EPYC", "cores": 16, "memory_gib": 128.0, "driver": "580.65.06", "gpu_memory": "81559 MiB"},
    "versions": {"vllm": "0.32.0", "torch": "2.13.0", "numpy": "2"},
    "code": "c0de",
}  # fmt: skip


@pytest.fixture
def page(tmp_path: Path) -> Path:
    path = tmp_path / "gpu.md"
    path.write_text(f"# A page\n\n{BEGIN}\nnothing yet\n{END}\n\nThe end.\n")
    return path


def test_without_a_gpu_it_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    for more in ([], ["--ready"]):
        done = command("shared.gpu_report", "--out", tmp_path / "gpu.json", "--scratch", tmp_path / "scratch", *more)
        assert done.returncode == 71 and "Traceback" not in done.stderr, done.stderr
        assert "there is no GPU to measure" in done.stderr and "make verify" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_page_of_the_repository_has_a_place_for_the_table(tmp_path: Path) -> None:
    copy = tmp_path / "gpu.md"
    copy.write_text((ROOT / "docs" / "gpu.md").read_text())
    replace_block(copy, "| a table |")
    assert f"{BEGIN}\n| a table |\n{END}" in copy.read_text()
    copy.write_text("# no place")
    with pytest.raises(SteerHealError, match="no place for the table"):
        replace_block(copy, "x")


def saying(text: str, code: int = 0) -> list[str]:
    return [sys.executable, "-c", f"print({text!r}); raise SystemExit({code})"]


def test_parts_are_filed_as_they_end_and_only_failed_ones_are_made_again(tmp_path: Path, page: Path) -> None:
    out, count = tmp_path / "gpu.json", tmp_path / "count"
    good = GpuPart(
        "verify", 1, [sys.executable, "-c", f"open({str(count)!r}, 'a').write('x')"], lambda: {"a check": "ok | 1"}
    )
    bad = GpuPart("parity", 1, saying("out of | memory", 3), dict)
    assert run_parts([good, bad], out, page, HERE) == ["parity"] and count.read_text() == "x"
    found = json.loads(out.read_text())
    assert found["parts"]["verify"]["passed"] and found["machine"] == HERE["machine"]
    assert found["parts"]["parity"]["last_lines"] == ["out of | memory"] and not found["parts"]["parity"]["passed"]
    text = page.read_text()
    assert text.startswith("# A page\n") and text.endswith("\n\nThe end.\n") and "nothing yet" not in text
    assert "| | a check | ok / 1 |" in text and "FAILED: out of / memory" in text
    mended = GpuPart("parity", 1, saying("well"), lambda: {"test": "passed"})
    assert run_parts([good, mended], out, page, HERE) == [] and count.read_text() == "x", (
        "what passed is not made again"
    )
    assert "FAILED" not in page.read_text()
    assert run_parts([good, mended], out, page, {**HERE, "code": "0ther"}) == [] and count.read_text() == "xx"


def test_a_part_that_ends_well_and_finds_nothing_has_failed(tmp_path: Path, page: Path) -> None:
    assert run_parts([GpuPart("scoring", 1, saying("done"), dict)], tmp_path / "gpu.json", page, HERE) == ["scoring"]


def test_the_table_names_hardware_and_versions() -> None:
    part = {"passed": True, "seconds": 61.0, "command": "python -m x", "rows": {"sampling": "15,000 tokens/s"}}
    text = gpu_markdown({**HERE, "parts": {"sampling": part}})
    assert "NVIDIA H100, 81559 MiB, driver 580.65.06; AMD EPYC, 16 cores" in text
    assert "vllm 0.32.0, torch 2.13.0." in text and "numpy" not in text
    assert "| **sampling** | 61 s | passed |\n| | sampling | 15,000 tokens/s |" in text


def test_what_the_parts_write_is_read(tmp_path: Path) -> None:
    (tmp_path / "verify.md").write_text("- model: x\n\n| check | | found |\n| --- | --- | --- |\n| patched | ok | 2 |\n| price | – | 1.01 |\n")  # fmt: skip
    assert of_report(tmp_path / "verify.md") == {"patched": "ok, 2", "price": "–, 1.01"}
    (tmp_path / "t.xml").write_text('<testsuites><testsuite><testcase name="a"/><testcase name="b"><failure/></testcase><testcase name="c"><skipped/></testcase></testsuite></testsuites>')  # fmt: skip
    assert of_tests(tmp_path / "t.xml") == {"a": "passed", "b": "failure", "c": "skipped"}
    rows = {
        "heal_step": {
            "median": 0.5,
            "low": 0.4,
            "high": 0.6,
            "bound": 0.75,
            "met": True,
            "tokens_per_second": 12_345.0,
        },
        "sampling_4b": {"median": 15_432.1, "low": 15_000.0, "high": 16_000.4},
    }
    (tmp_path / "b.json").write_text(json.dumps({"ratios": rows}))
    assert of_ratios(tmp_path / "b.json", "heal") == {
        "heal_step": "0.500 [0.400, 0.600], bound 0.75 met, 12,345 tokens/s"
    }
    assert of_ratios(tmp_path / "b.json", "sampling") == {"sampling_4b": "15,432 [15,000, 16,000]"}
    for read in (of_report, of_tests, run_seconds, lambda path: of_ratios(path, "a")):
        assert read(tmp_path / "nowhere") == {}


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    for text in ("[]", '{"version": 2, "parts": {}}', "no json"):
        (tmp_path / "gpu.json").write_text(text)
        with pytest.raises(SteerHealError, match="could not be read"):
            read_gpu_results(tmp_path / "gpu.json")


def test_every_part_is_a_command_that_there_is(tmp_path: Path) -> None:
    """Its options are read by the command's own parser, which refuses what it does not have."""
    from shared.commands import COMMANDS, imported

    found = gpu_parts(tmp_path)
    assert tuple(part.name for part in found) == GPU_PARTS
    options = {command.module: command.options for command in COMMANDS.values()} | {"gen.throughput": "gen.commandline:throughput_options"}  # fmt: skip
    for part in found:
        module, words = part.command[2], part.command[3:]
        if module != "pytest":
            imported(options[module])().parse_args(words)
    assert sum(part.minutes for part in found) <= 35
