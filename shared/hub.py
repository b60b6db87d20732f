"""Uploads to the hub, always behind a flag."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from shared.errors import SteerHealError, in_one_line


def public_name(name: str) -> str:
    """A name to publish: of a local path, which says where somebody keeps their files, the last part alone."""
    return Path(name).name if name and Path(name).exists() else name


def push(folder: Path, repository: str, private: bool, kind: Literal["model", "dataset"]) -> None:
    """Upload a folder. Raises SteerHealError when the hub cannot be reached or says no.

    Args:
        folder: its files are uploaded as they stand.
        repository: id on the hub, made where it does not exist.
        private: the repository must be private; one that is public is refused.
        kind: of the repository.
    """
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        api.create_repo(repository, repo_type=kind, private=private, exist_ok=True)
        if private and not api.repo_info(repository, repo_type=kind).private:  # it was there before, and public
            raise PermissionError("the repository is public")
        api.upload_folder(folder_path=folder, repo_id=repository, repo_type=kind)
    except Exception as error:  # the hub client raises many types for one fact: the upload did not happen
        raise SteerHealError(
            f"the {kind} was written but not uploaded",
            given=f"{repository}: {in_one_line(error)}",
            expected=f"a {'private ' if private else ''}repository you may write to",
            next=f"hf auth login, then: hf upload {repository} {folder} --repo-type {kind}",
        ) from None
