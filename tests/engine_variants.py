"""Other engines than the shared one, each in a process of its own: python tests/engine_variants.py NAME FOLDER.

Prints one JSON object of measurements; tests/test_engine_variants.py says what they must be.

    v2        vLLM's second model runner, GPU-only by design, here on the CPU with its Triton kernels interpreted
    preempted so few blocks that requests are preempted and computed again
    hostile   the same, in three dtypes: the largest coefficients accepted, aborts and overflows beside an honest client
    adapter   the student as a LoRA adapter beside unsteered and steered requests
    exported  what train.export wrote: a round and a history as adapters, a merged checkpoint
    compiled  torch.compile instead of eager, twice: the second engine reads the first one's compile cache
    halves    score rows in bfloat16, with logits in float32 and with rounded ones
    avx2      vLLM made to believe in a CPU without AVX-512, whatever this one has; then the trainer's import
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

MODEL = sys.argv[3] if len(sys.argv) > 3 else "embedded"


def interpret_triton() -> None:
    """Let vLLM believe in a Triton backend for this processor; TRITON_INTERPRET then runs the kernels in numpy."""
    os.environ.update(TRITON_INTERPRET="1", VLLM_USE_V2_MODEL_RUNNER="1")
    from triton.backends import backends

    backends["cpu"] = SimpleNamespace(driver=SimpleNamespace(is_active=lambda: True), compiler=None)


def build(**options: Any) -> Any:
    from gen.engine.engine import Engine
    from shared.models import resolve_model
    from shared.vectors import Vector

    model, draws = resolve_model(MODEL), np.random.default_rng(0)
    layers = [model.depth // 2 - 1, model.depth // 2]
    vector = Vector({layer: draws.standard_normal(model.hidden).astype(np.float32) * 0.4 for layer in layers})
    engine = Engine(model.folder, **{"layers": layers, "dtype": "float32", "max_model_len": 512, **options})
    engine.load("v", vector)
    return engine, vector, model.folder


def compare(engine: Any, oracle: Any, prompts: list[list[int]]) -> dict[str, Any]:
    """Largest gap to HF in nats over all generated tokens, and how many greedy tokens agree, in one mixed batch."""
    from gen.engine.sampling import Request

    cases = [(ids, c, p) for ids in prompts for c in (0.0, 0.5, 2.0) for p in ("all", "generated")]
    outputs = engine.run(
        [
            Request(ids, 5, vector="v", coefficient=c, positions=p, min_tokens=5, label_ids=[504, 25])
            for ids, c, p in cases
        ]
    )
    gap, agree = 0.0, 0
    for (ids, c, p), output in zip(cases, outputs, strict=True):
        table = oracle.logprobs([*ids, *output.token_ids], c, 0 if p == "all" else len(ids) - 1)[len(ids) - 1 : -1]
        gap = max(gap, float(np.abs(table[0, [504, 25]].numpy() - output.label_logprobs).max()))
        table = table.clone()
        table[:, 2] = -np.inf
        agree += sum(int(a == b) for a, b in zip(table.argmax(-1).tolist(), output.token_ids, strict=True))
    return {"gap": gap, "agree": agree, "tokens": 5 * len(cases)}


def long_prompts() -> list[list[int]]:
    return [[100 + (7 * index * (place + 1)) % 700 for index in range(size)] for place, size in enumerate((70, 9, 33))]


def v2(folder: Path) -> dict[str, Any]:
    interpret_triton()
    from hooked import Hooked

    from gen.engine.sampling import Request

    engine, vector, weights = build(max_num_batched_tokens=64, max_num_seqs=24)
    oracle = Hooked(weights, vector)
    found = compare(engine, oracle, long_prompts())  # 70 tokens exceed the budget of 64: chunked
    found["runner"] = type(_worker(engine).model_runner).__mro__[1].__module__
    ids = long_prompts()[0]
    scored = engine.run([Request(ids, score=True, vector="v", coefficient=c) for c in (0.0, 1.0)])
    found["score_gap"] = max(
        float(np.abs(output.prompt_logprobs - oracle.of_tokens(ids, c)).max())
        for output, c in zip(scored, (0.0, 1.0), strict=True)
    )
    found["tail_gap"] = tails(engine, oracle, ids)
    engine.reset_cache()
    zero = engine.run([Request(ids, label_ids=[504], vector="v", coefficient=0.0)])[0].label_logprobs
    engine.patch(False)
    engine.reset_cache()
    stock = engine.run([Request(ids, label_ids=[504])])[0].label_logprobs
    engine.patch(True)
    found["zero_is_stock"] = bool((zero == stock).all())
    again = engine.run([Request(ids, label_ids=[504], vector="v", coefficient=1.0)])[0].label_logprobs
    found["salt_gap"] = float(abs(again[0] - float(oracle.logprobs(ids, 1.0)[-1, 504])))
    found.update(isolation(engine, ids))
    return found


def isolation(engine: Any, ids: list[int]) -> dict[str, Any]:
    """Whether NaN left in every block reaches an answer, and how an overflow beside one that is fine ends."""
    from dataclasses import replace

    from gen.engine.sampling import Request

    ask = Request(ids, label_ids=[504], vector="v", coefficient=1.0)
    answers = []
    for left in (0.0, float("nan")):
        engine.reset_cache()
        for cache in _worker(engine).model_runner.kv_caches:
            cache[1:] = left
        answers.append(engine.run([ask])[0].label_logprobs[0])
    loaded = engine._registry.loaded
    loaded["v"] = replace(loaded["v"], largest=float("inf"))
    ends = [output.finish_reason for output in engine.run([ask, replace(ask, coefficient=3.4e38)])]
    return {"dirty_gap": float(abs(answers[0] - answers[1])), "ends": ends}


def tails(engine: Any, oracle: Any, ids: list[int]) -> float:
    """As the forced choice asks: a thought, then an answer over the cached question; largest gap of the tail and the labels, nats."""
    from gen.engine.sampling import Request

    doses, forced, count = (0.0, 1.0), [300, 301, 302, 303], 3

    def then(index: int, done: Any) -> Any:
        if len(done) > 1:
            return None
        prompt = [*ids, *done[0].token_ids, *forced]
        return Request(prompt, label_ids=[504, 25], tail=count, vector="v", coefficient=doses[index])

    chains = engine.chain([Request(ids, 4, min_tokens=4, vector="v", coefficient=c) for c in doses], then)
    gaps = []
    for dose, (thought, answer) in zip(doses, chains, strict=True):
        prompt = [*ids, *thought.token_ids, *forced]
        assert answer.prompt_logprobs is not None and answer.label_logprobs is not None
        gaps.append(np.abs(oracle.of_tokens(prompt, dose)[-count:] - answer.prompt_logprobs).max())
        gaps.append(np.abs(oracle.logprobs(prompt, dose)[-1, [504, 25]].numpy() - answer.label_logprobs).max())
    return float(max(gaps))


def preempted(folder: Path) -> dict[str, Any]:
    from hooked import Windowed

    from gen.engine.sampling import Request
    from gen.engine.steering import END
    from shared.vectors import Vector

    engine, vector, weights = build(num_gpu_blocks_override=8, max_num_seqs=8, max_model_len=128)
    engine.load("double", Vector({layer: 2 * values for layer, values in vector.layers.items()}))
    oracle = Windowed(weights, sorted(vector.layers))
    preempted = preemptions(engine)
    prompts = [[100 + (11 * index * (place + 1)) % 700 for index in range(28)] for place in range(6)]
    windows = [("all", 0, END), ("generated", 27, END), ("last", 27, 28)]
    cases = [(ids, (0.5, 1.0, 2.0)[i % 3], windows[i // 2]) for i, ids in enumerate(prompts)]
    late = {"vector": "double", "coefficient": -0.5, "from": "end-4", "until": "end+20"}  # ends after the preemptions
    outputs = engine.run(
        [
            Request(ids, 40, vector="v", coefficient=c, positions=window[0], terms=[late] * (i % 2), min_tokens=40)
            for i, (ids, c, window) in enumerate(cases)
        ]
    )
    agree = 0
    for i, ((ids, c, (_, start, end)), output) in enumerate(zip(cases, outputs, strict=True)):
        terms = [(vector, c, start, end), (vector, -1.0 * (i % 2), 24, 48)]
        table = oracle.logprobs([*ids, *output.token_ids], terms)[len(ids) - 1 : -1].clone()
        table[:, 2] = -np.inf
        agree += sum(int(a == b) for a, b in zip(table.argmax(-1).tolist(), output.token_ids, strict=True))
    return {"preemptions": len(preempted), "agree": agree, "tokens": 40 * len(cases)}


def preemptions(engine: Any) -> list[str]:
    """The requests that an engine preempts from now on."""
    scheduler, names = engine._engine.engine_core.engine_core.scheduler, []
    stock = scheduler._preempt_request

    def preempt(request: Any, *args: Any, **kwargs: Any) -> Any:
        names.append(request.request_id)
        return stock(request, *args, **kwargs)

    scheduler._preempt_request = preempt
    return names


def hostile(folder: Path) -> dict[str, Any]:
    return {dtype: beside_a_hostile_client(dtype) for dtype in ("float32", "bfloat16", "float16")}


def beside_a_hostile_client(dtype: str) -> dict[str, Any]:
    """What an honest client's answers, unsteered and steered, owe to its mates: they must not owe anything.

    The mates ask for coefficient 0 at first, then for the worst that is accepted: the batches have the same shapes.
    """
    from dataclasses import replace

    from gen.engine.sampling import Request

    engine, _, _ = build(dtype=dtype, num_gpu_blocks_override=12, max_num_seqs=10, max_model_len=128)
    preempted = preemptions(engine)
    loaded = engine._registry.loaded["v"]
    prompts = [[100 + (11 * index * (place + 1)) % 700 for index in range(28)] for place in range(8)]
    honest = [
        Request(ids, 24, min_tokens=24, label_ids=[504, 25], vector=vector, coefficient=1.0 if vector else 0.0)
        for ids, vector in zip(prompts[:2], (None, "v"), strict=True)
    ]
    modes = [{"positions": "all"}, {"positions": "generated"}, {"steer_from": 5}]

    def mates(coefficient: float) -> list[Any]:
        return [
            Request(
                ids, 24, 1.0, seed=place, min_tokens=24, vector="v",
                coefficient=-coefficient if place % 2 else coefficient, **modes[place % 3],
            )
            for place, ids in enumerate(prompts[2:])
        ]  # fmt: skip

    def answers(requests: list[Any]) -> list[Any]:
        engine.reset_cache()
        outputs = engine.run(requests)
        ends.update(output.finish_reason for output in outputs[2:])
        return [(output.token_ids, output.label_logprobs.tolist(), output.finish_reason) for output in outputs[:2]]

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    ends: set[str] = set()
    alone, beside = answers(honest), answers([*honest, *mates(0.0)])
    preempted.clear()
    found: dict[str, Any] = {"beside": answers([*honest, *mates(loaded.largest)]) == beside}
    found["preemptions"], found["ends"] = len(preempted), sorted(ends)
    try:  # every stream that is still open is aborted when the first request ends
        engine.run([Request(prompts[0], 3), *mates(loaded.largest)], interrupt)
    except KeyboardInterrupt:
        found["after aborts"] = answers(honest) == alone
    engine._registry.loaded["v"] = replace(loaded, largest=float("inf"))  # what admission does not foresee
    ends.clear()
    overflow = answers([*honest, *mates(3.4e38)])
    found["ends of overflows"], found["honest ends"] = sorted(ends), sorted({end for _, _, end in overflow})
    found["after overflows"] = answers(honest) == alone and answers([*honest, *mates(0.0)]) == beside
    engine.close()
    return found


def adapter(folder: Path) -> dict[str, Any]:
    """folder holds a PEFT adapter, adapter/, and the same student merged in fp32, merged/."""
    from hooked import Hooked

    from gen.engine.sampling import Request
    from gen.students import ServedStudent, served_student
    from shared.models import resolve_model

    served = served_student(resolve_model(MODEL), folder / "adapter", folder, "float32", "adapter")
    engine, vector, weights = build(students=[served], max_num_seqs=16)
    base, healed = Hooked(weights, vector), Hooked(weights, vector, folder / "adapter")
    expected = [(ids, c) for ids in long_prompts()[:2] for c in (0.0, 1.0)]
    ask = [Request(ids, label_ids=[504, 25], score=True, vector="v", coefficient=c) for ids, c in expected]

    def gap(oracle: Hooked) -> float:
        """Largest gap over all prompt tokens and the labels at the first sampled position, nats."""
        outputs = engine.run(ask)
        return max(
            max(
                float(np.abs(oracle.of_tokens(ids, c) - output.prompt_logprobs).max()),
                float(np.abs(oracle.logprobs(ids, c)[-1, [504, 25]].numpy() - output.label_logprobs).max()),
            )
            for (ids, c), output in zip(expected, outputs, strict=True)
        )

    found = {"base": gap(base)}
    engine.serve(served)
    found["adapter"] = gap(healed)
    engine.serve(ServedStudent(weights))
    found["base_again"] = gap(base)
    engine.serve(ServedStudent(folder / "merged"))
    found["merged"] = gap(healed)
    found["effect"] = gap(base)
    return found


def exported(folder: Path) -> dict[str, Any]:
    """Log-probabilities of the prompts' own tokens under each export: name -> prompt -> nats."""
    from gen.engine.sampling import Request
    from gen.students import ServedStudent, served_student
    from shared.models import resolve_model

    origin = resolve_model(MODEL)
    served = {
        name: served_student(origin, folder / name, folder, "float32", "adapter")
        for name in ("round", "history", "dialled")
    }
    engine, _, _ = build(students=list(served.values()), max_num_seqs=16)
    found: dict[str, Any] = {}
    for name, student in {**served, "merged": ServedStudent(folder / "merged")}.items():
        engine.serve(student)
        outputs = engine.run([Request(ids, score=True) for ids in long_prompts()])
        found[name] = [output.prompt_logprobs.tolist() for output in outputs]
    return found


