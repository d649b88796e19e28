from __future__ import annotations

import pytest
import torch
from tiny_exports import shaken, stored
from tiny_world import tiny_inputs, tiny_model, tiny_processor

from spatialvla_ft import SpatialVLAForConditionalGeneration
from spatialvla_ft.export import export_checkpoint
from spatialvla_ft.models.lora import attach_lora, fingerprint, save_adapter, spatial_rows


@pytest.fixture(scope="session")
def processor():
    return tiny_processor()


@pytest.fixture(scope="session")
def base(processor, tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    tiny_model(processor).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def run(processor, base, tmp_path_factory):
    """A finished training run: `final` holds an adapter with a module that was trained whole."""
    folder = tmp_path_factory.mktemp("run")
    model = SpatialVLAForConditionalGeneration.from_pretrained(base, dtype=torch.float32)
    print_of_base = fingerprint(model)
    rows = spatial_rows(model)
    adapted = shaken(attach_lora(model, rank=3, train_whole=("spatial_embed_tokens",)))
    save_adapter(
        adapted, processor, rows, folder / "final", base=str(base), base_fingerprint=print_of_base
    )
    inputs = tiny_inputs(processor)
    with torch.no_grad():
        logits = adapted.eval()(**inputs).logits
    return folder, inputs, logits


@pytest.fixture(scope="session")
def exported(run, tmp_path_factory):
    out = tmp_path_factory.mktemp("exports") / "new"
    return export_checkpoint(run[0], out, stored)
