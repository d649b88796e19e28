"""Encoders leave the scheduling of the process as it was, whoever runs them."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from spatialvla_ft.converters.video_writer import CODECS, DEPTH_CODEC, VideoWriter, scheduling_kept

pytestmark = pytest.mark.skipif(
    not hasattr(os, "sched_setscheduler"), reason="this system has no scheduling policies"
)
ROOT = hasattr(os, "geteuid") and os.geteuid() == 0


def policies():
    return {os.sched_getscheduler(int(t.name)) for t in Path("/proc/self/task").iterdir()}


@pytest.mark.parametrize("name", [*CODECS, "ffv1"])
def test_no_thread_becomes_a_real_time_one(tmp_path, name):
    codec = DEPTH_CODEC if name == "ffv1" else CODECS[name]
    frame = np.zeros((64, 64) if name == "ffv1" else (64, 64, 3), "u2" if name == "ffv1" else "u1")
    writer = VideoWriter(tmp_path / "v.mp4", 10, codec)
    for _ in range(3):
        writer.write(frame)
        assert policies() == {os.SCHED_OTHER}
    writer.close()
    assert policies() == {os.SCHED_OTHER}


@pytest.mark.skipif(not ROOT, reason="only root may ask for real-time scheduling")
def test_a_thread_that_was_made_a_real_time_one_is_put_back():
    held = threading.Event()
    with scheduling_kept():
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
        thread = threading.Thread(target=held.wait)  # inherits it
        thread.start()
        assert os.sched_getscheduler(thread.native_id) == os.SCHED_FIFO
    found = [os.sched_getscheduler(id) for id in (threading.get_native_id(), thread.native_id)]
    held.set()
    thread.join()
    assert found == [os.SCHED_OTHER, os.SCHED_OTHER]


@pytest.mark.skipif(not ROOT, reason="only root may ask for real-time scheduling")
def test_a_real_time_process_stays_one():
    """A robot's controller that asked for it keeps its own policy and priority."""
    code = """
import os
from spatialvla_ft.converters.video_writer import scheduling_kept
os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(3))
with scheduling_kept():
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(99))
print(os.sched_getscheduler(0) == os.SCHED_RR, os.sched_getparam(0).sched_priority)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "3"]
