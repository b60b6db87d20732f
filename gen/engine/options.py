"""Settings of vLLM that this package chooses: for the CPU, for students' adapters, and in the environment."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gen.students import AdapterRoom, ServedStudent
from shared.commands import setting
from shared.errors import Exit, SteerHealError
from shared.families import EXPERTS
from shared.gpu import on_gpu
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
LARGEST_BATCH = 1024  # sequences at a time on a GPU
LARGE_CARD = 70 * 2**30  # bytes of memory from which on a GPU has room for this many sequences
CAPTURED = (1, 2, 4, 8, 16, 32, 64, 96, 128, 192, 256, 384, 512, 768)  # batch sizes that CUDA graphs are made for
# FlashInfer compiles its sampler when an engine starts, for which it needs nvcc, ninja and libcudart; a machine with a driver alone has
# none of them. Greedy and seeded requests, which all of a run's are, never use it; a user's own setting wins.
WITHOUT_TOOLKIT = {"VLLM_USE_FLASHINFER_SAMPLER": "0"}
LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # the ranks vLLM has kernels for


def engine_options(
    folder: Path,
    dtype: str,
    students: Sequence[ServedStudent] = (),
    room: AdapterRoom | None = None,
    window: int = LARGEST_BATCH,
    gpu_memory: float = 0.9,
    tensor_parallel: int = 1,
) -> dict[str, Any]:
    """vLLM's settings for an engine in a script, besides the model, its context and the steering; arguments as of Engine."""
    return {
        "load_format": "safetensors",
        "enable_prefix_caching": True,
        "language_model_only": True,  # of a model that sees images as well: no request brings one
        **platform_options(window),
        **memory_options(gpu_memory),
        **parallel_options(tensor_parallel),
        **precision_options(folder, dtype),
        **lora_options(students, room),
    }


def platform_options(window: int = LARGEST_BATCH) -> dict[str, Any]:
    """Engine options of this machine: those of CPU, or on a GPU how many sequences run together and for which batches graphs are made.

    Both are part of vLLM's compile key, so every engine of a run gives the same window (sweep.window). Raises SteerHealError for a
    CUDA build of torch that sees no GPU.
    """
    if not on_gpu():
        return dict(CPU)
    import torch

    return gpu_options(torch.cuda.get_device_properties(0).total_memory, window)


