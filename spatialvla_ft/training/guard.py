"""Whether a step may be taken: no NaN, no infinity, and no loss that has run away.

Which samples a step failed on: their losses, worst first, as JSON, as a picture and in words.
"""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from jaxtyping import UInt8
from PIL import Image
from torch import nn

from ..data.sampler import Sampler
from ..viz.sheets import captioned
from .answers import losses
from .batches import Frames, StepBatches
from .recipe import LossGuard
from .run import Run

LEAST_HISTORY = 50
"""Steps before a loss can be called far above what it was."""
LEAST_RISE = 1.0
"""Nats above the median that are a rise, so that a loss near 0 may be noisy."""


class Guard:
    """Judges every step before the optimiser moves; all ranks judge the same numbers.

    A loss has run away when it stays above `factor` times the median of the last `window` steps,
    and at least one nat above it, for `steps` steps in a row.

    Args:
        rule: factor, steps, window; None only looks for what is not finite.
    """

    def __init__(self, rule: LossGuard | None) -> None:
        self.rule = rule
        self.history: deque[float] = deque(maxlen=rule.window if rule else 1)
        self.high = 0

    @property
    def calm(self) -> bool:
        """Whether the last loss was an ordinary one, so that a checkpoint is a good one."""
        return self.high == 0

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run has to remember, as JSON holds it."""
        return {"history": list(self.history), "high": self.high}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Remember what `state_dict` gave; a shorter window keeps the newest."""
        self.history.extend(state["history"])
        self.high = state["high"]

    def judge(self, losses: Sequence[Sequence[float]], norm: float) -> str | None:
        """What is wrong with the step, in words, or None.

        Args:
            losses: of every rank's micro-batches.
            norm: of the gradient, before clipping.
        """
        for rank, own in enumerate(losses):
            for k, value in enumerate(own):
                if not math.isfinite(value):
                    where = f"micro-batch {k + 1} of {len(own)}, rank {rank}"
                    return f"the loss became {value:g} ({where})"
        if not math.isfinite(norm):
            return f"the norm of the gradient became {norm:g}"
        return self._run_away(fmean([value for own in losses for value in own]))

    def _run_away(self, loss: float) -> str | None:
        rule, usual = self.rule, 0.0
        if rule is None:
            return None
        if len(self.history) >= min(LEAST_HISTORY, rule.window):
            usual = median(self.history)
            limit = max(rule.factor * usual, usual + LEAST_RISE)
            self.high = self.high + 1 if loss > limit else 0
        if self.high == 0:
            self.history.append(loss)  # what is too high never becomes what is usual
        if self.high < rule.steps:
            return None
        return (
            f"the loss has run away: {loss:.3g}, above {rule.factor:g} times its median "
            f"{usual:.3g} for {self.high} steps in a row (train.loss_guard)"
        )


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
        run = self.run
        frames = Frames(run)
        places = next(iter(StepBatches(self.sampler, micro_step, micro_step + 1)))
        samples = [frames[place] for place in places]
        batch = {n: t.to(self.accelerator.device) for n, t in run.collate(samples).items()}
        torch.manual_seed(self.seed(micro_step))
        seen = model(**batch, logits_to_keep="labels")
        own = losses(run.spatialvla, seen, batch).tolist()
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
            for i, (sample, loss) in enumerate(zip(samples, own, strict=True))
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
