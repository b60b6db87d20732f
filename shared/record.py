"""The base of every row and record that is read from a file; `shared.records` has them."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict

VERSION = 1


def _whole(version: Any) -> Any:
    if type(version) is not int:  # Literal takes true and 1.0 for 1
        raise ValueError("a whole number")
    return version


class Record(BaseModel):
    """What is read from a file: "5.0", true and [1.0] are no numbers, and 1.0 is no count."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False, strict=True)
    version: Annotated[Literal[1], BeforeValidator(_whole)] = 1
    known_by: ClassVar[tuple[str, ...]] = ()  # fields that no two rows of a file have in common
    shape: ClassVar[str] = ""  # what a row holds, for errors, where its required fields do not say it
