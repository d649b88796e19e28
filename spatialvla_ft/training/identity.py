"""What must not change between a run and its continuation."""

from __future__ import annotations

import hashlib
import json

from .run import Run


def identity(run: Run) -> str:
    """Fingerprint of what must not change between a run and its continuation."""
    content = run.recipe.model_dump(mode="json")
    content["data"].pop("workers")
    for name in ("threads", "log_every", "save_every", "keep_last", "trackers"):
        content["train"].pop(name)
    for name in ("validate_every", "validate_samples", "activation_checkpointing"):
        content["train"].pop(name)
    content.pop("output")
    if run.depth is not None:
        for name in ("cache", "batch_size", "checkpoint"):
            content["data"]["depth"].pop(name)
        content["data"]["depth"]["fingerprint"] = run.depth.estimator.fingerprint
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
