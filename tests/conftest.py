"""Shared fixtures: the recorded golden data and the tiny released-layout checkpoint."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    return GOLDEN


@pytest.fixture(scope="session")
def golden_checkpoint() -> Path:
    return GOLDEN / "checkpoint"


@pytest.fixture(scope="session")
def golden_inputs() -> dict:
    return json.loads((GOLDEN / "inputs" / "inputs.json").read_text())


@pytest.fixture(autouse=True)
def scheduling_is_left_alone():
    """No test may leave its thread with another scheduling, as some video encoders would."""
    if not hasattr(os, "sched_getscheduler"):
        yield
        return
    me = threading.get_native_id()
    before = os.sched_getscheduler(me)
    yield
    assert os.sched_getscheduler(me) == before, "a test changed how this thread is scheduled"