def compiled(folder: Path) -> dict[str, Any]:
    os.environ["VLLM_CACHE_ROOT"] = str(folder)
    from hooked import Hooked

    engine, vector, weights = build(enforce_eager=False)
    return compare(engine, Hooked(weights, vector), long_prompts())


def avx2(folder: Path) -> dict[str, Any]:
    import torch

    torch.cpu._is_avx512_supported = torch.cpu._is_avx512_bf16_supported = lambda: False
    from hooked import Hooked

    from evals.bridges.huggingface import HuggingFace
    from evals.conditions import Condition
    from evals.measures.forced_choice.ask import Read, forced_choice
    from evals.measures.forced_choice.instrument import InstrumentRenderer, load_instrument
    from shared.chat import load_tokenizer
    from shared.vignettes import load_vignettes

    engine, vector, weights = build(max_num_seqs=16)
    found = compare(engine, Hooked(weights, vector), long_prompts()[:2])
    tokenizer = load_tokenizer(str(weights))
    renderer, read, items = (
        InstrumentRenderer(tokenizer, load_instrument("embedded"), {}),
        Read("reversal", 3),
        load_vignettes("embedded")[:1],
    )
    (ours,) = forced_choice(engine, renderer, items, [Condition("base", "base")], read, tokenizer, lambda: None)["base"]
    pad = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    (theirs,) = HuggingFace(weights, "float32", pad).forced_choice(renderer, items, read, tokenizer, 1)
    for key in ("lp", "p"):
        found[f"{key}_gap"] = float(np.abs(np.array(ours[key]) - np.array(theirs[key])).max())
    found["same_thoughts"] = ours["gen_text"] == theirs["gen_text"]
    found["mapped"] = mapped()
    import train.distil  # noqa: F401  in the process of an engine, whose vLLM it must leave as it is

    found["mapped_after_the_trainer"] = mapped()
    found["still_there"] = sys.modules["vllm"] is not None
    return found


