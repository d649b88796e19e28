"""Random LeRobot datasets, whole or with a defect: read right, or refused by name; never else.

Every frame carries its own number in its picture, its action and, by parity, its words. What is
odd but means one thing only must be read; what is wrong may be refused, with dataset and episode,
column or file, but never give another frame's picture, action or words.
"""

import io
import json
import shutil
import tempfile
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from spatialvla_ft.converters.video_writer import open_encoder
from spatialvla_ft.data import DatasetError, open_dataset
from spatialvla_ft.data.cards.card import Card

KEY, NAME = "observation.images.front", "odd_set"
WIDTH, HEIGHT, BLOCK, BITS = 48, 32, 16, 6
TASKS = ("pick the cube", "open the drawer")


def drawn(number):
    image = np.full((HEIGHT, WIDTH, 3), 16, np.uint8)
    for bit in range(BITS):
        row, column = divmod(bit, WIDTH // BLOCK)
        if number >> bit & 1:
            image[row * BLOCK :, column * BLOCK :][:BLOCK, :BLOCK] = 235
    return image


def shown(image):
    blocks = image.mean(axis=2).reshape(HEIGHT // BLOCK, BLOCK, WIDTH // BLOCK, BLOCK)
    return int(((blocks.mean(axis=(1, 3)) > 128).ravel() << np.arange(BITS)).sum())


@dataclass
class Plan:
    """A dataset before it is written: its columns may still be spoilt."""

    version: str
    lengths: list[int]
    data_of: list[int]
    video_of: list[int]
    fps: float
    stored: str
    spare: list[int]
    tasks_as: str
    stops: str
    language: bool
    rows: dict[int, dict[str, list]] = field(default_factory=dict)
    table: list[dict] = field(default_factory=list)
    fields: dict[str, dict] = field(default_factory=dict)

    def __post_init__(self):
        number = 0
        seconds = dict.fromkeys(self.video_of, 0.0)
        for e, length in enumerate(self.lengths):
            n = list(range(number, number + length))
            number += length
            self.rows[e] = {
                "action": [[float(i), 50.0] for i in n],
                "timestamp": [float(np.float32(t / self.fps)) for t in range(length)],
                "frame_index": list(range(length)),
                "episode_index": [e] * length,
                "index": n,
                "task_index": [i % 2 for i in n],
                "unread": [float(i) for i in n],
            }
            file = self.video_of[e]
            row = {"episode_index": e, "length": length, "tasks": list(TASKS)}
            if self.version == "v3.0":
                row |= {"data/chunk_index": 0, "data/file_index": self.data_of[e]}
                if self.stored == "video":
                    start, last = seconds[file], (length + self.spare[e]) / self.fps
                    if self.stops == "last frame":
                        last = (length - 1) / self.fps
                    row |= {f"videos/{KEY}/chunk_index": 0, f"videos/{KEY}/file_index": file}
                    row |= {f"videos/{KEY}/from_timestamp": start}
                    if self.stops != "none":
                        row |= {f"videos/{KEY}/to_timestamp": start + last}
                    seconds[file] += (length + self.spare[e]) / self.fps
            self.table.append(row)
        one = {"dtype": "int64", "shape": [1], "names": None}
        self.fields = {
            "action": {"dtype": "float32", "shape": [2], "names": ["arm.pos", "gripper.pos"]},
            KEY: {"dtype": self.stored, "shape": [HEIGHT, WIDTH, 3], "names": None},
            "unread": {**one, "dtype": "float32"},
            "timestamp": {**one, "dtype": "float32"},
            **dict.fromkeys(("frame_index", "episode_index", "index", "task_index"), one),
        }
        if self.language:
            self.fields["language_events"] = {"dtype": "language", "shape": [1], "names": None}

    def write(self, folder):
        v3 = self.version == "v3.0"
        name = "chunk-000/file-{file_index:03d}" if v3 else "chunk-000/episode_{episode_index:06d}"
        info = {
            "codebase_version": self.version, "fps": self.fps, "features": self.fields,
            "total_episodes": len(self.lengths), "data_path": f"data/{name}.parquet",
            "video_path": f"videos/{{video_key}}/{name}.mp4",
        }  # fmt: skip
        (folder / "meta/episodes/chunk-000").mkdir(parents=True)
        (folder / "meta/info.json").write_text(json.dumps(info))
        self.write_tasks(folder)
        if v3:
            table = pa.Table.from_pandas(pd.DataFrame(self.table), preserve_index=False)
            pq.write_table(table, folder / "meta/episodes/chunk-000/file-000.parquet")
        else:
            lines = map(json.dumps, self.table)
            (folder / "meta/episodes.jsonl").write_text("\n".join(lines))
        for kind, files in (("data", self.data_of), ("videos", self.video_of)):
            files = files if v3 else list(range(len(self.lengths)))
            for file in sorted(set(files)):
                group = [e for e, f in enumerate(files) if f == file]
                number = {"file_index" if v3 else "episode_index": file}
                path = folder / info[f"{kind.rstrip('s')}_path"].format(video_key=KEY, **number)
                path.parent.mkdir(parents=True, exist_ok=True)
                if kind == "data":
                    self.write_rows(path, group)
                elif self.stored == "video":
                    self.write_video(path, group)

    def write_tasks(self, folder):
        if self.version == "v2.1":
            lines = [json.dumps({"task_index": i, "task": t}) for i, t in enumerate(TASKS)]
            (folder / "meta/tasks.jsonl").write_text("\n".join(lines))
            return
        frame = pd.DataFrame({"task_index": [0, 1]}, index=list(TASKS))
        if self.tasks_as == "more columns":
            frame["note"] = ["a", "b"]
            frame.index.name = "sentence"
        elif self.tasks_as == "column":
            frame = pd.DataFrame({"task_index": [0.0, 1.0], "task": list(TASKS), "x": ["y", "z"]})
        elif self.tasks_as == "reversed":
            frame = frame[::-1]
        frame.to_parquet(folder / "meta/tasks.parquet")

    def write_rows(self, path, group):
        columns = {name: [v for e in group for v in self.rows[e][name]] for name in self.rows[0]}
        firsts = np.cumsum([0, *self.lengths])
        if self.stored == "image":
            columns[KEY] = []
            for number in (int(firsts[e]) + t for e in group for t in range(self.lengths[e])):
                out = io.BytesIO()
                Image.fromarray(drawn(number)).save(out, "PNG")
                columns[KEY].append({"bytes": out.getvalue(), "path": None})
        if self.language:
            said = [{"role": "user", "content": "hm"}]
            columns["language_events"] = [said] * len(columns["index"])
        pq.write_table(pa.table(columns), path, row_group_size=4)

    def write_video(self, path, group):
        firsts = np.cumsum([0, *self.lengths])
        numbers = [
            i for e in group for i in [*range(firsts[e], firsts[e + 1]), *[63] * self.spare[e]]
        ]
        with av.open(str(path), "w") as container:
            rate = Fraction(self.fps).limit_denominator(1001)
            stream = container.add_stream("libx264", rate=rate, options={"g": "4", "crf": "30"})
            stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
            open_encoder(stream)
            for i, number in enumerate(numbers):
                frame = av.VideoFrame.from_ndarray(drawn(number))
                frame.pts, frame.time_base = i, 1 / rate
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))


