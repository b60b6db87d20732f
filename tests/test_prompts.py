"""Prompts of a sweep: lazily from files and data sets, looked over before anything is sampled."""

from __future__ import annotations

import json
import shutil
import tracemalloc
from pathlib import Path

import pytest
from conftest import command

from gen.prompts import PromptRenderer, open_round
from gen.survey import RendererRecipe, survey
from shared.chat import Chat, neutral_for
from shared.errors import SteerHealError
from shared.models import Model
from shared.prompts import Prompts, open_prompts
from shared.records import DATA, Prompt, read_jsonl
from shared.schema import SweepConfig
from shared.strata import stratified
from shared.traits import load_trait

CARD = """---
configs:
- config_name: asked
  data_files:
  - split: train
    path: rows.jsonl
---
"""
ROWS = [
    {
        "id": 7,
        "domain": "a",
        "prompt": "Name a fruit.",
        "messages": [{"role": "user", "content": "Name a fruit."}, {"role": "assistant", "content": "A pear."}],
        "n": 1,
    },
    {"id": 8, "domain": "b", "prompt": "Name a tree.", "messages": [], "n": 2},
]


def lines(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def data_set(folder: Path, rows: list[dict[str, object]]) -> Path:
    folder.mkdir()
    (folder / "README.md").write_text(CARD)
    lines(folder / "rows.jsonl", rows)
    return folder


@pytest.fixture
def renderer(tokenizer: object) -> PromptRenderer:
    return PromptRenderer(Chat(tokenizer), load_trait("embedded"))


def test_a_data_set_is_read_as_often_as_asked(tmp_path: Path) -> None:
    folder = data_set(tmp_path / "set", ROWS)
    with open_prompts(f"{folder}:asked:train") as prompts:
        once = list(prompts)
        assert once == list(prompts)
    assert [(prompt.id, prompt.domain, prompt.turns[0]["content"]) for _, prompt in once] == [
        ("7", "a", "Name a fruit."),
        ("8", "b", "Name a tree."),
    ]
    assert once[1][0] == f"{folder}:asked:train row 1"


def test_a_data_set_without_a_configuration_and_with_conversations(tmp_path: Path) -> None:
    turns = [
        {"role": "user", "content": "Hello."},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": "A fruit."},
    ]
    folder = tmp_path / "set"
    folder.mkdir()
    for column in ("messages", "prompt"):
        lines(folder / "train.jsonl", [{column: turns}])
        with open_prompts(f"{folder}:train") as prompts:
            assert [prompt.turns for _, prompt in prompts] == [turns]


@pytest.mark.parametrize(
    ("rows", "name", "part"),
    [
        (
            [{"question": "a"}],
            "{folder}:asked:train",
            "row 0: {folder}/rows.jsonl:1: row: a question (question) is not read",
        ),
        ([{"prompt": "a"}, {"prompt": None}], "{folder}:asked:train", "rows.jsonl:2: row: a prompt row has either"),
        ([{"messages": [{"role": "assistant", "content": "a"}]}], "{folder}:asked:train", "the last is the user's"),
        ([{"messages": [{"from": "human", "value": "a"}]}], "{folder}:asked:train", "have a role and content"),
        ([{"messages": []}], "{folder}:asked:train", "have a role and content"),
        (
            [{"prompt": 3}],
            "{folder}:asked:train",
            "asked:train row 0: {folder}/rows.jsonl:1: prompt: Input should be a valid string",
        ),
        (ROWS, "{folder}:asked:test", "asked:test"),
        (ROWS, "{folder}:other:train", "other"),
        (ROWS, "no/such-file.jsonl", "no/such-file.jsonl"),
    ],
)
def test_what_is_no_prompt_is_refused(tmp_path: Path, rows: list[dict[str, object]], name: str, part: str) -> None:
    folder = data_set(tmp_path / "set", rows)
    with pytest.raises(SteerHealError) as caught, open_prompts(name.format(folder=folder)) as prompts:
        list(prompts)
    assert part.format(folder=folder) in caught.value.render() and "next:" in caught.value.render()


def test_an_unreachable_data_set_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets.config
    import huggingface_hub.constants

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(SteerHealError, match="nobody/nothing:train"), open_prompts("nobody/nothing:train"):
        pass


def test_a_round_takes_what_the_strata_give(tmp_path: Path) -> None:
    config = SweepConfig(n_dilemmas=17, n_mundane=3)
    with open_round(config) as prompts:
        chosen = [prompt for _, prompt in prompts]
    dilemmas, mundane = (read_jsonl(DATA / f"{name}.jsonl", Prompt, made_by="-") for name in ("dilemmas", "mundane"))
    assert chosen == stratified(dilemmas, 17, "domain") + stratified(mundane, 3, "domain")
    folder = data_set(tmp_path / "set", ROWS)
    with open_round(SweepConfig(dilemmas=f"{folder}:asked:train", n_dilemmas=1, n_mundane=0)) as prompts:
        assert [prompt.id for _, prompt in prompts] == ["7"]


def test_a_survey_counts_and_its_digest_is_of_the_contents(tmp_path: Path, renderer: PromptRenderer) -> None:
    path = lines(tmp_path / "p.jsonl", [{"id": "a", "prompt": "Name a fruit."}, {"prompt": "Name " + "a " * 50}])
    with open_prompts(str(path)) as prompts:
        found = survey(prompts, renderer, 8, 512)
        assert found.count == 2 and found.longest == max(max(map(len, renderer(prompt))) for _, prompt in prompts)
    lines(path, [{"id": "a", "prompt": "Name a tree."}])
    with open_prompts(str(path)) as prompts:
        assert survey(prompts, renderer, 8, 512).digest != found.digest


def test_a_survey_by_many_processes_is_the_same(
    tmp_path: Path, renderer: PromptRenderer, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Count, longest and digests, and the first conversation that is refused, which lies in a later batch."""
    rows = [{"id": f"p{index}", "prompt": f"Name {index} {'long ' * (index % 7)}fruits."} for index in range(40)]
    path = lines(tmp_path / "p.jsonl", rows)
    recipe = RendererRecipe(model.folder, None, renderer.chat.day, "embedded")
    monkeypatch.setattr("gen.survey.FEW", 5)
    monkeypatch.setattr("gen.survey.BATCH", 4)
    with open_prompts(str(path)) as prompts:
        assert survey(prompts, renderer, 8, 512, recipe) == survey(prompts, renderer, 8, 512)
    strict = tmp_path / "strict"
    shutil.copytree(model.folder, strict)
    (strict / "chat_template.jinja").write_text(
        "{% for m in messages %}{% if 'seven' in m.content %}{{ raise_exception('no sevens') }}{% endif %}{{ m.content }}<|im_end|>{% endfor %}"
    )
    path = lines(tmp_path / "q.jsonl", [*rows[:30], {"id": "q", "prompt": "seven"}, *rows[30:]])
    recipe = RendererRecipe(strict, None, None, "embedded")
    with (
        pytest.raises(SteerHealError, match=r"q\.jsonl:31 \(key 00030-q\).*no sevens"),
        open_prompts(str(path)) as prompts,
    ):
        survey(prompts, recipe.renderer(), 8, 512, recipe)


def test_a_prompt_that_is_too_long_is_named(tmp_path: Path, renderer: PromptRenderer) -> None:
    rows = [{"id": name, "prompt": f"Count {'x ' * length}"} for name, length in (("a", 1), ("b", 300), ("c", 900))]
    path = lines(tmp_path / "p.jsonl", rows)
    with pytest.raises(SteerHealError) as caught, open_prompts(str(path)) as prompts:
        survey(prompts, renderer, 8, 256)
    text = caught.value.render()
    assert f"{path}:2 (key 00001-b)" in text and "2 of 3 prompts are too long" in text and "= 256" in text


def test_a_conversation_the_template_refuses_is_named(tmp_path: Path, renderer: PromptRenderer) -> None:
    tokenizer = renderer.chat.tokenizer
    strict = type(tokenizer).from_pretrained(tokenizer.name_or_path)
    strict.chat_template = "{{ raise_exception('roles must alternate') }}"
    path = lines(tmp_path / "p.jsonl", [{"prompt": "a"}])
    with pytest.raises(SteerHealError, match=r"p\.jsonl:1 .*roles must alternate"), open_prompts(str(path)) as prompts:
        survey(prompts, PromptRenderer(Chat(strict), renderer.trait), 8, 256)


SYSTEM = [{"role": "system", "content": "Answer in French."}, {"role": "user", "content": "Name a fruit."}]


def test_a_prompt_brings_its_own_system_message(renderer: PromptRenderer, tokenizer: object) -> None:
    """One message in all: in place of the neutral one, as a training row has it, and after the trait's, which is the contrast."""
    neutral, trait = (tokenizer.decode(ids) for ids in renderer(Prompt(messages=SYSTEM)))
    assert neutral == Chat(tokenizer).text(SYSTEM) and neutral.count("<|im_start|>system") == 1
    assert trait.count("<|im_start|>system") == 1 and renderer.trait.neutral not in neutral + trait
    before, _, after = trait.partition(f"{renderer.trait.trait}\n\n")
    assert before + after == neutral
    plain = renderer(Prompt(messages=SYSTEM[1:]))
    for ids, system in zip(plain, (renderer.trait.neutral, renderer.trait.trait), strict=True):
        assert ids == Chat(tokenizer).ids([{"role": "system", "content": system}, *SYSTEM[1:]])
    assert neutral_for(SYSTEM, "n") is None and neutral_for(SYSTEM[1:], "n") == "n"


def test_a_template_without_a_system_role_is_refused_in_our_words(tokenizer: object) -> None:
    strict = type(tokenizer).from_pretrained(tokenizer.name_or_path)
    strict.chat_template = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}x"  # fmt: skip
    assert Chat(strict).text(SYSTEM[1:]) == "x"
    for made in (Chat(strict).ids, Chat(strict).text):
        with pytest.raises(SteerHealError, match="System role not supported"):
            made(SYSTEM[1:], "Be kind.")


def test_a_file_of_any_length_is_read_line_by_line(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    with open(path, "w") as handle:
        for index in range(20_000):
            handle.write(json.dumps({"prompt": f"What about {index}? " * 20}) + "\n")
    assert path.stat().st_size > 6 * 2**20
    tracemalloc.start()
    try:
        with open_prompts(str(path)) as prompts:
            assert sum(1 for _ in prompts) == 20_000
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2**20, f"{peak / 2**20:.1f} MiB"


@pytest.mark.parametrize(
    ("text", "part"),
    [('{"prompt": "a"}\n{"prompt": 3}\n', "p.jsonl:2"), ('{"prompt": "a', "p.jsonl:1"), ("", "no rows")],
)
def test_every_line_is_looked_at_before_an_engine_starts(tmp_path: Path, text: str, part: str) -> None:
    import numpy as np

    from shared.vectors import Vector

    (tmp_path / "p.jsonl").write_text(text)
    Vector({14: np.ones(576, dtype=np.float32)}).save(tmp_path / "v.safetensors")
    done = command("gen.sweep", "--model", "embedded", "--vector", tmp_path / "v.safetensors", "--prompts", tmp_path / "p.jsonl", "--coefficients", 1, "--out", tmp_path / "s.jsonl")  # fmt: skip
    assert done.returncode == 2 and part in done.stderr and "Traceback" not in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.jsonl", "v.safetensors"]


def test_prompts_are_made_anew(tmp_path: Path) -> None:
    calls = []
    prompts = Prompts(lambda: iter(calls.append(1) or [("here", Prompt(prompt="a"))]))
    assert list(prompts) == list(prompts) and len(calls) == 2


def test_a_template_that_drops_the_trait_prompt_is_refused(tmp_path: Path, renderer: PromptRenderer) -> None:
    """With a vector from elsewhere no extraction has refused it: trait_llr would be 0 in every row."""
    tokenizer = renderer.chat.tokenizer
    deaf = type(tokenizer).from_pretrained(tokenizer.name_or_path)
    deaf.chat_template = "{% for m in messages if m.role != 'system' %}{{ m.content }}<|im_end|>{% endfor %}"
    path = lines(tmp_path / "p.jsonl", [{"prompt": "a"}])
    with pytest.raises(SteerHealError, match="does not reach the model"), open_prompts(str(path)) as prompts:
        survey(prompts, PromptRenderer(Chat(deaf), renderer.trait), 8, 256)
