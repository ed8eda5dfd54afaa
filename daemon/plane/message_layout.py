"""How a record that goes between the planes is declared: once, for the plane's dtype and for Python's struct.

Each kind of message has a NamedTuple whose annotations give the format of its fields, and whose comments say what they
mean (docs/contract.md has them as tables). The fields follow the header in the order of their declaration, each
aligned to its size, as a C compiler would place them.
"""

from __future__ import annotations

import struct
from typing import Annotated, Any, NamedTuple, get_type_hints

import numpy as np

U16 = Annotated[int, "<u2"]
U32 = Annotated[int, "<u4"]
I32 = Annotated[int, "<i4"]
I64 = Annotated[int, "<i8"]
Text48 = Annotated[bytes, "S48"]

_STRUCT_CODES = {"<u2": "H", "<u4": "I", "<i4": "i", "<i8": "q", "S48": "48s"}


class Field(NamedTuple):
    """A field's place in its record."""

    name: str
    format: str  # NumPy's
    offset: int

    @property
    def end(self) -> int:
        """The offset behind it."""
        return self.offset + np.dtype(self.format).itemsize


def place(record: type[Any], begin: int) -> tuple[Field, ...]:
    """The fields of a declared record, the first of them at `begin` or behind it."""
    fields: list[Field] = []
    end = begin
    for name, hint in get_type_hints(record, include_extras=True).items():
        kind = hint.__metadata__[0]
        alignment = np.dtype(kind).alignment
        fields.append(Field(name, kind, (end + alignment - 1) // alignment * alignment))
        end = fields[-1].end
    return tuple(fields)


def dtype_of(fields: tuple[Field, ...], size: int) -> Any:
    """The plane's view of a record of `size` bytes; np.record: fields are attributes."""
    assert all(field.end <= size for field in fields), f"the fields do not fit in {size} bytes"
    layout = {
        "names": [field.name for field in fields],
        "formats": [field.format for field in fields],
        "offsets": [field.offset for field in fields],
        "itemsize": size,
    }
    return np.dtype((np.record, layout))


def struct_of(fields: tuple[Field, ...], begin: int, size: int) -> struct.Struct:
    """Packs and unpacks the fields as they lie from `begin` to `size`; what lies between them is skipped, or zero."""
    codes, offset = "<", begin
    for field in fields:
        codes += f"{field.offset - offset}x{_STRUCT_CODES[field.format]}"
        offset = field.end
    return struct.Struct(f"{codes}{size - offset}x")
