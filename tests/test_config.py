"""Defaults < TOML < SET, unknown keys refused, every value with its source."""

from __future__ import annotations

import shlex
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import tomlkit
from hypothesis import given
from hypothesis import strategies as st

from shared.commandline import config_options
from shared.config import flatten_config, frozen_at, resolve_config, sources_of, to_toml
from shared.errors import SteerHealError
from shared.schema import Config, band

ROOT = Path(__file__).parent.parent


def test_set_beats_file_beats_default(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text("[train]\nlam = 0.2\ntau = 0.5\n")
    config, sources = resolve_config(path, "train.lam=0.7 train.divergence=kl_fwd")
    assert (config.train.lam, config.train.tau, config.train.divergence, config.train.rank) == (0.7, 0.5, "kl_fwd", 32)
    assert (sources["train.lam"], sources["train.tau"], sources["train.rank"]) == ("SET", str(path), "default")


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.toml")), ids=lambda p: p.stem)
def test_shipped_configurations_resolve_and_survive_a_round_trip(path: Path, tmp_path: Path) -> None:
    config, sources = resolve_config(path)
    (tmp_path / "config.toml").write_text(to_toml(config, sources))
    assert resolve_config(tmp_path / "config.toml")[0] == config
    assert f"# {path}" in to_toml(config, sources)


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        ("train.lamda=1", "train.lamda"),
        ("trian.lam=1", "trian"),
        ("train.lam=-1", "train.lam"),
        ("train.lam=nan", "train.lam"),
        ("train.divergence=l2", "train.divergence"),
        ("train.lam", "section.key=value"),
        ("sweep.coefficients=[0,1]", "coefficients must be distinct and without 0"),
        ("sweep.coefficients=[1,1]", "coefficients must be distinct"),
        ("sweep.coefficients=[0.5,0.50000001]", "0.5 is there twice"),
        ("sweep.coefficients=[1,-0.0]", "coefficients must be distinct and without 0"),
        ("eval.coefficients=[2,0.5,2.0000001]", "2 is there twice"),
        ("eval.coefficients=[0.0,-0.0]", "0 is there twice"),
        ("eval.gates=[0.5,0.5]", "0.5 is there twice"),
        ("vector.layers=[14,15,14]", "14 is there twice"),
        ("train.report_to=[tensorboard,tensorboard]", "tensorboard is there twice"),
        ("seed.x=1", "seed"),
        ("vector.trait=it's.json", "next:     --set " + shlex.quote(r"vector.trait=it\'s.json")),
        ("vector.trait='a b.json", "next:     --set " + shlex.quote("vector.trait='a b.json'")),
        ("train.lam=1 train.lamda=2", "next:     --set 'train.lam=1 train.lam=2'; `python -m shared.config` lists"),
        ("sweep.coefficients=[1, 2", "next:     --set 'sweep.coefficients=[1, 2]'"),
        ("train={lam=0.1, tau=[0.2", "next:     --set 'train={lam=0.1, tau=[0.2]}'"),
        ("train.lam=" + "[" * 3000, "train.lam"),
        ("model.chat_template_kwargs={tokenize=true}", "tokenize is decided here"),
        ("model.chat_template_kwargs={day=2026-01-01}", "not as JSON can hold it"),
        ("model.chat_template_kwargs={x=inf}", "not as JSON can hold it"),
        ("train.lam=" + "1" * 5000, "train.lam"),
        ("seed=4294967296", "seed"),
    ],
)
def test_bad_keys_and_values_are_refused(overrides: str, part: str) -> None:
    with pytest.raises(SteerHealError) as caught:
        resolve_config(None, overrides)
    assert part in caught.value.render() and "next:" in caught.value.render()


