"""NumPy in, NumPy out; torch in, torch out on the same device."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def to_numpy(array: Any) -> NDArray[Any]:
    """A NumPy array of a torch tensor, a NumPy array or nested lists."""
    if hasattr(array, "detach"):
        tensor = array.detach()
        if str(tensor.dtype) == "torch.bfloat16":
            tensor = tensor.float()
        return np.asarray(tensor.cpu().numpy())
    return np.asarray(array)


def like(result: NDArray[Any], source: Any) -> Any:
    """`result` as the kind of `source`: a tensor on its device if it is one."""
    if hasattr(source, "detach"):
        import torch

        return torch.from_numpy(result).to(source.device)
    return result
