"""Settings of vLLM that this package chooses: for the CPU, for students' adapters, and in the environment."""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gen.students import Student
from shared.commands import setting
from shared.errors import SteerHealError
from shared.models import Model

# Compiling is no faster here and takes minutes. 32 is the smallest block of vLLM's CPU attention, and the prompts are short. Steps
# of at most 512 tokens keep their activations in the processor's caches: 5 % less time a sweep than prefilling all of it at once.
CPU: dict[str, Any] = {
    "enforce_eager": True,
    "kv_cache_memory_bytes": 2 << 30,
    "block_size": 32,
    "max_num_batched_tokens": 512,
    "max_num_seqs": 128,
}
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")  # keys of configurations of mixtures of experts
LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # the ranks vLLM has kernels for


def platform_options() -> dict[str, Any]:
    """Engine options of this machine; none where there is a GPU, whose defaults are vLLM's."""
    import torch

    return {} if torch.cuda.is_available() else dict(CPU)


def memory_options(share: float) -> dict[str, Any]:
    """How much of a GPU's memory an engine takes; nothing where there is none."""
    import torch

    return {"gpu_memory_utilization": share} if torch.cuda.is_available() else {}


def command_line(options: dict[str, Any]) -> list[str]:
    """Engine options as flags of `vllm serve`."""
    flags = ((f"--{name.replace('_', '-')}", value) for name, value in options.items())
    return [word for flag, value in flags for word in ([flag] if value is True else [flag, str(value)])]


def lora_options(students: Sequence[Student]) -> dict[str, Any]:
    """vLLM's settings for the students' adapters; none when they bring none."""
    rank = max((student.rank for student in students), default=0)
    if not rank:
        return {}
    found = next((size for size in LORA_RANKS if size >= rank), None)
    if found is None:
        raise SteerHealError(
            "a folded history is too wide to serve as an adapter",
            given=f"rank {rank}",
            expected=f"at most {LORA_RANKS[-1]}",
            next=f"serve it merged: {setting('model.student=merged')}",
        )
    for student in students:
        _no_experts_on_a_cpu(student)
    return {
        "enable_lora": True,
        "max_lora_rank": found,
        # One more than are used: on the CPU a request without an adapter beside one with it gets the last slot's.
        "max_loras": 2,
        # Left to itself vLLM wraps the head as well, whose adapter code cannot score prompts.
        "lora_target_modules": sorted({module for student in students for module in student.modules}),
    }


def _no_experts_on_a_cpu(student: Student) -> None:
    """Raise SteerHealError for an adapter over a mixture of experts where there is no GPU: vLLM has Triton kernels alone for it,
    whichever modules the adapter changes."""
    import torch

    config = Model(str(student.folder), student.folder, None).text_config
    experts = next((key for key in EXPERTS if config.get(key)), None)
    if student.adapter is not None and experts is not None and not torch.cuda.is_available():
        raise SteerHealError(
            "vLLM serves no adapter over a mixture of experts on a CPU",
            given=f"{student.adapter} over {student.folder}, {experts} = {config[experts]}",
            expected="a GPU, or a student that is merged into its weights",
            next=f"serve it merged: {setting('model.student=merged')}",
        )


def set_environment() -> None:
    """Settings vLLM reads at import; values the user has set win."""
    for name, value in {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    }.items():
        os.environ[name] = os.environ.get(name) or value  # set to nothing is not set: vLLM does not start on that
    logging.getLogger("vllm.triton_utils").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module="vllm")


@contextlib.contextmanager
def uncompiled(options: Mapping[str, Any]) -> Iterator[None]:
    """While vLLM is imported and started: no torch.compile in a process whose CPU engine runs its model uncompiled anyway.

    vLLM would still compile one comparison of its sampler, which counts ranks that nobody reads: with a C++ compiler where its
    cache is cold, and for seconds at every start where it is not. The variable is read where a function is decorated.
    """
    import torch

    name = "TORCHDYNAMO_DISABLE"
    if name in os.environ or not options.get("enforce_eager") or torch.cuda.is_available():
        yield
        return
    os.environ[name] = "1"
    try:
        yield
    finally:
        del os.environ[name]  # what this process starts later may compile
