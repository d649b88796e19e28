"""Which samples a step failed on: their losses, worst first, as JSON, as a picture and in words."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from jaxtyping import UInt8
from PIL import Image
from torch import nn

from ..data.sampler import Sampler
from ..viz.captions import captioned
from .batches import Frames, StepBatches
from .metrics import sample_losses
from .run import Run

JSON_FILE, PICTURE_FILE = "bad_batch.json", "bad_batch.png"
SHOWN = 12
NAMED = 3


@dataclass(frozen=True)
class BadSample:
    """A sample of the step that was not taken.

    Attributes:
        dataset, episode, step, instruction: which one.
        loss: its own, by the weights before the step.
        not_finite: inputs of the model that hold NaN or infinity.
        rank, micro_batch: where it was.
    """

    dataset: str
    episode: int
    step: int
    instruction: str
    loss: float
    not_finite: list[str]
    rank: int
    micro_batch: int

    def __str__(self) -> str:
        inputs = f", not finite: {', '.join(self.not_finite)}" if self.not_finite else ""
        return (
            f"{self.dataset} episode {self.episode} step {self.step} {self.instruction!r} "
            f"(loss {self.loss:.4g}{inputs})"
        )


class Culprits:
    """Finds, writes and names the samples of a step; the same work on every rank.

    Args:
        run: whose batches they are.
        accelerator: of the loop.
        sampler: of this rank.
        seed: (micro-step) to the seed that its dropout had.
    """

    def __init__(
        self, run: Run, accelerator: Accelerator, sampler: Sampler, seed: Callable[[int], int]
    ) -> None:
        self.run, self.accelerator, self.sampler, self.seed = run, accelerator, sampler, seed

    def report(
        self, model: nn.Module, fault: str, step: int, losses: Sequence[Sequence[float]]
    ) -> str:
        """Write `bad_batch.json` and its picture; returns what happened, for people.

        Args:
            model: as it is trained, gradients of the step in place.
            fault: what is wrong with the step.
            step: completed steps before it.
            losses: of every rank's micro-batches.
        """
        micro = len(losses[0])
        finite = [all(math.isfinite(own[k]) for own in losses) for k in range(micro)]
        chosen = [k for k in range(micro) if not finite[k]] or range(micro)
        blamed = all(finite) and _not_finite_gradients(self.accelerator.unwrap_model(model))
        found, pictures = [], []
        for k in chosen:
            samples, seen = self._examine(model, step * micro + k, k)
            found += samples
            pictures += seen
        ranked = _worst_first(gather_object(list(zip(found, pictures, strict=True))))
        output = Path(self.run.recipe.output)
        if self.accelerator.is_main_process:
            _write(output, ranked, {"fault": fault, "step": step + 1, "losses": _text(losses)})
        names = "; ".join(str(sample) for sample, _ in ranked[:NAMED])
        words = f"{fault} at step {step + 1}, which was not taken. Worst samples: {names}."
        if blamed:
            words += f" Gradients that are not finite: {', '.join(blamed)}."
        return f"{words} All of the step: {output / JSON_FILE}, pictures: {output / PICTURE_FILE}."

    @torch.no_grad()
    def _examine(
        self, model: nn.Module, micro_step: int, k: int
    ) -> tuple[list[BadSample], list[UInt8[np.ndarray, "H W 3"]]]:
        """The samples of a micro-batch again, as they were, with the loss of each."""
        run, config = self.run, self.run.spatialvla.config
        frames = Frames(run)
        places = next(iter(StepBatches(self.sampler, micro_step, micro_step + 1)))
        samples = [frames[place] for place in places]
        batch = {n: t.to(self.accelerator.device) for n, t in run.collate(samples).items()}
        torch.manual_seed(self.seed(micro_step))
        logits = model(**batch, logits_to_keep="labels").logits
        losses = sample_losses(logits, batch["labels"], config).tolist()
        camera = run.processor.layout.cameras[0]
        found = [
            BadSample(
                sample.dataset,
                sample.episode,
                sample.step,
                sample.instruction,
                loss,
                [name for name, tensor in batch.items() if not _finite(tensor[i])],
                self.accelerator.process_index,
                k,
            )
            for i, (sample, loss) in enumerate(zip(samples, losses, strict=True))
        ]
        return found, [sample.images[camera] for sample in samples]


def _finite(tensor: torch.Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())


def _worst_first(pairs: list[Any]) -> list[tuple[BadSample, UInt8[np.ndarray, "H W 3"]]]:
    return sorted(
        pairs, key=lambda pair: pair[0].loss if math.isfinite(pair[0].loss) else math.inf
    )[::-1]


def _not_finite_gradients(model: nn.Module) -> list[str]:
    """The first few parameters whose gradient holds NaN or infinity, and how many there are."""
    names = [
        name for name, p in model.named_parameters() if p.grad is not None and not _finite(p.grad)
    ]
    more = [f"and {len(names) - NAMED} others"] if len(names) > NAMED else []
    return [*names[:NAMED], *more]


def _text(values: Any) -> Any:
    """Numbers as JSON can hold them: NaN and infinity as words."""
    if isinstance(values, (list, tuple)):
        return [_text(value) for value in values]
    return str(values) if isinstance(values, float) and not math.isfinite(values) else values


def _write(output: Path, ranked: list[Any], head: dict[str, Any]) -> None:
    samples = [{**asdict(sample), "loss": _text(sample.loss)} for sample, _ in ranked]
    content = {**head, "samples": samples}
    output.mkdir(parents=True, exist_ok=True)
    (output / JSON_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    sheet = captioned(
        [
            (
                picture,
                f"loss {sample.loss:.4g}\n{sample.dataset}\nepisode {sample.episode}, step "
                f"{sample.step}\n{sample.instruction}",
            )
            for sample, picture in ranked[:SHOWN]
        ]
    )
    Image.fromarray(sheet).save(output / PICTURE_FILE)
