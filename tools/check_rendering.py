"""Can this machine render without a screen? If not, install the libraries or say which.

Run by `make setup`. Needs MuJoCo; tries EGL, then OSMesa, each in a process of its own, because a
failed attempt cannot be undone within one.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

PACKAGES = ("libegl1", "libgl1", "libgl1-mesa-dri", "libosmesa6")
PROBE = """
import mujoco
model = mujoco.MjModel.from_xml_string(
    "<mujoco><worldbody><light/><geom size='.1'/></worldbody></mujoco>")
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
with mujoco.Renderer(model, 32, 32) as renderer:
    renderer.update_scene(data)
    renderer.render()
"""


def working_backend() -> str | None:
    """The first of MUJOCO_GL (if set), egl and osmesa that renders."""
    wanted = os.environ.get("MUJOCO_GL")
    for backend in [wanted] if wanted else ["egl", "osmesa"]:
        environment = {**os.environ, "MUJOCO_GL": backend}
        done = subprocess.run(
            [sys.executable, "-c", PROBE], env=environment, capture_output=True, check=False
        )
        if done.returncode == 0:
            return backend
    return None


def main() -> int:
    """Return 0 when rendering works, installing libraries first where that is possible."""
    if working_backend() is not None:
        return 0
    command = f"apt-get install -y {' '.join(PACKAGES)}"
    if shutil.which("apt-get") and os.geteuid() == 0:
        print(f"rendering needs system libraries; running: {command}")
        quiet = {"stdout": subprocess.DEVNULL}
        subprocess.run(["apt-get", "update"], check=False, **quiet)
        subprocess.run(["apt-get", "install", "-y", *PACKAGES], check=False, **quiet)
        if working_backend() is not None:
            return 0
    print(
        "error: MuJoCo cannot render here: neither EGL nor OSMesa works.\n"
        f"  On Debian or Ubuntu:  sudo {command}\n"
        "  On another system install Mesa's EGL or OSMesa libraries, or set MUJOCO_GL to a\n"
        "  backend that works (egl, osmesa or glfw), then run this again.",
        file=sys.stderr,
    )
    return 1


if __name__ == "__main__":
    sys.exit(main())
