"""Sweeps into folders of shards, filtered shard by shard and drawn from: a stub stands in the sampler's place alone."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow.parquet
import pytest
from conftest import command

from gen import shards
from gen.columns import column_type, schema
from gen.commandline import named_after
from gen.filter import SweepFile, split_rows
from gen.plan import Job, Planned
from gen.pool import Item
from gen.shard_filter import filter_shards
from gen.shards import Shards, is_sharded, read_manifest_of, verified
from gen.students import ServedStudent
from gen.sweep import sweep
from shared.chat import Chat
from shared.config import resolve_config
from shared.errors import SteerHealError
from shared.filter_record import read_filter_record
from shared.models import Model
from shared.prompts import open_prompts
from shared.publish import digest
from shared.records import Completion, as_jsonl, read_jsonl, write_jsonl
from shared.vectors import Vector, load_vector
from train.data import read_examples
from train.rows import TooFew, draw

WINDOW = 3
SETTINGS = f"sweep.window={WINDOW} sweep.max_tokens=8 sweep.samples=2 filter.min_kept=1 filter.drop_truncated=false filter.min_tokens=2"  # fmt: skip
Rows = Callable[[Planned], Completion]


def completed(row: Planned) -> Completion:
    """What a model might have said: a function of the planned row, better at low coefficients."""
    draws = random.Random(row.seed)
    perplexity = draws.uniform(3, 6) * 2**row.coefficient
    return Completion(
        key=row.key, prompt_ids=[1, 2, row.index], completion_ids=draws.choices(range(1000), k=8), text=f"é\u2028 {draws.random()} 𝄞", finish_reason="stop",
        coefficient=row.coefficient, sample=row.sample, seed=row.seed, perplexity=perplexity, perplexity_last_quarter=perplexity * draws.uniform(0.5, 2),
        trait_llr=draws.gauss(0.1 * row.coefficient, 0.1), distinct_3=draws.uniform(0.8, 1),
        prompted=row.prompted,
    )  # fmt: skip


class Stub:
    """A crew that makes windows out of order; it dies after so many of them."""

    def __init__(self, shuffle: int = 0, dies_after: int | None = None):
        self.about = {"count": 1}
        self.draws, self.left = random.Random(shuffle), dies_after
        self.made: list[int] = []

    def made_in(self) -> dict[str, Any]:
        return {"device": "a stub"}

    def begin(self) -> None:
        pass

    def make(self, work: Iterable[Item], advance: object) -> Iterator[tuple[int, bytes]]:
        rest, at_work = iter(work), []
        while True:
            while len(at_work) < 3 and (item := next(rest, None)):
                at_work.append(item)
            if not at_work:
                return
            if self.left == len(self.made):
                raise KeyboardInterrupt
            index, planned = at_work.pop(self.draws.randrange(len(at_work)))
            self.made.append(index)
            yield index, as_jsonl(map(completed, planned))

    def rows(self, planned: Sequence[Planned]) -> list[Completion]:
        return [completed(row) for row in planned]


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "ROWS", 2 * WINDOW)


@pytest.fixture
def make(tmp_path: Path, model: Model, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Stub]:
    """Make a sweep of 5 prompts at 4 coefficients, twice each: 40 rows, 14 windows, 7 shards."""
    prompts = tmp_path / "p.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"What about {i}?", "id": f"p{i}"}) + "\n" for i in range(5)))
    path = tmp_path / "v.safetensors"
    Vector({0: np.ones(model.hidden, dtype=np.float32)}, {"model": "m", "revision": None, "model_fingerprint": "0" * 64}).save(path)  # fmt: skip

    def make(out: Path, stub: Stub, rebuild: bool = False, settings: str = "", counts: list[dict[str, Any]] | None = None) -> Stub:  # fmt: skip
        config, finished = resolve_config(None, f"{SETTINGS} {settings}")[0], [] if counts is None else counts

        @contextmanager
        def employed(*_: object) -> Iterator[Stub]:
            yield stub

        monkeypatch.setattr("gen.sweep.employ", employed)
        with open_prompts(str(prompts)) as rows:
            job = Job(
                out=out, prompts=rows, coefficients=[0.0, 0.5, 1.0, 3.0], seed="0", student=ServedStudent(model.folder, fingerprint=model.fingerprint),
                origin=model, vector=load_vector(path), vector_file=path, config=config,
                finish=lambda counts: (finished.append(counts), shards.store_of(out).discard()),
            )  # fmt: skip
            sweep(job, rebuild=rebuild)
        return stub

    return make


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def rows_in(folder: Path) -> list[Completion]:
    return [
        Completion.model_validate({name: value for name, value in row.items() if value is not None})
        for path in verified(folder, "-")
        for row in pyarrow.parquet.read_table(path).to_pylist()
    ]


def test_shards_hold_the_rows_of_the_file_whatever_the_order_of_windows(
    make: Callable[..., Stub], small_shards: None, tmp_path: Path
) -> None:
    make(tmp_path / "s.jsonl", Stub())
    for number in range(3):
        make(tmp_path / f"s{number}", Stub(shuffle=number))
        assert contents(tmp_path / f"s{number}") == contents(tmp_path / "s0")
    assert rows_in(tmp_path / "s0") == read_jsonl(tmp_path / "s.jsonl", Completion, made_by="-")
    manifest = read_manifest_of(tmp_path / "s0", "-")
    assert [shard.rows for shard in manifest.shards] == [6, 6, 6, 6, 6, 6, 4] and manifest.rows == 40
    assert {path.name for path in tmp_path.iterdir()} >= {"s0"} and not list(tmp_path.glob(".s0.windows"))


def test_an_interrupted_sweep_goes_on_after_its_windows_to_the_same_bytes(
    make: Callable[..., Stub], small_shards: None, tmp_path: Path
) -> None:
    make(tmp_path / "whole", Stub())
    out, made = tmp_path / "again", []
    for shuffle, dies_after in ((1, 5), (2, 4), (3, None)):
        stub = Stub(shuffle, dies_after)
        try:
            make(out, stub)
        except KeyboardInterrupt:
            assert not is_sharded(out)
        made += stub.made
        index = tmp_path / ".again.windows" / "index.jsonl"
        if index.is_file():  # as a crash in the middle of a line leaves it
            index.write_bytes(index.read_bytes() + b'{"window": 99, "ro')
            assert len(list(index.parent.glob("*.arrow"))) < 9, "windows of a shard that is written are removed"
    assert sorted(made) == list(range(14)), "no window is made twice"
    assert contents(out) == contents(tmp_path / "whole")


def test_what_was_edited_is_refused(make: Callable[..., Stub], small_shards: None, tmp_path: Path) -> None:
    out = tmp_path / "s"
    with pytest.raises(KeyboardInterrupt):
        make(out, Stub(dies_after=6))
    first = sorted(out.glob("*.parquet"))[0]
    before = first.read_bytes()
    first.write_bytes(before[:-1])
    with pytest.raises(SteerHealError, match="edited or removed"):
        make(out, Stub())
    first.write_bytes(before)
    other = Shards(out)
    with pytest.raises(SteerHealError, match="begun with other settings"):
        other.open({"window": WINDOW}, rebuild=False, count=14)
    make(out, Stub())
    first.write_bytes(before[:-1])
    with pytest.raises(SteerHealError, match="not what was written"):
        list(verified(out, "-"))
    with pytest.raises(SteerHealError, match="finished sweep"):
        Shards(out).refuse_finished()
    make(out, Stub(), rebuild=True)
    assert first.read_bytes() == before
    (out / "notes.txt").write_text("mine")
    with pytest.raises(SteerHealError, match="other files"):
        make(out, Stub(), rebuild=True)


def test_a_sweep_until_enough_are_kept_is_the_beginning_of_the_whole(make: Callable[..., Stub], tmp_path: Path) -> None:
    """To the same bytes and counts in whatever order windows end, and interrupted."""
    make(tmp_path / "whole.jsonl", Stub())
    whole, counts, found = (tmp_path / "whole.jsonl").read_bytes(), list[dict[str, Any]](), set[bytes]()
    for number in range(4):
        out = tmp_path / f"{number}.jsonl"
        for dies_after in (3, None) if number else (None,):
            try:
                make(out, Stub(number, dies_after), settings="sweep.until_kept=6", counts=counts)
            except KeyboardInterrupt:
                assert not out.exists()
        found.add(out.read_bytes())
    (rows,) = found
    assert whole.startswith(rows) and 0 < len(rows) < len(whole)
    ends = [{key: one[key] for key in ("rows", "tokens", "until_kept")} for one in counts]
    assert len(ends) == 4 and all(end == ends[0] for end in ends)
    lines = rows.count(b"\n")
    assert ends[0]["rows"] == lines == WINDOW * ends[0]["until_kept"]["windows"] and ends[0]["tokens"] == 8 * lines
    one, config = SweepFile(tmp_path / "0.jsonl", "-"), resolve_config(None, SETTINGS)[0].filter
    with split_rows(one, one, config, "embedded", named_after(tmp_path / "f")) as kept:
        pass
    assert kept.kept == ends[0]["until_kept"]["passed"] >= 6
    make(tmp_path / "all.jsonl", Stub(), settings="sweep.until_kept=1000", counts=counts)
    assert (tmp_path / "all.jsonl").read_bytes() == whole and counts[-1]["until_kept"]["windows"] == 14
    with pytest.raises(SteerHealError, match="does not go with shards"):
        make(tmp_path / "s", Stub(), settings="sweep.until_kept=6")


@pytest.mark.parametrize("settings", ["", "filter.source=unsteered", "filter.off=true", "filter.source=prompted"])
def test_the_filter_of_shards_is_that_of_the_file(
    settings: str, make: Callable[..., Stub], small_shards: None, tmp_path: Path
) -> None:
    make(tmp_path / "s.jsonl", Stub(), settings=settings)
    make(tmp_path / "s", Stub(), settings=settings)
    config = resolve_config(None, f"{SETTINGS} {settings}")[0].filter
    one, outputs = SweepFile(tmp_path / "s.jsonl", "-"), named_after(tmp_path / "f")
    with split_rows(one, one, config, "embedded", outputs):
        pass
    filter_shards(tmp_path / "s", tmp_path / "s", config, "embedded", tmp_path / "g")
    for name in ("kept", "rejected"):
        lines = read_jsonl(tmp_path / "f" / f"{name}.jsonl", Completion, made_by="-", may_be_empty=True)
        assert sorted(rows_in(tmp_path / "g" / name), key=lambda row: row.key) == lines
    ours, theirs = (read_filter_record(tmp_path / folder / "filter.json", "-") for folder in ("g", "f"))
    candidates = [line for line in theirs.lines if line.source == config.source]
    assert sum(line.n for line in candidates) == ours.kept + ours.rejected
    assert {row.source for row in lines} <= {config.source}
    assert ours.model_copy(update={"lines": []}) == theirs.model_copy(update={"lines": []}) and ours.kept > 0
    for line, other in zip(ours.lines, theirs.lines, strict=True):
        wanted = {k: v if v is None else pytest.approx(v, rel=1e-9) for k, v in other.model_dump().items()}
        assert line.model_dump() == wanted


def test_unsteered_rows_may_be_elsewhere(make: Callable[..., Stub], small_shards: None, tmp_path: Path) -> None:
    make(tmp_path / "s", Stub())
    config = resolve_config(None, SETTINGS)[0].filter
    write_jsonl(tmp_path / "u.jsonl", [row for row in rows_in(tmp_path / "s") if not row.coefficient])
    for unsteered, out in ((tmp_path / "s", "own"), (tmp_path / "u.jsonl", "other")):
        filter_shards(tmp_path / "s", unsteered, config, "embedded", tmp_path / out)
    assert contents(tmp_path / "own" / "kept") == contents(tmp_path / "other" / "kept")
    own, other = (read_filter_record(tmp_path / name / "filter.json", "-") for name in ("own", "other"))
    assert own.model_copy(update={"lines": []}) == other.model_copy(update={"lines": []})
    for line, same in zip(own.lines, other.lines, strict=True):  # sums in another order
        assert (line.n, line.kept, line.trait_llr) == (same.n, same.kept, pytest.approx(same.trait_llr, rel=1e-9))
    with pytest.raises(SteerHealError, match="another file than the sweep"):
        filter_shards(tmp_path / "s", tmp_path / "u.jsonl", config.model_copy(update={"source": "unsteered"}), "embedded", tmp_path / "x")  # fmt: skip
    (tmp_path / "s" / "manifest.json").unlink()
    done = command("gen.filter", "--in", tmp_path / "s", "--out", tmp_path / "x")
    assert done.returncode == 2 and "a folder of shards is not whole" in done.stderr, done.stderr


def test_shards_are_filtered_by_several_processes_to_the_same_bytes(
    make: Callable[..., Stub], small_shards: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And an error of one of them is ours, as it would be in this one."""
    make(tmp_path / "s", Stub())
    config = resolve_config(None, SETTINGS)[0].filter
    monkeypatch.setattr("gen.shard_filter.cores", lambda: 2)
    for many in (10**9, 1):
        monkeypatch.setattr("gen.shard_filter.MANY", many)
        filter_shards(tmp_path / "s", tmp_path / "s", config, "embedded", tmp_path / f"f{many}")
    for name in ("kept", "rejected"):
        assert contents(tmp_path / "f1" / name) == contents(tmp_path / f"f{10**9}" / name)
    assert (tmp_path / "f1" / "filter.json").read_bytes() == (tmp_path / f"f{10**9}" / "filter.json").read_bytes()
    last = tmp_path / "s" / "00006.parquet"
    table = pyarrow.parquet.read_table(last)
    place = table.schema.get_field_index("perplexity")
    steered = pyarrow.array([0.5] * len(table), pyarrow.float64())  # no perplexity is below 1
    pyarrow.parquet.write_table(table.set_column(place, "perplexity", steered), last)
    shards.write_manifest(tmp_path / "s", [shard.model_copy(update={"sha256": digest(tmp_path / "s" / shard.name)}) for shard in read_manifest_of(tmp_path / "s", "-").shards])  # fmt: skip
    with pytest.raises(SteerHealError, match="a row of a shard is no completion") as refused:
        filter_shards(tmp_path / "s", tmp_path / "s", config, "embedded", tmp_path / "x")
    assert "00006.parquet, key" in str(refused.value.given) and not (tmp_path / "x").exists()


