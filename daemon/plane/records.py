"""What all of the plane's memory is made of: packed records, found by their address, and lazily given pages.

Compiled, an accessor is a plain pointer; interpreted, a view of the same bytes. Nothing here knows what a record means.
"""

from __future__ import annotations

import ctypes
import mmap
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np

from config.compilation import from_dtype, inlined, intrinsic, overload, types

if TYPE_CHECKING:
    from collections.abc import Callable

F = TypeVar("F", bound="Callable[..., Any]")


def record(fields: str, size: int) -> Any:
    """A packed record type from `name:format` words, padded to `size` bytes; np.record: fields are attributes."""
    names: list[str] = []
    formats: list[str] = []
    offsets: list[int] = []
    offset = 0
    for word in fields.split():
        name, kind = word.split(":")
        width = np.dtype(kind).itemsize
        assert offset % width == 0, f"{name} is not aligned"
        names.append(name)
        formats.append(kind)
        offsets.append(offset)
        offset += width
    assert offset <= size, f"{offset} bytes do not fit in {size}"
    layout = {"names": names, "formats": formats, "offsets": offsets, "itemsize": size}
    return np.dtype((np.record, layout))


def _field_or_attribute(view: Any, name: str) -> Any:
    if name in np.void.__getattribute__(view, "dtype").fields:
        return view[name].item()  # a plain integer: compiled arithmetic has 64 bits, NumPy's would wrap at 32
    return np.record.__getattribute__(view, name)


# A record whose fields win over NumPy's attributes: `flags` is the field, not the array's flags. Made by a call:
# NumPy's annotations forbid the subclass that NumPy itself allows.
_FieldsFirst: Any = type("_FieldsFirst", (np.record,), {"__getattribute__": _field_or_attribute})


def _python_view(dtype: Any, address: int) -> Any:
    memory = (ctypes.c_char * dtype.itemsize).from_address(address)
    return np.frombuffer(memory, dtype=np.dtype((_FieldsFirst, dtype)))[0]


def record_accessor(dtype: Any) -> Any:
    """A function from an address to the record that lies there: a plain pointer when compiled."""
    record_type = from_dtype(dtype)

    @intrinsic
    def at_address(_context: Any, address: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

        return record_type(types.intp), generate

    def at(address: int) -> Any:
        return _python_view(dtype, int(address))

    @overload(at)
    def _at(address: Any) -> Any:
        def implementation(address: Any) -> Any:
            return at_address(address)

        return implementation

    return at


def array_accessor(dtype: Any, array: str, count: int | str) -> Callable[[Any, int], Any]:
    """A function from the plane and an index to that record of one of its arrays.

    `array` names the plane's field with the array's address. `count` is how many records it has, or names the field.
    """
    at, record_bytes, limit = record_accessor(dtype), dtype.itemsize, cast("Any", count)

    def of_counted(plane: Any, index: int) -> Any:
        assert 0 <= index < plane[limit]
        return at(plane[array] + index * record_bytes)

    def of_fixed(plane: Any, index: int) -> Any:
        assert 0 <= index < limit
        return at(plane[array] + index * record_bytes)

    accessor: Callable[[Any, int], Any] = of_counted if isinstance(count, str) else of_fixed
    return inlined_as(f"record_of_{array}", accessor)


def circle_accessor(dtype: Any, array: str, mask: int | str) -> Callable[[Any, int], Any]:
    """As `array_accessor`, of an array used in a circle: it has `mask` + 1 records, a power of two."""
    at, record_bytes, limit = record_accessor(dtype), dtype.itemsize, cast("Any", mask)

    def of_masked(plane: Any, index: int) -> Any:
        return at(plane[array] + (index & plane[limit]) * record_bytes)

    def of_fixed(plane: Any, index: int) -> Any:
        return at(plane[array] + (index & limit) * record_bytes)

    accessor: Callable[[Any, int], Any] = of_masked if isinstance(mask, str) else of_fixed
    return inlined_as(f"record_of_{array}", accessor)


def inlined_as(name: str, function: F) -> F:
    """Mark a function that a factory has made. Its name tells it from others that come from the same lines."""
    function.__name__ = function.__qualname__ = name
    return inlined(function)


BYTE = record("value:u1", 1)
_byte_at = record_accessor(BYTE)

LINK = record("next:i4", 4)
VALUE = record("value:i8", 8)
value_at = record_accessor(VALUE)


@inlined
def load_byte(address: int) -> int:
    return int(_byte_at(address).value)


@inlined
def store_byte(address: int, value: int) -> None:
    _byte_at(address).value = value


def lazy_bytes(count: int) -> Any:
    """`count` zero bytes the kernel gives out page by page as they are touched: large limits cost no memory."""
    area = mmap.mmap(-1, max(count, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0))
    return np.frombuffer(area, dtype=np.uint8)


def lazy_records(dtype: Any, count: int) -> Any:
    """As `lazy_bytes`, viewed as records."""
    return lazy_bytes(count * dtype.itemsize).view(dtype)


def free_list(number: int) -> Any:
    """A stack of `number` free things, the lowest on top."""
    following = np.arange(1, number + 1, dtype=np.int32)
    following[-1] = -1
    return following.view(LINK)
