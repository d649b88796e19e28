"""Does a stream of tool poses hold poses, or the differences between them? The numbers decide.

Public converters of one dataset disagree on this, and training on the wrong reading fails without
an error. So both stories are told in physical units and each must be possible for a robot arm:

- absolute: the tool is away from the base axis, moves along a smooth path, and no faster than an
  arm can;
- difference: every step is one that an arm can make, and all steps together stay in its reach.

If one story holds and the other does not, that is the answer; otherwise there is none. A robot that
does not move tells neither, and so does a stream that is not in metres and radians. A displacement
from the start of the episode is neither of the two and may be mistaken for either.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float64
from numpy.typing import ArrayLike

Kind = Literal["absolute", "difference", "ambiguous"]

MIN_SAMPLES = 20
DEFAULT_INTERVAL = 0.2
"""Seconds between samples where there are no timestamps."""
MAX_SPEED, MAX_TURN = 1.5, 3.0
"""What a demonstrated arm does not exceed: m/s, rad/s."""
MIN_REACH, MAX_REACH = 0.1, 2.0
"""Distance of a tool from its base, and diameter of what it sweeps: metres."""
MIN_TRAVEL = 0.02
"""Metres between the two farthest corners of a path; less is standing still."""
MIN_SMOOTHNESS = 0.5
UNIT_NORM = (0.9, 1.1)


@dataclass(frozen=True)
class TcpVerdict:
    """What a stream is, and the numbers that say so.

    Attributes:
        kind: the answer; "ambiguous" where both stories hold or neither does.
        numbers: the statistic by name, in metres, radians and seconds.
        against_absolute, against_difference: why the story cannot be true; empty where it can.
    """

    kind: Kind
    numbers: dict[str, float]
    against_absolute: tuple[str, ...] = ()
    against_difference: tuple[str, ...] = ()

    def __str__(self) -> str:
        """The statistic and the verdict, for a terminal."""
        width = max(map(len, self.numbers))
        lines = [f"{name:<{width}}  {value:.4g}" for name, value in self.numbers.items()]
        for story, reasons in (
            ("absolute", self.against_absolute),
            ("difference", self.against_difference),
        ):
            lines.append(f"{story}: " + ("; ".join(reasons) if reasons else "possible"))
        return "\n".join([*lines, f"verdict: {self.kind}"])


def tcp_kind(stream: ArrayLike, timestamps: ArrayLike | None = None) -> TcpVerdict:
    """Are these poses, or differences of consecutive poses?

    Args:
        stream: (T, 3) x y z in metres; (T, 6) with roll pitch yaw or a rotation vector in radians
            after it; or (T, 7) with a quaternion, w first. One episode, in order.
        timestamps: (T,) seconds; without them the samples are taken to be 0.2 s apart.

    Raises:
        ValueError: another width, or timestamps that do not go with the stream.
    """
    values = np.asarray(stream, np.float64)
    if values.ndim != 2 or values.shape[1] not in (3, 6, 7):
        raise ValueError(
            f"stream: got shape {values.shape}; allowed are (T, 3) positions, (T, 6) with three "
            "angles and (T, 7) with a quaternion, w first; drop other columns, such as the gripper"
        )
    interval = _interval(timestamps, len(values))
    numbers: dict[str, float] = {"samples": len(values), "interval s": interval}
    if len(values) < MIN_SAMPLES or not np.isfinite(values).all():
        why = (f"fewer than {MIN_SAMPLES} samples, or some are not finite",)
        return TcpVerdict("ambiguous", numbers, why, why)
    numbers |= _translation(values[:, :3]) | _rotation(values[:, 3:])
    absolute, difference = _against_absolute(numbers), _against_difference(numbers)
    kind: Kind = "ambiguous"
    if bool(absolute) != bool(difference):
        kind = "difference" if absolute else "absolute"
    return TcpVerdict(kind, numbers, absolute, difference)


def _interval(timestamps: ArrayLike | None, count: int) -> float:
    if timestamps is None:
        return DEFAULT_INTERVAL
    times = np.asarray(timestamps, np.float64)
    if times.shape != (count,):
        raise ValueError(f"timestamps: got shape {times.shape}, the stream has {count} samples")
    if count < 2:
        return DEFAULT_INTERVAL
    interval = float(np.median(np.diff(times)))
    if interval <= 0:
        raise ValueError(
            f"timestamps: the median interval is {interval} s; they must increase, in seconds"
        )
    return interval


def _travel(path: Float64[np.ndarray, "T 3"]) -> float:
    """Diagonal of the box around a path."""
    return float(np.linalg.norm(np.ptp(path, axis=0)))


def _translation(xyz: Float64[np.ndarray, "T 3"]) -> dict[str, float]:
    norm = np.linalg.norm(xyz, axis=1)
    steps = np.diff(xyz, axis=0)
    centred = xyz - xyz.mean(axis=0)
    variance = float((centred**2).sum())
    still = variance < 1e-18
    return {
        "5% norm m": float(np.quantile(norm, 0.05)),
        "95% norm m": float(np.quantile(norm, 0.95)),
        "travel m": _travel(xyz),
        "95% step m": float(np.quantile(np.linalg.norm(steps, axis=1), 0.95)),
        "travel of the sum m": _travel(np.cumsum(xyz, axis=0)),
        "lag-1 autocorrelation": 0.0
        if still
        else float((centred[1:] * centred[:-1]).sum()) / variance,
        "variance of steps / of values": 0.0 if still else float((steps**2).sum()) / variance,
    }


def _rotation(rotation: Float64[np.ndarray, "T n"]) -> dict[str, float]:
    """The median turn, and for quaternions the median norm; nothing without rotation."""
    if rotation.shape[1] == 0:
        return {}
    if rotation.shape[1] == 3:
        wrapped = (rotation + np.pi) % (2 * np.pi) - np.pi
        return {"median angle rad": float(np.median(np.abs(wrapped).max(axis=1)))}
    norm = np.linalg.norm(rotation, axis=1)
    cosine = np.abs(rotation[:, 0]) / np.maximum(norm, 1e-12)
    angle = 2 * np.arccos(np.clip(cosine, 0, 1))
    return {
        "median quaternion norm": float(np.median(norm)),
        "median angle rad": float(np.median(angle)),
    }


def _against_absolute(n: dict[str, float]) -> tuple[str, ...]:
    fastest = MAX_SPEED * n["interval s"]
    checks = {
        f"some values are nearer to 0 than a tool is to its base ({MIN_REACH} m)": (
            n["5% norm m"] < MIN_REACH
        ),
        f"the values are out of reach ({MAX_REACH} m)": n["95% norm m"] > MAX_REACH,
        f"nothing moves ({MIN_TRAVEL} m)": n["travel m"] < MIN_TRAVEL,
        f"the path is not smooth (autocorrelation {MIN_SMOOTHNESS})": (
            n["lag-1 autocorrelation"] < MIN_SMOOTHNESS
        ),
        f"the path is too fast ({fastest:.3g} m per step)": n["95% step m"] > fastest,
        "the quaternions are not of length 1": not (
            UNIT_NORM[0] <= n.get("median quaternion norm", 1.0) <= UNIT_NORM[1]
        ),
    }
    return tuple(reason for reason, fails in checks.items() if fails)


def _against_difference(n: dict[str, float]) -> tuple[str, ...]:
    fastest, widest = MAX_SPEED * n["interval s"], MAX_TURN * n["interval s"]
    norm = n.get("median quaternion norm", 1.0)
    # A difference of quaternions, component by component, is short; its angle means nothing.
    turns = norm >= UNIT_NORM[0]
    checks = {
        f"the steps are too long ({fastest:.3g} m)": n["95% norm m"] > fastest,
        f"their sum leaves the reach ({MAX_REACH} m)": n["travel of the sum m"] > MAX_REACH,
        f"nothing moves ({MIN_TRAVEL} m)": n["travel of the sum m"] < MIN_TRAVEL,
        f"the turns are too wide ({widest:.3g} rad)": turns
        and n.get("median angle rad", 0.0) > widest,
    }
    return tuple(reason for reason, fails in checks.items() if fails)
