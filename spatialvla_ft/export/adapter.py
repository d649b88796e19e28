"""An adapter alone: what was trained, with its processor, to be put on a base that others have."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open

from ..files import appears_whole, even_modes, refuse_used
from ..models.base_place import BASE_FILE, FROM_HERE, base_entry, find_base, read_base
from ..models.lora import ROWS_FILE, is_adapter
from ..policy.stored import VerifyReport, run_model
from .card import CardFacts, model_title, write_card
from .card_evaluation import Evaluations
from .checkpoint import MakeInputs
from .flatten import drop_auto_maps
from .lineage import read_lineage
from .source import find_source, load_source, unwrap
from .stored import verify_export, write_stored

WEIGHTS, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"


@dataclass(frozen=True)
class AdapterExport:
    """What was exported.

    Attributes:
        out: the folder.
        source: the adapter folder that was read.
        base: where the written files say that the base lies.
        fingerprint: of the base.
        parameters: numbers in the adapter's weights; the spatial rows come on top.
        inputs: what the checks ran on, in words.
        verified: the written folder on its base, beside the stored answers.
    """

    out: Path
    source: Path
    base: str
    fingerprint: str
    parameters: int
    inputs: str
    verified: VerifyReport

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        plain = {**vars(self), "out": str(self.out), "source": str(self.source), "kind": "adapter"}
        return {**plain, "verified": self.verified.to_dict()}


def export_adapter(
    source: str | Path,
    out: str | Path,
    make_inputs: MakeInputs,
    *,
    base: str | None = None,
    evaluations: Evaluations | None = None,
    hub_base: str | None = None,
) -> AdapterExport:
    """Write an adapter with processor, stored answers and a card; load it again and compare.

    Args:
        source: adapter folder, or training run.
        out: new folder.
        make_inputs: processor and config to the inputs that are stored and compared.
        base: where the base lies now, if it moved; written files name this place.
        evaluations: closed-loop results for the model card.
        hub_base: the base's name on the Hub; written files name it in place of a folder.

    Raises:
        ValueError: no adapter, another base than it was trained on, `out` in use, or a check that
            failed.
    """
    out = Path(out)
    refuse_used(out)
    folder = find_source(source)
    if not is_adapter(folder):
        raise ValueError(
            f"{folder} is a whole checkpoint, not an adapter; leave --adapter-only out"
        )
    loaded, processor = load_source(folder, base=base)
    model = unwrap(loaded)
    inputs = make_inputs(processor, model.config)
    outputs = run_model(model, inputs.tensors)
    lineage = read_lineage(folder, base=base, hub_base=hub_base)
    assert lineage.fingerprint is not None
    with appears_whole(out) as scratch:
        for name in (WEIGHTS, PEFT_CONFIG, ROWS_FILE, BASE_FILE):
            shutil.copyfile(folder / name, scratch / name)
        processor.save_pretrained(scratch)
        drop_auto_maps(scratch)
        write_stored(scratch, inputs, outputs, processor, model.config.action_token_begin_idx)
        with safe_open(str(scratch / WEIGHTS), "pt") as file:
            slices = [file.get_slice(name) for name in file.keys()]  # noqa: SIM118
            parameters = sum(math.prod(part.get_shape()) for part in slices)
            dtypes = sorted({part.get_dtype() for part in slices})
        facts = CardFacts(
            title=model_title(out, folder),
            config=model.config,
            processor=processor,
            parameters=parameters,
            dtype=", ".join(dtypes),
            lineage=lineage,
            merged=None,
            adapter=True,
            checked_on=inputs.origin,
            control_hz=inputs.control_hz,
            evaluations=evaluations or {},
        )
        write_card(scratch, facts)
        even_modes(scratch)
        del model, loaded
        found = find_base(folder, given=base)
        verified = verify_export(scratch, base=found)
        if not verified.same:
            raise ValueError(
                f"the written adapter, loaded again, answers differently ({verified}): nothing was "
                "exported. This is a fault of the toolkit, please report it"
            )
        recorded = read_base(folder)
        place, named = hub_base or found, hub_base or base or recorded["base"]
        recorded.pop(FROM_HERE, None)
        _rewrite(scratch / BASE_FILE, {**recorded, **base_entry(named, place, scratch)})
        adapter = json.loads((folder / PEFT_CONFIG).read_text(encoding="utf-8"))
        _rewrite(scratch / PEFT_CONFIG, {**adapter, "base_model_name_or_path": named})
    return AdapterExport(
        out=out,
        source=folder,
        base=named,
        fingerprint=lineage.fingerprint,
        parameters=parameters,
        inputs=inputs.origin,
        verified=verified,
    )


def _rewrite(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
