"""What a dataset card may do to a column. Time is axis 0; thresholds compare in float32."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

Array = NDArray[Any]


@dataclass(frozen=True)
class Op:
    """An operation and its checked parameters."""

    name: str
    args: tuple[Any, ...]


def clip(values: Array, low: float, high: float) -> Array:
    """Limit to [low, high]."""
    return np.clip(values.astype(np.float32), np.float32(low), np.float32(high))


def invert(values: Array) -> Array:
    """1 - x, e.g. closedness to openness."""
    return np.float32(1) - values.astype(np.float32)


def scale(values: Array, factor: float) -> Array:
    """Factor * x."""
    return values.astype(np.float32) * np.float32(factor)


def to_float(values: Array) -> Array:
    """As float32, e.g. from bool."""
    return values.astype(np.float32)


def squeeze_last(values: Array) -> Array:
    """Drop a last axis of size 1."""
    return values[..., 0]


def binarize_backward(values: Array, open_above: float, closed_below: float) -> Array:
    """1 above `open_above`, 0 below `closed_below`; between, what the next step is.

    The scan runs from the last step to the first and starts from the last raw value, so that a
    tail may stay in between.
    """
    values = values.astype(np.float32)
    is_open = values > np.float32(open_above)
    is_closed = values < np.float32(closed_below)
    out = np.empty_like(values)
    carry = values[-1]
    for t in reversed(range(len(values))):
        carry = np.where(is_open[t], np.float32(1), np.where(is_closed[t], np.float32(0), carry))
        out[t] = carry
    return out


def rel_to_abs(values: Array, eps: float, positive_is: str) -> Array:
    """Gripper events to the absolute state, 1 open and 0 closed.

    |x| <= eps is no event. Before the first event the gripper is in the opposite state of it;
    without any event it is open.
    """
    values = values.astype(np.float32)
    opening, closing = values > np.float32(eps), values < -np.float32(eps)
    if positive_is == "close":
        opening, closing = closing, opening
    event = np.where(opening, 1, np.where(closing, -1, 0))
    steps = np.arange(len(event)).reshape(-1, *[1] * (event.ndim - 1))
    last = np.maximum.accumulate(np.where(event != 0, steps, -1), axis=0)
    held = np.take_along_axis(event, np.maximum(last, 0), axis=0)
    first = np.take_along_axis(event, np.argmax(event != 0, axis=0)[None], axis=0)
    start = np.where(first == 0, 1, -first)
    return (np.where(last < 0, start, held) > 0).astype(np.float32)


def euler_xyz(rotation: Rotation) -> Array:
    """Roll, pitch, yaw (scipy 'xyz'), float32; yaw is 0 at pitch +-90 degrees."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Gimbal lock")
        euler: Array = rotation.as_euler("xyz").astype(np.float32)
    return euler


def quat_to_euler(values: Array, order: str) -> Array:
    """(..., 4) quaternions, x y z w, to roll, pitch, yaw; yaw is 0 at pitch +-90 degrees."""
    del order  # one value is allowed: xyzw
    return euler_xyz(Rotation.from_quat(values.astype(np.float64)))


def axis_angle_to_euler(values: Array, norm_eps: float) -> Array:
    """(..., 3) rotation vectors to roll, pitch, yaw; the axis is v / (|v| + norm_eps)."""
    values = values.astype(np.float64)
    angle = np.linalg.norm(values, axis=-1, keepdims=True)
    axis = values / (angle + norm_eps)
    quat = np.concatenate([axis * np.sin(angle / 2), np.cos(angle / 2)], axis=-1)
    return euler_xyz(Rotation.from_quat(quat))


def zlib_float32(values: Array, width: int) -> Array:
    """(T, 1) compressed bytes to (T, width) float32; numbers pass (read decoded)."""
    if values.dtype != object and values.dtype.kind != "S":
        return values.astype(np.float32)
    # NumPy's fixed-width strings lose zeros at their end, which zlib ignores beyond its own.
    lost = b"\0" * 4 if values.dtype.kind == "S" else b""
    rows = [np.frombuffer(zlib.decompress(blob + lost), np.float32) for blob in values.ravel()]
    return np.stack(rows).reshape(len(rows), width)


_OPS: dict[str, Callable[..., Array]] = {
    "clip": clip,
    "invert": invert,
    "scale": scale,
    "float": to_float,
    "squeeze_last": squeeze_last,
    "binarize_backward": binarize_backward,
    "rel_to_abs": rel_to_abs,
    "quat_to_euler": quat_to_euler,
    "axis_angle_to_euler": axis_angle_to_euler,
    "zlib_float32": zlib_float32,
}
_KEYED = {
    "binarize_backward": ("open_above", "closed_below"),
    "rel_to_abs": ("eps", "positive_is"),
    "axis_angle_to_euler": ("norm_eps",),
}
_BARE = ("invert", "float", "squeeze_last")
_CHOICES = {"positive_is": ("close", "open"), "quat_to_euler": ("xyzw",)}


def parse_op(raw: Any) -> Op:
    """An `Op` from YAML, `name` or `{name: parameters}`; ValueError with what is allowed."""
    if isinstance(raw, str):
        name, value = raw, None
    elif isinstance(raw, dict) and len(raw) == 1:
        ((name, value),) = raw.items()
    else:
        raise ValueError(f"an op is a name or {{name: parameters}}, got {raw!r}")
    if name not in _OPS:
        raise ValueError(f"unknown op {name!r}; there are {sorted(_OPS)}")
    if name in _BARE:
        if value is not None:
            raise ValueError(f"op {name!r} takes no parameters, got {value!r}")
        return Op(name, ())
    if name in _KEYED:
        if not isinstance(value, dict) or set(value) != set(_KEYED[name]):
            raise ValueError(f"op {name!r} takes {list(_KEYED[name])}, got {value!r}")
        for key, item in value.items():
            _check(key, item)
        return Op(name, tuple(value[key] for key in _KEYED[name]))
    if name == "clip":
        if not isinstance(value, list) or len(value) != 2:
            raise ValueError(f"op 'clip' takes [low, high], got {value!r}")
        return Op(name, tuple(float(x) for x in value))
    _check(name, value)
    return Op(name, (value,))


def _check(key: str, value: Any) -> None:
    if key in _CHOICES:
        if value not in _CHOICES[key]:
            raise ValueError(f"{key} must be one of {list(_CHOICES[key])}, got {value!r}")
    elif isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{key} must be a number, got {value!r}")


def apply_op(op: Op, values: Array) -> Array:
    """Result of one op."""
    return _OPS[op.name](values, *op.args)
