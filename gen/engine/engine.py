"""A steered vLLM engine: requests with a vector slot and a coefficient each, one continuous batch for all of them."""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shared.console import console
from shared.errors import SteerHealError
from shared.vectors import Vector


@dataclass(frozen=True)
class Request:
    """One completion to sample, or one prompt to score.

    coefficient is a multiple of the vector in `vector` (None: unsteered). positions 'all' or 'generated'; the latter
    starts at `steer_from` if given, else at the prompt's last token, which makes the first sampled token steered.
    min_tokens = max_tokens forbids every stop token. score asks for the log-probability of each prompt token;
    label_ids for the full-vocabulary log-probabilities of these tokens at the first sampled position.
    """

    prompt_ids: Sequence[int]
    max_tokens: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    vector: str | None = None
    coefficient: float = 0.0
    positions: str = "all"
    steer_from: int | None = None
    min_tokens: int = 0
    stop_ids: Sequence[int] = ()
    score: bool = False
    label_ids: Sequence[int] = ()


@dataclass(frozen=True)
class Output:
    """token_ids sampled; prompt_logprobs [prompt tokens - 1], of tokens 1.. ; label_logprobs [labels]; nats."""

    token_ids: list[int]
    text: str
    finish_reason: str
    prompt_logprobs: np.ndarray | None
    label_logprobs: np.ndarray | None


