import numpy as np
import pytest

from spatialvla_ft.viz.embed import jpeg_uri
from spatialvla_ft.viz.point_cloud import (
    CameraFrame,
    cell_points,
    pixel_points,
    plot_point_clouds,
    two_views,
)
from spatialvla_ft.viz.sheets import contact_sheet

K = np.array([[30.0, 0.7, 15.2], [0.0, 33.0, 17.1], [0.0, 0.0, 1.0]])


def frame(size=32, seed=0):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 255, (size, size, 3)).astype(np.uint8)
    return CameraFrame("made up", image, rng.uniform(0.5, 1.5, (size, size)).astype("f4"), K)


def test_pixel_points_project_back_onto_their_pixels():
    seen = frame()
    seen.depth[3, 5], seen.depth[7, 1] = 0.0, np.nan
    points, pixels = pixel_points(seen)
    assert len(points) == len(pixels) == 32 * 32 - 2
    assert not {(3, 5), (7, 1)} & set(map(tuple, pixels.tolist()))
    uvw = points @ K.T
    np.testing.assert_allclose(uvw[:, :2] / uvw[:, 2:], pixels[:, ::-1] + 0.5, atol=1e-9)
    np.testing.assert_allclose(points[:, 2], seen.depth[tuple(pixels.T)])


def test_cell_points_against_a_loop():
    """Mean depth of each cell, on the ray through its centre; patches row by row."""
    seen = frame()
    points = cell_points(seen, 32, 8, 2)
    assert points.shape == (16, 4, 3)
    inverse = np.linalg.inv(K)
    for patch in range(16):
        for cell in range(4):
            v = (patch // 4) * 8 + (cell // 2) * 4
            u = (patch % 4) * 8 + (cell % 2) * 4
            z = seen.depth[v : v + 4, u : u + 4].mean(dtype=np.float64)
            expected = z * inverse @ [u + 2, v + 2, 1]
            np.testing.assert_allclose(points[patch, cell], expected, rtol=1e-5)


def test_cell_points_lie_on_the_pixels_of_a_plane_that_faces_the_camera():
    seen = frame()
    seen.depth[:] = 0.8
    pixels, _ = pixel_points(seen)
    mean = pixels.reshape(8, 4, 8, 4, 3).mean(axis=(1, 3)).reshape(64, 3)
    cells = cell_points(seen, 32, 8, 2).reshape(4, 4, 2, 2, 3).transpose(0, 2, 1, 3, 4)
    np.testing.assert_allclose(cells.reshape(64, 3), mean, atol=1e-6)


def test_another_picture_size_is_refused():
    with pytest.raises(ValueError, match=r"\(32, 32\) pixels, but the model sees 64"):
        cell_points(frame(), 64, 16, 2)


class Episodes:
    """Stands in for a dataset: episodes whose cameras look along given directions."""

    def __init__(self, directions, which=None):
        self.directions = directions
        self.episodes = np.arange(len(directions)) if which is None else which

    def subset(self, which):
        return Episodes(self.directions, which)

    def __getitem__(self, row):
        assert row == 0
        pose = np.eye(4)
        pose[:3, 2] = self.directions[self.episodes[0]]

        class Sample:
            episode = int(self.episodes[0])
            images = {"primary": frame().image}  # noqa: RUF012
            depth = {"primary": frame().depth}  # noqa: RUF012
            intrinsics = {"primary": K}  # noqa: RUF012
            extrinsics = {"primary": pose}  # noqa: RUF012

        return Sample


def test_two_views_are_those_most_apart():
    angles = np.array([0.3, -0.6, 0.1, 0.8, 0.0])
    directions = np.stack([np.sin(angles), np.cos(angles), np.zeros(5)], axis=1)
    titles = [view.title for view in two_views(Episodes(directions))]
    # Field of view of K: 2 atan(16 / 33) = 51.7 degrees.
    assert titles == [f"Camera {c}: episode {e}, field of view 52°" for c, e in ("A1", "B3")]
    assert len(two_views(Episodes(directions[:1]))) == 1


def test_plot():
    figure = plot_point_clouds([frame(), frame(seed=1)], 32, 8, 2)
    assert len(figure.axes) == 4
    labels = [figure.axes[1].get_xlabel(), figure.axes[1].get_ylabel(), figure.axes[1].get_zlabel()]
    assert labels == ["x, right (m)", "z, forward (m)", "y, down (m)"]
    figure.canvas.draw()


def test_pictures_of_floats_are_drawn_as_the_bytes_that_they_are():
    whole = frame()
    floats = whole.image.astype(np.float32) / 255
    again = CameraFrame("made up", np.moveaxis(floats, -1, 0), whole.depth, K)
    np.testing.assert_array_equal(again.image, whole.image)
    for drawn in (lambda one: contact_sheet([(3, [(0, one)])]), jpeg_uri):
        assert np.array_equal(drawn(floats), drawn(whole.image))
    with pytest.raises(ValueError, match=r"made up is float32 .* floats are read as \[0, 1\]"):
        CameraFrame("made up", whole.image.astype(np.float32), whole.depth, K)
