"""The right frame of videos that make it hard: the pictures carry their own number.

The oracle is the number in the picture, and for counts of decoded packets arithmetic by hand.
"""

import json
import multiprocessing
from fractions import Fraction

import av
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lerobot_write import HEIGHT, JOINTS, WIDTH, number_of, numbered

from spatialvla_ft.converters.video_writer import open_encoder
from spatialvla_ft.data import DatasetError, open_dataset
from spatialvla_ft.data.lerobot.video import Decoder, Decoders
from spatialvla_ft.data.samples import read_in_disk_order

COUNT, FPS = 60, 30
CODECS = {
    "b-frames": ("libx264", {"g": "250", "bf": "3", "sc_threshold": "0"}),
    "pyramid, open groups": (
        "libx264",
        {
            "g": "12",
            "bf": "5",
            "b_strategy": "0",
            "x264-params": "open-gop=1:b-pyramid=strict:scenecut=0",
        },
    ),
    "two, no b-frames": ("libx264", {"g": "2"}),
    "every frame": ("libx264", {"g": "1"}),
    "mpeg4 with b-frames": ("mpeg4", {"g": "9", "bf": "2", "q": "3"}),
    "av1, long": ("libsvtav1", {"g": "250", "crf": "30", "preset": "12"}),
    "av1, two": ("libsvtav1", {"g": "2", "crf": "30", "preset": "12"}),
}


def write_numbers(path, codec, options, *, first=0.0, steps=None, numbers=range(COUNT)):
    """A video; frame i shows its number and stands at `first` + the sum of the steps before.

    Returns the time of every frame, as a player would show it.
    """
    base = Fraction(1, 90000)
    steps = steps or [1 / FPS] * len(numbers)
    ticks = np.rint((first + np.cumsum([0, *steps[:-1]])) / float(base)).astype(int)
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream(codec, rate=FPS, options=options)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.time_base = base if codec != "mpeg4" else Fraction(1, FPS)
        open_encoder(stream)
        for number, tick in zip(numbers, ticks.tolist(), strict=True):
            frame = av.VideoFrame.from_ndarray(numbered(number), format="rgb24")
            frame.pts, frame.time_base = tick, base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with av.open(str(path)) as container:
        shown = [frame.time for frame in container.decode(video=0)]
    assert len(shown) == len(numbers)
    return ticks * float(base)


def orders(count):
    rng = np.random.default_rng(7)
    yield "random", rng.permutation(count)
    yield "forward", np.arange(count)
    yield "backward", np.arange(count)[::-1]
    yield "every third", np.arange(0, count, 3)
    yield "pairs", np.ravel([(i, i + 1) for i in rng.integers(0, count - 1, 30)])
    yield "back and forth", np.ravel([(i, max(0, i - 2), i) for i in rng.integers(0, count, 25)])


@pytest.mark.parametrize("name", CODECS)
def test_every_order_gives_the_frame_asked_for(tmp_path, name):
    times = write_numbers(tmp_path / "v.mp4", *CODECS[name])
    decoder = Decoder(tmp_path / "v.mp4", FPS)
    for order, frames in orders(COUNT):
        seen = [number_of(decoder.frame(times[i], "rgb24")) for i in frames]
        assert seen == list(frames), order


@pytest.mark.parametrize(
    "name", ["b-frames", "pyramid, open groups", "two, no b-frames", "av1, two"]
)
def test_a_video_may_begin_late(tmp_path, name):
    times = write_numbers(tmp_path / "v.mp4", *CODECS[name], first=1.5)
    decoder = Decoder(tmp_path / "v.mp4", FPS)
    for order, frames in orders(COUNT):
        seen = [number_of(decoder.frame(times[i], "rgb24")) for i in frames]
        assert seen == list(frames), order
    with pytest.raises(DatasetError, match=r"no frame at 0\.000000 s.*1\.500000 s"):
        decoder.frame(0.0, "rgb24")
    assert number_of(decoder.frame(times[5], "rgb24")) == 5


