"""`spatialvla-ft predict`: one observation in, one chunk of actions out."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spatialvla_ft.cli.options import AsJson, Base, CardFile, Split

if TYPE_CHECKING:
    import numpy as np

    from spatialvla_ft.data.sample import Observation
    from spatialvla_ft.policy.prediction import PredictedChunk

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")


def predict(
    checkpoint: Annotated[str, typer.Argument(help="Checkpoint or adapter folder.")],
    image: Annotated[
        Path | None,
        typer.Option(
            help="Picture of the first camera, or a folder of pictures, one after another."
        ),
    ] = None,
    instruction: Annotated[str, typer.Option(help="What the robot is told.")] = "",
    camera: Annotated[
        list[str] | None, typer.Option(help="Further camera: NAME=PICTURE; several times.")
    ] = None,
    intrinsics: Annotated[
        list[str] | None,
        typer.Option(
            help="K in pixels of the picture: a file (JSON, YAML, .npy, text) or fx,fy,cx,cy; "
            "NAME=... for another camera. Left out: the K of the training data, if it is known."
        ),
    ] = None,
    depth: Annotated[
        list[str] | None,
        typer.Option(
            help="Depth of the picture: .npy in metres, or a 16-bit PNG; NAME=... for another "
            "camera."
        ),
    ] = None,
    depth_scale: Annotated[
        float, typer.Option(help="Metres of one unit of a 16-bit depth picture.")
    ] = 0.001,
    state: Annotated[
        str | None, typer.Option(help="Proprioception, for policies that read it: v,v,...")
    ] = None,
    extrinsics: Annotated[
        Path | None,
        typer.Option(help="Camera to robot base, 4 x 4, a file; draws the motion in the picture."),
    ] = None,
    tool: Annotated[
        str | None, typer.Option(help="Where the tool is, base frame, metres: x,y,z; for the plot.")
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="In place of pictures: a recorded episode's steps.")
    ] = None,
    episode: Annotated[int, typer.Option(help="Of the dataset.", min=0)] = 0,
    step: Annotated[int | None, typer.Option(help="One step of it; all if not given.")] = None,
    card: CardFile = None,
    split: Split = "train",
    unnorm_key: Annotated[
        str | None, typer.Option(help="Dataset whose units the actions are in; default the only.")
    ] = None,
    mode: Annotated[
        str | None,
        typer.Option(help="How to predict: local, argmax or expectation of voxel_heatmap, ..."),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(help="PNG of the picture, the points and the motion; NAME-0001.png of many."),
    ] = None,
    base: Base = None,
    as_json: AsJson = False,
) -> None:
    """Predict a chunk of actions in the robot's units, with names, units and frames.

    Needs no robot: a picture, an instruction, and the camera's matrix where training did not see
    this camera. --plot shows what Ego3D sees, where the policy wants to go, and how sure it is.

    Example: spatialvla-ft predict exports/my_robot --image top.png --instruction "pick up the cup"
    """
    from spatialvla_ft.cli.console import fail_with, no_bars_of_weights

    with fail_with():
        from spatialvla_ft.policy.load import load_policy_model
        from spatialvla_ft.policy.prediction import predict_chunk

        if (image is None) == (dataset is None):
            raise ValueError("give exactly one of --image (a picture, a folder) and --dataset")
        no_bars_of_weights()
        model, processor = load_policy_model(checkpoint, base=base)
        given = _Given(
            cameras=processor.layout.cameras,
            processor=processor,
            unnorm_key=unnorm_key,
            intrinsics=_by_camera(intrinsics, processor.layout.cameras, "--intrinsics"),
            depth=_by_camera(depth, processor.layout.cameras, "--depth"),
            others=_by_camera(camera, processor.layout.cameras, "--camera"),
            depth_scale=depth_scale,
            state=state,
            extrinsics=extrinsics,
        )
        if dataset is not None:
            steps = _recorded(dataset, processor, card, split, episode, step)
        else:
            assert image is not None
            if not instruction:
                raise ValueError("give the robot's instruction: --instruction TEXT")
            steps = _from_files(image, instruction, given)
        found = []
        place = None if tool is None else _numbers(tool, "--tool", 3)
        for name, seen, told in steps:
            chunk = predict_chunk(model, processor, seen, told, unnorm_key=unnorm_key, mode=mode)
            found.append((name, told, chunk))
            if plot is not None:
                several = (image is not None and image.is_dir()) or (dataset and step is None)
                file = plot.with_stem(f"{plot.stem}-{len(found):04d}") if several else plot
                _plot(file, seen[-1], chunk, told, processor.layout.cameras[0], place)
            if not as_json:
                _show(name, told, chunk)
    if as_json:
        lines = [{"source": n, "instruction": t, **c.to_dict()} for n, t, c in found]
        typer.echo(json.dumps(lines[0] if len(lines) == 1 else lines))


class _Given:
    """What the options say of pictures from files."""

    def __init__(self, **values: Any) -> None:
        self.__dict__.update(values)

    def observation(self, file: Path) -> Observation:
        """The observation that a picture of the first camera belongs to."""
        import numpy as np

        from spatialvla_ft.data.sample import Observation

        first = self.cameras[0]
        files = {first: file, **{name: Path(path) for name, path in self.others.items()}}
        missing = [name for name in self.cameras if name not in files]
        if missing:
            raise ValueError(
                f"the policy looks through {list(self.cameras)}: give --camera {missing[0]}=PICTURE"
            )
        images = {name: _picture(path) for name, path in files.items()}
        depth = {name: _depth(Path(path), self.depth_scale) for name, path in self.depth.items()}
        poses = {}
        if self.extrinsics is not None:
            pose = _matrix(str(self.extrinsics), "--extrinsics")
            if pose.shape != (4, 4):
                raise ValueError(f"--extrinsics {self.extrinsics}: need 4 x 4, got {pose.shape}")
            poses[first] = pose
        return Observation(
            images=images,
            depth=depth or None,
            intrinsics={name: self._camera_matrix(name, images[name]) for name in self.cameras},
            extrinsics=poses,
            proprio=(
                None
                if self.state is None
                else np.asarray(_numbers(self.state, "--state"), np.float32)
            ),
        )

    def _camera_matrix(self, name: str, picture: np.ndarray) -> np.ndarray:
        """K as given, or that of the training data for a picture of this size."""
        from spatialvla_ft.geometry.intrinsics import camera_matrix, scale_intrinsics

        if name in self.intrinsics:
            text = self.intrinsics[name]
            return camera_matrix(_matrix(text, "--intrinsics"), f"--intrinsics {text}")
        key = self.processor.choose_statistics(self.unnorm_key)
        entry = self.processor.intrinsic_config.get(key)
        if entry is not None and name != self.cameras[0]:
            entry = entry.get("cameras", {}).get(name)
        if entry is None:
            raise ValueError(
                f"K of camera {name!r} is not known: give --intrinsics fx,fy,cx,cy or a file"
            )
        import numpy as np

        height, width = picture.shape[:2]
        stored = np.asarray(entry["intrinsic"], np.float64)
        return scale_intrinsics(stored, width / entry["width"], height / entry["height"])


def _from_files(
    image: Path, instruction: str, given: _Given
) -> Iterator[tuple[str, tuple[Observation, ...], str]]:
    """(name, steps, instruction) of a picture, or of each of a folder, which follow one another."""
    if not image.exists():
        raise ValueError(f"--image {image}: there is no such file or folder")
    files = [image]
    if image.is_dir():
        files = sorted(f for f in image.iterdir() if f.suffix.lower() in PICTURES)
        if not files:
            raise ValueError(f"--image {image}: the folder has no picture ({', '.join(PICTURES)})")
    window, seen = given.processor.layout.window, []
    for file in files:
        seen.append(given.observation(file))
        last = seen[-window:]
        yield str(file), tuple([last[0]] * (window - len(last)) + last), instruction


def _recorded(
    dataset: str, processor: Any, card: Path | None, split: str, episode: int, step: int | None
) -> Iterator[tuple[str, tuple[Observation, ...], str]]:
    """(name, steps, instruction) of a recorded episode."""
    import numpy as np

    from spatialvla_ft.evaluation.open_loop import open_recorded

    data = open_recorded(dataset, processor, card=card, split=split)
    if not episode < len(data.episodes):
        raise ValueError(f"--episode {episode}: {data.name} has {len(data.episodes)} in {split!r}")
    one = data.subset(np.asarray(data.episodes)[episode : episode + 1])
    if step is not None and not 0 <= step < len(one):
        raise ValueError(f"--step {step}: episode {episode} has {len(one)} steps")
    for frame in range(len(one)) if step is None else [step]:
        sample = one[frame]
        name = f"{data.name} episode {episode} step {frame}"
        yield name, sample.observations, sample.instruction


def _by_camera(given: list[str] | None, cameras: Sequence[str], option: str) -> dict[str, str]:
    """{camera: value} of NAME=VALUE, or of VALUE, which is the first camera's."""
    found: dict[str, str] = {}
    for text in given or []:
        name, equals, value = text.partition("=")
        if not equals:
            name, value = cameras[0], text
        if name not in cameras:
            raise ValueError(
                f"{option} {text}: the policy looks through {list(cameras)}, not through {name!r}"
            )
        if name in found:
            raise ValueError(f"{option} is given twice for camera {name!r}")
        found[name] = value
    return found


