"""What the trainer's process must not load: vLLM, whose CPU wheel holds a library for each instruction set."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def vllm_hidden() -> Iterator[None]:
    """Make `import vllm` fail inside the context, and leave the process as it was.

    Training needs no vLLM, but Unsloth imports it where it is installed and then force-loads `vllm._C`. In the CPU wheel that is the
    AVX-512-BF16 build: on another CPU the process dies of SIGILL. vLLM itself picks the build by the CPU (vllm/platforms/cpu.py).
    """
    loaded = sys.modules.get("vllm")
    sys.modules["vllm"] = None  # type: ignore[assignment]  # what the import system takes for a module that is not there
    try:
        yield
    finally:
        del sys.modules["vllm"]
        if loaded is not None:
            sys.modules["vllm"] = loaded