@pytest.mark.parametrize("name", ["b-frames", "two, no b-frames", "av1, long"])
def test_the_rate_may_vary(tmp_path, name):
    steps = [(1, 2, 1, 3.5, 1.25)[i % 5] / FPS for i in range(COUNT)]
    times = write_numbers(tmp_path / "v.mp4", *CODECS[name], steps=steps)
    decoder = Decoder(tmp_path / "v.mp4", FPS)
    for order, frames in orders(COUNT):
        seen = [number_of(decoder.frame(times[i], "rgb24")) for i in frames]
        assert seen == list(frames), order
    with pytest.raises(DatasetError, match="does not fit"):
        decoder.frame(times[2] + 0.5 * steps[2], "rgb24")


def packets_of(decoder, monkeypatch):
    """A list that grows by one entry per packet that is decoded."""
    seen = []

    class Counting:
        def __getattr__(self, name):
            return getattr(context, name)

        def __setattr__(self, name, value):
            setattr(context, name, value)

        def decode(self, packet):
            if packet is not None and packet.size:
                seen.append((round(packet.pts * decoder._base * FPS), str(context.skip_frame)))
            return context.decode(packet)

    context = decoder._context
    monkeypatch.setattr(decoder, "_context", Counting())
    return seen


def test_near_key_frames_cost_the_least_that_the_codec_allows(tmp_path, monkeypatch):
    times = write_numbers(tmp_path / "v.mp4", *CODECS["two, no b-frames"])
    decoder = Decoder(tmp_path / "v.mp4", FPS)
    assert decoder.key_interval == 2
    seen = packets_of(decoder, monkeypatch)
    for i in (40, 13, 2):
        seen.clear()
        decoder.frame(times[i], "rgb24")
        assert [number for number, _ in seen] == ([i] if i % 2 == 0 else [i - 1, i])
    # In order, each frame is decoded once, but for those before the reader saw that it is so.
    seen.clear()
    for i in range(20, 50):
        assert number_of(decoder.frame(times[i], "rgb24")) == i
    assert len(seen) <= 30 + 4


def test_a_batch_in_disk_order_decodes_a_group_once(tmp_path, monkeypatch):
    times = write_numbers(tmp_path / "v.mp4", *CODECS["b-frames"])
    decoder = Decoder(tmp_path / "v.mp4", FPS)
    assert decoder.key_interval == COUNT
    seen = packets_of(decoder, monkeypatch)
    places = [(0, int(i)) for i in np.random.default_rng(1).permutation(COUNT)[:16]]
    shown = read_in_disk_order(lambda at: number_of(decoder.frame(times[at[1]], "rgb24")), places)
    assert shown == [frame for _, frame in places]
    assert len(seen) <= COUNT
    assert any(skip == "NONREF" for _, skip in seen)
    # Those shown before the one asked for may be left out, no other.
    assert all(skip != "NONREF" or number < max(f for _, f in places) for number, skip in seen)


def test_a_frame_left_out_on_the_way_is_found_when_it_is_asked_for(tmp_path):
    times = write_numbers(tmp_path / "v.mp4", *CODECS["b-frames"])
    decoder = Decoder(tmp_path / "v.mp4", FPS)
    for i in range(20, 50):
        decoder.frame(times[i], "rgb24")
        for other in (i + 1, i + 2, i - 1):
            assert number_of(decoder.frame(times[other], "rgb24")) == other


EPISODES = (11, 7, 15)