@st.composite
def plans(draw, *, clips=False):
    """Datasets that can only be meant in one way; `clips`: several episodes in one video."""
    count = draw(st.integers(2 if clips else 1, 4))
    grouped = st.lists(st.integers(0, 1), min_size=count, max_size=count).map(sorted)
    lengths = st.lists(st.integers(1, 6), min_size=count, max_size=count)
    spare = st.lists(st.integers(0, 3), min_size=count, max_size=count)
    none = st.just([0] * count)  # to spare, so that neighbours in a file touch
    return Plan(
        version="v3.0" if clips else draw(st.sampled_from(["v3.0", "v2.1"])),
        lengths=draw(lengths),
        data_of=draw(grouped),
        video_of=[0] * count if clips else draw(grouped),
        fps=draw(st.sampled_from([10, 30, 29.97])),
        stored="video" if clips else draw(st.sampled_from(["video", "video", "image"])),
        spare=draw(none | spare),
        tasks_as=draw(st.sampled_from(["index", "more columns", "column", "reversed"])),
        stops=draw(st.sampled_from(["end", "last frame", "none"])),
        language=draw(st.booleans()),
    )


def in_table(column, *values):
    def spoil(plan, e, draw):
        if column in plan.table[e]:
            plan.table[e][column] = draw(st.sampled_from(values))

    return spoil