def halves(folder: Path) -> dict[str, Any]:
    """Forced-choice rows of one bfloat16 engine, before and after its logits are rounded as vLLM does by default, and of fp32 weights.

    Returns, over the seven labels of every read, nats: mean and largest distance of both from fp32, and of one from the other; how many
    pairs of labels of a read tie exactly; seconds of the reads.
    """
    import itertools
    import time

    from evals.conditions import Condition
    from evals.measures.forced_choice.ask import Read, forced_choice
    from evals.measures.forced_choice.instrument import InstrumentRenderer, load_instrument
    from shared.chat import Chat
    from shared.models import resolve_model
    from shared.vignettes import load_vignettes

    weights = resolve_model(MODEL).folder
    chat, vignettes, read = Chat.load(weights), load_vignettes("embedded", 7), Read("rotating", 0)
    renderer = InstrumentRenderer(chat, load_instrument("embedded"))
    seconds = []

    def rows(engine: Any) -> np.ndarray:
        engine.reset_cache()
        begin = time.perf_counter()
        base = Condition("base", "base")
        lines = forced_choice(engine, renderer, vignettes, [base], read, chat.tokenizer, lambda: None)["base"]
        seconds.append(time.perf_counter() - begin)
        return np.array([row["lp"] for row in lines]).reshape(-1, 7)

    engine, _, _ = build(dtype="bfloat16", max_model_len=1024)
    kept = rows(engine)
    heads = [module for module in _worker(engine).model_runner.get_model().modules() if hasattr(module, "head_dtype")]
    dtypes = {str(module.head_dtype) for module in heads}
    for module in heads:
        module.head_dtype = None
    rounded = rows(engine)
    engine.close()
    engine, _, _ = build(max_model_len=1024)
    exact = rows(engine)

    def apart(one: np.ndarray, other: np.ndarray) -> list[float]:
        return [float(np.abs(one - other).mean()), float(np.abs(one - other).max())]

    def ties(labels: np.ndarray) -> int:
        return sum(row[a] == row[b] for row in labels for a, b in itertools.combinations(range(7), 2))

    return {
        "dtypes": sorted(dtypes),
        "reads": len(kept),
        "kept": apart(kept, exact),
        "rounded": apart(rounded, exact),
        "rounding": apart(kept, rounded),
        "ties": {"kept": int(ties(kept)), "rounded": int(ties(rounded)), "exact": int(ties(exact))},
        "seconds": seconds,
    }


def mapped() -> list[str]:
    """vLLM's own libraries that this process has loaded."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return sorted({Path(line.split()[-1]).name for line in lines if "/vllm/" in line and line.endswith(".so")})


def _worker(engine: Any) -> Any:
    return engine._engine.engine_core.engine_core.model_executor.driver_worker.worker


if __name__ == "__main__":
    variants = {
        "v2": v2,
        "preempted": preempted,
        "hostile": hostile,
        "adapter": adapter,
        "exported": exported,
        "compiled": compiled,
        "halves": halves,
        "avx2": avx2,
    }
    print(json.dumps(variants[sys.argv[1]](Path(sys.argv[2]))))