class Engine:
    """vLLM over one set of weights at a time.

    folder: model folder; layers: the layers that any vector of this engine may steer; dtype of weights and cache.
    """

    def __init__(
        self,
        folder: Path,
        *,
        layers: Sequence[int],
        dtype: str,
        max_model_len: int,
        slots: int = 16,
        seed: int = 0,
        block_size: int | None = None,
        **options: Any,
    ):
        _environment()
        import torch
        from vllm import LLM

        cpu = not torch.cuda.is_available()
        options = {"enable_prefix_caching": True, **options}
        if cpu:
            options = {"enforce_eager": True, "kv_cache_memory_bytes": 2 << 30, "max_num_seqs": 128, **options}
        self.folder, self.slots = folder, slots
        self._llm = LLM(
            model=str(folder),
            worker_cls="gen.engine.worker.Worker",
            additional_config={"steering": {"version": _op_version(), "layers": sorted(layers), "slots": slots}},
            dtype=dtype,
            max_model_len=max_model_len,
            seed=seed,
            block_size=block_size or (32 if cpu else None),
            disable_log_stats=True,
            use_tqdm_on_load=False,
            **options,
        )
        self._engine = self._llm.llm_engine
        self._vectors: dict[str, int] = {}
        self._next = 0
        patched = self._llm.collective_rpc("steer_layers")[0]
        if [int(name.rpartition(".")[2]) for name in patched] != sorted(layers):
            raise RuntimeError(f"patched {patched}, wanted layers {sorted(layers)}")
        self._self_test(sorted(layers))

    def _self_test(self, layers: list[int]) -> None:
        """A non-zero coefficient must move the log-probabilities and coefficient 0 must not."""
        hidden = self._llm.model_config.hf_text_config.hidden_size
        probe = Vector({layer: np.full(hidden, 1.0, dtype=np.float32) for layer in layers})
        self.load("self-test", probe)
        ask = [
            Request([5, 6, 7, 8], score=True, vector=vector, coefficient=c)
            for vector, c in ((None, 0.0), ("self-test", 0.0), ("self-test", 4.0))
        ]
        plain, zero, moved = [output.prompt_logprobs for output in self.run(ask)]
        assert plain is not None and zero is not None and moved is not None
        if not np.allclose(plain, zero, atol=1e-3) or np.allclose(plain, moved, atol=1e-3):
            raise SteerHealError(
                "the steering patch has no effect in this engine",
                given=f"unsteered {plain}, at 0 {zero}, at 4 {moved}",
                expected="equal log-probabilities at 0 and different ones at 4",
                next="run `make doctor` and compare vllm with 0.32.0; clear ~/.cache/vllm",
            )
        self._vectors.clear()

    def load(self, name: str, vector: Vector) -> None:
        """Put a vector into a slot under a name; the same name again replaces it."""
        slot = self._vectors.get(name, len(self._vectors) + 1)
        if slot > self.slots:
            raise SteerHealError(
                "more vectors than slots",
                given=f"{slot} vectors",
                expected=f"at most {self.slots}",
                next="construct the engine with more slots",
            )
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "vector.safetensors"
            vector.save(path)
            self._llm.collective_rpc("steer_load", args=(slot, str(path)))
        self._vectors[name] = slot
        self._llm.reset_prefix_cache()  # the salt names the vector, and the name may now mean another

    def swap_weights(self, folder: Path) -> None:
        """Load another checkpoint of the same shape in place; the prefix cache of the old weights is dropped."""
        if folder != self.folder:
            self._llm.collective_rpc("reload_weights", kwargs={"weights_path": str(folder)})
            self._llm.reset_prefix_cache()
            self.folder = folder

    def run(self, requests: Sequence[Request], on_done: Callable[[int, Output], None] | None = None) -> list[Output]:
        """All requests in one continuous batch; results in request order, on_done(index, output) as each finishes.

        Raises RuntimeError when a steered request had no steered token: an unsteered answer is never returned for a steered one.
        """
        outputs: dict[int, Output] = {}
        names: dict[str, int] = {}
        prepared = [(self._prompt(request), self._params(request, index)) for index, request in enumerate(requests)]
        for index, (prompt, params) in enumerate(
            prepared
        ):  # only now: a bad request must leave none of the batch behind
            name = str(self._next)
            self._next += 1
            names[name] = index
            self._engine.add_request(name, prompt, params)
        while self._engine.has_unfinished_requests():
            for result in self._engine.step():
                if result.finished:
                    index = names[result.request_id]
                    outputs[index] = _output(result, requests[index])
                    if on_done:
                        on_done(index, outputs[index])
        fired = self._llm.collective_rpc("steer_fired")[0]
        idle = [index for index, request in enumerate(requests) if request.vector is not None and not fired.get(index)]
        if idle:
            raise RuntimeError(
                f"{len(idle)} steered requests ran without one steered token, the first is {requests[idle[0]]}"
            )
        return [outputs[index] for index in range(len(requests))]

    def _start(self, request: Request) -> int:
        if request.positions == "all":
            return 0
        return len(request.prompt_ids) - 1 if request.steer_from is None else request.steer_from

    def _prompt(self, request: Request) -> dict[str, Any]:
        prompt: dict[str, Any] = {"prompt_token_ids": list(request.prompt_ids)}
        if request.vector is not None:
            # Blocks are keyed by tokens: without a salt a steered prompt would read an unsteered one's cache.
            prompt["cache_salt"] = f"{request.vector}:{request.coefficient!r}:{self._start(request)}"
        return prompt

    def _params(self, request: Request, tag: int) -> Any:
        from vllm import SamplingParams

        extra = None
        if request.vector is not None:
            if not np.isfinite(request.coefficient):
                raise SteerHealError(
                    "a coefficient is not finite",
                    given=request.coefficient,
                    expected="a finite number",
                    next="mend the coefficients",
                )
            extra = {
                "steer": {
                    "slot": self._vectors[request.vector],
                    "coefficient": float(request.coefficient),
                    "start": self._start(request),
                    "tag": tag,
                }
            }
        return SamplingParams(
            max_tokens=request.max_tokens,
            min_tokens=request.min_tokens,
            temperature=request.temperature,
            top_p=request.top_p,
            seed=request.seed,
            stop_token_ids=list(request.stop_ids) or None,
            prompt_logprobs=0 if request.score else None,
            logprob_token_ids=list(request.label_ids) or None,
            extra_args=extra,
        )


def _output(result: Any, request: Request) -> Output:
    sampled = result.outputs[0]
    scored = labels = None
    if request.score:
        scored = np.array(
            [
                entry[token].logprob
                for token, entry in zip(request.prompt_ids[1:], result.prompt_logprobs[1:], strict=True)
            ]
        )
    if request.label_ids:
        labels = np.array([sampled.logprobs[0][token].logprob for token in request.label_ids])
    return Output(list(sampled.token_ids), sampled.text, sampled.finish_reason, scored, labels)


def _op_version() -> int:
    from gen.engine import steering

    return steering.VERSION


def _environment() -> None:
    """Settings vLLM reads at import; values the user has set win."""
    for name, value in {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_USE_V2_MODEL_RUNNER": "0",  # the patch follows the V1 runner's batches
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    }.items():
        os.environ.setdefault(name, value)
    logging.getLogger("vllm.triton_utils").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module="vllm")


@contextlib.contextmanager
def engine(folder: Path, **options: Any) -> Iterator[Engine]:
    """An Engine that is shut down afterwards."""
    with console.status("starting vLLM"):
        built = Engine(folder, **options)
    try:
        yield built
    finally:
        built._engine.engine_core.shutdown()