def test_a_filter_of_shards_that_starves_leaves_the_rejected(
    make: Callable[..., Stub], small_shards: None, tmp_path: Path
) -> None:
    make(tmp_path / "s", Stub())
    line = ["gen.filter", "--in", tmp_path / "s", "--out", tmp_path / "f", "--set"]
    assert command(*line, SETTINGS).returncode == 0
    assert {path.name for path in (tmp_path / "f").iterdir()} == {"kept", "rejected", "filter.json"}
    done = command(*line, SETTINGS.replace("min_tokens=2", "min_tokens=500"))
    assert done.returncode == 2 and "starved" in done.stderr and "lower filter.min_tokens" in done.stderr, done.stderr
    assert {path.name for path in (tmp_path / "f").iterdir()} == {"rejected"}
    assert len(rows_in(tmp_path / "f" / "rejected")) == 30


def test_kept_shards_are_a_data_set_that_training_draws_from(
    make: Callable[..., Stub], small_shards: None, tmp_path: Path, tokenizer: Any
) -> None:
    import datasets

    make(tmp_path / "s", Stub())
    config = resolve_config(None, SETTINGS)[0]
    filter_shards(tmp_path / "s", tmp_path / "s", config.filter, "embedded", tmp_path / "f")
    kept = rows_in(tmp_path / "f" / "kept")
    assert datasets.load_dataset(str(tmp_path / "f" / "kept"), split="train")["key"][:] == [row.key for row in kept]
    name = f"{tmp_path / 'f' / 'kept'}:train"
    every = read_examples(name, Chat(tokenizer), config)
    assert [example.key for example in every.examples] == [row.key for row in kept]
    few = resolve_config(None, f"{SETTINGS} train.rows=5")[0]
    drawn = [example.key for example in read_examples(name, Chat(tokenizer), few).examples]
    assert len(drawn) == 5 and drawn == [row.key for row in kept if row.key in drawn]
    (tmp_path / "k.jsonl").write_bytes(as_jsonl(kept[::-1]))
    assert {example.key for example in read_examples(tmp_path / "k.jsonl", Chat(tokenizer), few).examples} == {*drawn}
    other = resolve_config(None, f"{SETTINGS} train.rows=5 seed=1")[0]
    assert {example.key for example in read_examples(name, Chat(tokenizer), other).examples} != {*drawn}


