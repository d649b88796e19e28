"""Spherical coordinates, physics convention (paper section 3.2), as differentiable torch maths.

theta is the polar angle from +z in [0, pi], phi the azimuth from +x towards +y in [-pi, pi], r the
length. The origin has theta 0 and phi 0.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def cartesian_to_spherical(xyz: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3"]:
    """(x, y, z) to (theta, phi, r); r in the unit of xyz, angles in radians.

    Gradients are finite everywhere but at the origin and, for theta and phi, on the z axis.
    """
    x, y, z = _parts(xyz, "xyz")
    rho = torch.hypot(x, y)
    return torch.stack([torch.atan2(rho, z), torch.atan2(y, x), torch.hypot(rho, z)], dim=-1)


def spherical_to_cartesian(spherical: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3"]:
    """(theta, phi, r) to (x, y, z), in the unit of r; angles in radians."""
    theta, phi, r = _parts(spherical, "spherical")
    rho = r * torch.sin(theta)
    return torch.stack([rho * torch.cos(phi), rho * torch.sin(phi), r * torch.cos(theta)], dim=-1)


def _parts(points: Tensor, name: str) -> tuple[Tensor, ...]:
    if points.ndim == 0 or points.shape[-1] != 3:
        raise ValueError(f"{name} must end in a dimension of size 3, got {tuple(points.shape)}")
    return points.unbind(dim=-1)
