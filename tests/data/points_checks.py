"""What tests of points run in a process of its own: tfds, and the simulation's physics."""

from __future__ import annotations

from pathlib import Path

import numpy as np

LENGTHS = (5, 3, 4)
SIZE = (12, 20)
CARD = """\
schema_version: 1
cards:
  pointed:
    version: 1.0.0
    control_hz: 4
    cameras: {primary: observation.image_front}
    intrinsics: {primary: {fx: 20.0, fy: 22.0, cx: 10.0, cy: 6.0, width: 20, height: 12}}
    extrinsics: {primary: observation.extrinsics_front}
    target_point: target_point
    reference_point: observation.reference_point
    action:
      translation: ["action[0:3]"]
      rotation: {raw: labelled_euler, terms: ["action[3:6]"]}
      gripper: ["action[-1:]"]
    proprio: {encoding: POS_EULER, terms: ["observation.state"]}
"""


def episode(number):
    """Columns of an episode; NaN at the first step of `target_point`, everywhere in `never`."""
    rng = np.random.default_rng([number, 7])
    length = LENGTHS[number]

    def normal(*shape):
        return rng.normal(size=(length, *shape)).astype(np.float32)

    pose = np.tile(np.eye(4, dtype=np.float32), (length, 1, 1))
    pose[:, :3, 3] = [0.1, -0.2, -1.5]  # looks along the base's z at what is near the origin
    columns = {
        "action": normal(7),
        "target_point": 0.1 * normal(3),
        "broken": normal(3),
        "wide": normal(4),
        "observation.state": normal(8),
        "observation.reference_point": 0.1 * normal(3),
        "observation.never": np.full((length, 3), np.nan, np.float32),
        "observation.extrinsics_front": pose,
    }
    columns["target_point"][0] = np.nan
    columns["observation.reference_point"][number:] = np.nan
    if number == 1:
        columns["broken"][2, 1] = -np.inf
    pictures = rng.integers(0, 256, (length, *SIZE, 3), dtype=np.uint8)
    return columns, pictures


COMMANDS = ("999900000999", "000000", "00099999", "990990000", "999000000", "999990")
"""Gripper commands of the episodes of `acted`, 9 open and 0 closed."""
GAIN = 0.5
"""Metres that the tool moves per unit of an action."""
ACTED = """\
schema_version: 1
defaults:
  control_hz: 4
cards:
  acted:
    version: 1.0.0
    drop: {first: 1}
    cameras: {primary: observation.image_front}
    intrinsics: {primary: {fx: 20.0, fy: 22.0, cx: 10.0, cy: 6.0, width: 20, height: 12}}
    extrinsics: {primary: observation.extrinsics_front}
    action:
      translation: ["action[0:3]"]
      rotation: {raw: labelled_euler, terms: ["action[3:6]"]}
      gripper: [{src: "action[-1:]", ops: [{scale: 0.1}]}]
    proprio: {encoding: POS_EULER, terms: ["observation.state"]}
    notes: [mine]
  another: {version: 1.0.0, action: {joints: ["action"], gripper: []}}
"""


def acted_episode(number):
    """Columns of an episode; in the fifth the place at the closing is not known."""
    rng = np.random.default_rng([number, 8])
    commands = np.array([int(digit) for digit in COMMANDS[number]], np.float32)
    length = len(commands)
    moves = 0.04 * rng.normal(size=(length, 3))
    state = rng.uniform(-1, 1, (length, 8))
    way = np.cumsum(np.vstack([np.zeros(3), GAIN * moves[:-1]]), axis=0)
    state[:, :3] = way + np.array([0.1, -0.2, 0.3])
    if number == 4:
        state[3, :3] = np.nan
    pose = np.tile(np.eye(4, dtype=np.float32), (length, 1, 1))
    pose[:, :3, 3] = [0.1, -0.2, -1.5]
    columns = {
        "action": np.column_stack([moves, rng.normal(size=(length, 3)), commands]),
        "observation.state": state,
        "observation.extrinsics_front": pose,
    }
    pictures = rng.integers(0, 256, (length, *SIZE, 3), dtype=np.uint8)
    return {key: values.astype(np.float32) for key, values in columns.items()}, pictures


def write(channel, out: Path):
    """Write both datasets with tfds; sends name -> directory."""
    made = {"pointed": (CARD, LENGTHS, episode)}
    made["acted"] = (ACTED, tuple(map(len, COMMANDS)), acted_episode)
    channel.send({name: _write(out, name, *what) for name, what in made.items()})


def _write(out, name, card, lengths, episode):
    import tensorflow_datasets as tfds

    from spatialvla_ft.data.rlds.write import write_split

    kinds = tfds.features
    tree: dict = {"observation": {}}
    for column, values in episode(0)[0].items():
        keys = column.split(".")
        node = tree["observation"] if len(keys) > 1 else tree
        node[keys[-1]] = kinds.Tensor(shape=values.shape[1:], dtype=np.float32)
    tree["observation"]["image_front"] = kinds.Image(shape=(*SIZE, 3), encoding_format="png")
    tree["language_instruction"] = kinds.Text()

    def example(number):
        columns, pictures = episode(number)
        steps = []
        for t in range(lengths[number]):
            step: dict = {"observation": {"image_front": pictures[t]}}
            for column, values in columns.items():
                keys = column.split(".")
                (step["observation"] if len(keys) > 1 else step)[keys[-1]] = values[t]
            steps.append({**step, "language_instruction": f"push thing {number}"})
        return {"steps": steps}

    path = write_split(
        map(example, range(len(lengths))),
        out=out,
        name=name,
        version="1.0.0",
        features=kinds.FeaturesDict({"steps": kinds.Dataset(tree)}),
        description="points",
    )
    (path / "card.yaml").write_text(card)
    return path


def read_again(channel, datasets):
    """What tfds itself reads: [(directory, folder for the pickles)]."""
    import tfds_write

    for source, out in datasets:
        out.mkdir(parents=True)
        tfds_write.dump(source, out)
    channel.send(None)


def true_places(channel, robot, task, seed, distractors, actions):
    """Where the physics has the named block and the reference while the actions are executed.

    Sends (T, 3) of each, before every action; the second is None where the task has none.
    """
    from spatialvla_ft.sim.env import TabletopEnv

    env = TabletopEnv(robot, task, distractors=distractors)
    env.reset(seed)
    named, reference = [], []
    for action in actions:
        blocks = env.state().blocks
        named.append(blocks[0].position)
        reference.append(blocks[1].position if env.task.places else None)
        env.step(np.asarray(action, np.float64))
    channel.send((np.array(named), np.array(reference) if env.task.places else None))