def test_missing_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(SteerHealError, match="no configuration file"):
        resolve_config(tmp_path / "none.toml")
    (tmp_path / "broken.toml").write_text("[train\n")
    (tmp_path / "deep.toml").write_text("x = " + "[" * 3000 + "]" * 3000)
    for path in (tmp_path / "broken.toml", tmp_path / "deep.toml", tmp_path, tmp_path / ("long" * 200)):
        with pytest.raises(SteerHealError, match="a configuration file could not be read"):
            resolve_config(path)


def test_bands() -> None:
    assert band("0.45-0.55", 30) == [13, 14, 15, 16]
    assert band([15, 14], 30) == [14, 15]
    assert band("0-1", 4) == [0, 1, 2, 3]
    for wrong in ([30], [], "x", "0.9-0.1"):
        with pytest.raises(SteerHealError):
            band(wrong, 30)
    with pytest.raises(SteerHealError, match="does not fit") as refused:  # a share that lies between two of six layers
        band("0.45-0.55", 6)
    assert "vector.layers=[3]" in refused.value.next and band([3], 6) == [3]


def test_every_key_is_documented() -> None:
    for section, field in Config.model_fields.items():
        if section != "seed":
            assert all(inner.description for inner in type(field.default).model_fields.values()), section
    assert "train.divergence" in flatten_config(Config())


def test_set_takes_a_list_of_words_whose_quotes_the_shell_has_eaten() -> None:
    for text in ("[tensorboard, trackio]", '["tensorboard", "trackio"]', "['tensorboard','trackio']"):
        assert resolve_config(None, f"'train.report_to={text}'" if "'" not in text else f"train.report_to={text}")[
            0
        ].train.report_to == ["tensorboard", "trackio"]


@pytest.mark.parametrize(
    ("overrides", "meant"),
    [
        ("train.lamda=1", "train.lam"),
        ("trian.lam=1", "train.lam"),
        ("sweep.coeficients=[1]", "sweep.coefficients"),
        ("model.gpu_mem=1", "model.gpu_memory"),
        ("Seed=1", "seed"),
    ],
)
def test_a_misspelt_key_names_what_was_meant(overrides: str, meant: str) -> None:
    with pytest.raises(SteerHealError, match="no configuration key") as refused:
        resolve_config(None, overrides)
    assert refused.value.expected == f"did you mean {meant}?"


def test_a_misspelt_file_names_what_was_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEER_HEAL_FORM", "make")
    (tmp_path / "mine.toml").touch()
    with pytest.raises(SteerHealError) as refused:
        resolve_config(tmp_path / "mein.toml")
    assert f"CONFIG={tmp_path}/mine.toml" in refused.value.next


def test_the_frozen_file_of_a_run_begins_another(tmp_path: Path) -> None:
    config, sources = resolve_config(None, "train.lam=0.4")
    begun = datetime(2026, 1, 2, 3, 4, 5, 678, UTC)
    (tmp_path / "config.toml").write_text(to_toml(config, sources, begun))
    assert resolve_config(tmp_path / "config.toml")[0] == config and frozen_at(tmp_path / "config.toml") == begun
    assert sources_of(tmp_path / "config.toml") == {
        key: words for key, words in sources.items() if flatten_config(config)[key] is not None
    }


# --------------------------------------------------------------------------------- the merge, against a plain model of it

VALUES: dict[str, list[Any]] = {
    "seed": [0, 3, 7], "model.name": ["embedded", "some/model", "./a b"], "model.max_model_len": [64, 512],
    "model.chat_template_kwargs": [{}, {"a": 1}, {"a": 2, "b": True}, {"b": "x y"}, {"c": {"d": 1}}, {"c": {"e": 2}}],
    "vector.layers": ["0.45-0.55", [1, 2], [3]], "sweep.coefficients": [[0.5], [-0.5, 1.0], [1, 2]], "sweep.max_tokens": [1, 8],
    "sweep.temperature": [0.5, 1, 1.5], "sweep.dose": ["grid", "walk"], "train.lam": [0, 0.1, 1e-3], "train.divergence": ["nll", "kl_rev"],
    "train.report_to": [[], ["tensorboard"], ["a", "b"]], "eval.stop": [True, False], "eval.coefficients": [[], [0.25]],
}  # fmt: skip
SECTIONS = sorted({key.partition(".")[0] for key in VALUES if "." in key})
one_key = st.sampled_from(sorted(VALUES)).flatmap(lambda key: st.tuples(st.just(key), st.sampled_from(VALUES[key])))


