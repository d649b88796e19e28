"""A card drafted from the names of a LeRobot dataset's features.

It is used as it is only where the names leave no room for doubt; otherwise the error shows the
features, the doubts, and the draft to finish by hand.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from spatialvla_ft.data.cards.card import Card
from spatialvla_ft.data.errors import DatasetError
from spatialvla_ft.data.lerobot.info import BOOKKEEPING, Feature, Info
from spatialvla_ft.data.lerobot.store import TASK, LeRobotStore
from spatialvla_ft.data.lerobot.video import DEPTH_FORMAT

POSE = ("ee.x", "ee.y", "ee.z", "ee.wx", "ee.wy", "ee.wz")
EE_GRIPPERS = ("ee.gripper_pos", "gripper.pos")
WRISTS = ("wrist", "hand", "gripper")
DEPTH_SCALE = 1e-4
"""Metres per unit of a `depth.<camera>` video."""
UNITS = {"m": 1.0, "mm": 1e-3}
"""Metres per `depth_unit` that LeRobot notes with depth kept as pictures."""


def intrinsics_key(camera: str) -> str:
    """Feature with fx, fy, cx, cy of a camera, pixels of its picture, per frame."""
    return f"{camera}_camera_intrinsics"


def extrinsics_key(camera: str) -> str:
    """Feature with camera-to-base (4, 4), row by row, metres, per frame."""
    return f"{camera}_camera_extrinsics"


def depth_key(camera: str) -> str:
    """Feature with the depth of a camera: 16-bit grey FFV1, metres x 10000."""
    return f"depth.{camera}"


def depth_scale(feature: Feature) -> float | None:
    """Metres per unit of a depth feature; None where nothing says it."""
    if feature.dtype == "video":
        return DEPTH_SCALE
    return UNITS.get(str(feature.info.get("depth_unit")))


def draft_card(store: LeRobotStore) -> Card:
    """The card that the feature names imply.

    Raises:
        DatasetError: they leave room for doubt; the message shows the features and a draft.
    """
    raw, doubts = draft(store.info, store.folder)
    if doubts:
        features = "\n".join(f"  {_describe(f)}" for f in store.info.features.values())
        text = yaml.safe_dump(
            {"schema_version": 1, "cards": {store.name: raw}}, sort_keys=False, width=100
        )
        listed = "\n".join(f"  - {doubt}" for doubt in doubts)
        raise DatasetError(
            f"{store.name} needs a card: what its features mean is not certain.\n{listed}\n"
            f"Its features:\n{features}\nFinish this draft and save it as "
            f"{store.folder / 'card.yaml'}, or pass it as card= (data_mixtures/README.md):\n\n"
            f"{text}"
        )
    digest = hashlib.sha256(json.dumps(raw, sort_keys=True).encode()).hexdigest()
    return Card.model_validate({**raw, "name": store.name, "source_hash": digest})


def draft(info: Info, folder: Path) -> tuple[dict[str, Any], list[str]]:
    """(a card as YAML would hold it, what is not certain about it)."""
    doubts: list[str] = []
    notes = ["drafted from the feature names"]
    cameras = _cameras(info, doubts)
    raw: dict[str, Any] = {
        "version": info.version,
        "robot": info.robot_type,
        "control_hz": info.fps,
        "cameras": {slot: key for slot, (_, key) in cameras.items()},
    }
    raw |= _calibration(info, cameras, notes)
    widths = {key: math.prod(f.shape) for key, f in info.features.items() if f.is_number}
    raw |= points_by_name(widths)
    raw["language"] = {"kind": "string", "key": TASK}
    raw["action"] = _action(info, folder, doubts, notes)
    if "observation.state" in info.features:
        names = {
            key: info.features[key].names
            for key in ("action", "observation.state")
            if key in info.features
        }
        joint = raw["action"].get("joints") and len(set(names.values())) == 1
        raw["proprio"] = {"encoding": "JOINT" if joint else None, "terms": ["observation.state"]}
    notes += [f"{f.key} is left out: {f.obstacle}" for f in info.features.values() if f.obstacle]
    raw["notes"] = notes
    return raw, doubts


def points_by_name(widths: Mapping[str, int]) -> dict[str, str]:
    """`target_point` and `reference_point` of a card: columns of three that are called so.

    Of several the shortest name is taken.

    Args:
        widths: numbers per value of every column, by its dotted name.
    """
    found = {}
    for field in ("target_point", "reference_point"):
        keys = [k for k, width in widths.items() if width == 3 and k.rsplit(".", 1)[-1] == field]
        if keys:
            found[field] = min(keys, key=len)
    return found


def _describe(feature: Feature) -> str:
    names = f" {list(feature.names)}" if feature.names else ""
    return f"{feature.key}: {feature.dtype} {feature.shape}{names}"


def _cameras(info: Info, doubts: list[str]) -> dict[str, tuple[str, str]]:
    """Slot -> (camera, key): the only outside view is `primary`, a view from the hand `wrist`."""
    pictures = [k for k, f in info.features.items() if f.is_picture and not f.is_depth]
    wrists = [key for key in pictures if any(word in key.lower() for word in WRISTS)]
    others = [key for key in pictures if key not in wrists]
    if len(wrists) <= 1 and len(others) <= 1:
        named = [("primary", key) for key in others] + [("wrist", key) for key in wrists]
    else:
        doubts.append(
            f"several cameras, {pictures}: call the one that the model is to look through "
            "'primary' (others may be 'secondary', 'wrist', or keep their names)"
        )
        named = [(re.sub(r"[^a-z0-9_]", "_", k.split(".")[-1].lower()), k) for k in pictures]
    if not pictures:
        doubts.append("there is no camera")
    return {slot: (key.split(".")[-1], key) for slot, key in named}


def _calibration(
    info: Info, cameras: dict[str, tuple[str, str]], notes: list[str]
) -> dict[str, Any]:
    """Depth, intrinsics and extrinsics by the names of our convention."""
    found: dict[str, dict[str, str]] = {"depth": {}, "intrinsics": {}, "extrinsics": {}}
    for slot, (camera, picture) in cameras.items():
        for kind, key in (
            ("intrinsics", intrinsics_key(camera)),
            ("extrinsics", extrinsics_key(camera)),
            ("depth", f"{picture}_depth"),
            ("depth", depth_key(camera)),
        ):
            if key in info.features and (kind == "depth") == info.features[key].is_depth:
                found[kind][slot] = key
    scales: dict[str, float] = {}
    for key, feature in info.features.items():
        pixels = feature.info.get("video.pix_fmt", DEPTH_FORMAT)
        if not feature.is_depth:
            continue
        scale = depth_scale(feature)
        if feature.dtype == "video" and pixels != DEPTH_FORMAT:
            notes.append(f"{key} is left out: {pixels} instead of lossless {DEPTH_FORMAT}")
        elif key not in found["depth"].values():
            notes.append(f"{key} is left out: it belongs to no camera by its name")
        elif scale is None:
            notes.append(
                f"{key} is left out: nothing says its unit; add depth: {{CAMERA: {key}}} and "
                "depth_scale: <metres per unit>"
            )
        elif scales and scale not in scales.values():
            notes.append(f"{key} is left out: its unit is another one than that of {list(scales)}")
        else:
            scales[key] = scale
    found["depth"] = {slot: key for slot, key in found["depth"].items() if key in scales}
    raw: dict[str, Any] = {kind: slots for kind, slots in found.items() if slots}
    if scales:
        raw["depth_scale"] = next(iter(scales.values()))
    return raw


def _action(info: Info, folder: Path, doubts: list[str], notes: list[str]) -> dict[str, Any]:
    """Joints that end with the gripper, or a pose that does; else a draft with a doubt."""
    feature = info.features.get("action")
    names = feature.names if feature else None
    if feature is None:
        others = sorted(set(info.features) - set(BOOKKEEPING))
        doubts.append(f"there is no feature called action; the others are {others}")
    elif names is None or len(names) != feature.shape[0]:
        doubts.append("the dimensions of action have no names: say which are joints, which gripper")
    elif names[:-1] == POSE and names[-1] in EE_GRIPPERS:
        notes.append("absolute poses in the robot's base; axis-angle becomes roll, pitch, yaw")
        turn = {"src": "action[3:6]", "ops": [{"axis_angle_to_euler": {"norm_eps": 1e-6}}]}
        return {
            "encoding": "EEF_POS",
            "reference": "absolute",
            "translation": ["action[0:3]"],
            "rotation": {"raw": "axis_angle", "terms": [turn]},
            "gripper": _gripper("action[6:7]", 6, folder, doubts),
        }
    elif not all(name.endswith(".pos") for name in names) or names[-1] != "gripper.pos":
        doubts.append(
            f"action is {list(names)}: read by itself are joints called <motor>.pos that end with "
            f"gripper.pos, and {[*POSE, EE_GRIPPERS[0]]}"
        )
    elif sum("gripper" in name for name in names) > 1:
        doubts.append("action has several grippers; one arm is read by itself")
    count = (feature.shape[0] if feature else 1) - 1
    clear = not doubts or names is not None
    joints = [n.removesuffix(".pos") for n in names[:-1]] if names else None
    notes.append("absolute joints in the units of the recording, degrees or -100 to 100")
    return {
        "encoding": "JOINT_POS",
        "reference": "absolute",
        "joints": [f"action[0:{count}]"],
        **({"joint_names": joints} if joints else {}),
        "joint_unit": "as recorded",
        "gripper": _gripper(f"action[{count}:{count + 1}]", count, folder, doubts if clear else []),
    }


def _gripper(term: str, column: int, folder: Path, doubts: list[str]) -> list[Any]:
    """Opening from 0 to 1; LeRobot records 0 (closed) to 100 (open)."""
    limits = _limits(folder, column)
    if limits is None:
        doubts.append("meta holds no statistics of action, so the gripper's range is unknown")
    elif limits[0] >= -0.05 and limits[1] <= 1.05:
        return [{"src": term, "ops": [{"clip": [0, 1]}]}]
    elif not (limits[0] >= -5 and 5 < limits[1] <= 105):
        doubts.append(
            f"the gripper goes from {limits[0]:g} to {limits[1]:g}; 0 to 1 and 0 to 100 are read "
            "by themselves: scale it so that 1 is open and 0 closed"
        )
    return [{"src": term, "ops": [{"scale": 0.01}, {"clip": [0, 1]}]}]


def _limits(folder: Path, column: int) -> tuple[float, float] | None:
    """(smallest, largest) value of a dimension of the action, as the dataset's statistics say."""
    whole, each = folder / "meta/stats.json", folder / "meta/episodes_stats.jsonl"
    if whole.is_file():
        entries = [json.loads(whole.read_text(encoding="utf-8"))]
    elif each.is_file():
        lines = each.read_text(encoding="utf-8").splitlines()
        entries = [json.loads(line)["stats"] for line in lines if line.strip()]
    else:
        return None
    entries = [entry["action"] for entry in entries if "action" in entry]
    if not entries:
        return None
    return (
        min(float(entry["min"][column]) for entry in entries),
        max(float(entry["max"][column]) for entry in entries),
    )
