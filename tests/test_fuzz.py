"""Whatever is in a file, its reader answers with a value or with the one error type, and leaves the file as it was."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from synthetic_run import IDENTITY, build
from test_report import restamp

from evals.measures.forced_choice.instrument import load_instrument
from evals.measures.forced_choice.rows import ScoreRow
from evals.measures.free_text.rows import Generation
from evals.report.__main__ import grouped_tables
from evals.report.figures.base import Shown
from evals.report.figures.registry import panels_of
from evals.report.page import page
from evals.report.panel import Plot
from evals.report.reading import grouped_reading
from evals.results import results_of
from evals.rows import LogRow, TokenRow
from evals.scored import scored_rounds
from evals.study.plan import read_plan
from gen.windows import Windows
from shared.adapters import load_adapter
from shared.config import resolve_config, to_toml
from shared.errors import SteerHealError
from shared.folding import fold, rounds_of, verify
from shared.ratios import read_ratios
from shared.records import DATA, Asked, Completion, Pair, Prompt, Vignette, read_jsonl, read_manifest
from shared.run import Run
from shared.schema import Config
from shared.stage import Stage
from shared.strict import parse_json
from shared.traits import load_trait
from shared.vectors import Vector, load_vector
from shared.vignettes import load_vignettes
from train.reference import States
from train.unfinished import Unfinished

SLOW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([10**30, -1, 0, 1e308, -0.0, 5e-324]),
    st.floats(),
    st.text(),
    st.sampled_from(
        ["", "../../../../etc/passwd", "/", "\u0000", "\ud7ff", "²", "𝟙", "a" * 5000, "<script>", "NaN", "1e999"]
    ),
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths to everything in a JSON value, itself among them."""
    inner: list[tuple[Any, ...]] = []
    if isinstance(value, dict):
        inner = [place for key in value for place in places(value[key], (*path, key))]
    elif isinstance(value, list):
        inner = [place for index in range(min(len(value), 3)) for place in places(value[index], (*path, index))]
    return [path, *inner]


@st.composite
def changed(draw: st.DrawFn, valid: Any) -> Any:
    """A JSON value in which one or two things are something else, or gone."""
    value = copy.deepcopy(valid)
    for _ in range(draw(st.integers(1, 2))):
        path = draw(st.sampled_from(places(value)))
        if not path:
            return draw(values)
        holder = value
        for key in path[:-1]:
            holder = holder[key]
        if draw(st.booleans()) and isinstance(holder, dict):
            del holder[path[-1]]
        else:
            holder[path[-1]] = draw(values)
    return value


@st.composite
def damaged(draw: st.DrawFn, valid: bytes) -> bytes:
    """Bytes cut short, with some bytes changed, or with a piece of them twice."""
    kind = draw(st.sampled_from(["cut", "flip", "twice", "other"]))
    if kind == "other":
        return draw(st.binary(max_size=200))
    begin, end = sorted(draw(st.tuples(*[st.integers(0, len(valid))] * 2)))
    if kind == "cut":
        return valid[:begin]
    if kind == "twice":
        return valid[:end] + valid[begin:]
    new = draw(st.binary(min_size=1, max_size=8))
    return valid[:begin] + new + valid[begin + len(new) :]


