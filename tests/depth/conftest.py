from __future__ import annotations

import depth_zoo
import pytest

from spatialvla_ft.depth.load import ESTIMATORS, DepthSpec, load_depth_estimator


@pytest.fixture(scope="session")
def checkpoint_of(tmp_path_factory):
    """kind -> folder of a tiny random checkpoint of that model_type."""
    folder = tmp_path_factory.mktemp("depth")
    written = {}

    def make(kind):
        if kind not in written:
            written[kind] = depth_zoo.write(kind, folder)
        return written[kind]

    return make


@pytest.fixture(scope="session")
def estimator_of(checkpoint_of):
    """kind -> its estimator, loaded once."""
    loaded = {}

    def make(kind):
        if kind not in loaded:
            spec = DepthSpec(str(checkpoint_of(kind)), resolution=depth_zoo.SIDES[kind])
            loaded[kind] = load_depth_estimator(spec)
        return loaded[kind]

    return make


@pytest.fixture(params=sorted(ESTIMATORS))
def kind(request):
    return request.param


@pytest.fixture
def estimator(kind, estimator_of):
    return estimator_of(kind)
