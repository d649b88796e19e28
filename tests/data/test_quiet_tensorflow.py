"""Loading TensorFlow says nothing of itself, but what matters is still shown."""

import os

from spatialvla_ft.data.rlds.tensorflow import _without_idle_lines

LINES = [
    b"WARNING: All log messages before absl::InitializeLog() is called are written to STDERR\n",
    b"I0000 00:00:1.2 34 port.cc:153] oneDNN custom operations are on.\n",
    b"E0000 00:00:1.2 34 cuda_platform.cc:52] failed call to cuInit: INTERNAL\n",
]
KEPT = [
    b"W0000 00:00:1.2 34 something.cc:1] this matters\n",
    b"E0000 00:00:1.2 34 other.cc:5] failed to open a file\n",
    b"Traceback of something\n",
]


def test_only_idle_lines_are_dropped(capfd):
    with _without_idle_lines():
        for pair in zip(LINES, KEPT, strict=True):
            os.write(2, b"".join(pair))
        assert capfd.readouterr().err == ""
    os.write(2, b"after\n")
    assert capfd.readouterr().err == b"".join([*KEPT, b"after\n"]).decode()


def test_also_where_loading_fails(capfd):
    try:
        with _without_idle_lines():
            os.write(2, LINES[1] + KEPT[0])
            raise ImportError("no such library")
    except ImportError:
        pass
    assert capfd.readouterr().err == KEPT[0].decode()
