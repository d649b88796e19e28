"""Datasets behind a URL: a web server of this machine, and fsspec's memory."""

import http.server
import os
import pickle
import re
import socket
import sys
import threading
from functools import partial
from pathlib import Path

import fsspec
import pytest
from typer.testing import CliRunner

from spatialvla_ft.bench.small_rlds import write_rlds
from spatialvla_ft.cli.main import app
from spatialvla_ft.data import DatasetError, FrameIndex, build_index, open_dataset
from spatialvla_ft.data.rlds.places import UrlStore, open_store

KEYS = ("observation.image_0", "observation.image_1")


class Handler(http.server.SimpleHTTPRequestHandler):
    """Files of a folder, with byte ranges unless `ranges` is off; notes what was asked for."""

    protocol_version = "HTTP/1.1"

    def __init__(self, *args, log, ranges, **kwargs):
        self.log, self.ranges = log, ranges
        super().__init__(*args, **kwargs)

    def log_message(self, *args):
        pass

    def do_GET(self):
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        path = Path(self.translate_path(self.path))
        if asked is None or not self.ranges or not path.is_file():
            self.log.append((path.name, None, None))
            return super().do_GET()
        data = path.read_bytes()
        start, stop = int(asked[1]), min(int(asked[2] or len(data)) + 1, len(data))
        self.log.append((path.name, start, stop))
        if start >= len(data):
            return self.send_error(416)
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")
        self.send_header("Content-Length", str(stop - start))
        self.end_headers()
        self.wfile.write(data[start:stop])
        return None


@pytest.fixture
def serve():
    """folder -> (URL, list of requests)."""
    servers = []

    def start(folder, *, ranges=True):
        log = []
        handler = partial(Handler, directory=str(folder), log=log, ranges=ranges)
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        servers.append((server, thread))
        return f"http://127.0.0.1:{server.server_port}", log

    yield start
    for server, thread in servers:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def small(tmp_path):
    return write_rlds(tmp_path, mebibytes=1, shards=2, steps=4, picture_bytes=900, lengths=[2, 1])


def equal(one, other):
    assert (one.num_steps, one.splits) == (other.num_steps, other.splits)
    for episode in range(one.num_episodes):
        assert (one.column("action", episode) == other.column("action", episode)).all()
        for key in KEYS:
            for t in range(4):
                assert one.image_bytes(episode, t, key) == other.image_bytes(episode, t, key)
    return True


def test_a_web_server(small, serve, tmp_path):
    url, log = serve(small)
    local = build_index(small)
    remote = build_index(url, out=tmp_path / "index")
    assert equal(local, remote)
    log.clear()
    picture = remote.image_bytes(2, 3, KEYS[1])
    assert len(log) == 1  # one request for one picture, of its bytes only
    assert log[0][2] - log[0][1] == len(picture)
    assert pickle.loads(pickle.dumps(remote)).image_bytes(2, 3, KEYS[1]) == picture
    assert FrameIndex(tmp_path / "index").store.url == url


def test_memory(small, tmp_path):
    files = fsspec.filesystem("memory")
    for path in small.iterdir():
        files.pipe_file(f"/sets/small/{path.name}", path.read_bytes())
    try:
        remote = build_index("memory://sets/small", out=tmp_path / "index", workers=2)
        assert equal(build_index(small), remote)
        shard = "/sets/small/generated-train.tfrecord-00000-of-00002"
        files.pipe_file(shard, files.cat_file(shard))
        with pytest.raises(DatasetError, match=r"changed its version from .* --rebuild"):
            FrameIndex(tmp_path / "index")
    finally:
        files.rm("/sets", recursive=True)


def test_blocks_are_kept(small, serve, tmp_path):
    url, log = serve(small)
    index = build_index(url, out=tmp_path / "index", cache_bytes=4 << 20)
    log.clear()
    assert equal(build_index(small), index)
    assert len(log) == 2  # a block of each shard


def test_where_the_index_of_a_url_lies(small, serve, tmp_path, monkeypatch):
    monkeypatch.setenv("SPATIALVLA_FT_CACHE", str(tmp_path / "cache"))
    url, log = serve(small)
    index = build_index(url)
    assert index.path.parent == tmp_path / "cache" / "frame_index"
    log.clear()
    assert build_index(url).path == index.path
    assert not any("tfrecord" in name for name, _, _ in log)  # the shards were not read again
    with pytest.raises(DatasetError, match="is no directory of this machine"):
        _ = index.dataset_dir


