"""A first card for a dataset that has none: guessed from names, shapes and numbers.

Everything that was guessed is said in a comment; what a guess cannot settle is marked CHECK.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import yaml

from spatialvla_ft.data.cards.card import Card
from spatialvla_ft.data.cards.files import SCHEMA_VERSION
from spatialvla_ft.data.lerobot.draft import draft as draft_lerobot
from spatialvla_ft.data.lerobot.draft import points_by_name
from spatialvla_ft.data.lerobot.store import LeRobotSource
from spatialvla_ft.data.store import Field, Source
from spatialvla_ft.inspection.cameras import guess_depth_scale
from spatialvla_ft.inspection.gripper import convention
from spatialvla_ft.inspection.motion import quaternion_starts
from spatialvla_ft.inspection.series import Series, correlation
from spatialvla_ft.inspection.words import draft_language

WRIST = ("wrist", "hand", "gripper", "finger")
FRONT = ("primary", "front", "agentview", "main", "static", "exterior_1", "exterior_image_1", "top")
_PLAIN = {"image", "img", "images", "rgb", "observation", "camera", "cam", "depth", "intrinsics",
          "intrinsic", "extrinsics", "extrinsic", "matrix", "map", "k"}  # fmt: skip

_STATES = (
    r"(^|\.)state$",
    r"robot_state",
    r"cartesian_pos|eef_pose|tcp_pose|ee_pose",
    r"proprio",
    r"joint_pos|joint_states|qpos",
    r"observation\..*(state|pose)",
)


@dataclass(frozen=True)
class Draft:
    """A card as YAML would hold it, with a remark for each of its lines."""

    name: str
    card: dict[str, Any]
    remarks: dict[str, str]

    def to_card(self) -> Card:
        """The card, checked."""
        return Card.model_validate({**self.card, "name": self.name})

    def to_yaml(self) -> str:
        """A card file with the remarks as comments."""
        lines = [f"schema_version: {SCHEMA_VERSION}", "cards:", f"  {self.name}:"]
        for key, value in self.card.items():
            if key in ("action", "proprio") and isinstance(value, dict):
                lines += _remark(self.remarks.get(key), 4)
                lines.append(f"    {key}:")
                for part, inner in value.items():
                    lines += _remark(self.remarks.get(f"{key}.{part}"), 6)
                    lines.append(f"      {part}: {_flow(inner)}")
                continue
            lines += _remark(self.remarks.get(key), 4)
            lines.append(f"    {key}: {_flow(value)}")
        return "\n".join(lines) + "\n"


def _remark(text: str | None, indent: int) -> list[str]:
    return [f"{' ' * indent}# {text}"] if text else []


def _flow(value: Any) -> str:
    text: str = yaml.safe_dump(value, default_flow_style=True, width=10**6, sort_keys=False)
    return text.removesuffix("\n...\n").strip()


def draft_card(source: Source, columns: Mapping[str, Series]) -> Draft:
    """Guess a card.

    Args:
        source: the dataset.
        columns: its numeric columns, of some episodes.
    """
    if isinstance(source, LeRobotSource):
        return _by_feature_names(source, columns)
    remarks: dict[str, str] = {}
    card: dict[str, Any] = {"version": source.version, "robot": source.robot}
    card["control_hz"] = None if source.fps is None else float(source.fps)
    remarks["robot"] = "name the robot"
    remarks["control_hz"] = (
        "steps per second, as the dataset says"
        if source.fps
        else "CHECK steps per second; nothing in the dataset says"
    )
    cameras = _cameras(source.fields)
    card["cameras"] = cameras or None
    remarks["cameras"] = (
        "by name; `primary` is what a model of one camera sees"
        if cameras
        else "CHECK no pictures were found"
    )
    card |= _calibration(source, cameras, remarks)
    card |= _points(source.fields, remarks)
    card["language"] = draft_language(source.fields, remarks)
    state = _find_state(columns)
    card["action"] = _action(columns, state, remarks)
    if state is not None:
        card["proprio"] = _proprio(state, columns, card["action"], remarks)
    card["notes"] = ["drafted by `spatialvla-ft data inspect`; see the comments"]
    return Draft(_card_name(source.name), card, remarks)


def _by_feature_names(source: LeRobotSource, columns: Mapping[str, Series]) -> Draft:
    """LeRobot names its features well: its own draft, the action by its numbers if unnamed."""
    card, doubts = draft_lerobot(source.store.info, source.store.folder)
    remarks = {"control_hz": "steps per second, as the dataset says"}
    action = source.store.info.features.get("action")
    if action is None or action.names is None:
        card["action"] = _action(columns, _find_state(columns), remarks)
    doubted = [f"CHECK {doubt}" for doubt in doubts]
    if doubted:
        remarks["action"] = "; ".join(filter(None, (remarks.get("action"), *doubted)))
    if not card["cameras"]:
        card["cameras"] = None
    return Draft(_card_name(source.name), card, remarks)


def _card_name(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", name)


def _tokens(key: str) -> frozenset[str]:
    """What tells one camera from another in the last part of its key."""
    parts = re.split(r"[^a-z0-9]+", key.rsplit(".", 1)[-1].lower())
    return frozenset(part for part in parts if part and part not in _PLAIN)


def _cameras(fields: tuple[Field, ...]) -> dict[str, str]:
    """Slot -> key of a picture: outside views first, the hand's own as `wrist`."""
    keys = [f.key for f in fields if f.kind == "picture" and f.per == "step"]
    keys = [key for key in keys if not _is_list(fields, key)]
    hands = [key for key in keys if any(word in key.lower() for word in WRIST)]
    outside = [key for key in keys if key not in hands]
    outside.sort(key=lambda key: min(
        (i for i, word in enumerate(FRONT) if word in key.lower()), default=len(FRONT)
    ))  # fmt: skip
    slots = dict(zip(("primary", "secondary"), outside, strict=False))
    if hands:
        slots["wrist"] = hands[0]
    for key in [*outside[2:], *hands[1:]]:
        slot = re.sub(r"[^a-z0-9_]", "_", key.rsplit(".", 1)[-1].lower()).lstrip("_0123456789")
        slots[slot if slot and slot not in slots else f"camera_{len(slots)}"] = key
    return slots


