"""Defaults < TOML < SET, unknown keys refused, every value with its source."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from shared.config import begun as begun_of
from shared.config import flat, resolve, sources_of, to_toml
from shared.errors import SteerHealError
from shared.schema import Config, band

ROOT = Path(__file__).parent.parent


def test_set_beats_file_beats_default(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text("[train]\nlam = 0.2\ntau = 0.5\n")
    config, sources = resolve(path, "train.lam=0.7 train.divergence=kl_fwd")
    assert (config.train.lam, config.train.tau, config.train.divergence, config.train.rank) == (0.7, 0.5, "kl_fwd", 32)
    assert (sources["train.lam"], sources["train.tau"], sources["train.rank"]) == ("SET", str(path), "default")


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.toml")), ids=lambda p: p.stem)
def test_shipped_configurations_resolve_and_survive_a_round_trip(path: Path, tmp_path: Path) -> None:
    config, sources = resolve(path)
    (tmp_path / "config.toml").write_text(to_toml(config, sources))
    assert resolve(tmp_path / "config.toml")[0] == config
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
        ("vector.trait=it's.json", "close the quote"),
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
        resolve(None, overrides)
    assert part in caught.value.render() and "next:" in caught.value.render()


def test_missing_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(SteerHealError, match="no configuration file"):
        resolve(tmp_path / "none.toml")
    (tmp_path / "broken.toml").write_text("[train\n")
    (tmp_path / "deep.toml").write_text("x = " + "[" * 3000 + "]" * 3000)
    for path in (tmp_path / "broken.toml", tmp_path / "deep.toml", tmp_path, tmp_path / ("long" * 200)):
        with pytest.raises(SteerHealError, match="a configuration file could not be read"):
            resolve(path)


def test_bands() -> None:
    assert band("0.45-0.55", 30) == [13, 14, 15, 16]
    assert band([15, 14], 30) == [14, 15]
    assert band("0-1", 4) == [0, 1, 2, 3]
    for wrong in ([30], [], "x", "0.9-0.1"):
        with pytest.raises(SteerHealError):
            band(wrong, 30)


def test_every_key_is_documented() -> None:
    for section, field in Config.model_fields.items():
        if section != "seed":
            assert all(inner.description for inner in type(field.default).model_fields.values()), section
    assert "train.divergence" in flat(Config())


def test_set_takes_a_list_of_words_whose_quotes_the_shell_has_eaten() -> None:
    for given in ("[tensorboard, trackio]", '["tensorboard", "trackio"]', "['tensorboard','trackio']"):
        assert resolve(None, f"'train.report_to={given}'" if "'" not in given else f"train.report_to={given}")[
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
        resolve(None, overrides)
    assert refused.value.expected == f"did you mean {meant}?"


def test_a_misspelt_file_names_what_was_meant(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").touch()
    with pytest.raises(SteerHealError) as refused:
        resolve(tmp_path / "mein.toml")
    assert f"CONFIG={tmp_path}/mine.toml" in refused.value.next


def test_the_frozen_file_of_a_run_begins_another(tmp_path: Path) -> None:
    config, sources = resolve(None, "train.lam=0.4")
    begun = datetime(2026, 1, 2, 3, 4, 5, 678, UTC)
    (tmp_path / "config.toml").write_text(to_toml(config, sources, begun))
    assert resolve(tmp_path / "config.toml")[0] == config and begun_of(tmp_path / "config.toml") == begun
    assert sources_of(tmp_path / "config.toml") == {
        key: words for key, words in sources.items() if flat(config)[key] is not None
    }
