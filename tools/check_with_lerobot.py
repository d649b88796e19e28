"""Open a LeRobot v3.0 folder with LeRobot itself and compare every frame with what we wrote.

Run it with a Python that has `lerobot`, in an environment of its own:

    PYTHON_WITH_LEROBOT tools/check_with_lerobot.py FOLDER EXPECTED.npz

EXPECTED.npz holds, for all frames in order, `task` and any of the dataset's columns; for a picture
`<key>` (n, H, W, 3) uint8, and `<key>:tolerance`, the largest mean difference allowed (0: equal).
Prints one line of JSON; exit code 1 if anything differs.
"""

import json
import sys
from pathlib import Path

import numpy as np
from lerobot.datasets.lerobot_dataset import LeRobotDataset


def main() -> int:
    """Compare; 0 if all is equal."""
    folder, expected = Path(sys.argv[1]), np.load(sys.argv[2])
    dataset = LeRobotDataset("local/check", root=folder, video_backend="pyav")
    keys = [key for key in expected.files if not key.endswith(":tolerance")]
    wrong = [] if len(dataset) == len(expected["task"]) else [f"{len(dataset)} frames"]
    for i in np.random.default_rng(0).permutation(len(expected["task"])).tolist():
        item = dataset[i]
        for key in keys:
            value = item[key] if isinstance(item[key], str) else item[key].numpy()
            want = expected[key][i]
            if f"{key}:tolerance" in expected.files:
                shown = np.rint(value.transpose(1, 2, 0) * 255)
                off = np.abs(shown - want.astype(np.float64)).mean()
                equal = off <= expected[f"{key}:tolerance"]
            else:
                equal = np.array_equal(np.asarray(value).ravel(), np.asarray(want).ravel())
            if not equal:
                wrong.append(f"{key} at frame {i}")
    report = {
        "frames": len(dataset),
        "episodes": dataset.num_episodes,
        "cameras": dataset.meta.camera_keys,
        "compared": keys,
        "wrong": wrong[:5],
    }
    print(json.dumps(report))
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
