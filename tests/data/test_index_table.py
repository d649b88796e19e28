"""A mapped table against the same table read by pyarrow."""

import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest

from spatialvla_ft.data.rlds.table import Table

SIZES = (3, 0, 1, 0, 4, 2)


@pytest.fixture
def arrow_file(tmp_path):
    """A file of six batches, two without rows, and one of which is the middle of another."""
    rng = np.random.default_rng(0)
    batches = []
    for n in SIZES:
        numbers = pa.array(rng.integers(-(2**40), 2**40, n + 2))
        whole = pa.record_batch(
            [pa.array(["x" * i for i in range(n + 2)]), numbers, pa.array(rng.normal(size=n + 2))],
            names=["text", "number", "real"],
        )
        batches.append(whole.slice(1, n))
    with pa.ipc.new_file(str(tmp_path / "table.arrow"), batches[0].schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return tmp_path / "table.arrow", pa.Table.from_batches(batches).column("number").to_pylist()


def test_every_number_by_its_row(arrow_file):
    path, wanted = arrow_file
    table = Table(path)
    assert [table.number(row, "number") for row in range(len(wanted))] == wanted
    assert table.numbers("number").tolist() == wanted
    for row, value in enumerate(wanted):
        batch, local = table.locate(row)
        assert batch.column("number")[local].as_py() == value


def test_numbers_are_a_copy(arrow_file):
    path, wanted = arrow_file
    numbers = Table(path).numbers("number")
    numbers[:] = 0
    assert Table(path).numbers("number").tolist() == wanted


@pytest.mark.parametrize("column", ["text", "real"])
def test_only_whole_numbers_are_read_as_such(arrow_file, column):
    with pytest.raises(AssertionError, match=r"table\.arrow"):
        Table(arrow_file[0]).number(0, column)


def test_reading_does_not_import_pandas(demo):
    """It takes 35 MiB and a second, in every process that reads."""
    code = (
        "import sys\n"
        "from spatialvla_ft.data.rlds.index import FrameIndex\n"
        f"index = FrameIndex({str(demo / 'frame_index')!r})\n"
        "index.episode_lengths, index.trajectory(0)\n"
        "assert index.image_bytes(0, 0, index.image_keys[0])\n"
        "assert 'pandas' not in sys.modules, 'pandas'\n"
    )
    from spatialvla_ft.data.rlds.index import build_index

    build_index(demo)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-1000:]
