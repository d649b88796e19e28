"""How many bytes of tensors are alive at once, on any device, fake tensors included.

`torch.cuda.max_memory_allocated` answers this on a GPU only. Here every operation is watched as it
is dispatched, and each storage is counted from the operation that makes it to the moment when
nothing holds it any more. Backward passes are seen as well, since autograd carries the watching
mode into the threads it uses. Under `FakeTensorMode` nothing is allocated, and the count is what
would have been.

`torch.distributed._tools.mem_tracker.MemTracker` counts in the same way, and the numbers agree to
the byte. It is not wrapped because it is private, replaces `UntypedStorage.resize_` while it runs,
and takes for new whatever it was not told of beforehand; this counter knows a tensor older than
itself by its first appearance as an input.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

FROM_DATA = (torch.ops.aten.lift_fresh.default, torch.ops.aten.lift_fresh_copy.default)
"""Their input is what `torch.tensor([...])` has just made, not a tensor from before."""


class TensorBytes(TorchDispatchMode):
    """Counts live tensor storage while its block runs.

    A storage counts once however many views it has, at its full size however small the view.
    Tensors that autograd keeps for the backward pass count, because they are alive. Not seen:
    workspace inside a kernel, the allocator's rounding, `UntypedStorage.resize_`, and the memory of
    NumPy arrays.

    One thing counts too much: while operations are watched, autograd sums the gradients of a tensor
    that is used several times into a new tensor, and otherwise in place.

    Args:
        **held: modules, tensors or (nested) collections of them that are alive at entry, by
            category, e.g. `parameters=model`. Older tensors that are not named here count as
            "other" once an operation reads them.

    Attributes:
        now: bytes made inside the block and alive.
        peak: the highest `now`, which is what the block needs on top of what was there before.
        peak_total: the most bytes alive at once, the older tensors included.
        at_peak: `peak_total` by category.
        category: what new storages count as; set it, or name tensors afterwards with `tag`.

    Example:
        with TensorBytes(parameters=model) as count:
            model(x).sum().backward()
        print(count.peak, count.at_peak)
    """

    def __init__(self, **held: Any) -> None:
        super().__init__()
        self.category = "activations"
        self.now = 0
        self.peak = 0
        self._alive: dict[int, tuple[int, str, bool]] = {}  # storage -> bytes, category, is new
        self._by_category: Counter[str] = Counter()
        self._sum = 0
        self._peak_sum = 0
        self._at_peak: Counter[str] = Counter()
        for category, tensors in held.items():
            for tensor in _tensors(tensors):
                self._add(tensor, category, new=False)
        self._mark()

    @property
    def peak_total(self) -> int:
        """Most bytes alive at once, tensors from before the block included."""
        return self._peak_sum

    @property
    def at_peak(self) -> dict[str, int]:
        """Bytes by category at the moment of `peak_total`, without empty ones."""
        return {name: count for name, count in self._at_peak.items() if count}

    def tag(self, category: str, tensors: Any) -> None:
        """From now on count these tensors under `category`."""
        for tensor in _tensors(tensors):
            key = tensor.untyped_storage()._cdata
            if key not in self._alive:
                self._add(tensor, category, new=False)
                continue
            size, before, new = self._alive[key]
            self._alive[key] = (size, category, new)
            self._by_category[before] -= size
            self._by_category[category] += size

    def reset_peak(self) -> None:
        """Forget the peaks so far, as `torch.cuda.reset_peak_memory_stats` does."""
        self.peak, self._peak_sum = self.now, self._sum
        self._at_peak = self._by_category.copy()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one operation; count what came in for the first time and what came out."""
        kwargs = kwargs or {}
        if func not in FROM_DATA:
            for value in tree_iter((args, kwargs)):
                if isinstance(value, Tensor):
                    self._add(value, "other", new=False)
        result = func(*args, **kwargs)
        for value in tree_iter(result):
            if isinstance(value, Tensor):
                self._add(value, self.category, new=True)
        self._mark()
        return result

    def _add(self, tensor: Tensor, category: str, *, new: bool) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        known = self._alive.get(key)
        if known is None:
            # A finaliser, rather than a look at all storages after each operation, so that a
            # storage freed between two operations is not counted in the second one.
            weakref.finalize(storage, self._drop, key).atexit = False
            if not new:
                # It was there all the time, hence in every earlier sum too.
                self._peak_sum += size
                self._at_peak[category] += size
        elif known[0] == size:
            return
        else:  # resize_
            _, category, new = known
            self._subtract(*known)
        self._alive[key] = (size, category, new)
        self._by_category[category] += size
        self._sum += size
        self.now += size if new else 0

    def _drop(self, key: int) -> None:
        self._subtract(*self._alive.pop(key))

    def _subtract(self, size: int, category: str, new: bool) -> None:
        self._by_category[category] -= size
        self._sum -= size
        self.now -= size if new else 0

    def _mark(self) -> None:
        self.peak = max(self.peak, self.now)
        if self._sum > self._peak_sum:
            self._peak_sum = self._sum
            self._at_peak = self._by_category.copy()


def _tensors(tree: Any) -> Iterator[Tensor]:
    """All tensors of modules, tensors and collections of them."""
    if isinstance(tree, nn.Module):
        yield from tree.parameters()
        yield from tree.buffers()
    elif isinstance(tree, Iterable) and not isinstance(tree, Tensor | dict | str):
        for item in tree:
            yield from _tensors(item)
    else:
        yield from (leaf for leaf in tree_iter(tree) if isinstance(leaf, Tensor))
