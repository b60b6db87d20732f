"""Whether a name that may be a path or something on the hub was meant as a path."""

from __future__ import annotations

import os

FILES = (".gguf", ".json", ".jsonl", ".csv", ".tsv", ".parquet", ".txt", ".safetensors", ".bin", ".pt", ".pth", ".toml")


def means_path(name: str) -> bool:
    """Whether nobody would write this for `owner/name` on the hub."""
    return (
        not name.strip()
        or name.startswith((".", "~", os.sep))
        or name.endswith((os.sep, *FILES))
        or name.count(os.sep) > 1
        or "\\" in name
        or "\0" in name
    )


def no_tilde(name: str) -> str:
    """A clause for an error, where a name begins with what only a shell expands."""
    return f" (~ is the shell's: write {os.path.expanduser(name)})" if name.startswith("~") else ""
