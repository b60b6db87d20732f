"""What the machine is called, from /proc/cpuinfo as kernels of several architectures write it."""

from __future__ import annotations

import pytest

from shared.machine import hardware, processor_name

INTEL = """\
processor\t: 0
vendor_id\t: GenuineIntel
model\t\t: 143
model name\t: Intel(R) Xeon(R) Platinum 8488C
flags\t\t: fpu avx2 fma

processor\t: 1
model name\t: Intel(R) Xeon(R) Platinum 8488C
"""
GRAVITON = """\
processor\t: 0
BogoMIPS\t: 2100.00
Features\t: fp asimd sve
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x1
CPU part\t: 0xd40
CPU revision\t: 1
"""
LITTLE = GRAVITON.replace("0xd40", "0xd05") + "\n" + GRAVITON.replace("processor\t: 0", "processor\t: 1")


@pytest.mark.parametrize(
    ("cpuinfo", "architecture", "expected"),
    [
        (INTEL, "x86_64", "Intel(R) Xeon(R) Platinum 8488C"),
        (GRAVITON, "aarch64", "aarch64, implementer 0x41, part 0xd40"),
        (GRAVITON.replace("0xd40", "0xd0c"), "aarch64", "aarch64, implementer 0x41, part 0xd0c"),
        (LITTLE, "aarch64", "aarch64, implementer 0x41, part 0xd05, 0xd40"),
        ("", "aarch64", "aarch64"),
    ],
    ids=["x86", "arm", "another-arm", "two-kinds-of-cores", "nothing"],
)
def test_a_processor_is_named_by_its_model(cpuinfo: str, architecture: str, expected: str) -> None:
    assert processor_name(cpuinfo, architecture) == expected


def test_this_machine_has_a_name() -> None:
    machine = hardware()
    assert machine["processor"] and machine["cores"] > 0 and machine["memory_gib"] > 0
