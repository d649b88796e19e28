"""RLDS to LeRobot v3.0, feature by feature; what cannot go along is said."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from spatialvla_ft.converters.lerobot_writer import LeRobotWriter
from spatialvla_ft.converters.mapping import Entry, Mapping, plan, write_mapping
from spatialvla_ft.converters.report import DepthLoss, Report, mean_psnr, psnr, to_units
from spatialvla_ft.converters.video_writer import CODECS, DEPTH_CODEC, Codec
from spatialvla_ft.data.cards.card import Card
from spatialvla_ft.data.cards.files import raw_card
from spatialvla_ft.data.decode import decode_depth, decode_rgb
from spatialvla_ft.data.errors import DatasetError, in_episode, refuse_within
from spatialvla_ft.data.lerobot.draft import DEPTH_SCALE
from spatialvla_ft.data.lerobot.info import Feature
from spatialvla_ft.data.lerobot.store import TASK, LeRobotStore
from spatialvla_ft.data.rlds.episodes import RldsStore
from spatialvla_ft.data.rlds.index import FrameIndex
from spatialvla_ft.data.sampler import evenly_spaced
from spatialvla_ft.data.words import UTF8, read_words, text_of

IMAGES = ("keep", *CODECS)
COMPARED = 24
"""Pictures of a video that are compared with where they came from."""


def to_lerobot(
    index: FrameIndex,
    card: Card,
    card_file: Path,
    out: Path,
    *,
    images: str = "keep",
    gop: int = 2,
    fps: float | None = None,
    progress: Callable[[int], None] | None = None,
) -> Report:
    """Convert all splits of an RLDS dataset.

    Args:
        index: of the dataset.
        card: says which feature is depth, calibration and language.
        card_file: where the card stands.
        out: new folder.
        images: `keep` stores the encoded pictures as they are; or a video codec.
        gop: frames from one key frame of a video to the next.
        fps: steps per second; the card's control_hz if not given.
        progress: called with the number of episodes done.

    Raises:
        DatasetError: no rate is known, the card does not fit, or `out` lies within the dataset.
    """
    if images not in IMAGES:
        raise DatasetError(f"images: got {images!r}, allowed are {list(IMAGES)}")
    if gop < 1:
        raise DatasetError(f"--gop: got {gop}, allowed are 1 or more frames")
    rate = fps or card.control_hz
    if not rate:
        raise DatasetError(
            f"card {card.name!r} has no control_hz, so the rate of the steps is unknown; give --fps"
        )
    if index.store.local:
        refuse_within(out, index.dataset_dir)
    report = Report()
    entries = plan(index, card, report)
    raw = raw_card(card_file, card.name)
    gone = [key for key in card.language.keys if key in report.left_out]
    if gone:  # on the way back the first sentence is all there is
        entries.append(Entry(gone[0], tuple(gone[0].split(".")), TASK, "task", "string", (), ""))
        raw = {**raw, "language": {"kind": "string", "key": gone[0]}}
    features = _features(index, entries, images)
    codecs: dict[str, Codec] = {}
    for entry in entries:
        if entry.how == "depth":
            codecs[entry.lerobot] = DEPTH_CODEC
        elif entry.how == "picture" and images != "keep":
            codecs[entry.lerobot] = CODECS[images].with_gop(gop)
    losses = {entry.lerobot: DepthLoss() for entry in entries if entry.how == "depth"}
    with LeRobotWriter(
        out, fps=rate, features=features, codecs=codecs, robot_type=card.robot
    ) as writer:
        for episode, length in enumerate(index.episode_lengths.tolist()):
            _convert_episode(index, card, entries, writer, episode, length, losses, images)
            report.episodes += 1
            report.steps += length
            if progress is not None:
                progress(report.episodes)
        writer.close(index.splits)
    write_mapping(out, Mapping(index.name, index.version, raw, tuple(entries)))
    (out / "card.yaml").write_text(
        yaml.safe_dump(
            {"schema_version": 1, "cards": {index.name: _translate(raw, card, entries)}},
            sort_keys=False,
        ),
        encoding="utf-8",
    )
    for key, loss in losses.items():
        if sentence := loss.sentence():
            report.inexact[key] = sentence
    if images != "keep":
        report.inexact |= _compare(index, entries, out, images)
    return report


def _features(index: FrameIndex, entries: list[Entry], images: str) -> dict[str, Feature]:
    features = {}
    for entry in entries:
        if entry.how in ("task", "episode"):
            continue
        dtype, shape = entry.dtype, entry.shape or (1,)
        names: tuple[str, ...] | None = None
        info: dict[str, Any] = {}
        if entry.how in ("picture", "depth"):
            sample = _first_picture(index, entry)
            names = ("height", "width", "channels")
            shape = (*sample.shape[:2], 3 if entry.how == "picture" else 1)
            dtype = "image" if entry.how == "picture" and images == "keep" else "video"
            if dtype == "video":
                codec = DEPTH_CODEC if entry.how == "depth" else CODECS[images]
                info = {
                    "video.codec": codec.name,
                    "video.pix_fmt": codec.pixels,
                    "video.is_depth_map": entry.how == "depth",
                    "video.height": shape[0],
                    "video.width": shape[1],
                    "video.channels": shape[2],
                    "has_audio": False,
                }
        elif entry.how == "intrinsics":
            shape, names = (4,), ("fx", "fy", "cx", "cy")
        elif entry.how == "extrinsics":
            shape = (16,)
        features[entry.lerobot] = Feature(entry.lerobot, dtype, shape, names, info)
    return features


def _first_picture(index: FrameIndex, entry: Entry) -> NDArray[Any]:
    for episode, length in enumerate(index.episode_lengths.tolist()):
        for step in range(length):
            data = index.image_bytes(episode, step, entry.rlds)
            if data:
                return _decode(data, entry)
    raise DatasetError(f"{index.name}: {entry.rlds!r} has no picture at any step")


def _decode(data: bytes, entry: Entry) -> NDArray[Any]:
    if entry.how == "depth":
        return decode_depth(data, np.dtype(entry.dtype))
    return decode_rgb(data)


def _convert_episode(
    index: FrameIndex,
    card: Card,
    entries: list[Entry],
    writer: LeRobotWriter,
    episode: int,
    length: int,
    losses: dict[str, DepthLoss],
    images: str,
) -> None:
    columns: dict[str, NDArray[Any]] = {}
    pictures: dict[str, list[bytes]] = {}
    videos: dict[str, Iterator[NDArray[Any]]] = {}
    extra: dict[str, Any] = {}
    with in_episode(index.name, episode):
        store = RldsStore(index)
        words = read_words(
            card.language, store.trajectory(episode, card.language.keys), range(length)
        )
    tasks = [""] * length if words is None else words.first
    for entry in entries:
        if entry.how == "task":
            continue
        key = entry.lerobot
        if entry.how == "picture" and images == "keep":
            pictures[key] = [index.image_bytes(episode, t, entry.rlds) for t in range(length)]
        elif entry.how in ("picture", "depth"):
            videos[key] = _frames(index, entry, episode, length, losses.get(key))
        else:
            values = index.column(entry.rlds, episode)
            where = f"{index.name}, episode {episode}: {entry.rlds!r}"
            if entry.how == "text":
                told = [text_of(v, f"{where} at step {t}", cure=UTF8) for t, v in enumerate(values)]
                columns[key] = np.array(told, dtype=object)
            elif entry.how == "episode":
                extra[key] = _plain(values, where)
            elif entry.how == "intrinsics":
                columns[key] = values.reshape(length, 9)[:, [0, 4, 2, 5]]
            elif entry.how == "extrinsics":
                columns[key] = values.reshape(length, 16)
            else:
                columns[key] = values
    writer.add_episode(columns, tasks=tasks, images=pictures, videos=videos, extra=extra)


def _frames(
    index: FrameIndex, entry: Entry, episode: int, length: int, loss: DepthLoss | None
) -> Iterator[NDArray[Any]]:
    for step in range(length):
        data = index.image_bytes(episode, step, entry.rlds)
        if not data:
            raise DatasetError(
                f"{index.name}: {entry.rlds!r} has no picture at step {step} of episode {episode}, "
                "which a video cannot hold; keep the pictures (images: keep), or drop the episode"
            )
        picture = _decode(data, entry)
        yield picture if loss is None else to_units(picture, entry.scale or 1.0, loss)


def _plain(value: Any, where: str) -> Any:
    """As Parquet can hold it."""
    if isinstance(value, bytes):
        return text_of(value, where, cure=UTF8)
    if isinstance(value, list):
        return [_plain(item, where) for item in value]
    array = np.asarray(value)
    if array.dtype == object:
        return [_plain(item, where) for item in array.ravel().tolist()]
    return array.tolist()


def _translate(raw: dict[str, Any], card: Card, entries: list[Entry]) -> dict[str, Any]:
    """The card of the LeRobot dataset: the same, with the names of its pictures and calibration."""
    name_of = {entry.rlds: entry.lerobot for entry in entries}
    found = {**raw, "language": _words_of(card, entries)}
    found["cameras"] = {slot: name_of[t.path] for slot, t in (card.cameras or {}).items()}
    kept = {slot: name_of[t.path] for slot, t in card.depth.items() if t.path in name_of}
    found |= {"depth": kept, "depth_scale": DEPTH_SCALE} if kept else {"depth": {}}
    found |= {field: name_of.get(key, key) for field, key in card.points.items()}
    for field in ("intrinsics", "extrinsics"):
        found[field] = {
            slot: name_of.get(source, source) if isinstance(source, str) else source
            for slot, source in (raw.get(field) or {}).items()
        }
    return found


def _words_of(card: Card, entries: list[Entry]) -> dict[str, Any]:
    """Where the words lie then: `task` holds the first sentence, further columns go along."""
    if not card.language.keys:
        return {"kind": "none"}
    kept = {entry.rlds: entry.lerobot for entry in entries if entry.how == "text"}
    more = [kept[key] for key in card.language.keys if key in kept]
    if not more:
        return {"kind": "string", "key": TASK}
    several = {"several": card.language.several} if card.language.several else {}
    return {"kind": "string", "key": [TASK, *more], **several}


def _compare(index: FrameIndex, entries: list[Entry], out: Path, images: str) -> dict[str, str]:
    """Measured loss of the videos: some of their pictures beside those they came from."""
    store = LeRobotStore(out)
    steps = [(e, t) for e, n in enumerate(index.episode_lengths.tolist()) for t in range(n)]
    some = [steps[i] for i in evenly_spaced(len(steps), COMPARED)]
    found = {}
    for entry in entries:
        if entry.how != "picture":
            continue
        values = []
        for episode, step in some:
            was = decode_rgb(index.image_bytes(episode, step, entry.rlds))
            now = store.rgb(entry.lerobot, episode, step)
            assert now is not None
            values.append(psnr(was, now))
        found[entry.lerobot] = (
            f"{images} video: PSNR {mean_psnr(values):.1f} dB, at worst {min(values):.1f} dB, over "
            f"{len(values)} pictures"
        )
    return found
