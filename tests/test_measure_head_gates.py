"""The tool that holds heads against one another: its tasks are what they say, and it runs."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

FILE = Path(__file__).parents[1] / "tools" / "measure_head_gates.py"


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("measure_head_gates", FILE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_a_vector_has_one_good_action_or_its_mirror_image(tool):
    one, two = tool.vector_task(50, 1, 3), tool.vector_task(50, 2, 3)
    assert torch.equal(one.inputs, two.inputs)
    assert one.good.shape == (50, 1, 3)
    assert torch.equal(two.good[:, 1], -two.good[:, 0])
    assert not torch.equal(one.inputs, tool.vector_task(50, 1, 4).inputs)
    assert torch.equal(tool.distance(two.good[:, 1], two.good), torch.zeros(50))


def test_good_pixels_are_red(tool):
    task = tool.image_task(20, 0)
    for picture, good in zip(task.inputs, task.good, strict=True):
        for x, y in ((good + 1) * 16).floor().long().tolist():
            red, green, blue = picture[:, y, x].tolist()
            assert red > 0.8
            assert max(green, blue) < 0.2


def test_top_ten_lies_between_two_ways(tool):
    """The defect that `local` avoids, in the tool's own decoding."""
    settings = {**tool.MAP, "space": tool.POINT.to_dict()}
    head = tool.build_head(settings, 8, 1)
    (cells,) = head.cells
    points = torch.tensor([[-0.5, 0.0, 0.0], [0.5, 0.0, 0.0]])
    both = torch.as_tensor(cells.encode(points, 0.1)).flatten(1).mean(0, keepdim=True)
    head.logits = lambda states: ({"translation": both.clamp_min(1e-30).log()}, states[..., :0])
    found = tool.top_ten(head, torch.zeros(1, 1, 8))
    assert abs(float(found[0, 0])) < 0.4
    local, _ = cells.read(both.clamp_min(1e-30).log(), "local", 0.25)
    assert abs(abs(float(local[0, 0])) - 0.5) < 0.05


def test_it_measures_every_head_and_judges_gates(tool):
    lines = list(tool.runs([7], 2))
    assert {r["head"] for r in lines if r["task"] == "image"} == set(tool.IMAGE)
    assert {r["head"] for r in lines if r["task"] == "vector"} == set(tool.VECTOR)
    said = []
    assert tool.report(lines, said.append) is False  # two steps teach nothing
    assert sum(line.startswith("DOES NOT HOLD") for line in said) >= 2
    perfect = [
        {**r, "success": float("heatmap" in r["head"] or "conv" in r["head"])} for r in lines
    ]
    assert tool.report(perfect, said.append) is True
