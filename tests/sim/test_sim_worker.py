import signal

import pytest

from spatialvla_ft.processes import Worker, WorkerError


def test_workers_load_neither_torch_nor_tensorflow():
    with Worker("sim_checks:loaded_modules") as worker:
        modules = worker.recv()
    assert "mujoco" in modules
    assert not {"torch", "tensorflow", "transformers"} & set(modules)


def test_a_value_error_comes_back_as_one():
    with (
        Worker("sim_checks:fail", ValueError("bad thing")) as worker,
        pytest.raises(ValueError, match="bad thing"),
    ):
        worker.recv()


def test_other_errors_bring_their_traceback():
    with (
        Worker("sim_checks:fail", KeyError("oops")) as worker,
        pytest.raises(WorkerError, match=r"(?s)Traceback.*oops"),
    ):
        worker.recv()


def test_a_dead_worker_is_noticed():
    with (
        Worker("sim_checks:fail", SystemExit(3)) as worker,
        pytest.raises(WorkerError, match="exit code 3"),
    ):
        worker.recv()


def test_a_worker_that_dies_names_the_signal_and_the_likely_cause(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    for draws, cause in (
        (True, "graphics library: it draws with MUJOCO_GL=osmesa"),
        (False, "crash"),
    ):
        number = signal.SIGSEGV.value
        with Worker("sim_checks:die", number, role="the painter", draws=draws) as worker:
            worker.recv()
            with pytest.raises(
                WorkerError, match=rf"^the painter died with signal SIGSEGV .*{cause}"
            ):
                worker.recv()
    with Worker("sim_checks:die_talking") as worker:
        worker._process.wait()
        with pytest.raises(WorkerError, match="SIGKILL"):
            worker.recv()
    with Worker("sim_checks:die", signal.SIGKILL.value) as worker:
        worker._process.wait()
        with pytest.raises(WorkerError, match="SIGKILL"):
            worker.send("are you there?")
    with Worker("sim_checks:die", signal.SIGKILL.value, draws=True) as worker:
        worker.recv()
        with pytest.raises(WorkerError, match=r"SIGKILL \(exit code -9\): .*want of memory"):
            worker.recv()


def test_no_worker_loads_graphics_by_importing_the_simulator(monkeypatch):
    """Who draws opens them itself, as the user's MUJOCO_GL says."""
    for wanted in ("osmesa", "EGL ", ""):
        monkeypatch.setenv("MUJOCO_GL", wanted)
        with Worker("sim_checks:backend") as worker:
            assert worker.recv() == (wanted.strip().lower(), "disable")


def test_what_a_machine_lacks_is_said_without_a_traceback(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "vulkan")
    with (
        Worker("sim_checks:draw_nothing", draws=True) as worker,
        pytest.raises(WorkerError, match=r"^MUJOCO_GL: got 'vulkan', allowed") as raised,
    ):
        worker.recv()
    assert "Traceback" not in str(raised.value)
