"""The processor: pictures, words, cameras and actions to tensors, and token ids to robot actions.

A sequence is `<image>` once per patch, `<bos>`, the instruction, a newline, and in training the
action tokens (three per step of one arm) and `<eos>`. Everything that belongs to a robot travels
with it: the action grid, the statistics that normalise actions, and the intrinsics of the cameras.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import AutoProcessor, AutoTokenizer, BatchFeature, ProcessorMixin
from transformers.dynamic_module_utils import custom_object_save
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from ..actions.grid import ActionGrid
from ..actions.grid_io import from_processor_config, to_processor_config
from ..actions.normalise import ActionStatistics, normalise, unnormalise
from ..actions.tokenizer import SpatialActionTokenizer, with_action_tokens
from ..pictures import rgb_bytes
from .camera_inputs import (
    known_intrinsics,
    per_item,
    per_view,
    prompts_of_views,
    relative_poses,
    square_depth,
    square_intrinsics,
)
from .checkpoint_files import image_tokens, read_processor_config, write_json
from .configuration_spatialvla import SpatialVLAConfig
from .observation import ObservationLayout

logger = logging.getLogger(__name__)

IMAGE_TOKEN = "<image>"
IGNORE = -100


class SpatialVLAProcessor(ProcessorMixin):
    """Inputs and outputs of a SpatialVLA model.

    Attributes:
        image_processor: squashes pictures to the model's size (bicubic) and divides by 255.
        tokenizer: with `<image>` and the action tokens.
        grid: the action grid.
        action_tokenizer: the grid within the tokenizer's vocabulary.
        statistics: {dataset: {"action": {q01, q99, mask, ...}, ...}}.
        intrinsic_config: {dataset: {"intrinsic": 3 x 3, "height", "width"}}.
        action_chunk_size: actions per prediction.
        layout: cameras, window and proprioception that make one prompt.
    """

    def __init__(
        self,
        image_processor: SiglipImageProcessorPil,
        tokenizer: Any,
        *,
        grid: ActionGrid,
        statistics: dict[str, Any] | None = None,
        intrinsic_config: dict[str, Any] | None = None,
        action_chunk_size: int = 4,
        layout: ObservationLayout | None = None,
        settings: dict[str, Any] | None = None,
    ) -> None:
        self.image_processor = image_processor
        self.tokenizer = tokenizer
        self.chat_template = None
        self.statistics = statistics or {}
        self.intrinsic_config = intrinsic_config or {}
        self.action_chunk_size = int(action_chunk_size)
        self.layout = layout or ObservationLayout()
        self.settings = settings or {}
        self.set_grid(grid)
        self.image_token_id = int(tokenizer.convert_tokens_to_ids(IMAGE_TOKEN))
        self.image_size = int(image_processor.size["height"])
        if image_processor.size["width"] != image_processor.size["height"]:
            raise ValueError(f"the model's picture must be square, got {image_processor.size}")
        if not getattr(image_processor, "image_seq_length", None):
            raise ValueError(
                "the image processor has no image_seq_length, the tokens that a picture makes: set "
                "it to the number of patches, e.g. 256 for 224 pixels in patches of 14"
            )
        self.image_seq_length = int(image_processor.image_seq_length)

    def set_grid(self, grid: ActionGrid) -> None:
        """Use another grid, e.g. one fitted to a new robot.

        A grid with more or fewer tokens gets a tokenizer with as many (`adapt_to_grid` does the
        same for the model).
        """
        self.grid = grid
        self.tokenizer = with_action_tokens(self.tokenizer, grid.total)
        self.action_tokenizer = SpatialActionTokenizer(self.tokenizer, grid)

    # ---------------------------------------------------------------- files

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, **kwargs: Any
    ) -> SpatialVLAProcessor:
        """Load the processor of a checkpoint, a released one included."""
        source = str(pretrained_model_name_or_path)
        hub_names = ("cache_dir", "revision", "token", "local_files_only", "subfolder")
        hub = {k: v for k, v in kwargs.items() if k in hub_names and v is not None}
        saved = read_processor_config(source, **hub)
        if saved is None:
            raise ValueError(
                f"{source} has no processor_config.json, where the action grid, statistics and "
                "intrinsics stand; it is not a SpatialVLA checkpoint"
            )
        # Its config is given because the one in the folder is of a type that transformers only
        # knows where this package is installed; elsewhere it would say so, in a warning.
        tokenizer = AutoTokenizer.from_pretrained(
            source, config=SpatialVLAConfig(), trust_remote_code=False, **hub
        )
        image_processor = SiglipImageProcessorPil.from_pretrained(source, **hub)
        if not getattr(image_processor, "image_seq_length", None):
            image_processor.image_seq_length = image_tokens(source, **hub)
        known = ("statistics", "intrinsic_config", "action_chunk_size")
        own = (*known, "bin_policy", "action_config", "action_grid", "min_sigma")
        own = (*own, "image_processor", "observation")
        return cls(
            image_processor,
            tokenizer,
            grid=from_processor_config(saved),
            layout=ObservationLayout.from_dict(saved.get("observation")),
            settings={k: v for k, v in saved.items() if k not in own},
            **{k: saved[k] for k in known if k in saved},
        )

    def to_dict(self) -> dict[str, Any]:
        """What `processor_config.json` holds, in the released layout."""
        observation = {} if self.layout.is_released else {"observation": self.layout.to_dict()}
        return {
            **copy.deepcopy(self.settings),
            **observation,
            **to_processor_config(self.grid),
            "processor_class": type(self).__name__,
            "statistics": copy.deepcopy(self.statistics),
            "intrinsic_config": copy.deepcopy(self.intrinsic_config),
            "action_chunk_size": self.action_chunk_size,
        }

    def save_pretrained(self, save_directory: str | Path, **_: Any) -> list[str]:
        """Write tokenizer, image processor and `processor_config.json`, as released ones are."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        self.tokenizer.save_pretrained(folder)
        image = self.image_processor.to_dict()
        image["image_processor_type"] = "SiglipImageProcessor"
        image["image_seq_length"] = self.image_seq_length
        image["processor_class"] = type(self).__name__
        write_json(folder / "preprocessor_config.json", image)
        write_json(folder / "processor_config.json", self.to_dict())
        if self._auto_class is not None:  # loaded with trust_remote_code: its code goes along
            custom_object_save(self, folder)
        return [str(folder / "processor_config.json")]

    def __repr__(self) -> str:
        """Name what matters, not a thousand bin edges."""
        return (
            f"{type(self).__name__}(image_size={self.image_size}, grid={self.grid!r}, "
            f"action_chunk_size={self.action_chunk_size}, layout={self.layout}, "
            f"datasets={sorted(self.statistics)})"
        )

    # ---------------------------------------------------------------- inputs

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        unnorm_key: str | Sequence[str] | None = None,
        suffix_actions: Any = None,
        intrinsic: Any = None,
        depth: Any = None,
        return_tensors: str = "pt",
        *,
        extrinsics: Any = None,
        proprio: Any = None,
        assume_intrinsics: str | None = None,
        padding_side: str | None = None,
    ) -> BatchFeature:
        """Model inputs for one prompt or a batch of them.

        With more than one view (N = steps of the window times cameras) a prompt's pictures are a
        list, oldest step first and the layout's cameras in order within it; K, depth and
        extrinsics come in the same order.

        Args:
            images: RGB as PIL, or an array or tensor with the channels first or last, of uint8 or
                of float in [0, 1] (`rgb_bytes` says what else is understood); or a list of these;
                with N views a list of N, or a list of such lists.
            text: the instruction, or one per prompt.
            unnorm_key: dataset name(s), which select the intrinsics when none are given, and the
                statistics of proprioception.
            suffix_actions: NORMALISED actions to learn, (T, dim) or (B, T, dim); one arm has dim 7.
            intrinsic: K in pixels of the picture as given, (3, 3), one per picture or one per view.
            depth: metres, floats, registered to the picture, (H, W) per picture; 0 or NaN unknown.
            return_tensors: "pt", the only form the model takes.
            extrinsics: camera to a frame that the views of a prompt share, (N, 4, 4) or
                (B, N, 4, 4), metres; None or NaN where not known.
            proprio: in the robot's units, (K,), (W, K) or (B, W, K), oldest step first.
            assume_intrinsics: name in `intrinsic_config` to use where the camera is not known.
            padding_side: "left" or "right"; by default left for prompts, right for training.

        Returns:
            input_ids, attention_mask, token_type_ids (B, T); pixel_values (B, 3, S, S) in [0, 1];
            intrinsics (B, 3, 3) for the S x S picture; depth (B, S, S) where given; labels (B, T)
            and actions (B, T, dim) where suffix_actions are given. With N views those of the
            pictures have a second axis N, and camera_poses (B, N, 4, 4) come where extrinsics are
            given; proprio (B, W, K) where the layout has it.

        Raises:
            ValueError: something is missing, does not fit the rest, or can be read in more than
                one way: pictures beyond [0, 1] that are not bytes, depth in whole numbers.
        """
        if images is None or text is None:
            raise ValueError("the processor needs images and text")
        if return_tensors != "pt":
            raise ValueError(f"return_tensors is {return_tensors!r}; only 'pt' is supported")
        views = self.layout.num_views
        prompts = prompts_of_views(images, views)
        texts = [text] * len(prompts) if isinstance(text, str) else list(text)
        if len(texts) != len(prompts):
            raise ValueError(
                f"got {len(prompts)} images and {len(texts)} texts; give each prompt one text"
            )
        keys = per_item(unnorm_key, len(prompts), "unnorm_key")
        given = [picture for prompt in prompts for picture in prompt]
        names = [f"images[{i}]" for i in range(len(given))] if len(given) > 1 else ["images"]
        pictures = [rgb_bytes(one, name) for one, name in zip(given, names, strict=True)]
        sides = [picture.shape[:2] for picture in pictures]

        data: dict[str, Tensor] = {
            "pixel_values": self.image_processor(
                pictures, return_tensors="pt", input_data_format="channels_last"
            )["pixel_values"],
            "intrinsics": self._intrinsics(intrinsic, keys, sides, assume_intrinsics),
        }
        if depth is not None:
            maps = per_view(depth, len(prompts), views, "depth")
            data["depth"] = torch.stack(
                [
                    square_depth(one, *side, self.image_size)
                    for one, side in zip(maps, sides, strict=True)
                ]
            )
        if views > 1:
            data = {name: value.unflatten(0, (-1, views)) for name, value in data.items()}
            if extrinsics is not None:
                poses = per_view(extrinsics, len(prompts), views, "extrinsics")
                reference = (self.layout.window - 1) * len(self.layout.cameras)
                data["camera_poses"] = torch.stack(
                    [
                        relative_poses(poses[i : i + views], reference)
                        for i in range(0, len(poses), views)
                    ]
                )
        if self.layout.proprio_dim is not None:
            data["proprio"] = self._proprio(proprio, keys)
        actions = None
        if suffix_actions is not None:
            actions = _batched_actions(suffix_actions, len(prompts), self.grid.dim)
            data["actions"] = torch.as_tensor(actions)
        side = padding_side or ("left" if actions is None else "right")
        data.update(self._sequences(texts, actions, side))
        return BatchFeature(data)

    @property
    def num_observation_tokens(self) -> int:
        """`<image>` tokens at the beginning of every prompt."""
        return self.layout.num_tokens(self.image_seq_length)

    def prompt_ids(self, text: str) -> list[int]:
        """Ids of the prefix: image tokens, `<bos>`, the instruction and a newline."""
        words = self.tokenizer(
            f"{self.tokenizer.bos_token}{text}\n", add_special_tokens=False
        ).input_ids
        return [self.image_token_id] * self.num_observation_tokens + list(words)

    def _sequences(
        self, texts: list[str], actions: np.ndarray | None, side: str
    ) -> dict[str, Int[Tensor, "B T"]]:
        prompts = [self.prompt_ids(text) for text in texts]
        suffixes: list[list[int]] = [[] for _ in texts]
        if actions is not None:
            flat = self.action_tokenizer.encode(actions.reshape(-1, actions.shape[-1]))
            ids = flat.reshape(len(texts), -1)
            suffixes = [[*row.tolist(), self.tokenizer.eos_token_id] for row in ids]
        length = max(len(p) + len(s) for p, s in zip(prompts, suffixes, strict=True))
        shape = (len(texts), length)
        out = {
            "input_ids": torch.full(shape, self.tokenizer.pad_token_id),
            "attention_mask": torch.zeros(shape, dtype=torch.long),
            "token_type_ids": torch.zeros(shape, dtype=torch.long),
        }
        if actions is not None:
            out["labels"] = torch.full(shape, IGNORE)
        for i, (prompt, suffix) in enumerate(zip(prompts, suffixes, strict=True)):
            n = len(prompt) + len(suffix)
            start = 0 if side == "right" else length - n
            out["input_ids"][i, start : start + n] = torch.tensor(prompt + suffix)
            out["attention_mask"][i, start : start + n] = 1
            if suffix:
                where = slice(start + len(prompt), start + n)
                out["token_type_ids"][i, where] = 1
                out["labels"][i, where] = torch.tensor(suffix)
        return out

    def _intrinsics(
        self,
        intrinsic: Any,
        keys: list[str | None],
        sides: list[tuple[int, int]],
        assumed: str | None,
    ) -> Float[Tensor, "BN 3 3"]:
        views = self.layout.num_views
        if intrinsic is not None:
            matrices = per_view(intrinsic, len(keys), views, "intrinsic")
            known = [(K, *side) for K, side in zip(matrices, sides, strict=True)]
        else:
            known = [
                known_intrinsics(self.intrinsic_config, key, camera, i == 0, assumed)
                for key in keys
                for _ in range(self.layout.window)
                for i, camera in enumerate(self.layout.cameras)
            ]
        return torch.stack([square_intrinsics(*entry, self.image_size) for entry in known])

    def _proprio(self, proprio: Any, keys: list[str | None]) -> Float[Tensor, "B W K"]:
        shape = (len(keys), self.layout.window, self.layout.proprio_dim)
        if proprio is None:
            raise ValueError(
                f"this checkpoint reads proprioception: pass proprio {shape[1:]} per prompt, in "
                "the robot's units, oldest step first"
            )
        values = np.asarray(proprio.cpu() if isinstance(proprio, Tensor) else proprio, np.float64)
        if values.size != np.prod(shape) or values.shape[-1] != shape[-1]:
            raise ValueError(
                f"proprio must be {shape} (prompts, steps, numbers), got {values.shape}"
            )
        rows = []
        for row, key in zip(values.reshape(shape), keys, strict=True):
            name = self.choose_statistics(key)
            if "proprio" not in self.statistics[name]:
                raise ValueError(
                    f"the statistics of {name!r} have no entry 'proprio', so that its numbers "
                    "cannot be normalised; train with data.proprio: true, which writes it"
                )
            statistics = ActionStatistics.from_dict(self.statistics[name]["proprio"])
            rows.append(torch.as_tensor(normalise(row, statistics)))
        return torch.stack(rows)

    # ---------------------------------------------------------------- outputs

    def decode_actions(
        self, ids: Any, unnorm_key: str | Sequence[str] | None = None
    ) -> dict[str, np.ndarray]:
        """Robot actions from token ids.

        Args:
            ids: absolute ids, (B, tokens * chunk) or (tokens * chunk,), with the grid's number of
                tokens per action (3 of one arm); exactly what `predict_action` gives.
            unnorm_key: dataset(s) whose statistics give the robot's units; None picks the only one.

        Returns:
            "actions" (B, chunk, dim) in the robot's units, "normalised" (B, chunk, dim), "ids".
        """
        array = np.asarray(ids.cpu() if isinstance(ids, Tensor) else ids)
        array = array[None] if array.ndim == 1 else array
        tokens, dim = self.grid.tokens, self.grid.dim
        if array.ndim != 2 or array.shape[1] % tokens:
            slots = ", ".join(slot.name for slot in self.grid.slots)
            raise ValueError(
                f"ids must be (B, {tokens} * chunk), {tokens} tokens per action ({slots}), got "
                f"shape {array.shape}"
            )
        normalised = self.action_tokenizer.decode(array.reshape(-1, tokens))
        normalised = np.asarray(normalised).reshape(len(array), -1, dim)
        actions = self.to_robot_units(normalised, unnorm_key)
        return {"actions": actions, "normalised": normalised, "ids": array}

    def to_robot_units(
        self, actions: Any, unnorm_key: str | Sequence[str] | None = None
    ) -> np.ndarray:
        """Actions in the robot's units from normalised ones, as `predict_actions` gives them.

        Args:
            actions: (B, chunk, dim), any floats.
            unnorm_key: dataset(s) whose statistics give the robot's units; None picks the only one.
        """
        if isinstance(actions, Tensor):  # NumPy has no bfloat16
            actions = (actions if actions.dtype == torch.float64 else actions.float()).cpu()
        rows = np.asarray(actions)
        if rows.ndim != 3 or rows.shape[2] != self.grid.dim:
            raise ValueError(
                f"actions must be (B, chunk, {self.grid.dim}), normalised, got shape {rows.shape}"
            )
        keys = [
            self.choose_statistics(key) for key in per_item(unnorm_key, len(rows), "unnorm_key")
        ]
        known = [ActionStatistics.from_dict(self.statistics[key]) for key in keys]
        return np.stack([unnormalise(row, one) for row, one in zip(rows, known, strict=True)])

    def choose_statistics(self, key: str | None) -> str:
        """The dataset whose statistics to use: `key`, or the only one; ValueError lists them."""
        have = sorted(self.statistics)
        if key is None and len(have) == 1:
            return have[0]
        if key not in self.statistics:
            what = "unnorm_key is needed" if key is None else f"unnorm_key {key!r} is unknown"
            raise ValueError(f"{what}: this checkpoint has statistics of {have}; choose one")
        return key


def _batched_actions(actions: Any, count: int, dim: int) -> np.ndarray:
    array = np.asarray(actions.cpu() if isinstance(actions, Tensor) else actions, dtype=np.float32)
    array = array[None] if array.ndim == 2 else array
    if array.ndim != 3 or len(array) != count or array.shape[1] == 0 or array.shape[2] != dim:
        raise ValueError(
            f"suffix_actions must be (T, {dim}), or (B, T, {dim}) with B = {count} images, got "
            f"{array.shape}"
        )
    worst = float(np.abs(array).max()) if np.isfinite(array).all() else 0.0
    if worst > 1.01:
        logger.warning(
            "suffix_actions reach %.3g, outside [-1, 1]: they are clipped. Pass NORMALISED actions "
            "(spatialvla_ft.actions.normalise)",
            worst,
        )
    return array


AutoProcessor.register(SpatialVLAConfig, SpatialVLAProcessor, exist_ok=True)