@pytest.fixture(scope="module")
def late(tmp_path_factory):
    """v3.0: three episodes in one mp4 that begins at 2 s, long groups of B-frames."""
    folder = tmp_path_factory.mktemp("late") / "late"
    key = "observation.images.front"
    video = f"videos/{key}/chunk-000/file-000.mp4"
    total = sum(EPISODES)
    write_numbers(
        folder / video, "libx264", {"g": "250", "bf": "3"}, first=2.0, numbers=range(total)
    )
    names = ["height", "width", "channels"]
    vector = {"dtype": "float32", "shape": [4], "names": list(JOINTS)}
    scalar = {"shape": [1], "names": None}
    info = {
        "codebase_version": "v3.0",
        "total_episodes": len(EPISODES),
        "fps": FPS,
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
        "features": {
            "action": vector,
            key: {"dtype": "video", "shape": [HEIGHT, WIDTH, 3], "names": names},
            "timestamp": {"dtype": "float32", **scalar},
            **{k: {"dtype": "int64", **scalar} for k in ("episode_index", "task_index")},
        },
    }
    rows, tables, first = [], [], 0
    for episode, length in enumerate(EPISODES):
        steps = np.arange(length)
        tables.append(
            pa.table(
                {
                    "action": pa.array([[0.0, 1.0, 2.0, t] for t in steps], pa.list_(pa.float32())),
                    "timestamp": pa.array((steps / FPS).astype(np.float32)),
                    "episode_index": pa.array(np.full(length, episode)),
                    "task_index": pa.array(np.zeros(length, np.int64)),
                }
            )
        )
        place = {"chunk_index": 0, "file_index": 0}
        rows.append(
            {
                "episode_index": episode,
                "length": length,
                "tasks": ["go"],
                **{f"data/{k}": v for k, v in place.items()},
                **{f"videos/{key}/{k}": v for k, v in place.items()},
                f"videos/{key}/from_timestamp": 2.0 + first / FPS,
            }
        )
        first += length
    for path in ("data/chunk-000", "meta/episodes/chunk-000"):
        (folder / path).mkdir(parents=True)
    pq.write_table(pa.concat_tables(tables), folder / "data/chunk-000/file-000.parquet")
    episodes = pa.Table.from_pylist(rows)
    pq.write_table(episodes, folder / "meta/episodes/chunk-000/file-000.parquet")
    pd.DataFrame({"task_index": [0]}, index=["go"]).to_parquet(folder / "meta/tasks.parquet")
    (folder / "meta/info.json").write_text(json.dumps(info))
    stats = {"action": {"min": [0, 0, 0, 0], "max": [1, 1, 1, 100]}}
    (folder / "meta/stats.json").write_text(json.dumps(stats))
    return folder


def test_several_episodes_in_a_file_that_begins_late(late):
    dataset = open_dataset(late, card=None, window=2)
    starts = np.cumsum([0, *EPISODES])
    for frame in np.random.default_rng(2).permutation(len(dataset)):
        sample = dataset[int(frame)]
        assert number_of(sample.images["primary"]) == frame
        before = max(int(frame) - 1, int(starts[sample.episode]))
        assert number_of(sample.history[0].images["primary"]) == before


def _read(dataset, frames, channel):
    channel.send([number_of(dataset[i].images["primary"]) for i in frames])


def test_workers_read_at_once_from_a_dataset_already_in_use(late):
    """Forked in the middle of a group, all reading the same file, and the parent going on."""
    dataset = open_dataset(late, card=None)
    frames = np.random.default_rng(4).permutation(len(dataset)).tolist()
    assert number_of(dataset[frames[0]].images["primary"]) == frames[0]
    context = multiprocessing.get_context("fork")
    workers = []
    for worker in range(3):
        ours, theirs = context.Pipe(duplex=False)
        mine = frames[worker:] + frames[:worker]
        process = context.Process(target=_read, args=(dataset, mine, theirs))
        process.start()
        workers.append((process, ours, mine))
    assert [number_of(dataset[i].images["primary"]) for i in frames] == frames
    for process, channel, mine in workers:
        assert channel.poll(30)
        assert channel.recv() == mine
        process.join(30)
        assert process.exitcode == 0


def test_the_parents_decoder_is_not_used_after_a_fork(tmp_path):
    write_numbers(tmp_path / "v.mp4", *CODECS["b-frames"])
    decoders = Decoders(FPS)
    parents = decoders.get(tmp_path / "v.mp4")
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=lambda: theirs.send(decoders.get(tmp_path / "v.mp4") is parents))
    child.start()
    assert ours.poll(30)
    assert ours.recv() is False
    child.join(30)
    assert decoders.get(tmp_path / "v.mp4") is parents
