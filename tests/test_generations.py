"""The held-out prompts of the free generations: rows are known by their ids."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shared.errors import SteerHealError
from shared.prompts import load_heldout


@pytest.mark.parametrize(("ids", "part"), [(["a", "b", "a"], "id a twice"), (["a", None], "no id"), ([None], "no id")])
def test_prompts_that_cannot_be_told_apart_are_refused(tmp_path: Path, ids: list[str | None], part: str) -> None:
    path = tmp_path / "heldout.jsonl"
    path.write_text("".join(json.dumps({"id": name, "prompt": "Name a fruit."}) + "\n" for name in ids))
    with pytest.raises(SteerHealError, match="needs a unique id") as refused:
        load_heldout(str(path))
    assert part in refused.value.render()


def test_the_embedded_prompts_have_ids() -> None:
    assert len({row.id for row in load_heldout("embedded")}) == len(load_heldout("embedded")) > 8
