"""Where things lie in an RH20T release, and how its files are read.

RH20T_cfgN/
  calib/<ms>/{intrinsics,extrinsics,tcp,devices}.npy
  task_0001_user_0001_scene_0001_cfg_000N[_human]/
    metadata.json
    cam_<serial>/{color.mp4, depth.mp4, timestamps.npy}
    transformed/{tcp,tcp_base,gripper,joint,...}.npy

The seven robots of RH20T: cameras on the arm, frames, grippers.
"""

from __future__ import annotations

import json
import pickle
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import yaml
from jaxtyping import Float64

CalibTcp = Literal["quaternion", "rotvec_flipped", "euler_mm"]


@dataclass(frozen=True)
class Configuration:
    """One robot with its gripper and cameras; fields as in configurations.yaml.

    Attributes:
        number: 1 to 7, `cfg_000N` in the names of scenes.
        robot, gripper: names.
        full_width: the gripper's width when open, mm as the release counts them.
        calib_tcp: how the tool's pose at calibration is written.
        in_hand: serial numbers of the cameras on the arm; the first one ties marker and base.
        front: serial number of the camera in front of the robot.
        camera_from_tcp: (4, 4) tool frame to the first in-hand camera, metres.
        align_tcp, align_base: (4, 4) rotations into the release's common tool and base frames.
    """

    number: int
    robot: str
    gripper: str
    full_width: float
    calib_tcp: CalibTcp
    in_hand: tuple[str, ...]
    front: str
    camera_from_tcp: Float64[np.ndarray, "4 4"]
    align_tcp: Float64[np.ndarray, "4 4"]
    align_base: Float64[np.ndarray, "4 4"]


@cache
def configurations() -> dict[int, Configuration]:
    """All seven by number."""
    path = Path(__file__).with_name("configurations.yaml")
    return {raw["number"]: _parse(raw) for raw in yaml.safe_load(path.read_text(encoding="utf-8"))}


def _parse(raw: dict[str, Any]) -> Configuration:
    turns = {}
    for name in ("align_tcp", "align_base"):
        turns[name] = np.eye(4)
        turns[name][:3, :3] = raw.get(name, np.eye(3))
    rest = {
        "in_hand": tuple(raw["in_hand"]),
        "camera_from_tcp": np.array(raw["camera_from_tcp"], np.float64),
    }
    return Configuration(**{**raw, **rest, **turns})


_SCENE = re.compile(r"(task_\d{4})_(user_\d{4})_(scene_\d{4})_cfg_(\d{4})(_human\w*)?")


class SkipSceneError(ValueError):
    """A scene cannot be converted; `reason` is what scenes are counted by."""

    def __init__(self, reason: str, detail: str = ""):
        """Reason, the same for all scenes that it stops, and what it was in this one."""
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


@dataclass(frozen=True)
class RawScene:
    """One recorded scene.

    Attributes:
        folder: of the scene.
        task, user, scene: as in the folder's name, "task_0001".
        configuration: which robot.
        human: a person's demonstration without robot.
    """

    folder: Path
    task: str
    user: str
    scene: str
    configuration: Configuration
    human: bool

    def camera(self, serial: str) -> Path:
        """Folder of one camera."""
        return self.folder / f"cam_{serial}"

    @property
    def serials(self) -> tuple[str, ...]:
        """Cameras with a colour video, sorted."""
        found = self.folder.glob("cam_*/color.mp4")
        return tuple(sorted(path.parent.name.removeprefix("cam_") for path in found))


def find_scenes(root: Path) -> list[RawScene]:
    """All scenes in `root` or one folder below, sorted by folder.

    Raises:
        ValueError: there are none, or one names a configuration that does not exist.
    """
    folders = sorted(
        path
        for pattern in ("task_*", "*/task_*")
        for path in root.glob(pattern)
        if path.is_dir() and _SCENE.fullmatch(path.name)
    )
    if not folders:
        raise ValueError(
            f"{root} has no folder named task_0000_user_0000_scene_0000_cfg_0000, nor has a folder "
            "in it; pass the unpacked RH20T_cfgN, or the folder that holds several of them"
        )
    return [_scene(folder) for folder in folders]


def _scene(folder: Path) -> RawScene:
    match = _SCENE.fullmatch(folder.name)
    assert match is not None
    number = int(match[4])
    if number not in configurations():
        raise ValueError(
            f"{folder.name}: configuration {number} is unknown; there are {list(configurations())}"
        )
    return RawScene(
        folder, match[1], match[2], match[3], configurations()[number], match[5] is not None
    )


def read_metadata(scene: RawScene) -> dict[str, Any]:
    """`metadata.json`: rating, calib, calib_quality, finish_time."""
    path = scene.folder / "metadata.json"
    if not path.is_file():
        raise SkipSceneError("no metadata.json", scene.folder.name)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SkipSceneError("unreadable metadata.json", f"{path}: {error}") from None
    if not isinstance(content, dict):
        raise SkipSceneError("unreadable metadata.json", f"{path}: no mapping")
    return content


def whole_number(metadata: dict[str, Any], key: str) -> int:
    """An entry of the metadata; -1, the release's own word for unknown, where there is none."""
    value = metadata.get(key)
    return -1 if value is None else int(value)


def read_tasks(path: Path) -> dict[str, str]:
    """Task -> English instruction, from the release's task_description.json."""
    content = json.loads(path.read_text(encoding="utf-8"))
    try:
        return {task: str(value["task_description_english"]) for task, value in content.items()}
    except (AttributeError, KeyError, TypeError):
        raise ValueError(
            f"{path}: expected {{task_0001: {{task_description_english: ...}}, ...}}"
        ) from None


def read_pickled(path: Path) -> Any:
    """The Python object in a .npy file, without running what a pickle may order.

    Raises:
        SkipSceneError: the file is broken, or holds more than data.
    """
    try:
        with path.open("rb") as file:
            return _read_npy(file)
    except SkipSceneError as error:
        raise SkipSceneError(error.reason, f"{path}: {error}") from None
    except (ValueError, EOFError, pickle.UnpicklingError) as error:
        raise SkipSceneError("unreadable .npy", f"{path}: {error}") from None


def _read_npy(file: BinaryIO) -> Any:
    version = np.lib.format.read_magic(file)
    read_header = (
        np.lib.format.read_array_header_1_0
        if version == (1, 0)
        else np.lib.format.read_array_header_2_0
    )
    shape, _, dtype = read_header(file)
    if dtype != np.dtype(object):
        file.seek(0)
        return np.lib.format.read_array(file, allow_pickle=False)
    content = _Plain(file).load()
    return content.item() if shape == () else content


class _Plain(pickle.Unpickler):
    """Unpickles numbers, strings, containers and arrays only."""

    _NUMPY = ("_reconstruct", "scalar", "ndarray", "dtype", "_frombuffer")

    def __init__(self, file: BinaryIO):
        # Python 2 and NumPy 1 wrote some of these files.
        super().__init__(file, encoding="latin1")

    def find_class(self, module: str, name: str) -> Any:
        """Names of NumPy's own array machinery; nothing else."""
        top = module.split(".")[0]
        known = (module, name) in {("_codecs", "encode"), ("collections", "OrderedDict")}
        if known or (top == "numpy" and name in self._NUMPY):
            return super().find_class(module, name)
        raise SkipSceneError(
            "a .npy file holds more than data", f"it asks for {module}.{name} and was not loaded"
        )
