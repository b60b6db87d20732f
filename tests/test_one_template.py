"""Nobody but the chat reads a template, a begin or end of sequence, or an added token."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
WORDS = {
    "apply_chat_template", "get_chat_template", "chat_template", "bos_token", "bos_token_id", "eos_token", "eos_token_id",
    "added_tokens_decoder", "added_tokens_encoder", "get_added_vocab", "all_special_ids", "all_special_tokens",
}  # fmt: skip
READERS = {"chat.py", "template.py", "control.py", "thinking.py", "turn_end.py"}  # of shared
MAKERS = {
    "embedded.py",
    "dequantise.py",
    "gguf_tokenizer.py",
}  # they write the tokenizer of a folder that the chat then reads


def read(source: str) -> set[str]:
    """The words that a source reads or writes as attributes, or by getattr."""
    tree = ast.parse(source)
    attributes = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    named = {
        node.args[1].value
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("getattr", "hasattr", "setattr")
        and len(node.args) > 1 and isinstance(node.args[1], ast.Constant)
    }  # fmt: skip
    return WORDS & (attributes | named)


@pytest.mark.parametrize("package", ["shared", "gen", "train", "evals"])
def test_nobody_else_reads_a_template(package: str) -> None:
    ours = {ROOT / "shared" / name for name in READERS | MAKERS}
    found = {
        f"{path.relative_to(ROOT)}: {word}"
        for path in (ROOT / package).rglob("*.py")
        if path not in ours
        for word in read(path.read_text(encoding="utf-8"))
    }
    assert not found


@pytest.mark.parametrize(
    "source",
    ["t.apply_chat_template([])", "x = t.eos_token_id", "getattr(t, 'bos_token')", "t.added_tokens_decoder.items()"],
)
def test_a_reader_would_be_found(source: str) -> None:
    assert read(source)


def test_words_of_other_functions_are_no_reading() -> None:
    assert not read("network.generate(eos_token_id=stop)  # eos_token")
