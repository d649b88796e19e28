"""Terms of a dataset card: a path into a step, an optional slice, and ops applied in order.

observation.state[0:6]      last axis, Python slice rules
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

from spatialvla_ft.data.errors import DatasetError
from spatialvla_ft.data.ops import LOOKS_ALONG, Op, apply_op, parse_op

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
        values = np.asarray(trajectory[self.path])
        if values.ndim == 1:
            values = values[:, None]
        values = values[..., self.columns]
        for op in self.ops:
            values = apply_op(op, values)
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
        return Term(path[1], slice(start, stop), 0.0, -1, ops)
    raise ValueError(f"{source!r} is no term; write path, path[a:b], zeros(n) or ones(n)")