def test_a_card_beside_the_data(demo, serve, tmp_path, monkeypatch):
    monkeypatch.setenv("SPATIALVLA_FT_CACHE", str(tmp_path / "cache"))
    url, _ = serve(demo)
    here, there = open_dataset(demo, card=None), open_dataset(url, card=None)
    assert len(here) == len(there)
    assert (here[3].images["primary"] == there[3].images["primary"]).all()
    (demo / "card.yaml").unlink()
    with pytest.raises(DatasetError, match=r"brings no card: http://.*card.yaml is missing"):
        open_dataset(url, card=None)


def test_a_server_that_ignores_ranges(small, serve, tmp_path):
    url, _ = serve(small, ranges=False)
    index = build_index(url, out=tmp_path / "index")
    with pytest.raises(DatasetError, match=r"ignores byte ranges.*copy the dataset to a disk"):
        index.image_bytes(0, 0, KEYS[0])


def test_damage_names_the_url(small, serve, tmp_path):
    url, _ = serve(small)
    shard = small / "generated-train.tfrecord-00001-of-00002"
    data = bytearray(shard.read_bytes())
    data[5000] ^= 1
    shard.write_bytes(data)
    with pytest.raises(DatasetError, match=rf"{url}/{shard.name} is damaged: the record at byte 0"):
        build_index(url, out=tmp_path / "index")
    shard.unlink()
    with pytest.raises(DatasetError, match=rf"{url}/{shard.name} is missing"):
        build_index(url, out=tmp_path / "index")


def test_no_dataset_at_the_url(serve, tmp_path):
    url, _ = serve(tmp_path)
    with pytest.raises(DatasetError, match=rf"{url}/dataset_info.json is missing|features.json is"):
        build_index(url, out=tmp_path / "index")


def test_a_server_that_does_not_answer(tmp_path):
    with socket.socket() as closed:  # a port on which nobody listens
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/demo"
        told = rf"cannot read {url}/\w+.json \(ClientConnectorError.*; check the address, your acc"
        with pytest.raises(DatasetError, match=told):
            build_index(url, out=tmp_path / "index")
        done = CliRunner().invoke(app, ["data", "inspect", url])
    assert done.exit_code == 1
    assert "error: cannot read" in done.stderr


def test_a_missing_driver_names_its_package(monkeypatch):
    for module in ("gcsfs", "s3fs"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(DatasetError, match=r"gs:// needs a driver that is not installed: .*gcsfs"):
        build_index("gs://bucket/demo/1.0.0")
    with pytest.raises(DatasetError, match=r"s3:// needs a driver that is not installed: .*s3fs"):
        build_index("s3://bucket/demo/1.0.0")
    with pytest.raises(DatasetError, match=r"xyz:// is no kind of URL that fsspec knows; it knows"):
        build_index("xyz://bucket/demo/1.0.0")


@pytest.mark.parametrize(
    "url",
    ["https://ann:secret@host/set", "s3://ann:secret@bucket/set", "https://host/set?token=secret"],
)
def test_credentials_in_a_url_are_refused_and_not_repeated(url):
    with pytest.raises(DatasetError, match="give credentials to the driver instead") as error:
        UrlStore(url)
    assert "secret" not in str(error.value)
    assert error.value.__cause__ is None


def test_file_urls_are_paths(small):
    store = open_store(f"file://{small}")
    assert store.local
    assert build_index(f"file://{small}").num_episodes == 3
    assert (small / "frame_index").is_dir()


@pytest.fixture
def unpacked(small):
    """The small dataset with its shards written anew as ArrayRecord."""
    from array_record.python import array_record_module

    for shard in sorted(small.glob("*.tfrecord-*")):
        data, place = shard.read_bytes(), str(shard).replace("tfrecord", "array_record")
        writer = array_record_module.ArrayRecordWriter(place, "group_size:1")
        while data:
            size = int.from_bytes(data[:8], "little")
            writer.write(data[12 : 12 + size])
            data = data[16 + size :]
        writer.close()
        shard.unlink()
    path = small / "dataset_info.json"
    path.write_text(path.read_text().replace('"tfrecord"', '"array_record"'))
    return small


def test_array_records_at_a_url_are_copied_once(unpacked, serve, tmp_path, monkeypatch):
    monkeypatch.setenv("SPATIALVLA_FT_CACHE", str(tmp_path / "cache"))
    local = build_index(unpacked, out=tmp_path / "local")
    url, requests = serve(unpacked)
    far = build_index(url, out=tmp_path / "far")
    assert equal(far, local)
    copies = list((tmp_path / "cache").rglob("*.array_record-*"))
    assert len(copies) == 2
    whole = [name for name, start, _ in requests if "array_record" in name and start is None]
    assert set(whole) == {copy.name for copy in copies}
    victim = sorted(unpacked.glob("*.array_record-*"))[0]
    victim.write_bytes(victim.read_bytes() + b"x")
    os.utime(victim, (1, 1))
    with pytest.raises(DatasetError, match="stale index"):
        build_index(url, out=tmp_path / "far")
