"""A folder of RH20T scenes to an RLDS dataset with its card."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from spatialvla_ft.converters.rh20t.episode import (
    DEPTH_SCALE,
    Episode,
    Options,
    Prepared,
    TcpKind,
    convert_scene,
    prepare,
)
from spatialvla_ft.converters.rh20t.layout import RawScene, SkipSceneError
from spatialvla_ft.data.rlds.tensorflow import tensorflow_datasets
from spatialvla_ft.data.rlds.write import arm_in_card, write_split

logger = logging.getLogger(__name__)

VERSION = "1.0.0"


@dataclass
class Tally:
    """What a conversion has come to so far.

    Attributes:
        episodes, steps: written.
        skipped: reason -> scenes.
        examples: reason -> what it was in the first such scene.
        position_error, rotation_error: of each episode's camera chain, metres and radians.
    """

    episodes: int = 0
    steps: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    position_error: list[float] = field(default_factory=list)
    rotation_error: list[float] = field(default_factory=list)

    def skip(self, error: SkipSceneError) -> None:
        """Count one scene that was left out."""
        logger.info("skipped: %s", error)
        self.skipped[error.reason] += 1
        self.examples.setdefault(error.reason, str(error))


def prepare_all(
    scenes: Iterable[RawScene], tasks: Mapping[str, str], options: Options, tally: Tally
) -> list[Prepared]:
    """The scenes that can be converted as far as can be told without pictures."""
    prepared = []
    for scene in scenes:
        try:
            prepared.append(prepare(scene, tasks, options))
        except SkipSceneError as error:
            tally.skip(error)
    return prepared


def decide_tcp_kind(prepared: Sequence[Prepared]) -> TcpKind:
    """What the statistic says of all scenes together.

    Scenes in which it is ambiguous follow the others, if these agree and are at least half.

    Raises:
        ValueError: it cannot be told; the message has the statistic of one scene of each verdict.
    """
    verdicts = Counter(scene.verdict.kind for scene in prepared)
    kinds: tuple[TcpKind, ...] = ("absolute", "difference")
    told = [kind for kind in kinds if verdicts[kind]]
    if len(told) == 1 and 2 * verdicts[told[0]] >= len(prepared):
        return told[0]
    raise ValueError(
        "tcp: cannot tell whether transformed/tcp_base.npy holds poses or differences; look at the "
        f"numbers and pass --tcp absolute or --tcp difference\n{statistic(prepared)}"
    )


def statistic(prepared: Sequence[Prepared]) -> str:
    """How many scenes have which verdict, and the numbers of one scene of each."""
    counts = Counter(scene.verdict.kind for scene in prepared)
    parts = [", ".join(f"{kind}: {n} scenes" for kind, n in sorted(counts.items()))]
    for kind in sorted(counts):
        first = next(scene for scene in prepared if scene.verdict.kind == kind)
        parts.append(f"{first.scene.folder.name}\n{first.verdict}")
    return "\n\n".join(parts)


def convert_all(
    prepared: Iterable[Prepared], kind: TcpKind, options: Options, tally: Tally
) -> Iterator[Episode]:
    """Episodes of all scenes that turn out convertible; the tally is kept up to date."""
    for scene in prepared:
        try:
            episode = convert_scene(scene, kind, options)
        except SkipSceneError as error:
            tally.skip(error)
            continue
        tally.episodes += 1
        tally.steps += len(episode.actions)
        tally.position_error.append(episode.chain_error[0])
        tally.rotation_error.append(episode.chain_error[1])
        yield episode


def write_dataset(
    episodes: Iterable[Episode], *, out: Path, name: str, options: Options
) -> Path | None:
    """Write `out/name/VERSION` with its card; None, and nothing written, if there is no episode.

    Needs a process that has not imported torch, because TensorFlow writes.
    """
    episodes = iter(episodes)
    first = next(episodes, None)
    if first is None:
        return None
    path = write_split(
        (_example(number, episode) for number, episode in enumerate(chain([first], episodes))),
        out=out,
        name=name,
        version=VERSION,
        features=features(options),
        description=f"RH20T at {options.hz:g} Hz, converted from the released layout.",
    )
    content = {"schema_version": 1, "cards": {name: card(options)}}
    (path / "card.yaml").write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path


def features(options: Options) -> Any:
    """The dataset's `tfds.features.FeaturesDict`."""
    tfds = tensorflow_datasets()

    tensor, scalar, text = tfds.features.Tensor, tfds.features.Scalar, tfds.features.Text
    observation: dict[str, Any] = {
        "state": tensor(
            shape=(7,),
            dtype=np.float32,
            doc="x y z (m) roll pitch yaw (rad, xyz) of the tool in the base frame, opening 0 to 1",
        )
    }
    for slot in options.cameras:
        observation |= {
            f"image_{slot}": tfds.features.Image(
                shape=(None, None, 3), dtype=np.uint8, encoding_format="jpeg"
            ),
            f"intrinsics_{slot}": tensor(
                shape=(3, 3), dtype=np.float32, doc="pixels; pixel centres at +0.5"
            ),
            f"extrinsics_{slot}": tensor(
                shape=(4, 4), dtype=np.float32, doc="camera (OpenCV axes) to robot base, m"
            ),
        }
        if options.depth:
            observation[f"depth_{slot}"] = tfds.features.Image(
                shape=(None, None, 1),
                dtype=np.uint16,
                encoding_format="png",
                doc="along the optical axis, unit 0.1 mm, 0 = unknown",
            )
    steps = {
        "observation": observation,
        "action": tensor(
            shape=(7,),
            dtype=np.float32,
            doc="dx dy dz (m) roll pitch yaw (rad, xyz) in the base frame, gripper 1 open 0 closed",
        ),
        "language_instruction": text(),
        "is_first": scalar(dtype=np.bool_),
        "is_last": scalar(dtype=np.bool_),
        "is_terminal": scalar(dtype=np.bool_),
        "reward": scalar(dtype=np.float32),
        "discount": scalar(dtype=np.float32),
    }
    words = ("folder", "robot", "gripper", "task", "user", "scene", "cameras")
    numbers = ("episode_id", "configuration", "rating", "calibration", "calib_quality")
    metadata = {
        **{key: text() for key in words},
        **{key: scalar(dtype=np.int64) for key in numbers},
        "success": scalar(dtype=np.bool_),
    }
    return tfds.features.FeaturesDict(
        {
            "steps": tfds.features.Dataset(steps),
            "episode_metadata": tfds.features.FeaturesDict(metadata),
        }
    )