def section(name: str) -> st.SearchStrategy[tuple[str, Any]]:
    inner = {
        key.partition(".")[2]: st.sampled_from(found) for key, found in VALUES.items() if key.startswith(f"{name}.")
    }
    return st.tuples(st.just(name), st.fixed_dictionaries({}, optional=inner))


assignments = st.lists(one_key | st.sampled_from(SECTIONS).flatmap(section), max_size=5)


def over(old: Any, new: Any) -> Any:
    """The plain model: a table changes its keys alone, anything else takes the place of what was there."""
    if isinstance(old, dict) and isinstance(new, dict):
        return {
            key: over(old[key], new[key]) if key in old and key in new else (new if key in new else old)[key]
            for key in {**old, **new}
        }
    return new


def tree_of(key: str, value: Any) -> Any:
    for name in reversed(key.split(".")):
        value = {name: value}
    return value


def toml(value: Any) -> str:
    return tomlkit.item(value).as_string() if not isinstance(value, dict) else "{" + ", ".join(f"{k} = {toml(v)}" for k, v in value.items()) + "}"  # fmt: skip


@given(file=assignments, given_set=assignments, model=st.none() | st.sampled_from(["m", "n"]), deep=st.booleans())
def test_the_whole_merge_is_that_of_a_plain_model(
    file: list[tuple[str, Any]],
    given_set: list[tuple[str, Any]],
    model: str | None,
    deep: bool,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Defaults, then the file, then SET from left to right, then --model; and every value knows the last that changed it."""
    written: Any = {}
    for key, value in file:
        written = over(written, tree_of(key, value))
    path = tmp_path_factory.getbasetemp() / "merged.toml"
    path.write_text(tomlkit.dumps(written))
    words, wanted = [], over(Config().model_dump(), written)
    for key, value in given_set:
        wanted = over(wanted, tree_of(key, value))
        pairs = [(key, value)]
        if deep and isinstance(value, dict) and value:  # the same, said key by key
            pairs = [(f"{key}.{name}", inner) for name, inner in value.items()]
        words += [shlex.quote(f"{name}={toml(inner)}") for name, inner in pairs]
    named = [
        value
        for key, value in given_set
        for value in [value.get("name") if key == "model" else value if key == "model.name" else None]
        if value
    ]
    if model and named and named[-1] != model:
        with pytest.raises(SteerHealError, match="two models"):
            resolve_config(path, " ".join(words), model)
        return
    if model:
        wanted = over(wanted, {"model": {"name": model}})
    config, sources = resolve_config(path, " ".join(words), model)
    assert config == Config.model_validate(wanted)
    touched = {name for key, value in given_set for name in (flat_keys(key, value))}
    in_file = {name for key, value in file for name in flat_keys(key, value)}
    assert {key: sources[key] for key in sources.keys() - flatten_config(config).keys()} == leaf_sources(
        file, given_set, str(path)
    )
    for key in flatten_config(config):
        origin = (
            "MODEL"
            if model and key == "model.name"
            else "SET"
            if key in touched
            else str(path)
            if key in in_file
            else "default"
        )
        assert sources[key] == origin, key


def leaf_sources(file: list[tuple[str, Any]], given_set: list[tuple[str, Any]], path: str) -> dict[str, str]:
    """The plain model: every key of a table has the source that gave it last."""
    table = "model.chat_template_kwargs"
    return {
        f"{table}.{leaf}": source
        for given_, source in ((file, path), (given_set, "SET"))
        for key, value in given_
        for inner in [value if key == table else value.get("chat_template_kwargs") if key == "model" else None]
        for leaf in inner or {}
    }


def test_a_table_keeps_the_source_of_each_key_in_errors_and_in_the_frozen_file(tmp_path: Path) -> None:
    path, frozen = tmp_path / "c.toml", tmp_path / "frozen.toml"
    path.write_text('[model.chat_template_kwargs]\nenable_thinking = "false"\n')
    for overrides in ("", "model.chat_template_kwargs.a=1"):
        with pytest.raises(SteerHealError) as refused:
            resolve_config(path, overrides)
        assert refused.value.given == f"{{'enable_thinking': 'false'}} from {path}"
        assert refused.value.next.endswith(f"then edit {path}")
    path.write_text("[model.chat_template_kwargs]\nenable_thinking = false\nb = {c = 1}\n")
    with pytest.raises(SteerHealError) as refused:
        resolve_config(path, "model.chat_template_kwargs.enable_thinking=False")
    assert refused.value.given == "{'enable_thinking': 'False'} from --set"
    config, sources = resolve_config(path, "model.chat_template_kwargs.a=1")
    frozen.write_text(to_toml(config, sources))
    assert resolve_config(frozen)[0] == config
    kept = {key.rpartition(".")[2]: source for key, source in sources_of(frozen).items() if "kwargs." in key}
    assert kept == {"enable_thinking": str(path), "b": str(path), "a": "SET"}


def flat_keys(key: str, value: Any) -> list[str]:
    return [f"{key}.{name}" for name in value] if key in SECTIONS else [key]


@pytest.mark.parametrize(
    ("overrides", "given_", "what"),
    [
        ("sweep.coefficients=[x]", "['x'] from --set", "sweep.coefficients.0"),
        ("sweep={coefficients=[1,1]}", "[1, 1] from --set", "sweep.coefficients"),
        ("sweep={window=0}", "0 from --set", "sweep.window"),
        ("sweep={widow=3}", "3 from --set", "sweep.widow"),
        ("train=3", "3 from --set", "train"),
        ("sweep.max_tokens=4", "0 from {path}", "train.rank"),
        ("model.chat_template_kwargs.tokenize=true", "from --set", "model.chat_template_kwargs"),
        ("train.lam='1\ntau = 9'", "from --set", "train.lam"),
    ],
)
def test_an_error_names_where_its_value_came_from(overrides: str, given_: str, what: str, tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text("[train]\nrank = 0\n" if "{path}" in given_ else "[sweep]\ntemperature = 0.9\n[train]\ntau = 0.1\n")
    for file in (path, None) if "{path}" not in given_ else (path,):
        with pytest.raises(SteerHealError) as refused:
            resolve_config(file, overrides)
        assert given_.format(path=path) in str(refused.value.given) and what in refused.value.what, refused.value


def test_numbers_that_toml_has_not_are_numbers() -> None:
    for text, value in (("-.5", -0.5), ("-1.", -1.0), ("-.5e0", -0.5), ("+.25", 0.25), ("5e-1", 0.5), ("-5e-1", -0.5)):
        assert resolve_config(None, f"train.lam_round_power={text}")[0].train.lam_round_power == value
        assert resolve_config(None, f"sweep.coefficients=[{text},2]")[0].sweep.coefficients == [value, 2.0]


def test_a_mark_before_a_file_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_bytes(b"\xef\xbb\xbfseed = 5\n")
    assert resolve_config(path)[0].seed == 5
    path.write_bytes("seed = 5\n".encode("utf-16"))
    with pytest.raises(SteerHealError, match="UTF-16") as refused:
        resolve_config(path)
    assert refused.value.next.startswith("iconv -f UTF-16")


@pytest.mark.parametrize("text", ["False", "false", "TRUE", " true "])
def test_a_template_is_not_told_the_text_of_a_truth_value(text: str, tmp_path: Path) -> None:
    """Jinja takes every text that is not empty for true: enable_thinking=False would turn thinking on."""
    (path := tmp_path / "c.toml").write_text(f"[model.chat_template_kwargs]\na = [{{b = '{text}'}}]\n")
    for file, overrides in (
        (None, shlex.quote(f"model.chat_template_kwargs.enable_thinking='{text}'")),
        (None, shlex.quote(f"model.chat_template_kwargs={{a = {{b = '{text}'}}}}")),
        (path, ""),
    ):
        with pytest.raises(SteerHealError, match="lower case and without quotes"):
            resolve_config(file, overrides)
    with pytest.raises(SteerHealError, match="enable_thinking is the text 'False'"):
        resolve_config(None, "model.chat_template_kwargs.enable_thinking=False")
    kept = resolve_config(None, shlex.quote("model.chat_template_kwargs={enable_thinking=false, effort='falsehood'}"))[
        0
    ]
    assert kept.model.chat_template_kwargs == {"enable_thinking": False, "effort": "falsehood"}


def test_a_comment_in_an_override_is_part_of_its_value() -> None:
    for overrides in ("train.lam=0.1#0.3", "train.report_to=[]#", "eval.stop=true#no"):
        with pytest.raises(SteerHealError, match="from --set"):
            resolve_config(None, overrides)
    assert resolve_config(None, "model.name=a#b")[0].model.name == "a#b"
    assert resolve_config(None, shlex.quote('model.name="a#b"'))[0].model.name == "a#b"


@pytest.mark.parametrize(
    ("overrides", "wanted"),
    [
        ("train={divergence=kl_fwd, lam=0.1}", {"train.divergence": "kl_fwd", "train.lam": 0.1}),
        ('train={divergence="kl_fwd", lam=0.1} seed=3', {"train.divergence": "kl_fwd", "train.lam": 0.1, "seed": 3}),
        ("sweep.coefficients=[0.5, 1, -.5]", {"sweep.coefficients": [0.5, 1.0, -0.5]}),
        ("train.report_to=[tensorboard, wandb]", {"train.report_to": ["tensorboard", "wandb"]}),
        ("model={name=org/model-1.5, chat_template_kwargs={enable_thinking=false, a={b = x}}}", {"model.name": "org/model-1.5", "model.chat_template_kwargs": {"enable_thinking": False, "a": {"b": "x"}}}),
    ],
)  # fmt: skip
def test_a_list_or_table_with_spaces_and_words(overrides: str, wanted: dict[str, Any]) -> None:
    config, sources = resolve_config(None, overrides)
    assert {
        key: flatten_config(config)[key]
        for key, source in sources.items()
        if source == "SET" and key in flatten_config(config)
    } == wanted


@pytest.mark.parametrize(
    "overrides", ["sweep={max_tokens=8 seed=3", "model.name=[a seed=3", "seed=3 sweep.coefficients=[1,"]
)
def test_a_bracket_that_is_not_closed_takes_nothing_with_it(overrides: str) -> None:
    with pytest.raises(SteerHealError, match="with its closing bracket"):
        resolve_config(None, overrides)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("train.lam=0.1 train.tau=0.2 train.lam=0.3", "train.lam"),
        ("seed=1 seed=1", "seed"),
        ("sweep={window=3} sweep.window=4", "sweep.window"),
        ("model.chat_template_kwargs={a={b=1}} model.chat_template_kwargs.a.b=2", "model.chat_template_kwargs.a.b"),
    ],
)
def test_a_key_given_twice_is_refused(text: str, key: str) -> None:
    """As a user gives it; a program may put its own overrides behind a user's."""
    with pytest.raises(SteerHealError, match="gives a key twice") as refused:
        config_options().parse_args(["--set", text])
    assert str(refused.value.given).startswith(f"{key}, the second time by ")
    assert resolve_config(None, "train.lam=0.1 train.lam=0.3")[0].train.lam == 0.3
    assert config_options().parse_args(["--set", "model.chat_template_kwargs={a=1} model.chat_template_kwargs.b=2"])
