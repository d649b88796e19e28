"""Writing an RLDS dataset with TensorFlow Datasets itself.

TensorFlow is imported inside: use this in a process that has not imported torch.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from spatialvla_ft.data.rlds.tensorflow import tensorflow_datasets


def write_split(
    examples: Iterable[Mapping[str, Any]],
    *,
    out: Path,
    name: str,
    version: str,
    features: Any,
    description: str,
) -> Path:
    """Write episodes as split `train`; returns the dataset's version directory.

    The directory is `out/name/version`, which `tfds.builder_from_directory` opens. Episodes are
    stored in the order given.

    Args:
        examples: episodes as `features` describes them, images already encoded or as arrays.
        out: where datasets lie.
        name: of the dataset.
        version: of the dataset, "1.0.0".
        features: a `tfds.features.FeaturesDict`.
        description: a sentence for the dataset's own documents.
    """
    tfds = tensorflow_datasets()

    tfds.disable_progress_bar()

    class Written(tfds.dataset_builders.AdhocBuilder, skip_registration=True):  # type: ignore[call-arg,misc]
        """A dataset made here."""

        # Nothing is downloaded. Looking for checksums, which this avoids, needs the package
        # importlib_resources, which tfds does not always bring.
        url_infos: ClassVar[dict[str, Any]] = {}

    # tfds announces itself on standard output, which belongs to the command's report.
    with contextlib.redirect_stdout(io.StringIO()):
        builder = Written(
            name=name,
            version=version,
            features=features,
            split_datasets={"train": enumerate(examples)},
            data_dir=out,
            description=description,
            disable_shuffling=True,
        )
        builder.download_and_prepare()
    for left_over in (out / "downloads" / "extracted", out / "downloads"):
        if left_over.is_dir() and not any(left_over.iterdir()):
            left_over.rmdir()
    return Path(builder.data_dir)


def arm_in_card() -> dict[str, Any]:
    """Action and proprioception, in a card, of the datasets that are written here: one arm's hand.

    Columns `action` (T, 7) and `observation.state` (T, 7): x y z in metres, roll pitch yaw in
    radians, the gripper's opening.
    """
    return {
        "action": {
            "encoding": "EEF_POS",
            "loadable": True,
            "translation": ["action[0:3]"],
            "rotation": {"raw": "labelled_euler", "terms": ["action[3:6]"]},
            "gripper": ["action[-1:]"],
        },
        "proprio": {
            "encoding": "POS_EULER",
            "terms": ["observation.state[0:6]", "zeros(1)", "observation.state[-1:]"],
        },
    }