def in_rows(column, change):
    def spoil(plan, e, draw):
        t = draw(st.integers(0, plan.lengths[e] - 1))
        values = plan.rows[e][column]
        values[t] = change(values[t])

    return spoil


def clock(plan, e, draw):
    factor, offset = draw(
        st.sampled_from([(2.0, 0), (1, 1), (1, -1), (0.5, 0), (1, 0.5), (1.3, 0)])
    )
    stamps = plan.rows[e]["timestamp"]
    plan.rows[e]["timestamp"] = [s * factor + offset / plan.fps for s in stamps]


def renumbered(plan, e, draw):
    plan.rows[e]["episode_index"] = [draw(st.integers(0, 4))] * plan.lengths[e]


def shuffled(plan, e, draw):
    order = draw(st.permutations(range(plan.lengths[e])))
    columns = plan.rows[e]
    if plan.stored == "video":  # of pictures in the rows nothing tells the order
        plan.rows[e] = {name: [values[i] for i in order] for name, values in columns.items()}


def swapped_tasks(plan, e, draw):
    plan.table[e]["tasks"] = [TASKS[plan.rows[e]["task_index"][0]]]
    plan.rows[e]["task_index"] = [1 - t for t in plan.rows[e]["task_index"]]


def moved(plan, e, draw):
    start = f"videos/{KEY}/from_timestamp"
    # Among frames that belong to nobody, nothing tells that a clip was moved.
    if start in plan.table[e] and not any(plan.spare):
        shift = draw(st.sampled_from([-2, -1, -0.6, 0.6, 1, 3]))
        plan.table[e][start] = plan.table[e][start] + shift / plan.fps


def other_clip(plan, e, draw):
    other = draw(st.integers(0, len(plan.lengths) - 1))
    for name in plan.table[e]:
        if name.startswith("videos/"):
            plan.table[e][name] = plan.table[other][name]


HARMLESS = {
    "nothing": lambda plan, e, draw: None,
    "whole floats": lambda plan, e, draw: plan.table[e].update(
        {k: float(v) for k, v in plan.table[e].items() if isinstance(v, int) and "/" in k}
    ),
    "empty where nothing reads": in_rows("unread", lambda v: None),
    "index of another set": in_rows("index", lambda v: v + 1000),
    "no frame_index": lambda plan, e, draw: [r.pop("frame_index") for r in plan.rows.values()],
    "tasks not told": lambda plan, e, draw: plan.table[e].update(tasks=[]),
    "tasks renamed": lambda plan, e, draw: plan.table[e].update(tasks=["an older sentence"]),
    "data file": in_table("data/file_index", 0, 1, 2, 3, None),
}
CLIPS = {
    "clip moved": moved,
    "another's clip": other_clip,
    "no place": in_table(f"videos/{KEY}/file_index", None, np.nan, -1, 0.5, 7),
    "no start": in_table(f"videos/{KEY}/from_timestamp", None, np.nan, -0.4, 1e9),
    "stop": in_table(f"videos/{KEY}/to_timestamp", None, 0.0, -1.0, 0.1),
    "longer": in_table("length", 1, 3, 7),
    "clock": clock,
    "frame number": in_rows("frame_index", lambda v: v + 1),
    "shuffled rows": shuffled,
}
ROWS = {
    "length": in_table("length", None, 0, 1, 3, 2.5, -1),
    "number": in_table("episode_index", None, 0, 1, 9),
    "no stamp": in_rows("timestamp", lambda v: None),
    "no frame number": in_rows("frame_index", lambda v: None),
    "owners": renumbered,
    "no owner": in_rows("episode_index", lambda v: None),
    "no task": in_rows("task_index", lambda v: None),
    "unknown task": in_rows("task_index", lambda v: 5),
    "another's task": swapped_tasks,
    "no action": in_rows("action", lambda v: None),
    "short action": in_rows("action", lambda v: v[:1]),
}


