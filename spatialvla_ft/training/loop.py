"""The training loop, on Accelerate: one process, several, mixed precision, accumulation."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration
from torch import Tensor, nn

from ..data.sampler import Sampler
from ..models.lora import save_adapter
from . import checkpoints, training_state
from .batches import make_loader, make_sampler
from .identity import check_same_run, identity
from .metrics import Throughput, token_accuracy
from .optimisation import make_optimizer, make_scheduler
from .run import Run
from .trackers import forget_after, make_trackers
from .validation import validate

logger = logging.getLogger(__name__)

Progress = Callable[[int, dict[str, float]], None]


def train(run: Run, *, resume: bool = True, on_log: Progress | None = None) -> Path:
    """Train to the end of the recipe; returns the folder with the result.

    Args:
        run: from `build`.
        resume: continue from the newest checkpoint of the output folder, if there is one.
        on_log: called with (completed steps, metrics) on the main process.

    Raises:
        FloatingPointError: the loss is not finite; the batch is named.
    """
    if run.recipe.train.threads is not None:
        torch.set_num_threads(run.recipe.train.threads)
    loop = Loop(run, on_log)
    loop.begin(resume)
    if run.depth is not None:
        _fill_depth(run, loop.accelerator)
    loop.run_steps()
    return loop.finish()


class Loop:
    """A run in progress: the model on its device, the optimiser, and how many steps are done."""

    def __init__(self, run: Run, on_log: Progress | None = None) -> None:
        self.run = run
        self.on_log = on_log
        self.output = Path(run.recipe.output)
        self.folder = self.output / "checkpoints"
        self.done = 0

    def begin(self, resume: bool) -> None:
        """Put everything on its device and take up the newest checkpoint, if there is one."""
        recipe, cfg = self.run.recipe, self.run.recipe.train
        found, damaged = checkpoints.newest(self.folder) if resume else (None, [])
        start = 0 if found is None else checkpoints.step_of(found)
        self.accelerator = Accelerator(
            mixed_precision="no" if cfg.precision == "float32" else cfg.precision,
            gradient_accumulation_steps=cfg.gradient_accumulation,
            log_with=make_trackers(cfg.trackers, self.output, start),
            project_config=ProjectConfiguration(
                project_dir=str(self.output), logging_dir=str(self.output)
            ),
        )
        self.parameters = [p for p in self.run.model.parameters() if p.requires_grad]
        optimizer = make_optimizer(self.parameters, cfg)
        self.scheduler = make_scheduler(optimizer, cfg)
        self.model, self.optimizer = self.accelerator.prepare(self.run.model, optimizer)
        self.identity = identity(self.run, self.accelerator.num_processes)
        for error in damaged:
            logger.warning("damaged checkpoint: %s; continuing from the older %s", error, found)
        if found is not None:
            state, content = checkpoints.load(found, verified=True)
            check_same_run(found, content["identity"], self.identity)
            plain = self.accelerator.unwrap_model(self.model)
            training_state.put(state, plain, self.optimizer, self.scheduler)
            self.done = state.step
            logger.info("resuming from %s", found)
        if self.accelerator.is_main_process:
            self.output.mkdir(parents=True, exist_ok=True)
            content = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)
            (self.output / "recipe.yaml").write_text(content)
            forget_after(self.output / "metrics.jsonl", self.done)
        self.accelerator.init_trackers("spatialvla_ft")

    def run_steps(self) -> None:
        """All steps that are left; logs, validates and saves on the way."""
        cfg, accelerator = self.run.recipe.train, self.accelerator
        micro = cfg.gradient_accumulation
        sampler = make_sampler(self.run, accelerator.num_processes, accelerator.process_index)
        loader = make_loader(self.run, sampler, self.done * micro, cfg.steps * micro)
        batches = iter(loader)
        self.model.train()
        throughput = Throughput()
        for step in range(self.done, cfg.steps):
            losses = []
            for k in range(micro):
                with throughput.waiting():
                    batch = {n: t.to(accelerator.device) for n, t in next(batches).items()}
                throughput.count(batch["input_ids"].shape[0] * accelerator.num_processes)
                loss, logits, norm = self.micro_step(batch, step * micro + k, sampler)
                losses.append(loss)
            self.scheduler.step()
            self.done = step + 1
            last = self.done == cfg.steps
            if last or self.done % cfg.log_every == 0:
                values = self.metrics(losses, logits, batch["labels"], norm)
                self.log({**values, **throughput.restart()})
            if self.run.heldout and (last or self.done % cfg.validate_every == 0):
                plain = accelerator.unwrap_model(self.model)
                self.log(validate(self.run, plain, cfg.validate_samples))
                self.model.train()
            if last or self.done % cfg.save_every == 0:
                self.save()

    def micro_step(
        self, batch: dict[str, Tensor], step: int, sampler: Sampler
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Forward, backward, and the optimiser's turn where an accumulation ends.

        Returns:
            the loss, the logits of label rows, and the gradient's norm before clipping (None
            inside an accumulation).
        """
        accelerator, cfg = self.accelerator, self.run.recipe.train
        torch.manual_seed(_seed(self.run.recipe.seed, step, accelerator.process_index))
        with accelerator.accumulate(self.model):
            outputs = self.model(**batch, logits_to_keep="labels")
            _check_finite(outputs.loss, sampler, step, self.run)
            accelerator.backward(outputs.loss)
            norm = None
            if accelerator.sync_gradients:
                norm = accelerator.clip_grad_norm_(self.parameters, cfg.clip_norm)
            self.optimizer.step()
            self.optimizer.zero_grad()
        return outputs.loss.detach(), outputs.logits.detach(), norm

    def metrics(
        self, losses: list[Tensor], logits: Tensor, labels: Tensor, norm: Tensor | None
    ) -> dict[str, float]:
        """What a step tells: loss over all ranks, accuracy by token type, rate, norm."""
        run = self.run
        labels = labels[:, 1:]
        loss = self.accelerator.gather(torch.stack(losses).mean()[None]).mean()
        return {
            "loss": float(loss),
            **token_accuracy(
                logits, labels[labels != -100], run.spatialvla.config, run.processor.grid.slots
            ),
            "learning_rate": self.scheduler.get_last_lr()[0],
            "grad_norm": float("nan") if norm is None else float(norm),
        }

    def log(self, values: dict[str, float]) -> None:
        """To all trackers and to the caller."""
        self.accelerator.log(values, step=self.done)
        if self.on_log is not None and self.accelerator.is_main_process:
            self.on_log(self.done, values)

    def save(self) -> None:
        """A checkpoint of the steps done so far."""
        if self.accelerator.is_main_process:
            plain = self.accelerator.unwrap_model(self.model)
            checkpoints.save(
                self.folder,
                training_state.take(self.done, plain, self.optimizer, self.scheduler),
                keep=checkpoints.Keep(last=self.run.recipe.train.keep_last),
                extra={"identity": self.identity},
            )

    def finish(self) -> Path:
        """Write the result and close the trackers."""
        self.accelerator.wait_for_everyone()
        result = self.output / "final"
        if self.accelerator.is_main_process:
            save_result(self.run, self.accelerator.unwrap_model(self.model), result)
        self.accelerator.end_training()
        return result


