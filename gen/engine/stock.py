"""vLLM as it comes, without this package's worker: what a steered engine is compared with where its patch cannot be taken off."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gen.engine.options import set_environment
from gen.engine.sampling import Request


@contextmanager
def stock_sampler(folder: Path, requests: Sequence[Request], **options: Any) -> Iterator[Callable[[], list[list[int]]]]:
    """A call that samples the requests unsteered and returns their tokens; options are vLLM's, environment as of a steered engine.

    The end of this engine ends vLLM's process groups, and with them any other engine of the process.
    """
    set_environment()
    from vllm import LLM, SamplingParams

    llm = LLM(model=str(folder), disable_log_stats=True, use_tqdm_on_load=False, **options)
    prompts = [{"prompt_token_ids": list(request.prompt_ids)} for request in requests]
    params = [
        SamplingParams(
            max_tokens=request.max_tokens,
            min_tokens=request.min_tokens,
            temperature=request.temperature,
            top_p=request.top_p,
            seed=request.seed,
        )
        for request in requests
    ]

    def run() -> list[list[int]]:
        return [list(result.outputs[0].token_ids) for result in llm.generate(prompts, params, use_tqdm=False)]

    try:
        yield run
    finally:
        llm.llm_engine.engine_core.shutdown()
