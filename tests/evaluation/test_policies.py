"""Policies: the baselines, and the queue of chunks of a model."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_world import NAME, depth_map, picture, tiny_model, tiny_processor

from spatialvla_ft.data.sample import Observation
from spatialvla_ft.depth.every_nth import EveryNth
from spatialvla_ft.models.observation import ObservationLayout
from spatialvla_ft.policy.policies import MeanAction, ModelPolicy, NoMotion, View


def view(episodes, fresh=None, depth=True):
    count = len(episodes)
    return View(
        episodes=tuple(episodes),
        fresh=np.zeros(count, bool) if fresh is None else np.asarray(fresh),
        observations=tuple(
            Observation(
                images={"primary": picture(e)},
                depth={"primary": depth_map(e)} if depth else None,
                intrinsics={"primary": np.diag([60.0, 50 + e, 1])},
            )
            for e in episodes
        ),
        gripper=np.array([e / 10 for e in episodes], np.float32),
        instructions=tuple(f"go to {e}" for e in episodes),
    )


def test_no_motion_holds_the_gripper():
    got = NoMotion().act(view([2, 9, 5]))
    np.testing.assert_array_equal(got, [[0] * 7, [*[0] * 6, 1], [0] * 7])


def test_mean_action():
    mean = np.arange(7) / 10
    np.testing.assert_array_equal(MeanAction(mean).act(view([1, 2])), [mean, mean])


class FakeModel(torch.nn.Module):
    """Counts its predictions; the ids it gives away are row and number of the call."""

    def __init__(self, zoe=None):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.config = SimpleNamespace(use_vision_zoe=True, vision_zoe_config=zoe)
        self.calls = []

    def predict_actions(self, inputs, grid=None):
        assert grid is FakeProcessor.grid
        self.calls.append(inputs)
        return torch.arange(len(inputs["n"]))[:, None]


class FakeProcessor:
    """Action k of the chunk of call c for "go to e" is (e, c, k, 0, ...)."""

    action_chunk_size = 3
    layout = ObservationLayout()
    grid = object()

    def __init__(self):
        self.seen = []

    def __call__(self, **call):
        self.seen.append(call)
        return {"n": torch.zeros(len(call["text"]))}

    def to_robot_units(self, normalised, unnorm_key=None):
        call = len(self.seen)
        texts = self.seen[-1]["text"]
        actions = np.zeros((len(texts), 3, 7))
        for i, text in enumerate(texts):
            for k in range(3):
                actions[i, k, :3] = int(text.split()[-1]), call, k
        self.key = unnorm_key
        return actions


def played(policy, *views):
    return [policy.act(one)[:, :3].astype(int).tolist() for one in views]


def test_a_chunk_is_executed_before_the_next_prediction():
    policy = ModelPolicy(FakeModel(), FakeProcessor(), unnorm_key="k")
    got = played(policy, *[view([1, 2])] * 4)
    assert got[:3] == [[[1, 1, k], [2, 1, k]] for k in range(3)]
    assert got[3] == [[1, 2, 0], [2, 2, 0]]
    assert len(policy.model.calls) == 2
    assert policy.processor.key == "k"


def test_only_the_first_actions_of_a_chunk():
    policy = ModelPolicy(FakeModel(), FakeProcessor(), execute=2)
    got = played(policy, *[view([4])] * 3)
    assert got == [[[4, 1, 0]], [[4, 1, 1]], [[4, 2, 0]]]


def test_episodes_keep_their_queues_when_others_come_and_go():
    policy = ModelPolicy(FakeModel(), FakeProcessor())
    got = played(policy, view([1, 2]), view([2, 3], [False, True]), view([3, 2]), view([3, 2]))
    assert got == [
        [[1, 1, 0], [2, 1, 0]],
        [[2, 1, 1], [3, 2, 0]],
        [[3, 2, 1], [2, 1, 2]],
        [[3, 2, 2], [2, 3, 0]],
    ]
    assert policy.processor.seen[1]["text"] == ["go to 3"]
    np.testing.assert_array_equal(policy.processor.seen[1]["images"][0][0], picture(3))
    assert policy.processor.seen[1]["intrinsic"][0][0][1, 1] == 53


def test_a_fresh_episode_forgets_its_old_plan():
    policy = ModelPolicy(FakeModel(), FakeProcessor())
    got = played(policy, view([7], [True]), view([7], [True]))
    assert got == [[[7, 1, 0]], [[7, 2, 0]]]


def test_depth_goes_in_only_where_it_is_an_input():
    with pytest.raises(ValueError, match="episode 1 has no depth of camera 'primary'"):
        ModelPolicy(FakeModel(), FakeProcessor()).act(view([1], depth=False))
    estimating = ModelPolicy(FakeModel(zoe=object()), FakeProcessor())
    estimating.act(view([1]))
    assert estimating.processor.seen[0].get("depth") is None


def test_a_window_holds_the_last_steps_and_repeats_the_first():
    processor = FakeProcessor()
    processor.layout = ObservationLayout(window=3)
    policy = ModelPolicy(FakeModel(zoe=object()), processor, execute=1)
    told = [view([e], [e == 1]) for e in (1, 2, 3, 4, 5)]
    for i, one in enumerate(told):  # one episode whose picture changes
        policy.act(dataclasses.replace(one, episodes=(9,), fresh=np.array([i in (0, 4)])))
    steps = [[1, 1, 1], [1, 1, 2], [1, 2, 3], [2, 3, 4], [5, 5, 5]]
    for call, wanted in zip(processor.seen, steps, strict=True):
        for got, e in zip(call["images"][0], wanted, strict=True):
            np.testing.assert_array_equal(got, picture(e))
        assert [K[1, 1] for K in call["intrinsic"][0]] == [50 + e for e in wanted]


@pytest.mark.parametrize("execute", [0, 4])
def test_execute_must_fit_the_chunk(execute):
    with pytest.raises(ValueError, match=f"execute must be 1 to the chunk size 3, got {execute}"):
        ModelPolicy(FakeModel(), FakeProcessor(), execute=execute)


def test_a_real_model_does_what_processor_and_model_say():
    processor = tiny_processor()
    model = tiny_model(processor)
    one = view([5, 6])
    policy = ModelPolicy(model, processor)
    got = np.stack([policy.act(one), policy.act(dataclasses.replace(one))], axis=1)
    for i in range(2):
        seen = one.observations[i]
        inputs = processor(
            seen.images["primary"],
            one.instructions[i],
            intrinsic=seen.intrinsics["primary"],
            depth=seen.depth["primary"],
        )
        wanted = processor.decode_actions(model.predict_action(inputs), NAME)["actions"][0]
        np.testing.assert_array_equal(got[i], wanted)


class Bright:
    """Depth tells the picture and its K."""

    name, fingerprint, uses_intrinsics = "bright", "b", True

    asked = 0

    def __call__(self, pictures, intrinsics=None):
        self.asked += len(pictures)
        return 1 + pictures.mean(1) + intrinsics[:, 1, 1].view(-1, 1, 1)


@pytest.mark.parametrize("zoe", [None, object()])
def test_an_estimator_stands_in_for_sensor_and_model(zoe):
    policy = ModelPolicy(FakeModel(zoe), FakeProcessor(), depth=Bright())
    one = view([3, 4], depth=False)
    policy.act(one)
    for i, got in enumerate(policy.processor.seen[0]["depth"]):
        seen = one.observations[i]
        wanted = 1 + seen.images["primary"].mean(-1) / 255 + seen.intrinsics["primary"][1, 1]
        np.testing.assert_allclose(got[0], wanted, rtol=1e-5)


def grey(episode, level, *, fresh):
    step = view([episode], [fresh], depth=False)
    pictures = {"primary": np.full_like(step.observations[0].images["primary"], level)}
    now = dataclasses.replace(step.observations[0], images=pictures)
    return dataclasses.replace(step, observations=(now,))


def levels(call):
    return [round((float(depth[0, 0]) - 1 - 53) * 255) for depth in call["depth"][0]]


def test_every_second_picture_of_an_episode_is_estimated():
    policy = ModelPolicy(FakeModel(), FakeProcessor(), execute=1, depth=EveryNth(Bright(), 2))
    for k in range(5):
        policy.act(grey(3, 40 * k, fresh=k in (0, 3)))
    # Picture 3 starts the episode anew; 4 repeats it.
    assert [levels(call) for call in policy.processor.seen] == [[0], [0], [80], [120], [120]]


def test_every_picture_of_a_window_is_estimated_once():
    processor = FakeProcessor()
    processor.layout = ObservationLayout(window=2)
    estimator = Bright()
    policy = ModelPolicy(FakeModel(), processor, execute=1, depth=estimator)
    for k in range(4):
        policy.act(grey(3, 40 * k, fresh=k in (0, 3)))
    assert [levels(call) for call in processor.seen] == [[0, 0], [0, 40], [40, 80], [120, 120]]
    assert estimator.asked == 4


def test_pictures_of_floats_are_estimated_as_the_bytes_that_they_are():
    """From an environment of somebody's own; what can be read in two ways is refused."""
    bytes_of = view([3], [True], depth=False)
    given = bytes_of.observations[0]

    def policy_sees(picture):
        policy = ModelPolicy(FakeModel(), FakeProcessor(), depth=Bright())
        now = dataclasses.replace(given, images={"primary": picture})
        policy.act(dataclasses.replace(bytes_of, observations=(now,)))
        return policy.processor.seen[0]["depth"][0][0]

    picture = given.images["primary"]
    floats = np.moveaxis(picture, -1, 0).astype(np.float32) / 255
    np.testing.assert_array_equal(policy_sees(floats), policy_sees(picture))
    with pytest.raises(ValueError, match=r"camera 'primary' is float32 .* of 0 .. 255: floats are"):
        policy_sees(picture.astype(np.float32))