def test_a_draw_is_of_all_rows_alike() -> None:
    """Within a prompt, and over prompts of one size."""
    for names in ([(f"k{i}", "p") for i in range(40)], [(f"k{i}", f"p{i % 8}") for i in range(40)]):
        counts = np.zeros(40)
        for seed in range(400):
            chosen = draw(names, 10, seed)
            assert len(chosen) == 10 and chosen == sorted(chosen)
            counts[chosen] += 1
        assert abs(counts / 400 - 0.25).max() < 0.1
        assert draw(names, 40, 0) == list(range(40))


def test_a_draw_takes_prompts_in_turn_in_whatever_order_rows_come() -> None:
    names = [(f"{prompt}/{i}", prompt) for prompt, count in {"a": 9, "b": 2, "c": 5}.items() for i in range(count)]
    for count, wanted in ((3, (1, 1, 1)), (7, None), (10, (4, 2, 4)), (16, (9, 2, 5))):
        chosen = [names[place] for place in draw(names, count, 3)]
        taken = Counter(prompt for _, prompt in chosen)
        assert sum(taken.values()) == count and (wanted is None or tuple(taken[p] for p in "abc") == wanted)
        assert {names[::-1][place] for place in draw(names[::-1], count, 3)} == set(chosen)
    with pytest.raises(TooFew) as error:
        draw(names, 17, 0)
    assert error.value.args == (16,)


