"""Many rows through plan, shards, filter and draw, with a stub in the sampler's place alone: memory and files stay bounded."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

MEASURED = """
import json, random, resource, sys, time
from contextlib import contextmanager
from pathlib import Path
import numpy as np
from gen import shards
from gen.plan import Job
from gen.students import ServedStudent
from gen.sweep import sweep
from shared.config import resolve_config
from shared.models import resolve_model
from shared.prompts import open_prompts
from shared.vectors import Vector, load_vector

step, folder, prompts = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
config, _ = resolve_config(None, "sweep.samples=4 sweep.max_tokens=64 filter.drop_truncated=false filter.trait_llr_quantile=0 filter.perplexity_ratio=50 train.rows=500")
begun, stubbed = time.perf_counter(), 0.0
if step == "sweep":
    draws = random.Random(0)
    ids = json.dumps([draws.randrange(40000) for _ in range(150)])
    says = [json.dumps([draws.randrange(40000) for _ in range(64)]) for _ in range(50)]

    class Stub:
        about = {}
        made_in = lambda self: {}
        begin = lambda self: None
        def make(self, work, advance):
            global stubbed
            for index, planned in work:
                at = time.perf_counter()
                made = "".join(f'{{"version": 1, "key": "{row.key}", "prompt_ids": {ids}, "completion_ids": {says[row.seed % 50]}, "text": "{"word " * 50}", "finish_reason": "stop", "coefficient": {row.coefficient}, "sample": {row.sample}, "seed": {row.seed}, "perplexity": {2 + row.seed % 97}.5, "perplexity_last_quarter": 7.5, "trait_llr": 0.0{row.seed % 89}, "distinct_3": 0.9{row.seed % 83}, "reasons": []}}\\n' for row in planned).encode()
                stubbed += time.perf_counter() - at
                yield index, made

    import gen.sweep
    gen.sweep.employ = contextmanager(lambda *_: (yield Stub()))
    (folder / "p.jsonl").write_text("".join(json.dumps({"prompt": f"What about {i}?"}) + "\\n" for i in range(prompts)))
    model = resolve_model("embedded")
    Vector({0: np.ones(model.hidden, dtype=np.float32)}, {}).save(folder / "v.safetensors")
    with open_prompts(str(folder / "p.jsonl")) as rows:
        out = folder / "s"
        sweep(Job(out=out, prompts=rows, coefficients=[0.0, 0.5, 1.0, 1.5, 2.0], seed="0", student=ServedStudent(model.folder), origin=model, vector=load_vector(folder / "v.safetensors"), vector_file=folder / "v.safetensors", config=config, finish=lambda counts: shards.store_of(out).discard()))
elif step == "filter":
    from gen.shard_filter import filter_shards
    filter_shards(folder / "s", folder / "s", config.filter, "embedded", folder / "f")
else:
    from train.rows import completions, draw, open_data
    from shared.records import Completion
    with open_data(f"{folder / 'f' / 'kept'}:train") as source:
        keep = draw(((row.key, str(row.prompt_ids)) for _, row in source.rows(Completion)), config.train.rows, 0)
        assert len(list(completions(source, keep))) == 500
print(json.dumps({"seconds": time.perf_counter() - begun - stubbed, "gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}))
"""


def measured(step: str, folder: Path, prompts: int) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, step, str(folder), str(prompts)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.long
def test_memory_and_files_do_not_grow_with_the_sweep(tmp_path: Path) -> None:
    """Twenty rows a prompt: 20,000 and 80,000 rows."""
    found = {}
    for prompts in (1_000, 4_000):
        folder = tmp_path / str(prompts)
        folder.mkdir()
        found[prompts] = {step: measured(step, folder, prompts) for step in ("sweep", "filter", "draw")}
        rates = {step: f"{20 * prompts / value['seconds']:.0f} rows/s, {value['gib']:.2f} GiB" for step, value in found[prompts].items()}  # fmt: skip
        print(prompts, rates)
        assert len(list((folder / "s").iterdir())) == 2 + -(-20 * prompts // 32_768)
    for step in ("sweep", "filter", "draw"):
        assert found[4_000][step]["gib"] - found[1_000][step]["gib"] < 0.1, found