def right(sample, numbers):
    number = int(numbers[sample.episode] + sample.step)
    picture = shown(sample.images["primary"])
    assert (picture, sample.actions[0, 0], sample.instruction) == (
        number,
        number,
        TASKS[number % 2],
    )


def card_of(time):
    return Card.model_validate(
        {
            "name": NAME, "version": "v3.0", "cameras": {"primary": KEY},
            "video": {"time": time}, "language": {"kind": "string", "key": "task"},
            "action": {
                "encoding": "JOINT_POS", "joints": ["action[0:1]"], "gripper": ["action[1:2]"]
            },
        }
    )  # fmt: skip


def read_all(plan, *, time, cameras):
    """Frames that were read; each is right. An error must be one that names the place."""
    numbers = np.cumsum([0, *plan.lengths])
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / NAME
        folder.mkdir()
        plan.write(folder)
        try:
            dataset = open_dataset(folder, card=card_of(time), cameras=cameras, horizon=1)
        except DatasetError as error:
            return [str(error)]
        outcomes = []
        for i in reversed(range(len(dataset))):
            try:
                right(dataset[i], numbers)
            except DatasetError as error:
                outcomes.append(str(error))
            else:
                outcomes.append(None)
        shutil.rmtree(folder)
        return outcomes


COMMON = {"deadline": None, "suppress_health_check": list(HealthCheck), "derandomize": True}
CAMERAS = st.sampled_from([None, ["primary"]])


def spoilt(defects, plan, data):
    """The name of a defect, and what became of every frame."""
    name = data.draw(st.sampled_from(sorted(defects)))
    defects[name](plan, data.draw(st.integers(0, len(plan.lengths) - 1)), data.draw)
    return read_all(plan, time=None, cameras=data.draw(CAMERAS))


def named(outcomes):
    for said in outcomes:
        if said is not None:
            assert NAME in said
            assert any(word in said for word in ("episode", "column", "row", KEY, "task_index"))
            assert ";" in said  # the cure


@settings(max_examples=40, **COMMON)
@given(plans(), st.data())
def test_what_is_only_odd_is_read(plan, data):
    assert spoilt(HARMLESS, plan, data) == [None] * sum(plan.lengths)


@settings(max_examples=50, **COMMON)
@given(plans(clips=True), st.data())
def test_clips_that_are_wrong_are_refused_by_name(plan, data):
    named(spoilt(CLIPS, plan, data))


@settings(max_examples=50, **COMMON)
@given(plans(), st.data())
def test_rows_that_are_wrong_are_refused_by_name(plan, data):
    named(spoilt(ROWS, plan, data))


@settings(max_examples=10, **COMMON)
@given(plans(clips=True), st.data())
def test_by_the_number_any_clock_will_do(plan, data):
    clock(plan, data.draw(st.integers(0, len(plan.lengths) - 1)), data.draw)
    outcomes = read_all(plan, time="frame_index", cameras=["primary"])
    assert outcomes == [None] * sum(plan.lengths)
