"""Numeric tests again, as an older processor would compute them.

The same product of matrices is rounded otherwise by other kernels, and a processor chooses among
those that its instructions allow. Tests that compare such numbers need bounds that hold for all of
them; here a choice of those that depend on it most runs with the kernels of the oldest instructions
that the libraries can be held to.

On x86-64 the switches cover: ATEN_CPU_CAPABILITY torch's own loops (activations, norms, softmax,
sums), MKL_CBWR products of float32 matrices where torch has MKL, ONEDNN_MAX_CPU_ISA convolutions
and products of bfloat16. They do not cover kernels of newer instructions than this processor has,
NumPy, SciPy and MuJoCo, nor more threads. MKL takes its own way on processors of other makers, and
wheels for Arm and macOS are built without it: there a switch may change nothing, and the tests run
a second time as they are.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
OLDEST = {
    "ATEN_CPU_CAPABILITY": "default",
    "MKL_CBWR": "COMPATIBLE",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "OMP_NUM_THREADS": "1",
}
SENSITIVE = (
    "models/test_golden_forward.py",
    "models/test_decoding.py::test_hidden_states_of_a_prompt_and_of_single_tokens",
    "models/test_decoding.py::test_slots_and_chunks_of_any_kind",
    "models/test_action_head.py::test_separated_rows_learn_what_the_whole_head_would",
    "models/test_masks.py",
    "models/test_released_was_wrong.py::test_1_pads_move_the_released_loss_and_not_ours",
    "models/test_released_was_wrong.py::test_3_depth_of_a_picture_depends_on_its_neighbour_only_as"
    "_released",
    "models/test_released_was_wrong.py::test_7_points_of_a_half_model_are_those_of_a_float32_one",
)
CODE = "import sys, pytest, torch; print(torch.backends.cpu.get_cpu_capability()); "
CODE += "sys.exit(pytest.main(sys.argv[1:]))"


def test_bounds_hold_for_the_oldest_kernels():
    tests = [str(HERE / name) for name in SENSITIVE]
    options = ["-n", "0", "-q", "-p", "no:cacheprovider", "--rootdir", str(HERE.parent)]
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")}
    done = subprocess.run(
        [sys.executable, "-c", CODE, *options, *tests],
        cwd=HERE.parent,
        env={**inherited, **OLDEST},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    if platform.machine() in ("x86_64", "AMD64"):
        assert done.stdout.splitlines()[0] == "DEFAULT"