def _is_list(fields: tuple[Field, ...], key: str) -> bool:
    """Whether a picture stands in a list of pictures per step, which is no camera."""
    shape = next(f.shape for f in fields if f.key == key)
    return len(shape) > 3


def _belonging(cameras: Mapping[str, str], keys: list[str]) -> dict[str, str]:
    """Slot -> the key among `keys` that is called like the slot's picture."""
    found = {}
    for slot, picture in cameras.items():
        wanted = _tokens(picture)
        match = [key for key in keys if _tokens(key) == wanted]
        if not match and len(cameras) == len(keys) == 1:
            match = keys
        if len(match) == 1:
            found[slot] = match[0]
    return found


def _calibration(
    source: Source, cameras: Mapping[str, str], remarks: dict[str, str]
) -> dict[str, Any]:
    """Depth, its scale, K and poses, each by the name of its camera."""
    fields = source.fields
    found: dict[str, Any] = {}
    depth = _belonging(cameras, [f.key for f in fields if f.kind == "depth" and f.per == "step"])
    if depth:
        found["depth"] = depth
        slot, key = next(iter(depth.items()))
        stored = source.stored_depth(key, 0, 0)
        scale = 1.0 if stored is None else guess_depth_scale(stored)
        found["depth_scale"] = scale
        known = stored[stored > 0] if stored is not None else np.empty(0)
        middle = float(np.median(known)) if len(known) else 0.0
        remarks["depth_scale"] = (
            f"CHECK metres per unit: the median of {slot}'s first map is {middle:.4g} units, "
            f"{middle * scale:.3g} m then"
        )
    matrices = [f.key for f in fields if f.width in (4, 9) and "intrinsic" in f.key.lower()]
    poses = [f.key for f in fields if f.width == 16 and "extrinsic" in f.key.lower()]
    for name, keys in (("intrinsics", matrices), ("extrinsics", poses)):
        if matched := _belonging(cameras, keys):
            found[name] = matched
    if len(found.get("intrinsics", {})) < len(cameras):
        remarks["language"] = (
            "CHECK there is no K for some camera; add intrinsics: {SLOT: {fx: , fy: , cx: , cy: , "
            "width: , height: }}"
        )
    if "extrinsics" in found:
        remarks["extrinsics"] = "CHECK that it is camera to robot base, OpenCV axes, metres"
    return found