@st.composite
def texts(draw: st.DrawFn, valid: Any) -> bytes:
    """A JSON file: changed in what it says, or as bytes; Python's own NaN and Infinity stand as it writes them."""
    if draw(st.booleans()):
        return json.dumps(draw(changed(valid)), ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass")
    return draw(damaged(json.dumps(valid).encode()))


def answers(path: Path, content: bytes, read: Callable[[], Any]) -> Any:
    """What the reader gives, None where it refuses. Fails on any other error, on one without a next command, on a changed file."""
    path.write_bytes(content)
    try:
        found = read()
    except SteerHealError as error:
        assert error.next and len(error.render().splitlines()) >= 3
        found = None
    assert path.read_bytes() == content
    return found


ROWS: dict[type[Any], dict[str, Any]] = {
    Prompt: {"id": "a", "messages": [{"role": "user", "content": "x"}]},
    Pair: {"prompt": "a", "completion": "b"},
    Completion: {"key": "1|0.5|0", "prompt_ids": [1, 2], "completion_ids": [3], "text": "a", "finish_reason": "stop", "coefficient": 0.5, "sample": 0, "seed": 1, "perplexity": 2.5, "perplexity_last_quarter": None, "trait_llr": 0.1, "distinct_3": 1.0, "reasons": [{"rule": "loop", "value": 0.5, "limit": 0.3, "text": None}]},
    Vignette: {"id": "a", "foundation": "Care", "foundation_coarse": "Care", "text": "x", "wrong": 3.5, "human_Care": 80.0},
    TokenRow: {"key": "a", "tokens": ["b"], "ce": [1.0], "kl_base": [0.5], "kl_previous": [0.5]},
}  # fmt: skip


@pytest.mark.parametrize("kind", ROWS, ids=lambda kind: kind.__name__)
@SLOW
@given(data=st.data())
def test_rows(kind: type[Any], data: st.DataObject, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    content = b"\n".join(data.draw(st.lists(texts(ROWS[kind]), min_size=1, max_size=3)))
    rows = answers(path, content, lambda: read_jsonl(path, kind, made_by="make it"))
    for row in rows or []:
        json.dumps(row.model_dump(), allow_nan=False, ensure_ascii=False).encode()  # what is read can be written
        if isinstance(row, Asked):
            assert row.turns[-1]["role"] == "user" and (row.prompt is None) != (row.messages is None)


@pytest.mark.parametrize("kind", [Generation, LogRow, ScoreRow])
@SLOW
@given(value=values)
def test_rows_of_anything(kind: type[Any], value: Any, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    answers(path, json.dumps(value).encode(), lambda: read_jsonl(path, kind, made_by="make it"))


@SLOW
@given(data=st.data())
def test_vignettes(data: st.DataObject, tmp_path: Path) -> None:
    path = tmp_path / "v.jsonl"
    rows = [{**ROWS[Vignette], "id": name} for name in "ab"]
    content = b"\n".join(data.draw(texts(row)) for row in rows)
    answers(path, content, lambda: load_vignettes(str(path), items=1))


@SLOW
@given(data=st.data())
def test_configurations(data: st.DataObject, tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    valid = to_toml(*resolve_config(None)).encode()
    found = answers(path, data.draw(damaged(valid)), lambda: resolve_config(path))
    if found:
        path.write_text(to_toml(*found), encoding="utf-8")
        assert resolve_config(path)[0] == found[0]


@SLOW
@given(key=st.sampled_from([*(f"{s}.{k}" for s, f in Config.model_fields.items() if hasattr(f.default, "model_dump") for k in f.default.model_dump()), "seed", "x", "train", ""]), value=values)  # fmt: skip
def test_overrides(key: str, value: Any) -> None:
    for raw in (json.dumps(value), str(value)):
        try:
            resolve_config(None, f"{key}={raw}")
        except SteerHealError as error:
            assert error.next


@SLOW
@given(data=st.data())
def test_studies(data: st.DataObject, tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    valid = b'[study]\ntitle = "t"\nrounds = 1\nseeds = [0]\n[[study.arm]]\nname = "nll"\nset = "train.divergence=nll"\nsays = "x"\n'
    answers(path, data.draw(damaged(valid)), lambda: read_plan(path, tmp_path / "runs"))


@pytest.mark.parametrize(("name", "load"), [("trait.json", load_trait), ("instrument.json", load_instrument)])
@SLOW
@given(data=st.data())
def test_traits_and_instruments(name: str, load: Callable[[str], Any], data: st.DataObject, tmp_path: Path) -> None:
    path = tmp_path / name
    answers(path, data.draw(texts(json.loads((DATA / name).read_text()))), lambda: load(str(path)))


@SLOW
@given(data=st.data())
def test_vectors(data: st.DataObject, tmp_path: Path) -> None:
    path = tmp_path / "v.safetensors"
    Vector({1: np.ones(4, dtype=np.float32)}, {"hidden_norm": {"1": 2.0}, "positions": "all"}).save(path)
    found = answers(path, data.draw(damaged(path.read_bytes())), lambda: load_vector(path))
    if found is not None:
        used(found)


@SLOW
@given(metadata=changed({"hidden_norm": {"1": 2.0}, "positions": "all", "model_fingerprint": "a"}))
def test_provenance_of_vectors(metadata: Any, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    path = tmp_path / "v.safetensors"
    save_file(
        {"layer.1": np.ones(4, dtype=np.float32)}, path, metadata={"version": "1", "steer_heal": json.dumps(metadata)}
    )
    found = answers(path, path.read_bytes(), lambda: load_vector(path))
    if found is not None:
        used(found)


def used(vector: Vector) -> None:
    """What the stages do with a vector that was accepted."""
    assert all(np.isfinite(dose) for dose in vector.relative_dose(1.0).values())
    vector.random_like(0)


@pytest.mark.parametrize("name", ["layer.²", "layer.-1", "layer", "layer.1.2", "x.1", "layer.99999999999999999999"])
def test_names_of_tensors(name: str, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    path = tmp_path / "v.safetensors"
    save_file({name: np.ones(4, dtype=np.float32)}, path)
    with pytest.raises(SteerHealError):
        load_vector(path).check(path, hidden=4, depth=30)


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A history of one small adapter."""
    import torch
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("history")
    (folder / "adapter").mkdir()
    tensors = {
        f"base_model.model.x.lora_{kind}.weight": torch.ones(shape) for kind, shape in (("A", (2, 3)), ("B", (4, 2)))
    }
    save_file(tensors, folder / "adapter" / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["x"], "bias": "none"}
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    (folder / "adapter" / "base.json").write_text(json.dumps({"version": 1, "model": "m", "fingerprint": "f"}))
    fold([(folder / "adapter", 0.5)], folder / "history")
    return folder


@pytest.mark.parametrize("name", ["adapter_config.json", "base.json", "adapter_model.safetensors"])
@SLOW
@given(data=st.data())
def test_adapters(name: str, data: st.DataObject, history: Path) -> None:
    path = history / "adapter" / name
    valid = path.read_bytes()
    content = data.draw(damaged(valid) if name.endswith("safetensors") else texts(json.loads(valid)))
    try:
        found = answers(path, content, lambda: load_adapter(history / "adapter"))
    finally:
        path.write_bytes(valid)
    if found is not None:
        assert found.rank > 0 and np.isfinite(found.scale)


@SLOW
@given(data=st.data())
def test_histories(data: st.DataObject, history: Path) -> None:
    path = history / "history" / "gates.json"
    valid = path.read_bytes()
    try:
        found = answers(path, data.draw(texts(json.loads(valid))), lambda: verify(history / "history"))
        if found is not None:  # what is accepted is what was folded
            assert [gate for _, gate in rounds_of(history / "history")] == [0.5]
    finally:
        path.write_bytes(valid)


def test_a_history_does_not_lead_into_any_folder(history: Path, tmp_path: Path) -> None:
    """A path from elsewhere is not hashed: / would take hours."""
    rows = json.loads((history / "history" / "gates.json").read_text())
    for elsewhere in ("/", "../../../../../..", str(tmp_path)):
        rows["rounds"][0]["adapter"] = elsewhere
        (tmp_path / "gates.json").write_text(json.dumps(rows))
        with pytest.raises(SteerHealError, match="not the one that was folded"):
            rounds_of(tmp_path)


@SLOW
@given(data=st.data())
def test_manifests(data: st.DataObject, tmp_path: Path) -> None:
    run = Run(tmp_path / "run", Config())
    output = run.round(1) / "out.txt"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text("x")

    def stage() -> Stage:
        return Stage(run, 1, "filter", settings={"a": 1}, inputs={}, outputs=[output])

    stage().finish(IDENTITY, rows=1)
    path = run.manifest(1, "filter")
    valid = json.loads(path.read_text())
    if answers(path, data.draw(texts(valid)), lambda: stage().done()):
        found = json.loads(path.read_text())  # done means: settings, inputs and outputs are these
        assert all(found[key] == valid[key] for key in ("settings", "outputs"))


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return build(tmp_path_factory.mktemp("report") / "run", rounds=2, overrides="eval.bootstrap=100")


@settings(SLOW, max_examples=40)
@given(data=st.data())
def test_reports(data: st.DataObject, scored: Run) -> None:
    """Whatever a run's files say, as long as their digests are recorded: the page is made, or it is our error."""
    name = data.draw(st.sampled_from(["training.json", "train.jsonl", "kl_tokens.jsonl", "kept.jsonl", "rejected.jsonl", "filter.json", "scores/scores.json", "scores/generations.jsonl", "scores/healed.jsonl", "manifests/sweep.json", "manifests/score.json"]))  # fmt: skip
    path = scored.round(data.draw(st.sampled_from([1, 2]))) / name
    manifests = {file: file.read_bytes() for file in path.parents[len(Path(name).parts) - 1].glob("manifests/*.json")}
    valid = path.read_bytes()
    lines = valid.splitlines() if name.endswith("l") else [valid]
    place = data.draw(st.integers(0, min(len(lines), 40) - 1))
    lines[place] = json.dumps(data.draw(changed(json.loads(lines[place])))).encode("utf-8", "surrogatepass")
    try:
        path.write_bytes(b"\n".join(lines) + b"\n")
        if not name.startswith("manifests"):
            restamp(scored, int(path.relative_to(scored.folder).parts[1]))
        rounds = scored_rounds(scored, "round")
        found = results_of(scored, rounds)
        rows, extra, said = found["rows"], found["extra"], grouped_reading(found["rows"], found["extra"], rounds)
        drawn = Shown(rows, extra, rounds)
        axes = Figure().subplots()  # drawn, and not written: that takes ten times as long
        for panel in [panel for panels in panels_of(drawn).values() for panel in panels]:
            panel.draw(Plot(axes))
        page("", "", grouped_tables(scored, rounds, found, "round"), said, drawn, {}, "")  # fmt: skip
        json.dumps(found, allow_nan=False)
    except SteerHealError as error:
        assert error.next
    finally:
        path.write_bytes(valid)
        for file, content in manifests.items():
            file.write_bytes(content)


@SLOW
@given(name=st.text() | st.sampled_from(["/", "/etc/hostname", "..", "../x", "a/../../b", "a" * 5000, "a" * 256, ".", "", "\u0000", "rounds/01"]))  # fmt: skip
def test_a_manifest_does_not_lead_out_of_its_run(name: str, tmp_path: Path) -> None:
    """A path from elsewhere is not hashed: / would take hours."""
    run = Run(tmp_path / "run", Config())
    content = {"version": 1, "settings": {}, "inputs": {}, "outputs": {name: "0"}, "counts": {}, "seconds": 1.0, "commit": None, "versions": {}, "hardware": {}}  # fmt: skip
    run.round(1).mkdir(parents=True, exist_ok=True)
    path = run.round(1) / "manifest.json"
    manifest = answers(
        path, json.dumps(content).encode("utf-8", "surrogatepass"), lambda: read_manifest(path, "mend it")
    )
    if manifest is not None:
        assert (run.folder / name).resolve().is_relative_to(run.folder.resolve()) and run.changed(manifest)


@SLOW
@given(data=st.data())
def test_plans_of_sweeps(data: st.DataObject, tmp_path: Path) -> None:
    windows = Windows(tmp_path / "sweep.jsonl")
    windows.open({"a": [1]}, rebuild=True)
    windows.note("walk", {"ceiling": 1.0})
    (windows.folder / "00000.jsonl").write_text("")
    content = data.draw(texts({"version": 3, "fingerprint": {"a": [1]}, "notes": {"walk": {"ceiling": 1.0}}}))
    answers(windows.plan, content, lambda: Windows(tmp_path / "sweep.jsonl").open({"a": [1]}, rebuild=False))


@pytest.mark.parametrize("name", ["recipe.json", "train.jsonl", "base.safetensors"])
@SLOW
@given(data=st.data())
def test_unfinished_rounds(name: str, data: st.DataObject, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    from train.data import Example

    work = Unfinished(tmp_path / "work", {"a": 1}, replace=True)
    path = work.folder / name
    if name == "base.safetensors":
        save_file({"states": torch.ones(2, 3)}, path, metadata={"made_from": json.dumps({"data": "x"})})
        examples = [Example([1], [2, 3], "a")]
        answers(path, data.draw(damaged(path.read_bytes())), lambda: States(path, examples, {"data": "x"}).of([0]))
    elif name == "recipe.json":
        answers(path, data.draw(texts(json.loads(path.read_text()))), lambda: Unfinished(tmp_path / "work", {"a": 1}))
        path.unlink()
    else:
        path.write_bytes(data.draw(texts({"step": 1, "ce": 2.0})) + b"\n")
        try:
            work.checkpoint()
        except SteerHealError as error:
            assert error.next


@SLOW
@given(data=st.data())
def test_benchmark_files(data: st.DataObject, tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    valid = {
        "machine": {"cores": 2},
        "versions": {"a": "1"},
        "ratios": {"x": {"median": 1.0, "low": None, "high": None, "what": "y"}},
    }
    answers(path, data.draw(texts(valid)), lambda: read_ratios(path))


@pytest.mark.parametrize(
    "text",
    [
        '{"a": 1, "a": 2}',
        "NaN",
        "[Infinity]",
        "[" * 100_000,
        "",
        "{",
        "1" * 5000,
        '"\ud800"',
        "1e999",
        '{"a": [-1e999]}',
        "[" * 200 + "]" * 200,
    ],
)
def test_what_is_no_json_here(text: str) -> None:
    with pytest.raises(ValueError):
        parse_json(text if text.isascii() else text.encode("utf-8", "surrogatepass"))