def save_result(run: Run, model: nn.Module, folder: Path) -> None:
    """Write the trained model (or adapter) with its processor."""
    if run.recipe.lora is not None:
        save_adapter(
            model,
            run.processor,
            run.rows,
            folder,
            base=str(run.recipe.model.base),
            base_fingerprint=run.base_fingerprint or "",
            overrides=run.overrides,
        )
    else:
        model.save_pretrained(folder)
        run.processor.save_pretrained(folder)


def _fill_depth(run: Run, accelerator: Accelerator) -> None:
    """Estimate what the cache lacks, each process its share, before any worker asks for it."""
    assert run.depth is not None
    run.depth.estimator.to(accelerator.device)
    rank, world = accelerator.process_index, accelerator.num_processes
    for dataset in [*run.datasets, *run.heldout]:
        frames = range(rank, len(dataset), world)
        size = run.recipe.data.depth.batch_size
        logger.info("depth of %d frames of %s", len(frames), dataset.name)
        filled = run.depth.fill(dataset, frames, batch_size=size)
        logger.info("%d pictures estimated, %d were cached", filled.estimated, filled.found)
    accelerator.wait_for_everyone()
    run.depth.estimator.release()


def _seed(seed: int, step: int, rank: int) -> int:
    return (seed * 1_000_003 + step) * 4099 + rank


def _check_finite(loss: Tensor, sampler: Sampler, step: int, run: Run) -> None:
    if bool(torch.isfinite(loss)):
        return
    places = [
        f"{run.datasets[d].name} episode {run.datasets[d].locate(f)[0]}"
        for d, f in sampler.batch(step)
    ]
    raise FloatingPointError(
        f"the loss became {loss.item()} at step {step}; samples of this batch: {places[:8]}. Lower "
        "train.learning_rate, check train.clip_norm, or look at these episodes"
    )
