from __future__ import annotations

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from spatialvla_ft import SpatialVLAForConditionalGeneration, SpatialVLAProcessor


@pytest.fixture(scope="session")
def model(golden_checkpoint):
    torch.manual_seed(0)
    return SpatialVLAForConditionalGeneration.from_pretrained(
        golden_checkpoint, dtype=torch.float32
    ).eval()


@pytest.fixture(scope="session")
def processor(golden_checkpoint):
    return SpatialVLAProcessor.from_pretrained(golden_checkpoint)


@pytest.fixture(scope="session")
def s0(golden_dir):
    """Golden tensors of sample s0, without the prefix of their names."""
    tensors = load_file(golden_dir / "forward.safetensors")
    return {name.removeprefix("s0."): tensor for name, tensor in tensors.items()}


@pytest.fixture(scope="session")
def pictures(golden_dir):
    return [Image.open(golden_dir / "inputs" / f"image{i}.png").convert("RGB") for i in range(2)]


@pytest.fixture(scope="session")
def s0_inputs(processor, pictures, golden_inputs):
    return processor(
        images=pictures[0],
        text=golden_inputs["prompts"][0],
        unnorm_key=golden_inputs["unnorm_keys"][0],
        suffix_actions=golden_inputs["actions"][0],
    )


@pytest.fixture(scope="session")
def s0_outputs(model, s0_inputs):
    with torch.no_grad():
        return model(**s0_inputs, debug_outputs=True)