def _points(fields: tuple[Field, ...], remarks: dict[str, str]) -> dict[str, str]:
    """Columns that are called as a sample calls its points."""
    found = points_by_name({f.key: f.width for f in fields if f.kind == "numbers"})
    for field in found:
        remarks[field] = "by name; CHECK that it is x, y, z in metres in the robot's base frame"
    return found


def _find_state(columns: Mapping[str, Series]) -> str | None:
    """The column that most looks like the robot's state."""
    for pattern in _STATES:
        for key, series in columns.items():
            if re.search(pattern, key.lower()) and series.values.shape[1] >= 3:
                return key
    return None


def _action(
    columns: Mapping[str, Series], state: str | None, remarks: dict[str, str]
) -> dict[str, Any]:
    if "action" in columns:
        return _vector_action(columns["action"], columns.get(state or ""), remarks)
    acting = {k: s for k, s in columns.items() if k.lower().startswith("action")}
    moves = _named(acting, r"world_vector|transl|xyz|(^|[._])pos(ition)?($|_)|delta_pos", 3)
    turns = _named(acting, r"rot|euler|rpy|orientation", 3)
    hand = _named(acting, r"grip", 1)
    if moves:
        remarks["action"] = "CHECK by the names of the columns"
        return {
            "encoding": "EEF_POS",
            "translation": [moves],
            "rotation": {"raw": "labelled_euler", "terms": [turns]}
            if turns
            else {"raw": "zero", "terms": ["zeros(3)"]},
            "gripper": [_gripper_term(hand, columns[hand], columns, state, remarks)]
            if hand
            else ["ones(1)"],
        }
    wide = sorted(acting, key=lambda k: -acting[k].values.shape[1])
    if wide and acting[wide[0]].values.shape[1] >= 3:
        remarks["action"] = f"CHECK {wide[0]} is the widest column of an action"
        drafted = _vector_action(acting[wide[0]], columns.get(state or ""), remarks, wide[0])
        if hand and hand != wide[0]:
            drafted["gripper"] = [_gripper_term(hand, columns[hand], columns, state, remarks)]
        return drafted
    remarks["action"] = (
        f"CHECK no action was found; these zeros only make the card valid. Columns: "
        f"{', '.join(sorted(columns)) or 'none'}"
    )
    zero = {"raw": "zero", "terms": ["zeros(3)"]}
    return {
        "encoding": "EEF_POS", "translation": ["zeros(3)"], "rotation": zero, "gripper": ["ones(1)"]
    }  # fmt: skip


def _named(columns: Mapping[str, Series], pattern: str, width: int) -> str | None:
    for key, series in columns.items():
        if series.values.shape[1] == width and re.search(pattern, key.lower().split(".", 1)[-1]):
            return key
    return None


def _vector_action(
    action: Series, state: Series | None, remarks: dict[str, str], key: str = "action"
) -> dict[str, Any]:
    """An action vector by its width, and by what its numbers are."""
    width = action.values.shape[1]
    turns: dict[str, Any] = {"raw": "labelled_euler", "terms": [f"{key}[3:6]"]}
    quaternion = 3 in quaternion_starts(action)
    if width in (7, 8) and quaternion:
        turned = {"src": f"{key}[3:7]", "ops": [{"quat_to_euler": "xyzw"}]}
        turns = {"raw": "quat_xyzw", "terms": [turned]}
        remarks["action.rotation"] = (
            "columns 3 to 6 have unit length: read as a quaternion; CHECK that w stands last"
        )
    elif width == 4:
        turns = {"raw": "zero", "terms": ["zeros(3)"]}
        remarks["action"] = "4 columns: read as x, y, z, gripper"
    elif width in (2, 3):
        turns = {"raw": "zero", "terms": ["zeros(3)"]}
        remarks["action"] = f"{width} columns: read as a hand that neither turns nor grips"
    elif width == 6:
        remarks["action"] = "CHECK 6 columns: read as x, y, z, roll, pitch, yaw without a gripper"
    elif width == 7:
        remarks["action"] = "7 columns: read as dx, dy, dz, roll, pitch, yaw, gripper"
    else:
        remarks["action"] = f"CHECK {width} columns: read as joints, the last one the gripper"
        encoding = "JOINT_POS_BIMANUAL" if width >= 12 else "JOINT_POS"
        last = _gripper_term(f"{key}[-1:]", action.columns([width - 1]), {}, None, remarks, state)
        joints = [f"{key}[0:{width - 1}]"]
        return {"encoding": encoding, "loadable": False, "joints": joints, "gripper": [last]}
    move = [f"{key}[0:3]"] if width != 2 else [f"{key}[0:2]", "zeros(1)"]
    has_gripper = width in (4, 7, 8) and not (width == 7 and quaternion)
    last = "ones(1)"
    if has_gripper:
        hand = action.columns([width - 1])
        last = _gripper_term(f"{key}[-1:]", hand, {}, None, remarks, state)
    return {"encoding": "EEF_POS", "translation": move, "rotation": turns, "gripper": [last]}