def _example(number: int, episode: Episode) -> dict[str, Any]:
    last = len(episode.actions) - 1
    return {
        "steps": [
            {
                "observation": observation,
                "action": action,
                "language_instruction": episode.instruction,
                "is_first": t == 0,
                "is_last": t == last,
                "is_terminal": t == last,
                "reward": np.float32(t == last and episode.metadata["success"]),
                "discount": np.float32(1.0),
            }
            for t, (observation, action) in enumerate(
                zip(episode.observations, episode.actions, strict=True)
            )
        ],
        "episode_metadata": {"episode_id": number, **episode.metadata},
    }


def card(options: Options) -> dict[str, Any]:
    """The dataset's card, schema version 1."""

    def per_slot(kind: str) -> dict[str, str]:
        return {slot: f"observation.{kind}_{slot}" for slot in options.cameras}

    depth = {"depth": per_slot("depth"), "depth_scale": DEPTH_SCALE} if options.depth else {}
    return {
        "version": VERSION,
        "robot": "several (episode_metadata.robot)",
        "control_hz": options.hz,
        "cameras": per_slot("image"),
        **depth,
        "intrinsics": per_slot("intrinsics"),
        "extrinsics": per_slot("extrinsics"),
        "language": {"kind": "string", "key": "language_instruction"},
        "drop": {"first": 0},
        **arm_in_card(),
    }


def parse_cameras(wishes: Sequence[str], scenes: Sequence[RawScene]) -> dict[str, str]:
    """Slot -> camera from "slot=camera", or from "all" every camera that all scenes have.

    Raises:
        ValueError: not of this form, a slot twice, or "all" where scenes share no camera.
    """
    if list(wishes) == ["all"]:
        robots = [scene for scene in scenes if not scene.human]
        shared = set.intersection(*(set(scene.serials) for scene in robots)) if robots else set()
        if not shared:
            raise ValueError("camera: 'all', but the scenes share none; name the cameras instead")
        return {f"cam_{serial.lower()}": serial for serial in sorted(shared)}
    cameras: dict[str, str] = {}
    for wish in wishes:
        slot, equals, camera = wish.partition("=")
        if (
            not equals
            or not re.fullmatch(r"[a-z][a-z0-9_]*", slot)
            or not camera
            or slot in cameras
        ):
            raise ValueError(
                f"camera: got {wish!r}; write SLOT=CAMERA, each slot once, in lower case, the "
                "camera being front, wrist or a serial number; or only: all"
            )
        cameras[slot] = camera
    return cameras
