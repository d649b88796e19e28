"""What the tests of exports share: stored inputs from made-up steps, and adapters with weights."""

from __future__ import annotations

import torch
from tiny_world import MadeUp

from spatialvla_ft.export.inputs import recorded_inputs


def stored(processor, config):
    return recorded_inputs(MadeUp(), processor, config, count=3)


def shaken(model, scale=0.2):
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * scale)
    return model
