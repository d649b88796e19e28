import pytest

from spatialvla_ft.sim.worker import Worker, WorkerError


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
