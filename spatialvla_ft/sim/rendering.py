"""Off-screen RGB and metric depth from one drawing of the scene."""

from __future__ import annotations

import logging
from typing import Any

import mujoco
import numpy as np
from jaxtyping import Float32, UInt8

from spatialvla_ft.processes import LacksError, gl_backend
from spatialvla_ft.sim.robots import ROBOT_A
from spatialvla_ft.sim.scene import FAR, MAX_OFFSCREEN, NEAR, build_mjcf

logger = logging.getLogger(__name__)

BACKENDS = ("egl", "osmesa")
MAX_DEPTH = 6.5
"""Metres; anything farther is reported as 0, unknown (what 16 bits of 0.1 mm can hold)."""


def open_gl_context(size: int = MAX_OFFSCREEN) -> Any:
    """A current off-screen GL context.

    The environment variable MUJOCO_GL picks "egl" or "osmesa"; without it egl is tried, then
    osmesa. LacksError, a RuntimeError, names what to install when neither loads.
    """
    wanted = gl_backend()
    if wanted and wanted not in BACKENDS:
        raise LacksError(
            f"MUJOCO_GL: got {wanted!r}, allowed for off-screen rendering are {list(BACKENDS)}; "
            "set MUJOCO_GL=egl, or unset it"
        )
    problems = []
    for backend in (wanted,) if wanted else BACKENDS:
        try:
            context = _context_class(backend)(size, size)
            context.make_current()
        except Exception as error:  # PyOpenGL fails in many ways when a library is missing
            problems.append(f"{backend}: {type(error).__name__}: {error}")
        else:
            return context
    raise LacksError(
        "no OpenGL library for off-screen rendering could be loaded ("
        + "; ".join(problems)
        + "). On Debian or Ubuntu install libegl1 libgl1 libgl1-mesa-dri (MUJOCO_GL=egl) "
        "or libosmesa6 (MUJOCO_GL=osmesa)"
    )


def _context_class(backend: str) -> Any:
    if backend == "egl":
        from mujoco.egl import GLContext
    else:
        from mujoco.osmesa import GLContext
    return GLContext


class Renderer:
    """Draws any scene built by `scene.build_mjcf`; one per process serves many environments.

    The scenes hold no meshes and no textures, so one GL context fits all of them.
    """

    def __init__(self) -> None:
        """Open a GL context; LacksError if there is no GL library."""
        self._gl = open_gl_context()
        model = mujoco.MjModel.from_xml_string(build_mjcf(ROBOT_A, 1))
        self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        self._context.readDepthMap = mujoco.mjtDepthMap.mjDEPTH_ZEROFAR
        self._scene = mujoco.MjvScene(model, maxgeom=200)
        for flag in (
            mujoco.mjtRndFlag.mjRND_SHADOW,
            mujoco.mjtRndFlag.mjRND_REFLECTION,
            mujoco.mjtRndFlag.mjRND_SKYBOX,
            mujoco.mjtRndFlag.mjRND_HAZE,
        ):
            self._scene.flags[flag] = 0
        self._option = mujoco.MjvOption()
        self._option.geomgroup[:] = 1
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED

    def render(
        self, model: mujoco.MjModel, data: mujoco.MjData, camera: str, width: int, height: int
    ) -> tuple[UInt8[np.ndarray, "H W 3"], Float32[np.ndarray, "H W"]]:
        """RGB and depth (metres along the optical axis; 0 beyond 6.5 m), top row first."""
        if max(width, height) > MAX_OFFSCREEN:
            raise ValueError(
                f"image size: got {width} x {height}, at most {MAX_OFFSCREEN} pixels a side"
            )
        self._gl.make_current()
        self._camera.fixedcamid = model.camera(camera).id
        mujoco.mjv_updateScene(
            model, data, self._option, None, self._camera, mujoco.mjtCatBit.mjCAT_ALL, self._scene
        )
        area = mujoco.MjrRect(0, 0, width, height)
        rgb = np.empty((height, width, 3), np.uint8)
        buffer = np.empty((height, width), np.float32)
        mujoco.mjr_render(area, self._scene, self._context)
        mujoco.mjr_readPixels(rgb, buffer, area, self._context)
        return rgb[::-1].copy(), metres_from_buffer(buffer[::-1])

    def close(self) -> None:
        """Free the GL context."""
        if self._gl is not None:
            self._context.free()
            self._gl.free()
            self._gl = None


def metres_from_buffer(buffer: Float32[np.ndarray, "H W"]) -> Float32[np.ndarray, "H W"]:
    """Undo the perspective of a reversed depth buffer (1 near, 0 far); 0 where beyond 6.5 m."""
    inverse = 1.0 / FAR + buffer.astype(np.float64) * (1.0 / NEAR - 1.0 / FAR)
    depth = 1.0 / inverse
    return np.where(depth < MAX_DEPTH, depth, 0.0).astype(np.float32)
