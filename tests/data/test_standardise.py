"""Cards against the golden trajectories, and ops against plain loops and SciPy."""

from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from spatialvla_ft.data import DatasetError, load_cards, standardise
from spatialvla_ft.data.cards.ops import apply_op, parse_op
from spatialvla_ft.data.cards.terms import parse_term

ROOT = Path(__file__).parents[2]
GOLDEN = np.load(ROOT / "tests/golden/oxe_standardisation.npz")
CASES = sorted({tuple(key.split("/")[:2]) for key in GOLDEN.files})
CARDS = load_cards(ROOT / "data_mixtures/oxe_cards.yaml")


def golden(dataset, i):
    prefix = f"{dataset}/{i}/"
    raw = prefix + "raw/"
    return {k[len(raw) :]: GOLDEN[k] for k in GOLDEN.files if k.startswith(raw)}, prefix


def nested(flat):
    tree = {}
    for path, value in flat.items():
        *parents, last = path.split(".")
        node = tree
        for part in parents:
            node = node.setdefault(part, {})
        node[last] = value
    return tree


@pytest.mark.parametrize("shape", [dict, nested])
@pytest.mark.parametrize(("dataset", "i"), CASES)
def test_golden_trajectories(dataset, i, shape):
    raw, prefix = golden(dataset, i)
    ours = standardise(CARDS[dataset], shape(raw))
    exact = "quat" not in CARDS[dataset].action.rotation.raw
    np.testing.assert_allclose(ours.action, GOLDEN[prefix + "action"], atol=0 if exact else 1e-5)
    np.testing.assert_array_equal(ours.proprio, GOLDEN[prefix + "proprio"])
    assert ours.action.dtype == ours.proprio.dtype == np.float32
    assert ours.language == [text.decode() for text in GOLDEN[prefix + "language"]]
    assert ours.images == {s: term.path for s, term in CARDS[dataset].cameras.items()}


def test_golden_has_all_fourteen():
    assert len(CASES) == 56
    assert len({dataset for dataset, _ in CASES}) == 14


def test_steps_point_at_the_raw_rows():
    raw, _ = golden("bridge_orig", 0)
    ours = standardise(CARDS["bridge_orig"], raw)
    np.testing.assert_array_equal(ours.steps, np.arange(1, 22))
    state = raw["observation.state"]
    np.testing.assert_allclose(
        ours.action[:, :6], state[ours.steps + 1, :6] - state[ours.steps, :6], rtol=1e-6
    )


def test_a_missing_column_is_named():
    raw, _ = golden("bridge_orig", 0)
    del raw["observation.state"]
    with pytest.raises(DatasetError, match=r"'bridge_orig' reads \['observation.state'\]"):
        standardise(CARDS["bridge_orig"], raw)


def test_a_wrong_width_is_named():
    raw, _ = golden("bridge_orig", 0)
    raw["action"] = raw["action"][:, :2]
    with pytest.raises(DatasetError, match="give"):
        standardise(CARDS["bridge_orig"], raw)


def run(op, values):
    return apply_op(parse_op(op), np.asarray(values, np.float32))


def test_rel_to_abs_by_hand():
    op = {"rel_to_abs": {"eps": 0.1, "positive_is": "close"}}
    assert run(op, [0, 0, 1, 0, -1, 0]).tolist() == [1, 1, 0, 0, 1, 1]
    assert run(op, [0, -1, 0.1, 1]).tolist() == [0, 1, 1, 0]
    assert run(op, [0, 0.05, -0.05]).tolist() == [1, 1, 1]
    op = {"rel_to_abs": {"eps": 0.1, "positive_is": "open"}}
    assert run(op, [0, 0, 1, 0, -1, 0]).tolist() == [0, 0, 1, 1, 0, 0]


def test_rel_to_abs_per_column():
    op = {"rel_to_abs": {"eps": 0.1, "positive_is": "close"}}
    rng = np.random.default_rng(0)
    values = rng.choice([-1.0, 0.0, 1.0], (30, 3))
    together = run(op, values)
    for column in range(3):
        np.testing.assert_array_equal(together[:, column], run(op, values[:, column]))


def test_binarize_backward_by_hand():
    op = {"binarize_backward": {"open_above": 0.95, "closed_below": 0.05}}
    assert run(op, [0.0, 0.5, 1.0, 0.5, 0.0]).tolist() == [0, 1, 1, 0, 0]
    assert run(op, [1.0, 0.5, 0.25]).tolist() == [1, 0.25, 0.25]


def test_rotations_against_scipy():
    rng = np.random.default_rng(1)
    rotation = Rotation.random(50, random_state=1)
    expected = rotation.as_matrix()
    quat = run({"quat_to_euler": "xyzw"}, rotation.as_quat())
    vector = run({"axis_angle_to_euler": {"norm_eps": 1e-6}}, rotation.as_rotvec())
    for euler in (quat, vector):
        ours = Rotation.from_euler("xyz", euler).as_matrix()
        np.testing.assert_allclose(ours, expected, atol=1e-5)
    assert (run({"axis_angle_to_euler": {"norm_eps": 1e-6}}, np.zeros((2, 3))) == 0).all()
    pitch = rng.choice([-np.pi / 2, np.pi / 2])
    down = Rotation.from_euler("xyz", [0.3, pitch, 0.2]).as_quat()
    assert run({"quat_to_euler": "xyzw"}, [down])[0, 2] == pytest.approx(0, abs=1e-6)
    assert (run({"quat_to_euler": "xyzw"}, np.zeros((2, 4))) == 0).all()
    with pytest.raises(ValueError, match=r"length 1, got one of length 2\.121"):
        run({"quat_to_euler": "xyzw"}, [[0, 1.5, 0, 1.5]])


def test_zlib_bytes():
    import zlib

    blobs = np.empty(2, object)
    blobs[:] = [zlib.compress(np.arange(7, dtype=np.float32).tobytes() * 1) for _ in range(2)]
    term = parse_term({"src": "x", "ops": [{"zlib_float32": 7}]})
    np.testing.assert_array_equal(term.evaluate({"x": blobs}, 2), [np.arange(7.0)] * 2)


@pytest.mark.parametrize(
    ("raw", "complaint"),
    [
        ("action[0:1", "is no term"),
        ({"source": "action"}, "a term is a path"),
        ({"src": "action", "ops": ["inverse"]}, "unknown op 'inverse'; there are"),
        ({"src": "action", "ops": [{"clip": 1}]}, r"'clip' takes \[low, high\]"),
        ({"src": "a", "ops": [{"rel_to_abs": {"eps": 0.1}}]}, "takes"),
        ({"src": "a", "ops": [{"rel_to_abs": {"eps": 0, "positive_is": "shut"}}]}, "one of"),
    ],
)
def test_bad_terms(raw, complaint):
    with pytest.raises(ValueError, match=complaint):
        parse_term(raw)
