"""The columns of a completion in Parquet, made from the record: a field that shared.records.Completion gains has its column."""

from __future__ import annotations

import types
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from shared.records import Completion

if TYPE_CHECKING:
    import pyarrow


def schema() -> pyarrow.Schema:
    """The columns of a completion: the fields of shared.records.Completion in their order."""
    import pyarrow as pa

    return pa.schema({name: column_type(field.annotation) for name, field in Completion.model_fields.items()})


def column_type(annotation: Any) -> pyarrow.DataType:
    """The Arrow type of a field. Lists of whole numbers are token ids, which fit into 32 bits.

    Args:
        annotation: of a field of a record: text, a number, a truth value, a literal, a list or a record of these, or one of them or None.

    Raises:
        TypeError: an annotation of another kind.
    """
    import pyarrow as pa

    if get_origin(annotation) is Annotated:
        return column_type(get_args(annotation)[0])
    if get_origin(annotation) is Literal:
        return column_type(type(get_args(annotation)[0]))
    if get_origin(annotation) in (Union, types.UnionType):
        (inner,) = (member for member in get_args(annotation) if member is not type(None))
        return column_type(inner)
    if get_origin(annotation) is list:
        item = column_type(get_args(annotation)[0])
        return pa.list_(pa.int32() if item == pa.int64() else item)
    plain = {str: pa.string(), float: pa.float64(), int: pa.int64(), bool: pa.bool_()}
    if annotation in plain:
        return plain[annotation]
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return pa.struct({name: column_type(field.annotation) for name, field in annotation.model_fields.items()})
    raise TypeError(f"a completion's field has no column for {annotation!r}")
