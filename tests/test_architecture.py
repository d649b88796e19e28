"""The house stands as DESIGN says: imports point down only, and light processes stay light."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def python(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_imports_point_down_only():
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports")],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stdout


def test_the_command_line_starts_without_torch_or_tensorflow():
    code = (
        "import sys, spatialvla_ft.cli.main; "
        "print([m for m in ('torch', 'tensorflow', 'mujoco', 'transformers') if m in sys.modules])"
    )
    assert python(code, SPATIALVLA_FT_LIGHT="1") == "[]"


def test_the_simulation_and_the_data_layer_do_without_torch():
    code = (
        "import sys, spatialvla_ft.sim.env, spatialvla_ft.sim.pool, spatialvla_ft.data; "
        "print('torch' in sys.modules)"
    )
    assert python(code, SPATIALVLA_FT_LIGHT="1") == "False"


def test_handing_episodes_to_the_writer_needs_no_simulator():
    """Nor does writing them: TensorFlow and a graphics library in one process end in a crash."""
    code = (
        "import sys, spatialvla_ft.sim.recorder, spatialvla_ft.sim.rlds; "
        "print([m for m in ('torch', 'tensorflow', 'mujoco', 'OpenGL') if m in sys.modules])"
    )
    assert python(code, SPATIALVLA_FT_LIGHT="1", MUJOCO_GL="osmesa") == "[]"


def test_no_file_names_a_path_of_some_machine():
    """A path like the one this test runs in has no place in the package or its documents."""
    here = str(ROOT)
    for folder in ("spatialvla_ft", "recipes", "docs", "tools"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in {".py", ".yaml", ".md"}:
                assert here not in path.read_text(encoding="utf-8"), path
