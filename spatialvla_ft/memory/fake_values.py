"""Run a model without its numbers: floats are fake, integers are real.

Under `FakeTensorMode` a tensor has a shape and no memory, so a model of any size runs anywhere. But
some shapes depend on values: how many rows have a label, where the image tokens are. Those values
are ids, masks and positions, small integers throughout, so they are kept real, and only numbers
with a fraction are fake. A question about fake values ("is all depth known?") is answered with yes
for a truth and 0 for a number, which is how a sound batch answers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

aten = torch.ops.aten
INDEXED = (
    aten.index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
    aten._unsafe_index.Tensor,
)


class RealIntegers(TorchDispatchMode):
    """Inside a `FakeTensorMode`: operations on real tensors alone stay real.

    Tensors made from nothing (`arange`, `zeros`, ...) are real if they are integers or truths, and
    fake if they have fractions.
    """

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one operation on real or fake values, as its inputs are."""
        kwargs = kwargs or {}
        inputs = [value for value in tree_iter((args, kwargs)) if isinstance(value, Tensor)]
        fakes = [tensor for tensor in inputs if isinstance(tensor, FakeTensor)]
        if not inputs:
            made = func(*args, **kwargs)
            if not isinstance(made, Tensor) or made.is_floating_point():
                return made
        if not fakes:
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        if func is aten._local_scalar_dense.default:
            return True if args[0].dtype == torch.bool else 0
        if func in INDEXED:
            args = (args[0], _as_positions(args[1]), *args[2:])
        return func(*args, **kwargs)


def _as_positions(indices: list[Tensor | None]) -> list[Tensor | None]:
    """Real masks become the positions they select; what selects stays as it is otherwise."""
    positions: list[Tensor | None] = []
    for index in indices:
        if index is None or index.dtype != torch.bool or isinstance(index, FakeTensor):
            positions.append(index)
            continue
        with unset_fake_temporarily():
            positions.extend(index.nonzero().unbind(1))
    return positions


def fake_module(make: Callable[[], nn.Module], mode: FakeTensorMode) -> nn.Module:
    """A module of fake parameters and buffers, whatever its size.

    Args:
        make: builds it; called with the meta device as default.
        mode: of the fake tensors; not entered yet.
    """
    from transformers.initialization import no_init_weights

    with torch.device("meta"), no_init_weights():
        module = make()
    fakes: dict[int, Tensor] = {}  # tied parameters stay tied
    for part in module.modules():
        for holder in (part._parameters, part._buffers):
            for name, tensor in holder.items():
                if tensor is None or tensor.device.type != "meta":
                    continue
                if id(tensor) not in fakes:
                    fakes[id(tensor)] = _fake_like(tensor, mode)
                holder[name] = fakes[id(tensor)]
    return module


def _fake_like(tensor: Tensor, mode: FakeTensorMode) -> Tensor:
    with mode:
        fake = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(fake, requires_grad=tensor.requires_grad)
    return fake
