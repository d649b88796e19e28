"""Policies to evaluate: a SpatialVLA model, and baselines that any model must beat."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64

from ..data.sample import Observation
from ..depth.protocol import DepthEstimator
from ..models.modeling_spatialvla import SpatialVLAForConditionalGeneration
from ..models.processing_spatialvla import SpatialVLAProcessor
from .depth import WindowDepth
from .inputs import model_depth_input, observation_inputs


@dataclass(frozen=True)
class View:
    """What a policy is shown of B running episodes.

    Attributes:
        episodes: (B,) identifies each episode from step to step.
        fresh: (B,) True right after a reset.
        observations: one per episode, with the policy's cameras; empty pictures for a policy
            without cameras.
        gripper: (B,) opening, 1 open to 0 closed.
        instructions: one per episode.
    """

    episodes: tuple[int, ...]
    fresh: Bool[np.ndarray, " B"]
    observations: tuple[Observation, ...]
    gripper: Float32[np.ndarray, " B"]
    instructions: tuple[str, ...]


class Policy(Protocol):
    """Views to robot actions; `cameras` are the slots it looks through, none if it does not."""

    name: str
    cameras: tuple[str, ...]

    def act(self, view: View) -> Float64[np.ndarray, "B 7"]:
        """One action per episode, in the robot's units."""
        ...


class NoMotion:
    """Stays where it is and holds the gripper."""

    name = "no motion"
    cameras = ()

    def act(self, view: View) -> Float64[np.ndarray, "B 7"]:
        """Zeros, and the gripper as it is."""
        actions = np.zeros((len(view.episodes), 7))
        actions[:, 6] = view.gripper > 0.5
        return actions


class MeanAction:
    """Always does the demonstrations' mean action."""

    name = "mean action"
    cameras = ()

    def __init__(self, mean: Float64[np.ndarray, " 7"]) -> None:
        self.mean = np.asarray(mean, np.float64)

    def act(self, view: View) -> Float64[np.ndarray, "B 7"]:
        """The mean, whatever is seen."""
        return np.repeat(self.mean[None], len(view.episodes), axis=0)


class ModelPolicy:
    """A SpatialVLA model: predicts a chunk, executes its first actions, predicts again.

    Args:
        model: in evaluation mode.
        processor: with the statistics of the robot.
        unnorm_key: dataset whose units the actions are in; None takes the only one.
        execute: actions of a chunk that are executed before the next prediction; None for all.
        name: in reports.
        depth: estimates depth from the whole picture, in place of the sensor or of the model's own
            ZoeDepth: the estimator that the model was trained with, or a cheaper one. Inside
            `EveryNth`, episodes are told apart.
    """

    def __init__(
        self,
        model: SpatialVLAForConditionalGeneration,
        processor: SpatialVLAProcessor,
        *,
        unnorm_key: str | None = None,
        execute: int | None = None,
        name: str = "model",
        depth: DepthEstimator | None = None,
    ) -> None:
        chunk = processor.action_chunk_size
        if execute is not None and not 1 <= execute <= chunk:
            raise ValueError(f"execute must be 1 to the chunk size {chunk}, got {execute}")
        self.model, self.processor = model, processor
        self.unnorm_key = unnorm_key
        self.execute = execute or chunk
        self.name = name
        self.cameras = processor.layout.cameras
        self.depth = model_depth_input(model.config)
        self.estimated: WindowDepth | None = None
        if depth is not None:
            self.use_depth_of(depth)
        self._queues: dict[int, deque[np.ndarray]] = {}
        self._seen: dict[int, deque[Observation]] = {}

    def use_depth_of(self, estimator: DepthEstimator) -> None:
        """Estimate depth with this from the next picture on."""
        self.depth = "sensor"  # as an input of the model, like a sensor's
        self.estimated = WindowDepth(estimator, self.cameras)

    def act(self, view: View) -> Float64[np.ndarray, "B 7"]:
        """The next action of each episode's chunk."""
        for episode, fresh, now in zip(view.episodes, view.fresh, view.observations, strict=True):
            if fresh:
                self._queues.pop(episode, None)
                self._seen.pop(episode, None)
                if self.estimated is not None:
                    self.estimated.restart(episode)
            window = self.processor.layout.window
            self._seen.setdefault(episode, deque([now] * window, window)).append(now)
        need = [i for i, e in enumerate(view.episodes) if not self._queues.get(e)]
        if need:
            for i, chunk in zip(need, self._predict(view, need), strict=True):
                self._queues[view.episodes[i]] = deque(chunk[: self.execute])
        return np.stack([self._queues[e].popleft() for e in view.episodes]).astype(np.float64)

    def _predict(self, view: View, rows: list[int]) -> np.ndarray:
        episodes = [view.episodes[i] for i in rows]
        if self.estimated is not None:
            self.estimated(episodes, [self._seen[e] for e in episodes])
        inputs = self.processor(
            **observation_inputs(
                [tuple(self._seen[e]) for e in episodes],
                self.processor.layout,
                self.depth,
                [f"episode {e}" for e in episodes],
            ),
            text=[view.instructions[i] for i in rows],
            unnorm_key=self.unnorm_key,
        )
        device = next(self.model.parameters()).device
        inputs = {k: v.to(device) for k, v in inputs.items() if isinstance(v, torch.Tensor)}
        actions = self.model.predict_actions(inputs, grid=self.processor.grid)
        return self.processor.to_robot_units(actions, self.unnorm_key)
