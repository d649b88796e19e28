"""The report's sections of pictures: point clouds, grids."""

from __future__ import annotations

from spatialvla_ft.data import open_dataset
from spatialvla_ft.quickstart.run_files import GRIDS, RunFiles, patch_layout
from spatialvla_ft.quickstart.scenes import Scenes, first_view
from spatialvla_ft.viz.embed import figure_uri, png_uri
from spatialvla_ft.viz.html import absent, escape, paragraph, picture, section
from spatialvla_ft.viz.point_cloud import plot_point_clouds, two_views

DATASETS = ("data/robot_a_touch/1.0.0", "data/robot_b_touch/1.0.0")


def point_clouds(run: RunFiles, scenes: Scenes) -> str:
    """Two recorded frames as the points that Ego3D encodes, and what the policy sees of B."""
    title = "The points that Ego3D sees"
    folders = [run.folder / name for name in DATASETS if (run.folder / name).is_dir()]
    if not folders:
        return section(title, absent(DATASETS), first_view(run, scenes))
    size, patch, reso = patch_layout(run.config)
    dataset = open_dataset(folders[0], card=None)
    frames = two_views(dataset)
    uri = figure_uri(plot_point_clouds(frames, size, patch, reso))
    return section(
        title,
        paragraph(
            "Each pixel with a depth is one point in the camera's own frame: x right, y down, z "
            f"forward, metres, camera at the origin. The model cuts the picture into {patch} × "
            f"{patch} pixel patches with {reso} × {reso} points each, at the mean depth of their "
            "cells; their encoded coordinates are added to the features of the patch. So the same "
            "block has coordinates that fit the camera it is seen with, and the pose of the camera "
            "may change from episode to episode. A point whose cell straddles an edge lies between "
            "both surfaces."
        ),
        picture(
            uri,
            "Point clouds of two cameras with patch points on top",
            f"First frames of two demonstrations in {escape(dataset.name)}: those two of the first "
            "24 episodes whose cameras look in the most different directions. Orange: the patch "
            "with the strongest colour, and its points.",
            kind="pan",
        ),
        first_view(run, scenes),
    )


def grids(run: RunFiles) -> str:
    """Pictures of the action grids."""
    pictures = [
        picture(
            png_uri(path),
            f"Action grid of {GRIDS[name]}",
            f"Action grid of {GRIDS[name]}: distribution of the demonstrated actions per axis, the "
            "fitted density and the edges of the bins.",
            kind="pan large",
        )
        for name, path in run.grids.items()
    ]
    return section(
        "Action grids",
        absent(f"grids/{name}.png" for name in GRIDS if name not in run.grids),
        paragraph(
            "An action is spoken as three tokens: a cell of the translation grid, a cell of the "
            "rotation grid, and the gripper. The grid is fitted to each robot's demonstrations, so "
            "that tokens are spent where its actions are; adaptation moves the learnt embeddings "
            "of A's cells to the places of B's."
        ),
        *pictures,
    )
