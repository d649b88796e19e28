"""LeRobot folders written by hand, v2.1 and v3.0, whose pictures carry their own number.

Independent of the package's writer: what is read back is known from the number alone.
"""

import json
from fractions import Fraction

import av
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from spatialvla_ft.converters.video_writer import open_encoder

WIDTH, HEIGHT, BLOCK, BITS = 96, 64, 16, 24
FPS = 10
LENGTHS = (7, 12, 5, 9, 1)
"""Episodes; in v3.0 the first three share one mp4, the last two the next."""
FILE_OF = (0, 0, 0, 1, 1)
TASKS = ("pick the cube", "open the drawer")
JOINTS = ("shoulder_pan.pos", "shoulder_lift.pos", "elbow_flex.pos", "gripper.pos")


def numbered(number):
    """A picture that shows `number` in blocks, the least significant bit first."""
    image = np.full((HEIGHT, WIDTH, 3), 16, np.uint8)
    for bit in range(BITS):
        row, column = divmod(bit, WIDTH // BLOCK)
        if number >> bit & 1:
            image[row * BLOCK : (row + 1) * BLOCK, column * BLOCK : (column + 1) * BLOCK] = 235
    return image


def number_of(image):
    """The number that a picture shows, however it was compressed."""
    blocks = image[..., :3].mean(axis=2).reshape(HEIGHT // BLOCK, BLOCK, WIDTH // BLOCK, BLOCK)
    bits = (blocks.mean(axis=(1, 3)) > 128).ravel()
    return int((bits << np.arange(BITS)).sum())


def picture_number(camera, episode, step):
    return (camera + 1) << 16 | episode << 8 | step


def depth_of(episode, step):
    """(H, W) uint16, all of it different from frame to frame."""
    return np.random.default_rng([episode, step]).integers(0, 2**16, (HEIGHT, WIDTH), np.uint16)


def action_of(episode, step):
    return np.array([episode, step, episode * step / 7, 10 * (step % 10)], np.float32)


def write_video(path, frames, codec="libx264", pixels="yuv420p", options=None, gray=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream(codec, rate=FPS, options=options or {})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pixels
        open_encoder(stream)
        for i, array in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(array, format="gray16le" if gray else "rgb24")
            frame.pts, frame.time_base = i, Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _rows(episode, first, cameras):
    length = LENGTHS[episode]
    steps = np.arange(length)
    actions = np.stack([action_of(episode, t) for t in steps])
    intrinsics = np.stack([[50 + t, 60 + t, 40 + episode, 30] for t in steps]).astype(np.float32)
    columns = {
        "action": pa.array(list(actions), pa.list_(pa.float32(), 4)),
        "observation.state": pa.array(list(actions - 1), pa.list_(pa.float32(), 4)),
        "front_camera_intrinsics": pa.array(list(intrinsics), pa.list_(pa.float32(), 4)),
        "timestamp": pa.array((steps / FPS).astype(np.float32)),
        "frame_index": pa.array(steps),
        "episode_index": pa.array(np.full(length, episode)),
        "index": pa.array(first + steps),
        "task_index": pa.array((steps + episode) % 2),
    }
    return pa.table(columns)


def _features(cameras, depth, codec):
    vector = {"dtype": "float32", "shape": [4], "names": list(JOINTS)}
    scalar = {"shape": [1], "names": None}
    names = ["height", "width", "channels"]
    video = {"dtype": "video", "shape": [HEIGHT, WIDTH, 3], "names": names}
    features = {
        "action": vector,
        "observation.state": vector,
        "front_camera_intrinsics": {**vector, "names": ["fx", "fy", "cx", "cy"]},
        **{f"observation.images.{c}": {**video, "info": {"video.codec": codec}} for c in cameras},
        "timestamp": {"dtype": "float32", **scalar},
    }
    if depth:
        info = {"video.pix_fmt": "gray16le", "video.is_depth_map": True, "video.codec": "ffv1"}
        features["depth.front"] = {**video, "shape": [HEIGHT, WIDTH, 1], "info": info}
    for key in ("frame_index", "episode_index", "index", "task_index"):
        features[key] = {"dtype": "int64", **scalar}
    return features


def write(
    folder,
    version,
    *,
    cameras=("front",),
    depth=True,
    codec="libx264",
    pixels="yuv420p",
    options=None,
):
    """A dataset of five episodes in `folder`."""
    meta = folder / "meta"
    meta.mkdir(parents=True)
    starts = np.cumsum((0, *LENGTHS))
    v3 = version == "v3.0"
    place = "chunk-{chunk_index:03d}/file-{file_index:03d}"
    old = "chunk-{episode_chunk:03d}"
    info = {
        "codebase_version": version,
        "robot_type": "so100",
        "total_episodes": len(LENGTHS),
        "total_frames": int(starts[-1]),
        "total_tasks": 2,
        "chunks_size": 2,
        "fps": FPS,
        "splits": {"train": f"0:{len(LENGTHS)}"},
        "data_path": f"data/{place}.parquet"
        if v3
        else f"data/{old}/episode_{{episode_index:06d}}.parquet",
        "video_path": f"videos/{{video_key}}/{place}.mp4"
        if v3
        else f"videos/{old}/{{video_key}}/episode_{{episode_index:06d}}.mp4",
        "features": _features(cameras, depth, codec),
    }
    (meta / "info.json").write_text(json.dumps(info))
    clips = {f"observation.images.{c}": i for i, c in enumerate(cameras)}
    tables = [_rows(e, int(starts[e]), cameras) for e in range(len(LENGTHS))]
    stats = {"action": {"min": [0, 0, 0, 0], "max": [9, 9, 9, 100]}}
    groups = (
        [[e for e, f in enumerate(FILE_OF) if f == file] for file in (0, 1)]
        if v3
        else [[e] for e in range(len(LENGTHS))]
    )
    rows = []
    for file, group in enumerate(groups):
        fields = (
            {"chunk_index": file // 2, "file_index": file % 2}
            if v3
            else {"episode_chunk": group[0] // 2, "episode_index": group[0]}
        )
        path = folder / info["data_path"].format(**fields)
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.concat_tables([tables[e] for e in group]), path, row_group_size=10)
        for key, camera in clips.items():
            frames = [
                numbered(picture_number(camera, e, t)) for e in group for t in range(LENGTHS[e])
            ]
            write_video(
                folder / info["video_path"].format(video_key=key, **fields),
                frames,
                codec,
                pixels,
                options,
            )
        if depth:
            frames = [depth_of(e, t) for e in group for t in range(LENGTHS[e])]
            write_video(
                folder / info["video_path"].format(video_key="depth.front", **fields),
                frames,
                "ffv1",
                "gray16le",
                {"g": "1"},
                gray=True,
            )
        seconds = 0.0
        for e in group:
            row = {"episode_index": e, "tasks": list(TASKS), "length": LENGTHS[e]}
            if v3:
                row |= {f"data/{k}": v for k, v in fields.items()}
                row |= {
                    "dataset_from_index": int(starts[e]),
                    "dataset_to_index": int(starts[e + 1]),
                }
                for key in (*clips, *(["depth.front"] if depth else [])):
                    row |= {f"videos/{key}/{k}": v for k, v in fields.items()}
                    row[f"videos/{key}/from_timestamp"] = seconds
                    row[f"videos/{key}/to_timestamp"] = seconds + LENGTHS[e] / FPS
                row["stats/action/min"] = [0.0] * 4
                seconds += LENGTHS[e] / FPS
            rows.append(row)
    if v3:
        (meta / "stats.json").write_text(json.dumps(stats))
        (meta / "episodes/chunk-000").mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(rows), meta / "episodes/chunk-000/file-000.parquet")
        tasks = pd.DataFrame({"task_index": [0, 1]}, index=list(TASKS))
        tasks.to_parquet(meta / "tasks.parquet")
    else:
        lines = [json.dumps({"episode_index": e, "stats": stats}) for e in range(len(LENGTHS))]
        (meta / "episodes_stats.jsonl").write_text("\n".join(lines) + "\n")
        (meta / "episodes.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
        tasks = [json.dumps({"task_index": i, "task": t}) for i, t in enumerate(TASKS)]
        (meta / "tasks.jsonl").write_text("\n".join(tasks) + "\n")
    return folder
