"""Estimators against the libraries' own processors, recorded numbers, and optics."""

from __future__ import annotations

import depth_zoo
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    DepthProForDepthEstimation,
    DepthProImageProcessor,
    DPTImageProcessor,
    ZoeDepthForDepthEstimation,
    ZoeDepthImageProcessor,
)

from spatialvla_ft.depth.depth_anything import DepthAnything
from spatialvla_ft.depth.depth_pro import DepthPro
from spatialvla_ft.depth.load import load_depth_estimator
from spatialvla_ft.depth.zoe import PerImageZoeDepth, estimate_depth
from spatialvla_ft.depth.zoe_estimator import ZoeDepth

SIZES = [(40, 56), (56, 40), (64, 64), (33, 100)]


def picture(height, width):
    generator = torch.Generator().manual_seed(height * width)
    return torch.rand(1, 3, height, width, generator=generator)


def prepared(processor, pixels):
    inputs = processor(images=list(pixels), do_rescale=False, return_tensors="pt")
    return inputs["pixel_values"]


# ---------------------------------------------------------------- ZoeDepth


def test_the_golden_checkpoint_s_zoedepth(golden_dir, golden_checkpoint):
    golden = load_file(golden_dir / "forward.safetensors")
    pixels = golden["s0.pixel_values_u8"].float() / 255
    estimator = load_depth_estimator(golden_checkpoint)
    assert estimator.resolution == 384
    depth = estimator(pixels)[:, ::2, ::2]
    torch.testing.assert_close(depth, golden["s0.depth"].view_as(depth), rtol=0, atol=1e-4)


