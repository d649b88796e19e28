"""Live tensor bytes: cases counted by hand, torch's allocator, and torch's own tracker."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from spatialvla_ft.memory.plan import allocator_peak
from spatialvla_ft.memory.tensor_bytes import TensorBytes

KIB = 1024  # bytes of a (16, 16) float32 matrix


@pytest.fixture
def square():
    return torch.ones(16, 16)


def test_temporaries_without_gradient_are_freed(square):
    """Of x @ x @ x @ x, two matrices are alive at once: the last one's input and output."""
    with TensorBytes() as count, torch.no_grad():
        y = square @ square @ square @ square
    assert count.peak == 2 * KIB
    assert count.now == KIB
    del y
    assert count.now == 0


def test_what_the_backward_pass_needs_stays(square):
    """exp keeps its output; a chain of three keeps three, though only the last has a name."""
    x = square.clone().requires_grad_()
    with TensorBytes() as count:
        y = x.exp().exp().exp()
        assert count.now == 3 * KIB
        total = y.sum()  # 4 bytes
        del y
        assert count.now == 3 * KIB + 4
        total.backward()
    # At the first exp's backward: its saved output, incoming and new gradient of 1 KiB each.
    # At the third's: three saved, the new gradient; the incoming one is a view of one number.
    assert count.peak == 4 * KIB + 4 + 4
    assert x.grad is not None
    assert count.now == KIB + 4  # the gradient and the sum


def test_views_and_changes_in_place_are_free(square):
    with TensorBytes() as count:
        y = square * 2
        y.view(4, 64).t().add_(1)
        y[0, :4].mul_(3)
        part = y.view(-1)[:3]
        del y
    assert count.peak == KIB
    assert count.now == KIB, "a view of 12 bytes keeps the whole storage"
    del part
    assert count.now == 0


def test_resizing_changes_the_count(square):
    with TensorBytes() as count:
        y = square * 2
        y.resize_(16, 48)
        assert count.now == 3 * KIB
        del y
    assert (count.now, count.peak) == (0, 3 * KIB)


def test_older_tensors_count_in_the_total_only(square):
    """Half of the older tensors is named at entry, half is found when first read."""
    weights, late = square.clone(), square.clone()
    with TensorBytes(parameters=[weights]) as count:
        a = weights * 2
        b = a * 2
        del a
        late.t()
        del b
    assert count.peak == 2 * KIB
    assert count.peak_total == 4 * KIB
    assert count.at_peak == {"parameters": KIB, "activations": 2 * KIB, "other": KIB}


def test_a_number_from_data_is_new():
    with TensorBytes() as count:
        values = torch.tensor([1.0, 2.0, 3.0])
    assert count.now == values.nbytes == 12


def test_categories_can_be_given_afterwards(square):
    with TensorBytes() as count:
        a = square * 2
        count.tag("logits", a)
        count.category = "cache"
        b = a * 3
    assert count.at_peak == {"other": KIB, "logits": KIB, "cache": KIB}
    del a, b


def test_the_peak_can_be_forgotten(square):
    with TensorBytes() as count:
        a = square @ square @ square
        count.tag("cache", a)
        count.reset_peak()
        assert (count.peak, count.at_peak) == (KIB, {"other": KIB, "cache": KIB})
        b = a * 2
    assert count.peak == 2 * KIB
    del b


def chain(width=64, depth=4):
    torch.manual_seed(0)
    return nn.Sequential(
        *[
            nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
            for _ in range(depth)
        ]
    )


def step(net, x, *, checkpointed):
    def work():
        h = x
        for block in net:
            if checkpointed:
                # The generator's state is kept past the dispatcher: 5 KB a block, not counted.
                h = checkpoint(block, h, use_reentrant=False, preserve_rng_state=False)
            else:
                h = block(h)
        h.square().mean().backward()

    return work


@pytest.mark.parametrize("checkpointed", [False, True])
def test_the_allocator_says_the_same_of_a_training_step(checkpointed):
    """To the byte, backward included."""
    net, x = chain(), torch.randn(512, 64)
    work = step(net, x, checkpointed=checkpointed)
    work()
    net.zero_grad()
    with TensorBytes() as count:
        work()
    net.zero_grad()
    assert count.peak == allocator_peak(work)


def test_checkpointing_lowers_the_peak():
    net, x = chain(), torch.randn(512, 64)
    peaks = []
    for checkpointed in (False, True):
        net.zero_grad()
        with TensorBytes() as count:
            step(net, x, checkpointed=checkpointed)()
        peaks.append(count.peak)
    assert peaks[1] < 0.6 * peaks[0]


def test_torch_s_own_tracker_says_the_same():
    from torch.distributed._tools.mem_tracker import MemTracker

    net, x = chain(), torch.randn(512, 64)
    tracker = MemTracker()
    tracker.track_external(net, x)
    with tracker:
        step(net, x, checkpointed=False)()
    expected = tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"]
    net.zero_grad()
    with TensorBytes(parameters=net, inputs=x) as count:
        step(net, x, checkpointed=False)()
    assert count.peak_total == expected


def test_fake_tensors_count_as_real_ones():
    net, x = chain(), torch.randn(512, 64)
    with TensorBytes() as real:
        step(net, x, checkpointed=False)()
    with FakeTensorMode():
        net, x = chain(), torch.randn(512, 64)
        with TensorBytes() as fake:
            step(net, x, checkpointed=False)()
    assert fake.peak == real.peak
    assert fake.peak_total == real.peak_total


def test_an_optimiser_s_states_are_seen():
    """AdamW keeps two numbers per weight, and one step counter of 4 bytes per tensor."""
    net = chain(depth=1)
    count = sum(p.nbytes for p in net.parameters())
    optimizer = torch.optim.AdamW(net.parameters(), fused=True)
    net(torch.randn(2, 64)).sum().backward()
    with TensorBytes() as seen:
        optimizer.step()
    assert seen.now == 2 * count + 4 * len(list(net.parameters()))


def test_allocator_peak_names_a_device_it_does_not_know():
    with pytest.raises(ValueError, match="'cpu' or 'cuda'"):
        allocator_peak(lambda: None, "meta")
