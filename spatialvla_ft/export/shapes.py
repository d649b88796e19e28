"""Names for shapes in annotations: `Float[Tensor, "B T"]` means `Tensor` here.

Stands in for jaxtyping in exported code, which must run where only torch and transformers are
installed. The shapes stay in the source for people to read.
"""

from __future__ import annotations

from typing import Any


class _Shaped:
    """Subscripted with an array type and a shape, it is the array type."""

    def __class_getitem__(cls, item: tuple[Any, str]) -> Any:
        return item[0]


class Bool(_Shaped):
    """Truth values."""


class Float(_Shaped):
    """Floating point numbers of any width."""


class Float32(_Shaped):
    """Floating point numbers of 32 bits."""


class Float64(_Shaped):
    """Floating point numbers of 64 bits."""


class Int(_Shaped):
    """Integers of any width."""


class Int64(_Shaped):
    """Integers of 64 bits."""


class UInt8(_Shaped):
    """Bytes."""
