"""Write the released layout: everything needed to act, in one folder that appears whole or not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from ..files import appears_whole, even_modes, refuse_used
from ..models.configuration_spatialvla import SpatialVLAConfig
from ..models.memory import cast_weights
from ..models.modeling_spatialvla import SpatialVLAForConditionalGeneration
from ..models.processing_spatialvla import SpatialVLAProcessor
from ..policy.stored import VerifyReport, run_model
from .card import CardFacts, model_title, write_card
from .card_evaluation import Evaluations
from .flatten import drop_auto_maps, write_code
from .inputs import Inputs
from .lineage import read_lineage
from .source import find_source, load_source, merge, untie_head, unwrap
from .stored import verify_export, write_stored

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
SHARD = "5GB"  # as the released checkpoints are cut

MakeInputs = Callable[[SpatialVLAProcessor, SpatialVLAConfig], Inputs]


@dataclass(frozen=True)
class Export:
    """What was exported, and how it was checked.

    Attributes:
        out: the folder.
        source: the adapter or checkpoint folder that was read.
        kind: "adapter" (merged) or "checkpoint" (rewritten, nothing to merge).
        dtype: of the written weights.
        parameters: number of them.
        untied: whether the head got action rows of its own.
        merge_difference: largest change of a logit by merging; None where nothing was merged.
        rounding_difference: largest change of a logit by rounding to `dtype`, along the unrounded
            model's tokens; 0 for float32.
        rounded_ids: predicted tokens that rounding changed.
        rounded_actions: largest change of a normalised action by rounding, of heads without tokens;
            None with tokens.
        inputs: what the checks ran on, in words.
        verified: the written folder, loaded again, beside the stored answers.
    """

    out: Path
    source: Path
    kind: Literal["adapter", "checkpoint"]
    dtype: str
    parameters: int
    untied: bool
    merge_difference: float | None
    rounding_difference: float
    rounded_ids: int
    rounded_actions: float | None
    inputs: str
    verified: VerifyReport

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        plain = {**vars(self), "out": str(self.out), "source": str(self.source)}
        return {**plain, "verified": self.verified.to_dict()}


def export_checkpoint(
    source: str | Path,
    out: str | Path,
    make_inputs: MakeInputs,
    *,
    dtype: str = "float32",
    base: str | None = None,
    untie: bool = False,
    evaluations: Evaluations | None = None,
    hub_base: str | None = None,
) -> Export:
    """Merge if needed, write, load again, compare; only then the folder takes its name.

    Args:
        source: adapter folder, checkpoint, or training run.
        out: new folder.
        make_inputs: processor and config to the inputs that are stored and compared.
        dtype: "float32" or "bfloat16", of the written weights; merging is in float32.
        base: where an adapter's base lies now, if it moved.
        untie: write a tied action head as rows of its own, which is the released form.
        evaluations: closed-loop results for the model card.
        hub_base: name of the base on the Hub, for the model card.

    Raises:
        ValueError: a source that cannot be exported, `out` in use, or a check that failed.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r} is unknown; use one of {list(DTYPES)}")
    out = Path(out)
    refuse_used(out)
    folder = find_source(source)
    loaded, processor = load_source(folder, base=base)
    config = unwrap(loaded).config
    assert isinstance(config, SpatialVLAConfig)
    inputs = make_inputs(processor, config)
    merged = merge(loaded, processor, inputs.tensors)
    model = merged.model
    del loaded
    if untie:
        untie_head(model)
    exact = run_model(model, inputs.tensors)
    cast_weights(model, DTYPES[dtype])
    with appears_whole(out) as scratch:
        write_layout(model, processor, scratch)
        # The answers are those of the stored weights, computed in float32 wherever they are loaded.
        cast_weights(model, torch.float32)
        outputs = run_model(model, inputs.tensors) if dtype != "float32" else exact
        along = outputs
        if not torch.equal(outputs.ids, exact.ids):
            along = run_model(model, inputs.tensors, ids=exact.ids)
        write_stored(scratch, inputs, outputs, processor, model.config.action_token_begin_idx)
        parameters = sum(p.numel() for p in model.parameters())
        facts = CardFacts(
            title=model_title(out, folder),
            config=model.config,
            processor=processor,
            parameters=parameters,
            dtype=dtype,
            lineage=read_lineage(folder, base=base, hub_base=hub_base),
            merged=merged.merge_difference,
            adapter=False,
            checked_on=inputs.origin,
            control_hz=inputs.control_hz,
            evaluations=evaluations or {},
        )
        write_card(scratch, facts)
        even_modes(scratch)
        del model, merged.model
        verified = verify_export(scratch)
        if not verified.same:
            raise ValueError(
                f"the written checkpoint, loaded again, answers differently ({verified}): nothing "
                "was exported. This is a fault of the toolkit, please report it"
            )
    return Export(
        out=out,
        source=folder,
        kind=merged.kind,
        dtype=dtype,
        parameters=parameters,
        untied=untie,
        merge_difference=merged.merge_difference,
        rounding_difference=float((along.logits - exact.logits).abs().max()),
        rounded_ids=int((outputs.ids != exact.ids).sum()),
        rounded_actions=(
            None
            if outputs.normalised is None or exact.normalised is None
            else float((outputs.normalised - exact.normalised).abs().max())
        ),
        inputs=inputs.origin,
        verified=verified,
    )


def write_layout(
    model: SpatialVLAForConditionalGeneration, processor: SpatialVLAProcessor, folder: Path
) -> None:
    """Write weights, configurations, tokenizer, processor and code into an empty folder."""
    model.save_pretrained(folder, max_shard_size=SHARD)
    processor.save_pretrained(folder)
    drop_auto_maps(folder)  # what the base named; this folder's own code follows
    write_code(folder)