def test_too_few_rows_for_a_draw_are_refused_with_the_next_command(tmp_path: Path, tokenizer: object) -> None:
    """Rows that cannot be trained on are no part of the draw: exactly so many are trained on, or none."""
    texts = ["A pear.", "", "A plum, a pear.", "word " * 400, "An apple."]
    path = tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"Fruit {i}?", "completion": text}) + "\n" for i, text in enumerate(texts)))  # fmt: skip
    settings = "train.max_length=256"
    drawn = read_examples(path, Chat(tokenizer), resolve_config(None, f"{settings} train.rows=3")[0])
    assert [example.key for example in drawn.examples] == ["line 1", "line 3", "line 5"]
    assert (drawn.left_out["empty"], drawn.left_out["too_long"]) == (1, 1)
    with pytest.raises(SteerHealError) as error:
        read_examples(path, Chat(tokenizer), resolve_config(None, f"{settings} train.rows=4")[0])
    assert "3 rows; 1 without a completion and 1 longer" in str(error.value.given)
    assert "sweep.samples=2" in str(error.value.next) and "train.rows=3" in str(error.value.next)


def test_every_field_of_a_completion_has_its_column() -> None:
    import pyarrow as pa

    columns = {field.name: field.type for field in schema()}
    assert list(columns) == list(Completion.model_fields)
    assert columns["completion_ids"] == pa.list_(pa.int32()) and columns["trait_llr"] == pa.float64()
    assert columns["reasons"].value_type.field("limit").type == pa.float64()
    assert column_type(Annotated[int, "a bound"] | None) == pa.int64()
    with pytest.raises(TypeError, match="no column"):
        column_type(dict[str, str])