def _numbers(text: str, option: str, count: int | None = None) -> list[float]:
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"{option} {text}: numbers with commas between them, please") from None
    if count is not None and len(values) != count:
        raise ValueError(f"{option} {text}: {count} numbers are needed, got {len(values)}")
    return values


def _matrix(text: str, option: str) -> np.ndarray:
    """Numbers of a file, or of the option itself."""
    import numpy as np
    import yaml

    path = Path(text)
    if not path.is_file():
        if path.suffix or "/" in text:
            raise ValueError(f"{option} {text}: there is no such file")
        return np.asarray(_numbers(text, option))
    try:
        if path.suffix == ".npy":
            return np.load(path, allow_pickle=False)
        if path.suffix in (".json", ".yaml", ".yml"):
            return np.asarray(yaml.safe_load(path.read_text()), np.float64)
        return np.loadtxt(path, delimiter="," if "," in path.read_text() else None)
    except (ValueError, TypeError, yaml.YAMLError) as error:
        raise ValueError(f"{option} {text}: no matrix can be read from it ({error})") from None


def _picture(path: Path) -> np.ndarray:
    from PIL import Image, UnidentifiedImageError

    from spatialvla_ft.pictures import rgb_bytes

    try:
        with Image.open(path) as opened:
            return rgb_bytes(opened, str(path))
    except FileNotFoundError:
        raise ValueError(f"{path}: there is no such picture") from None
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{path} is no picture that can be read: {error}") from None


