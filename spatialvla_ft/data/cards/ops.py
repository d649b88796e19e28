"""What a dataset card may do to a column. Time is axis 0.

Floating-point columns are computed in their own precision, others in float32: 1 - x of a float64
column differs from that of its float32 copy, and the public cards promise the released numbers.
"""

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


def _real(values: Array) -> Array:
    """Floating-point numbers as they are, all else as float32."""
    return values if values.dtype.kind == "f" else values.astype(np.float32)


def clip(values: Array, low: float, high: float) -> Array:
    """Limit to [low, high]."""
    return np.clip(_real(values), low, high)


def invert(values: Array) -> Array:
    """1 - x, e.g. closedness to openness."""
    return np.asarray(1 - _real(values))


def scale(values: Array, factor: float) -> Array:
    """Factor * x."""
    return _real(values) * factor


def to_float(values: Array) -> Array:
    """As float32, e.g. from bool."""
    return values.astype(np.float32)


def wrap(values: Array) -> Array:
    """Angles in radians without their whole turns, within +-pi: differences across +pi and -pi."""
    values = _real(values)
    turn = 2 * np.pi
    return np.asarray(values - turn * np.round(values / turn))


def squeeze_last(values: Array) -> Array:
    """Drop a last axis of size 1."""
    return values[..., 0]


def binarize_backward(values: Array, open_above: float, closed_below: float) -> Array:
    """1 above `open_above`, 0 below `closed_below`; between, what the next step is.

    The scan runs from the last step to the first and starts from the last raw value, so that a
    tail may stay in between.
    """
    values = _real(values)
    count = len(values)
    if not count:
        return np.empty_like(values)
    is_open = values > open_above
    decided = is_open | (values < closed_below)
    steps = np.arange(count).reshape(-1, *[1] * (values.ndim - 1))
    later = np.minimum.accumulate(np.where(decided, steps, count)[::-1], axis=0)[::-1]
    state = np.take_along_axis(is_open, np.minimum(later, count - 1), axis=0)
    return np.where(later < count, state.astype(values.dtype), values[-1])


def rel_to_abs(values: Array, eps: float, positive_is: str) -> Array:
    """Gripper events to the absolute state, 1 open and 0 closed.

    |x| <= eps is no event. Before the first event the gripper is in the opposite state of it;
    without any event it is open.
    """
    values = _real(values)
    if not len(values):
        return values.astype(np.float32)
    opening, closing = values > eps, values < -eps
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


_LOCKED = 1e-6
"""Pitch counts as +-90 degrees if its sine is this near to +-1, as in TensorFlow Graphics."""


def quat_to_euler(values: Array, order: str) -> Array:
    """(..., 4) unit quaternions, x y z w, to roll, pitch, yaw with R = Rz Ry Rx.

    At pitch +-90 degrees the yaw is 0 and the roll holds both turns. As in the released code,
    quaternions are not scaled to unit length, and every product shrinks by two machine epsilons:
    in float32 that decides which angles near +-90 degrees count as such. All zeros, which fills
    gaps in recordings, is no turn.

    Raises:
        ValueError: a quaternion is so much longer than 1 that its pitch has no value.
    """
    del order  # one value is allowed: xyzw
    quaternion = _real(values)
    epsilon = 2 * np.finfo(quaternion.dtype).eps
    shrink = 1 - epsilon
    x, y, z, w = np.moveaxis(quaternion, -1, 0)
    x2, y2, z2 = (2 * part * shrink for part in (x, y, z))
    sine = (y2 * w - z2 * x) * shrink
    locked = np.abs(np.abs(sine) - 1) < _LOCKED
    if (np.abs(sine[~locked]) > 1).any():
        longest = np.linalg.norm(quaternion, axis=-1).max()
        raise ValueError(
            f"quat_to_euler takes quaternions of length 1, got one of length {longest:.4g}; mend "
            "the slice of the term"
        )

    def angle(opposite: Array, adjacent: Array) -> Array:
        adjacent = adjacent * shrink
        sign = np.where(adjacent < 0, -1, 1).astype(adjacent.dtype)
        return np.asarray(np.arctan2(opposite * shrink, adjacent + sign * epsilon))

    roll = angle(z2 * y + x2 * w, 1 - (x2 * x + y2 * y))
    pitch = np.arcsin(np.clip(sine, -1, 1))
    yaw = angle(y2 * x + z2 * w, 1 - (y2 * y + z2 * z))
    side = np.where(sine < 0, -1, 1).astype(sine.dtype)
    both = angle(side * (y2 * x - z2 * w), side * (z2 * x + y2 * w))
    free = np.stack([roll, pitch, yaw], axis=-1)
    lock = np.stack([both, side * (np.pi / 2), np.zeros_like(both)], axis=-1)
    return np.where(locked[..., None], lock, free)


def axis_angle_to_euler(values: Array, norm_eps: float) -> Array:
    """(..., 3) rotation vectors to roll, pitch, yaw; the axis is v / (|v| + norm_eps)."""
    values = _real(values)
    angle = np.linalg.norm(values, axis=-1, keepdims=True)
    axis = values / (angle + norm_eps)
    return quat_to_euler(np.concatenate([axis * np.sin(angle / 2), np.cos(angle / 2)], -1), "xyzw")


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
    "wrap": wrap,
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
LOOKS_ALONG = frozenset({"binarize_backward", "rel_to_abs"})
"""Ops whose result at a step depends on other steps of the episode."""

_BARE = ("invert", "float", "wrap", "squeeze_last")
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
        for item in value:
            _check("clip", item)
        if value[0] >= value[1]:
            raise ValueError(f"op 'clip' takes [low, high] with low < high, got {value!r}")
        return Op(name, tuple(float(x) for x in value))
    _check(name, value)
    if name == "zlib_float32" and not (isinstance(value, int) and value >= 1):
        raise ValueError(f"op 'zlib_float32' takes a number of columns, 1 or more, got {value!r}")
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