def test_the_model_s_own_zoedepth_is_the_same_estimator(estimator_of, golden_checkpoint):
    """A square picture at full resolution: what the model computes inside."""
    pixels = picture(64, 64)
    network = estimator_of("spatialvla").network
    inside = estimate_depth(network, pixels)
    torch.testing.assert_close(ZoeDepth(network)(pixels), inside, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("resolution", [64, 96])
def test_zoedepth_sees_what_its_processor_makes(estimator_of, size, resolution):
    network = estimator_of("zoedepth").network
    estimator = ZoeDepth(network, resolution=resolution, resample="bilinear")
    processor = ZoeDepthImageProcessor(
        size={
            "height": resolution,
            "width": resolution if size[0] == size[1] else round(resolution * 4 / 3),
        },
        ensure_multiple_of=32,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    pixels = picture(*size)
    torch.testing.assert_close(
        estimator.network_input(pixels), prepared(processor, pixels), rtol=1e-5, atol=1e-5
    )


def test_zoedepth_gives_what_its_processor_makes_of_the_output(checkpoint_of):
    """The library resizes back without aligned corners, which moves depth by under half a pixel:
    on a steep ramp of raw depth both agree to that."""
    estimator = load_depth_estimator(checkpoint_of("zoedepth"))
    library = ZoeDepthForDepthEstimation.from_pretrained(checkpoint_of("zoedepth")).eval()
    processor = ZoeDepthImageProcessor()
    pixels = picture(64, 64)
    with torch.no_grad():
        outputs = library(estimator.network_input(pixels))
    wanted = processor.post_process_depth_estimation(outputs, source_sizes=[(64, 64)])
    wanted = wanted[0]["predicted_depth"][None]
    got = estimator(pixels)
    spread = float(wanted.max() - wanted.min())
    assert float((got - wanted).abs().mean()) < 0.05 * spread


@pytest.mark.parametrize("side", [224, 80])
def test_a_resolution_is_what_the_network_gets_of_a_square(estimator_of, side):
    network = estimator_of("zoedepth").network
    pixels = torch.rand(1, 3, side, side)
    for resolution in (64, 96, 128, 192):
        got = ZoeDepth(network, resolution=resolution).network_input(pixels)
        assert got.shape[-2:] == (resolution, resolution)


@pytest.mark.parametrize("resolution", [48, 80, 100, 32, 0])
def test_zoedepth_refuses_sides_that_its_neck_would_bend(estimator_of, resolution):
    network = estimator_of("zoedepth").network
    with pytest.raises(ValueError, match=f"resolution {resolution} does not fit ZoeDepth's BEiT"):
        ZoeDepth(network, resolution=resolution)


def test_a_zoedepth_that_votes_is_refused(checkpoint_of):
    library = ZoeDepthForDepthEstimation.from_pretrained(checkpoint_of("zoedepth"))
    with pytest.raises(ValueError, match="votes over the batch"):
        ZoeDepth(library)
    own = PerImageZoeDepth.from_pretrained(checkpoint_of("zoedepth"))
    own.metric_head.vote_over_batch = True
    with pytest.raises(ValueError, match="compatibility='ours'"):
        ZoeDepth(own)


def test_a_spatialvla_checkpoint_without_zoedepth_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "spatialvla"}')
    with pytest.raises(ValueError, match="without a depth estimator"):
        load_depth_estimator(tmp_path)


# ---------------------------------------------------------------- Depth Anything V2


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("resolution", [70, 98])
def test_depth_anything_against_its_processor(estimator_of, size, resolution):
    network = estimator_of("depth_anything").network
    estimator = DepthAnything(network, resolution=resolution)
    processor = DPTImageProcessor(
        size={"height": resolution, "width": resolution},
        keep_aspect_ratio=True,
        ensure_multiple_of=14,
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    )
    pixels = picture(*size)
    inputs = prepared(processor, pixels)
    torch.testing.assert_close(estimator.network_input(pixels), inputs, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        outputs = network(inputs)
    wanted = processor.post_process_depth_estimation(outputs, target_sizes=[size])
    wanted = wanted[0]["predicted_depth"][None].clamp_min(1e-3)
    torch.testing.assert_close(estimator(pixels), wanted, rtol=1e-3, atol=1e-3)


def test_depth_anything_scales_with_max_depth(tmp_path):
    pixels = picture(70, 70)
    depths = []
    for metres in (20, 80):
        (tmp_path / str(metres)).mkdir()
        folder = depth_zoo.write("depth_anything", tmp_path / str(metres), max_depth=metres)
        depths.append(DepthAnything.from_pretrained(folder, resolution=70)(pixels))
    torch.testing.assert_close(depths[1], 4 * depths[0], rtol=1e-4, atol=1e-4)


def test_a_relative_depth_anything_is_refused(tmp_path):
    folder = depth_zoo.write("depth_anything", tmp_path, depth_estimation_type="relative")
    with pytest.raises(ValueError, match="type 'relative': its depth has no unit"):
        load_depth_estimator(folder)


# ---------------------------------------------------------------- Depth Pro


@pytest.mark.parametrize("size", SIZES)
def test_depth_pro_against_its_processor(estimator_of, checkpoint_of, size):
    estimator = estimator_of("depth_pro")
    library = DepthProForDepthEstimation.from_pretrained(checkpoint_of("depth_pro")).eval()
    processor = DepthProImageProcessor(size={"height": estimator.side, "width": estimator.side})
    pixels = picture(*size)
    inputs = prepared(processor, pixels)
    torch.testing.assert_close(estimator.network_input(pixels), inputs, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        outputs = library(inputs)
    wanted = processor.post_process_depth_estimation(outputs, target_sizes=[size])[0]
    torch.testing.assert_close(
        estimator(pixels)[0], wanted["predicted_depth"], rtol=1e-4, atol=1e-4
    )
    # The field of view it guessed, said as a K, must give the same depth.
    focal = float(wanted["focal_length"])
    K = torch.tensor([[[focal, 0, 1], [0, 2 * focal, 1], [0, 0, 1]]])
    torch.testing.assert_close(estimator(pixels, K), estimator(pixels), rtol=1e-4, atol=1e-4)


def test_depth_pro_is_linear_in_the_focal_length(estimator_of):
    estimator = estimator_of("depth_pro")
    pixels = torch.cat([picture(40, 56)] * 3)
    K = torch.eye(3).repeat(3, 1, 1)
    K[:, 0, 0] = torch.tensor([50.0, 75, 200])
    depth = estimator(pixels, K)
    assert 0.01 < float(depth.min()) < float(depth.max()) < 1000
    torch.testing.assert_close(depth[1], 1.5 * depth[0], rtol=1e-4, atol=0)
    torch.testing.assert_close(depth[2], 4 * depth[0], rtol=1e-4, atol=0)
    # Optics: a picture enlarged together with its K keeps its depth.
    large = torch.nn.functional.interpolate(pixels[:1], (80, 112), mode="bilinear")
    twice = K[:1] * torch.tensor([2.0, 2.0, 1.0]).view(1, 3, 1)
    ratio = estimator(large, twice).mean() / depth[0].mean()
    assert 0.9 < float(ratio) < 1.1


def test_depth_pro_without_field_of_view_needs_k(tmp_path):
    folder = depth_zoo.write("depth_pro", tmp_path, use_fov_model=False)
    estimator = DepthPro.from_pretrained(folder)
    with pytest.raises(ValueError, match=r"no field-of-view part .* pass intrinsics"):
        estimator(picture(40, 56))
    K = torch.tensor(np.diag([60.0, 60, 1]), dtype=torch.float32)[None]
    assert bool((estimator(picture(40, 56), K) > 0).all())
    with pytest.raises(ValueError, match="focal lengths must be positive"):
        estimator(picture(40, 56), -K)
