"""What every depth estimator must do; runs over all that `load_depth_estimator` knows."""

from __future__ import annotations

import depth_zoo
import pytest
import torch

from spatialvla_ft.depth.cache import CachedDepth, DepthCache
from spatialvla_ft.depth.every_nth import EveryNth
from spatialvla_ft.depth.load import DepthSpec, load_depth_estimator
from spatialvla_ft.depth.protocol import DepthEstimator
from spatialvla_ft.depth.sensor import SensorDepth

HEIGHT, WIDTH = 40, 56


@pytest.fixture(scope="module")
def pictures():
    """Black, white, noise, a smooth ramp, and noise again: what a vote or a mean would mix."""
    noise = torch.rand(2, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(3))
    ramp = torch.linspace(0, 1, WIDTH).expand(3, HEIGHT, WIDTH)
    return torch.stack([torch.zeros_like(ramp), torch.ones_like(ramp), noise[0], ramp, noise[1]])


ROUNDING = 5e-5
"""Relative, of float32 metres through a whole network: a batch may be summed otherwise than one
picture, by 1.3e-5 where every product is a rounding of all its terms off. The released vote of the
pictures of a batch moves metres by 0.3."""


def close(got, wanted):
    torch.testing.assert_close(got, wanted, rtol=ROUNDING, atol=ROUNDING)


def wrapped(estimator, way, tmp_path):
    if way == "cached":
        return CachedDepth(estimator, DepthCache(tmp_path))
    return EveryNth(estimator, 3) if way == "every third" else estimator


@pytest.mark.parametrize("way", ["plain", "cached", "every third"])
def test_metres_of_every_picture_by_itself(estimator, way, pictures, tmp_path):
    asked = wrapped(estimator, way, tmp_path)
    assert isinstance(asked, DepthEstimator)
    assert asked.name
    depth = asked(pictures)
    assert depth.shape == (5, HEIGHT, WIDTH)
    assert depth.dtype == torch.float32
    assert bool(torch.isfinite(depth).all())
    assert bool((depth > 0).all())
    assert not depth.requires_grad
    alone = torch.cat([estimator(picture[None]) for picture in pictures])
    if way == "cached":  # stored with 11 binary digits
        torch.testing.assert_close(depth, alone, rtol=2.0**-11 + ROUNDING, atol=0)
    else:
        close(depth, alone)
        close(asked(pictures.flip(0)), depth.flip(0))
    assert len({round(float(d.mean()), 6) for d in depth}) > 3  # it looks at the pictures


def test_training_changes_nothing(estimator, pictures):
    before = estimator(pictures[2:4])
    outer = torch.nn.ModuleList([estimator])
    outer.train()
    estimator.train()
    assert not [name for name, module in estimator.named_modules() if module.training]
    assert not [name for name, p in estimator.named_parameters() if p.requires_grad]
    assert torch.equal(estimator(pictures[2:4]), before)


def test_mixed_precision_around_it_changes_nothing(estimator, pictures):
    before = estimator(pictures[2:3])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(estimator(pictures[2:3]), before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p[0], r"pictures must be \(B, 3, H, W\), got \(3, 40, 56\)"),
        (lambda p: p[:, None], r"must be \(B, 3, H, W\).*flatten several views"),
        (lambda p: p[:, :1], r"must be \(B, 3, H, W\), got \(5, 1, 40, 56\)"),
        (lambda p: p * 255, r"must lie in \[0, 1\], got 0 .. 255; divide bytes by 255"),
        (lambda p: p * 2 - 1, r"must lie in \[0, 1\], got -1 .. 1"),
        (lambda p: p.where(p < 0.5, torch.nan), r"must lie in \[0, 1\], got nan"),
        (lambda p: (p * 255).byte(), r"must be float in \[0, 1\], got torch.uint8"),
    ],
)
def test_other_pictures_are_refused(estimator, pictures, change, message):
    with pytest.raises(ValueError, match=message):
        estimator(change(pictures))


def test_k_must_be_one_per_picture(estimator, pictures):
    with pytest.raises(ValueError, match=r"intrinsics must be \(5, 3, 3\), one K per picture"):
        estimator(pictures, torch.eye(3)[None])


def test_k_counts_only_where_the_estimator_says_so(estimator, pictures):
    K = torch.tensor([[80.0, 0, 28], [0, 80, 20], [0, 0, 1]]).expand(2, 3, 3)
    same = torch.equal(estimator(pictures[2:4], K), estimator(pictures[2:4], 2 * K))
    assert same != estimator.uses_intrinsics


def test_the_fingerprint_is_that_of_weights_and_settings(kind, checkpoint_of, estimator):
    spec = DepthSpec(str(checkpoint_of(kind)), resolution=depth_zoo.SIDES[kind])
    again = load_depth_estimator(spec)
    assert again.fingerprint == estimator.fingerprint
    other = load_depth_estimator(spec)
    with torch.no_grad():
        list(other.network.parameters())[-1].view(-1)[0] += 1e-3
    half = load_depth_estimator(DepthSpec(spec.checkpoint, spec.resolution, dtype="bfloat16"))
    found = {estimator.fingerprint, other.fingerprint, half.fingerprint}
    assert len(found) == 3
    if kind != "depth_pro":  # the one without a choice of resolution
        larger = DepthSpec(spec.checkpoint, resolution=2 * spec.resolution)
        assert load_depth_estimator(larger).fingerprint not in found


def test_every_kind_has_a_resolution_that_does_not_fit(kind, checkpoint_of):
    with pytest.raises(ValueError, match="resolution 75 does not fit"):
        load_depth_estimator(DepthSpec(str(checkpoint_of(kind)), resolution=75))


def test_a_sensor_keeps_the_contract_too(pictures):
    reading = torch.rand(5, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(1)) + 0.2
    whole = SensorDepth(reading)
    assert isinstance(whole, DepthEstimator)
    assert torch.equal(whole(pictures), reading)
    holes = reading.clone()
    holes[0, 1, 2], holes[1, 3, 4], holes[2, 0, 0], holes[3, 9] = 0, torch.nan, torch.inf, -1
    filled = SensorDepth(holes)(pictures)
    assert bool(torch.isfinite(filled).all())
    assert bool((filled > 0).all())
    for i in range(5):
        assert torch.equal(SensorDepth(holes[i : i + 1])(pictures[i : i + 1])[0], filled[i])
    assert SensorDepth(holes).fingerprint != whole.fingerprint
    with pytest.raises(ValueError, match=r"reading is \(5, 40, 56\), the pictures need \(2, 40"):
        whole(pictures[:2])


def test_a_checkpoint_of_something_else_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "gemma2"}')
    with pytest.raises(ValueError, match=r"model_type 'gemma2', known are \['depth_anything', "):
        load_depth_estimator(str(tmp_path))
    with pytest.raises(ValueError, match="is no folder; give the checkpoint folder of a depth"):
        load_depth_estimator("nowhere")
    with pytest.raises(ValueError, match="dtype must be one of"):
        load_depth_estimator(DepthSpec(str(tmp_path), dtype="int8"))


def test_damaged_weights_are_not_passed_on(checkpoint_of, pictures):
    broken = load_depth_estimator(DepthSpec(str(checkpoint_of("depth_anything")), resolution=70))
    with torch.no_grad():
        broken.network.head.conv3.bias.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match=r"not finite.*dtype=torch.float32"):
        broken(pictures[:1])
