"""Joint actions as end-effector deltas, where the user brings the robot's forward kinematics."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import Float32, Float64

from spatialvla_ft.actions.spaces import RawActions
from spatialvla_ft.data.card import Card
from spatialvla_ft.data.errors import DatasetError
from spatialvla_ft.data.poses import pose_difference
from spatialvla_ft.data.standardise import Standardised

ForwardKinematics = Callable[[Float32[np.ndarray, "T joints"]], Float64[np.ndarray, "T 4 4"]]
"""Joints, in the units that the dataset records, to the hand's pose in the robot's base, metres."""


def to_end_effector(
    card: Card, trajectory: Standardised, forward_kinematics: ForwardKinematics
) -> Standardised:
    """Joint actions as the hand's change from where the arm is to where it is sent.

    Needs a card whose action is absolute joints with a gripper, and whose proprioception begins
    with the same joints in the same units.

    Raises:
        DatasetError: the card is not of that kind, or the function returns another shape.
    """
    hands = len(card.action.gripper or ())
    if card.action.joints is None or hands != 1 or card.action.is_delta:
        raise DatasetError(
            f"card {card.name!r}: forward kinematics apply to absolute joint actions with one "
            f"gripper; this card's action is {card.action.encoding}, "
            f"{'deltas' if card.action.is_delta else 'absolute'}, grippers: {hands}; leave "
            "forward_kinematics out"
        )
    joints = trajectory.action.shape[1] - 1
    if trajectory.proprio is None or trajectory.proprio.shape[1] < joints:
        raise DatasetError(
            f"card {card.name!r}: forward kinematics need the arm's present joints; give the card "
            f"a proprio that begins with the {joints} joints of the action"
        )
    count = len(trajectory.action)
    poses = []
    for angles in (trajectory.action[:, :joints], trajectory.proprio[:, :joints]):
        pose = np.asarray(forward_kinematics(angles), np.float64)
        if pose.shape != (count, 4, 4):
            raise DatasetError(
                f"forward_kinematics must return ({count}, 4, 4) poses for {angles.shape} joints, "
                f"got {pose.shape}"
            )
        poses.append(pose)
    change = pose_difference(poses[0], poses[1]) if count else np.empty((0, 6), np.float32)
    action = np.concatenate([change, trajectory.action[:, joints:]], axis=1)
    return dataclasses.replace(trajectory, action=RawActions(action.astype(np.float32)))
