"""Terms of a dataset card: a path into a step, an optional slice, and ops applied in order.

observation.state[0:6]      last axis; negative numbers count from its end, none may leave it
zeros(1)  ones(3)           constants, that wide
{src: action[-1:], ops: [{clip: [0, 1]}, invert]}
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spatialvla_ft.data.cards.ops import LOOKS_ALONG, Op, apply_op, parse_op
from spatialvla_ft.data.errors import DatasetError
from spatialvla_ft.data.store import Column

_CONSTANT = re.compile(r"(zeros|ones)\((\d+)\)")
_PATH = re.compile(r"([^\[\]()\s]+)(?:\[(-?\d+)?:(-?\d+)?\])?")


@dataclass(frozen=True)
class Term:
    """A value per step: `path` and `columns`, or a `constant` that is `width` wide."""

    path: str | None
    columns: slice
    constant: float
    width: int
    ops: tuple[Op, ...]

    def __str__(self) -> str:
        """As a card writes it, without ops."""
        if self.path is None:
            return f"{'ones' if self.constant else 'zeros'}({self.width})"
        start, stop = self.columns.start, self.columns.stop
        if start is None and stop is None:
            return self.path
        return f"{self.path}[{'' if start is None else start}:{'' if stop is None else stop}]"

    @cached_property
    def looks_along(self) -> bool:
        """Whether a value depends on other steps of the episode."""
        return any(op.name in LOOKS_ALONG for op in self.ops)

    def evaluate(self, trajectory: Mapping[str, Any], steps: int) -> NDArray[Any]:
        """(T, n) values; a scalar per step becomes 1 wide; as they come, cast by the caller."""
        if self.path is None:
            return np.full((steps, self.width), self.constant, np.float32)
        if self.path not in trajectory:
            raise DatasetError(
                f"the card reads {self.path!r}, the dataset has {sorted(trajectory)}; mend the card"
            )
        values = _as_array(self.path, trajectory[self.path])
        if values.ndim == 1:
            values = values[:, None]
        self.check_slice(values.shape[-1])
        values = values[..., self.columns]
        for op in self.ops:
            values = apply_op(op, values)
        return values

    def check_slice(self, width: int) -> None:
        """DatasetError unless the slice lies inside a column that is so wide, and takes some."""
        start, stop = self.columns.start, self.columns.stop
        if start is None and stop is None:
            return
        first = 0 if start is None else start + width * (start < 0)
        end = width if stop is None else stop + width * (stop < 0)
        if not 0 <= first < end <= width:
            raise DatasetError(
                f"{self} leaves its column: {self.path!r} is {width} wide and cannot give that; a "
                f"slice [a:b] has 0 <= a < b <= {width}, or counts up to {width} from the end; "
                "mend it in the card"
            )

    def check_column(self, column: Column) -> int | None:
        """How many columns it gives of what a dataset has under `path`; None where that is open.

        Raises:
            DatasetError: no numbers, or the slice leaves the column.
        """
        packed = bool(self.ops) and self.ops[0].name == "zlib_float32"
        if column.kind != "numbers" and not (packed and column.kind == "words"):
            raise DatasetError(f"{self} reads {column.kind}, a term reads numbers; mend the card")
        wide = column.shape[-1] if column.shape else 1
        if wide >= 0 and not packed:
            self.check_slice(wide)
        return self.width_of(wide)

    def width_of(self, wide: int) -> int | None:
        """Columns after slice and ops, of a column so `wide`, or -1; None where it is not known."""
        if self.path is None:
            return self.width
        taken = None if wide < 0 else len(range(wide)[self.columns])
        for op in self.ops:
            if op.name in _WIDTHS:
                taken = _WIDTHS[op.name]
            elif op.name == "zlib_float32":
                taken = int(op.args[0])
            elif op.name == "squeeze_last":
                return None
        return taken


_WIDTHS = {"quat_to_euler": 3, "axis_angle_to_euler": 3}
"""Ops that change how many columns there are."""


def _as_array(path: str, column: Any) -> NDArray[Any]:
    """(T, ...) numbers of a column; DatasetError if it has none, or not as many at every step."""
    if column is None:
        raise DatasetError(f"{path!r} has no value here; leave the episode out")
    if isinstance(column, list):
        shapes = [np.shape(row) for row in column]
        for step, shape in enumerate(shapes):
            if shape != shapes[0]:
                raise DatasetError(
                    f"{path!r} has shape {shapes[0]} at first and {shape} {step} steps later: its "
                    "length varies, and a term reads as many numbers at every step; name another "
                    "column, or leave the episode out"
                )
        if not column:
            column = np.empty((0, 0))
    values = np.asarray(column)
    if values.dtype == object and any(value is None for value in values.ravel().tolist()):
        raise DatasetError(f"{path!r} has no value at some steps; leave the episode out")
    return values


def parse_term(raw: Any) -> Term:
    """A `Term` from YAML; ValueError if it is none."""
    ops: tuple[Op, ...] = ()
    source = raw
    if isinstance(raw, dict):
        if not {"src"} <= raw.keys() <= {"src", "ops"}:
            raise ValueError(f"a term is a path or {{src, ops}}, got keys {sorted(raw)}")
        source = raw["src"]
        listed = raw.get("ops", [])
        if not isinstance(listed, list):
            raise ValueError(f"ops is a list, got {listed!r}; write it in [ ]")
        ops = tuple(parse_op(op) for op in listed)
    if not isinstance(source, str):
        raise ValueError(f"a term is a path or {{src, ops}}, got {raw!r}")
    if constant := _CONSTANT.fullmatch(source):
        value = 1.0 if constant[1] == "ones" else 0.0
        return Term(None, slice(None), value, int(constant[2]), ops)
    if path := _PATH.fullmatch(source):
        start, stop = (None if end is None else int(end) for end in path.groups()[1:])
        ends = (0 if start is None else start, stop)
        if ends[1] is not None and (ends[0] < 0) == (ends[1] < 0) and ends[0] >= ends[1]:
            raise ValueError(f"{source!r} takes no columns; in [a:b] b is larger than a")
        return Term(path[1], slice(start, stop), 0.0, -1, ops)
    raise ValueError(f"{source!r} is no term; write path, path[a:b], zeros(n) or ones(n)")