def _depth(path: Path, scale: float) -> np.ndarray:
    """Metres."""
    import numpy as np
    from PIL import Image

    from spatialvla_ft.depth.metres import reading_in_metres

    if not path.is_file():
        raise ValueError(f"--depth {path}: there is no such file")
    if path.suffix == ".npy":
        return reading_in_metres(np.load(path, allow_pickle=False), f"--depth {path}")
    with Image.open(path) as opened:
        units = np.asarray(opened)
    if units.ndim != 2 or units.dtype.kind not in "ui" or units.dtype.itemsize < 2:
        raise ValueError(
            f"--depth {path}: a depth picture has one channel of 16 bits, this one is "
            f"{units.dtype} {units.shape}"
        )
    return reading_in_metres((units * scale).astype(np.float32), f"--depth {path}")


def _plot(file: Path, seen: Any, chunk: PredictedChunk, told: str, camera: str, tool: Any) -> None:
    import numpy as np

    from spatialvla_ft.viz.prediction import Scene, plot_prediction

    proprio = getattr(seen, "proprio", None)
    if tool is None and proprio is not None and len(proprio) >= 3 and hasattr(seen, "episode"):
        tool = proprio[:3]
    scene = Scene(
        seen.images[camera],
        None if seen.depth is None else seen.depth.get(camera),
        seen.intrinsics[camera],
        seen.extrinsics.get(camera),
        None if tool is None else np.asarray(tool, np.float64),
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    plot_prediction(scene, chunk, told).savefig(file, dpi=110)


def _show(name: str, told: str, chunk: PredictedChunk) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    rate = "" if chunk.control_hz is None else f", {chunk.control_hz:g} Hz"
    title = f"{name}: “{told}”, {chunk.head}, units of {chunk.unnorm_key}{rate}"
    console.print(Text(title), soft_wrap=True)
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("step", justify="right")
    for dimension, unit in zip(chunk.space.names, chunk.space.units, strict=True):
        table.add_column(f"{dimension}\n{unit if len(unit) < 5 else ''}", justify="right")
    for k, action in enumerate(chunk.actions):
        table.add_row(str(k + 1), *(f"{value:.3g}" for value in action))
        if chunk.spread is not None:
            table.add_row("±", *(f"{value:.2g}" for value in chunk.spread[k]), style="dim")
    console.print(table)
    frames = {group.frame for group in chunk.space.groups if group.role != "gripper"}
    console.print(Text(f"frame: {', '.join(sorted(frames))}; gripper 1 = open, 0 = closed"))