def gpu_options(memory: int, window: int) -> dict[str, Any]:
    """Engine options of a GPU of `memory` bytes.

    vLLM's own default captures 51 batch sizes and none above 512 on most cards, where a window puts 1024 sequences in flight. Under
    LARGE_CARD it runs 256 sequences, which is what the cache has room for.
    """
    seats = min(LARGEST_BATCH if memory >= LARGE_CARD else LARGEST_BATCH // 4, max(window, 1))
    sizes = [size for size in CAPTURED if size < seats]
    return {"max_num_seqs": seats, "compilation_config": {"cudagraph_capture_sizes": [*sizes, seats]}}


def memory_options(share: float) -> dict[str, Any]:
    """vLLM's setting for the share of a GPU's memory; none on a CPU."""
    return {"gpu_memory_utilization": share} if on_gpu() else {}


def parallel_options(size: int) -> dict[str, Any]:
    """Over how many GPUs an engine is split; nothing for one, and on a CPU. Raises SteerHealError where there are fewer."""
    if size == 1 or not on_gpu():
        return {}
    import torch

    if (gpu_count := torch.cuda.device_count()) < size:
        raise SteerHealError(
            "there are fewer GPUs than an engine is split over",
            given=f"model.tensor_parallel = {size}, {gpu_count} GPUs",
            expected=f"at most {gpu_count}",
            next=setting(f"model.tensor_parallel={gpu_count}"),
            code=Exit.MACHINE,
        )
    return {"tensor_parallel_size": size}


def precision_options(folder: Path, dtype: str) -> dict[str, Any]:
    """Logits in float32 of a model whose weights are in half precision; nothing for float32.

    A bfloat16 number between 16 and 32 has steps of 0.125: rounded logits move every log-probability by up to 0.06 nats. vLLM reads head_dtype from the configuration of the class that owns the head, which in a multimodal wrapper is that of
    the text model: both levels are set. On CUDA the product is summed in float32 without a copy of the weight.
    """
    if dtype == "float32":
        return {}
    nested = isinstance(json.loads((folder / "config.json").read_bytes()).get("text_config"), dict)
    head = {"head_dtype": "float32"}
    return {"hf_overrides": {**head, **({"text_config": head} if nested else {})}}


def command_line(options: dict[str, Any]) -> list[str]:
    """Engine options as flags of `vllm serve`; a table is JSON."""
    flags = ((f"--{name.replace('_', '-')}", value) for name, value in options.items())
    return [
        word
        for flag, value in flags
        for word in ([flag] if value is True else [flag, json.dumps(value) if isinstance(value, dict) else str(value)])
    ]


def lora_options(students: Sequence[ServedStudent], room: AdapterRoom | None = None) -> dict[str, Any]:
    """vLLM's settings for adapters; none where there are none.

    Args:
        students: those that the engine serves.
        room: what the run makes room for besides, from its first round on.

    Raises:
        SteerHealError: an adapter is too wide for vLLM's kernels, or one that no engine can serve here.
    """
    modules = {module for student in students for module in student.modules}
    rank = max((student.rank for student in students), default=0)
    if room is not None:
        rank, modules = max(rank, room.rank), modules | set(room.modules)
    if not rank:
        return {}
    widest = next((size for size in LORA_RANKS if size >= rank), None)
    if widest is None:
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
        "max_lora_rank": widest,
        # An engine serves one adapter at a time. On the CPU one more than are used: a request without an adapter beside one with it
        # gets the last slot's.
        "max_loras": 1 if on_gpu() else 2,
        # Left to itself vLLM wraps the head as well, whose adapter code cannot score prompts.
        "lora_target_modules": sorted(modules),
    }


def _no_experts_on_a_cpu(student: ServedStudent) -> None:
    """Raise SteerHealError for an adapter over a mixture of experts where there is no GPU: vLLM has Triton kernels alone for it,
    whichever modules the adapter changes."""
    config = Model(str(student.folder), student.folder, None).text_config
    experts = next((key for key in EXPERTS if config.get(key)), None)
    if student.adapter is not None and experts is not None and not on_gpu():
        raise SteerHealError(
            "vLLM serves no adapter over a mixture of experts on a CPU",
            given=f"{student.adapter} over {student.folder}, {experts} = {config[experts]}",
            expected="a GPU, or a student that is merged into its weights",
            next=f"serve it merged: {setting('model.student=merged')}",
        )


@contextlib.contextmanager
def vision_explained(folder: Path) -> Iterator[None]:
    """While an engine starts: raise SteerHealError where vLLM cannot import a model's class for want of torchvision.

    vLLM says that the class "failed to be inspected", and the cause only in its log. The CPU lock leaves torchvision out.
    """
    try:
        yield
    except ValueError as error:  # pydantic's
        if "failed to be inspected" not in str(error) or find_spec("torchvision") is not None:
            raise
        raise SteerHealError(
            "vLLM cannot load this model without torchvision",
            given=f"{folder}, whose class in vLLM sees images as well",
            expected="torchvision, which the lock for GPUs holds and the one for CPUs does not",
            next="make setup LOCK=gpu on a machine with a GPU, or choose a model for text alone, such as google/gemma-3-1b-it",
        ) from None


def set_environment() -> None:
    """Settings vLLM reads at import; values the user has set win."""
    set_unless_set(
        {
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_LOGGING_LEVEL": "ERROR",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            **WITHOUT_TOOLKIT,
        }
    )
    logging.getLogger("vllm.triton_utils").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module="vllm")


def set_unless_set(environment: Mapping[str, str]) -> None:
    """Set variables of the environment that the user has not set; set to nothing is not set, since vLLM does not start on that."""
    for name, value in environment.items():
        os.environ[name] = os.environ.get(name) or value


@contextlib.contextmanager
def engine_uncompiled(options: Mapping[str, Any]) -> Iterator[None]:
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
