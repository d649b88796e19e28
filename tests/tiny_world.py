"""A model of a few thousand weights, its processor, and recorded steps made up for it."""

from __future__ import annotations

import numpy as np
import torch

from spatialvla_ft.actions.grid import ActionGrid
from spatialvla_ft.actions.spaces import end_effector_delta
from spatialvla_ft.data.sample import Sample
from spatialvla_ft.models.small import small_model, small_processor

BINS = (4, 6, 3, 5, 4, 3, 2)
CHUNK = 2
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
TEXTS = ("pick up the red block", "püt it down, slowly and carefully")
NAME = "made_up/1.0.0"
LOW = [-0.02, -0.03, -0.01, -0.1, -0.2, -0.3, 0.0]
HIGH = [0.03, 0.02, 0.05, 0.2, 0.1, 0.4, 1.0]


def statistics():
    low, high = np.array(LOW), np.array(HIGH)
    return {
        "action": {
            "mean": ((low + high) / 3).tolist(),
            "std": (high - low).tolist(),
            "max": high.tolist(),
            "min": low.tolist(),
            "q01": low.tolist(),
            "q99": high.tolist(),
            "mask": [True] * 6 + [False],
        }
    }


def tiny_processor(bins=BINS, chunk=CHUNK):
    return small_processor(
        TEXTS,
        ActionGrid.uniform(bins=bins),
        image_size=32,
        patch_size=8,
        action_chunk_size=chunk,
        statistics={NAME: statistics()},
        intrinsic_config={
            NAME: {"intrinsic": [[60, 0, 33], [0, 50, 21], [0, 0, 1]], "height": 40, "width": 64}
        },
    )


def tiny_model(processor, *, text=None, **config):
    model = small_model(
        processor,
        patch_size=8,
        vision={**SIZES, "num_hidden_layers": 1},
        text={
            **SIZES,
            "num_hidden_layers": 2,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "query_pre_attn_scalar": 12,
            "initializer_range": 0.3,
            **(text or {}),
        },
        **{"depth_source": "sensor", **config},
    )
    return model.to(torch.float32).eval()


def picture(seed, height=40, width=64):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def depth_map(seed, height=40, width=64):
    return np.random.default_rng(seed).uniform(0.3, 1.5, (height, width)).astype(np.float32)


def actions(seed, count=CHUNK):
    """Normalised (count, 7)."""
    values = np.random.default_rng(seed).uniform(-1, 1, (count, 7))
    values[:, 6] = values[:, 6] > 0
    return values.astype(np.float32)


def tiny_inputs(processor, rows=2, *, with_actions=False, **call):
    """Model tensors of `rows` pictures whose instructions differ in length."""
    return dict(
        processor(
            images=[picture(i) for i in range(rows)],
            text=[TEXTS[i % 2] for i in range(rows)],
            unnorm_key=NAME,
            depth=[depth_map(i) for i in range(rows)],
            suffix_actions=np.stack([actions(i) for i in range(rows)]) if with_actions else None,
            **call,
        )
    )


def row_of(inputs, i):
    """Row i of a batch, without its pads."""
    real = inputs["attention_mask"][i].bool()
    return {
        name: tensor[i : i + 1][:, real] if tensor.ndim == 2 else tensor[i : i + 1]
        for name, tensor in inputs.items()
        if name != "actions"
    }


class MadeUp(list):
    """Steps of two episodes, in the robot's units, as a dataset gives them."""

    name = NAME
    action_space = end_effector_delta()

    def __init__(self, count=7, horizon=CHUNK):
        rng = np.random.default_rng(5)
        steps = rng.uniform(LOW, HIGH, (count + horizon, 7)).astype(np.float32)
        steps[:, 6] = steps[:, 6] > 0.5
        super().__init__(
            Sample(
                images={"primary": picture(t)},
                depth={"primary": depth_map(t)},
                intrinsics={"primary": np.array([[60.0, 0, 33], [0, 50, 21], [0, 0, 1]])},
                instruction=TEXTS[t % 2],
                actions=steps[t : t + horizon],
                action_space=self.action_space,
                valid=np.arange(t, t + horizon) < count,
                proprio=None,
                dataset=NAME,
                episode=t // 4,
                step=t % 4,
            )
            for t in range(count)
        )
