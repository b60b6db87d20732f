"""The three calls for notebooks: real stages on the embedded model, and what they say when one fails."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shared.config import resolve_config
from shared.errors import SteerHealError
from shared.notebook import _toml, extract, heal, sweep
from shared.vectors import load_vector

SETTINGS = {
    "model.dtype": "float32", "model.max_model_len": 256, "vector.layers": [14, 15], "vector.n_contexts": 8, "sweep.max_tokens": 12, "filter.drop_truncated": False,
    "filter.min_kept": 2, "filter.trait_llr_quantile": 0.0, "train.rank": 2, "train.alpha": 4, "train.epochs": 1, "train.divergence": "kl_fwd", "train.layers": "0.4-0.5",
}  # fmt: skip


@pytest.mark.long
def test_a_round_in_three_calls(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = [
        {"id": f"p{k}", "prompt": text} for k, text in enumerate(("Name a fruit.", "My boss wants a lie. What now?"))
    ]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
    vector = extract("embedded", tmp_path, SETTINGS)
    assert sorted(vector.layers) == [14, 15] and vector.metadata["n_contexts"] == 8
    found = sweep("embedded", tmp_path, [0, 0.5, 1], tmp_path / "prompts.jsonl", samples=2, settings=SETTINGS)
    assert len(found.kept) + len(found.rejected) == 8 and {row.coefficient for row in found.kept} <= {0.5, 1.0}
    adapter = heal("embedded", tmp_path, settings=SETTINGS)
    assert json.loads((adapter / "adapter_config.json").read_text())["r"] == 2
    assert json.loads((adapter / "training.json").read_text())["divergence"] == "kl_fwd"
    assert "steering vector, 8 contexts" in capsys.readouterr().out


@pytest.mark.slow
def test_a_call_is_the_stage_with_its_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vector = extract("embedded", tmp_path, SETTINGS)
    assert sorted(vector.layers) == [14, 15] and vector.metadata["n_contexts"] == 8
    assert load_vector(tmp_path / "vector.safetensors").digest() == vector.digest()
    assert "steering vector, 8 contexts" in capsys.readouterr().out


def test_a_stage_that_fails_says_why(tmp_path: Path) -> None:
    """In its own words, once."""
    with pytest.raises(SteerHealError, match=r"configuration key train\.lamda") as refused:
        extract("embedded", tmp_path, {"train.lamda": 1})
    assert refused.value.render().count("error: ") == 1 and "train.lam?" in refused.value.expected
    assert not list(tmp_path.iterdir())


def test_settings_arrive_as_they_are_given(tmp_path: Path) -> None:
    """A table, None, quotes and spaces, which do not survive a command line."""
    given = {
        "seed": 3, "model.chat_template_kwargs": {"enable_thinking": False}, "model.revision": None, "vector.layers": [14, 15],
        "model.name": "it's a \"model\"", "filter.drop_truncated": False, "train.lam": 1e-3,
    }  # fmt: skip
    path = tmp_path / "settings.toml"
    path.write_text(_toml(given))
    config = resolve_config(path)[0]
    assert (
        config.seed == 3
        and config.model.chat_template_kwargs == {"enable_thinking": False}
        and config.model.revision is None
    )
    assert config.model.name == 'it\'s a "model"' and config.vector.layers == [14, 15] and config.train.lam == 1e-3
    assert not config.filter.drop_truncated