def _gripper_term(
    term: str,
    values: Series,
    columns: Mapping[str, Series],
    state: str | None,
    remarks: dict[str, str],
    state_values: Series | None = None,
) -> Any:
    """Ops that bring the gripper to 1 = open; the direction by its name, then by its start."""
    column = values.values[:, 0]
    low, high = float(column.min()), float(column.max())
    said = convention(column)
    ops: list[Any] = []
    if said.startswith("events"):
        ops = [{"rel_to_abs": {"eps": 0.1, "positive_is": "close"}}]
        remarks["action.gripper"] = f"{said}; CHECK whether +1 closes"
        return {"src": term, "ops": ops}
    moves = high - low > 0.05 * max(abs(low), abs(high))
    if high > 1.02 or (moves and low >= 0 and high < 0.5):
        ops = [{"scale": 0.01 if 50 < high <= 105 else float(f"{1 / high:.4g}")}]
    if low < -0.02 or high > 1.02:
        ops.append({"clip": [0, 1]})
    starts = values.values[values.starts[values.lengths > 0], 0]
    starts_low = float((starts < (low + high) / 2).mean())
    if "clos" in term.lower():
        ops.append("invert")
        why = "called closed: inverted"
    elif "open" in term.lower() or "width" in term.lower():
        why = "called by its opening: not inverted"
    elif moves and len(starts) >= 3 and starts_low >= 0.8:
        ops.append("invert")
        why = f"{starts_low:.0%} of the episodes start low, robots mostly start open: inverted"
    else:
        why = "not inverted"
    remarks["action.gripper"] = f"raw: {said}; {why}; CHECK that 1 is open"
    return {"src": term, "ops": ops} if ops else term


def _proprio(
    state: str, columns: Mapping[str, Series], action: dict[str, Any], remarks: dict[str, str]
) -> dict[str, Any]:
    """The state column, with its encoding where the numbers tell."""
    values = columns[state]
    width = values.values.shape[1]
    encoding = None
    remarks["proprio"] = f"CHECK what the {width} columns of {state} are"
    if 3 in quaternion_starts(values):
        encoding = "POS_QUAT"
        remarks["proprio"] = f"{state}: columns 3 to 6 have unit length, read as a quaternion"
    elif action.get("joints"):
        encoding = "JOINT" if action["encoding"] == "JOINT_POS" else "JOINT_BIMANUAL"
    elif width >= 6 and "action" in columns and columns["action"].has_next.any():
        now, change = columns["action"].now[:, :3], values.changes[:, :3]
        later = values.then[:, :3]
        moved = np.mean([correlation(now[:, i], change[:, i]) for i in range(3)])
        went = np.mean([correlation(now[:, i], later[:, i]) for i in range(3)])
        if max(moved, went) > 0.3:
            encoding = "POS_EULER"
            remarks["proprio"] = (
                f"columns 0 to 2 of {state} follow the action (correlation "
                f"{max(moved, went):.2f}): a position; CHECK that the next three are roll, "
                "pitch, yaw"
            )
    return {"encoding": encoding, "terms": [state]}
