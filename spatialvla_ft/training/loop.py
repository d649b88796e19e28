"""The training loop, on Accelerate: one process, several, mixed precision, accumulation."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import torch
import yaml
from accelerate import Accelerator, PartialState
from accelerate.utils import ProjectConfiguration
from torch import Tensor, nn

from ..data.sampler import Sampler
from ..models.lora import save_adapter
from . import checkpoints, durable, output, training_state
from .batches import make_loader, make_sampler
from .identity import check_same_run, identity
from .metrics import Throughput, token_accuracy
from .optimisation import make_optimizer, make_scheduler
from .recipe import RecipeError
from .run import Run
from .stopping import StoppedError, StopRequest, stop_requests
from .trackers import flush, forget_after, make_trackers
from .validation import validate

logger = logging.getLogger(__name__)

Progress = Callable[[int, dict[str, float]], None]


def train(run: Run, *, resume: bool = True, on_log: Progress | None = None) -> Path:
    """Train to the end of the recipe; returns the folder with the result.

    Args:
        run: from `build`.
        resume: continue from the newest sound checkpoint of the output folder, if there is one;
            otherwise an earlier run there is moved aside.
        on_log: called with (completed steps, metrics) on the main process.

    Raises:
        FloatingPointError: the loss is not finite; the batch is named.
        OutputError: something could not be written; the last checkpoint is named.
        StoppedError: SIGTERM or SIGUSR1 came; a checkpoint was written.
    """
    if resume and (result := output.finished(run.recipe)) is not None:
        logger.info("%s holds the result of this recipe already", result)
        return result
    if run.recipe.train.threads is not None:
        torch.set_num_threads(run.recipe.train.threads)
    loop = Loop(run, on_log)
    with loop.held:
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
        self.held = ExitStack()
        keep = run.recipe.train
        self.keep = checkpoints.Keep(keep.keep_last, keep.keep_best, keep.keep_every)

    def begin(self, resume: bool) -> None:
        """Put everything on its device and take up the newest checkpoint, if there is one."""
        recipe, cfg = self.run.recipe, self.run.recipe.train
        if cfg.result == "best" and not self.run.heldout:
            raise RecipeError("train.result: best needs held-out episodes; set data.holdout")
        self.take_output(resume)
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
        if found is not None:
            state, content = checkpoints.load(found, verified=True)
            check_same_run(found, content["identity"], self.identity)
            plain = self.accelerator.unwrap_model(self.model)
            training_state.put(state, plain, self.optimizer, self.scheduler)
            self.done = state.step
            logger.info("resuming from %s", found)
        if self.accelerator.is_main_process:
            with checkpoints.writing("the recipe and the metrics", self.folder):
                content = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)
                durable.write_text(self.output / "recipe.yaml", content)
                forget_after(self.output / "metrics.jsonl", self.done)
            size = 3 * sum(p.nbytes for p in self.parameters)  # with AdamW's two moments
            output.warn_of_space(self.folder, size, cfg.steps, self.keep)
        self.accelerator.init_trackers("spatialvla_ft")
        self.leave_damaged(damaged)

    def take_output(self, resume: bool) -> None:
        """The output folder for this run alone; without resuming, an earlier run moves aside."""
        place = PartialState()
        if place.is_main_process:
            self.held.enter_context(output.held(self.output))
            if not resume and (aside := output.move_aside(self.run.recipe)) is not None:
                logger.warning("the earlier run in %s is now %s", self.output, aside)
                self.held.enter_context(output.held(self.output))
        place.wait_for_everyone()

    def leave_damaged(self, damaged: list[durable.DamagedError]) -> None:
        """Say that the newest checkpoints are damaged, and put them out of the way."""
        self.accelerator.wait_for_everyone()  # until all ranks have read the sound one
        if not damaged:
            return
        if self.accelerator.is_main_process:
            for error in damaged:
                logger.warning("DAMAGED CHECKPOINT: %s", error)
            moved = [str(place) for place in checkpoints.set_aside(self.folder, self.done)]
            logger.warning("going back to step %d; the damaged are now %s", self.done, moved)
        self.log({"resume/damaged_checkpoints": len(damaged)})

    def run_steps(self) -> None:
        """All steps that are left; logs, validates and saves on the way, and stops when asked."""
        with stop_requests() as request:
            self._run_steps(request)

    def _run_steps(self, request: StopRequest) -> None:
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
            last, validation = self.done == cfg.steps, None
            if last or self.done % cfg.log_every == 0:
                values = self.metrics(losses, logits, batch["labels"], norm)
                self.log({**values, **throughput.restart()})
            if self.run.heldout and (last or self.done % cfg.validate_every == 0):
                plain = accelerator.unwrap_model(self.model)
                found = validate(self.run, plain, cfg.validate_samples)
                self.log(found)
                validation = found["validation/loss"]
                self.model.train()
            stop, good = self.any_rank(request.reason is not None, self.is_good(validation))
            if last or stop or good or self.done % cfg.save_every == 0:
                self.save(validation)
            if stop and not last:
                accelerator.end_training()
                place = checkpoints.place_of(self.folder, self.done)
                raise StoppedError(request.reason or "a signal", self.done, cfg.steps, place)

    def any_rank(self, *flags: bool) -> list[bool]:
        """Each flag as soon as one rank has it set, so that all ranks decide alike."""
        if self.accelerator.num_processes == 1:
            return list(flags)
        own = torch.tensor(flags, dtype=torch.int32, device=self.accelerator.device)
        return (self.accelerator.reduce(own, "sum") > 0).tolist()

    def is_good(self, validation: float | None) -> bool:
        """Whether the weights of now belong to the best; the main process knows."""
        if validation is None or not self.accelerator.is_main_process:
            return False
        return checkpoints.is_among_best(self.folder, self.done, validation, self.keep.best)

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
        with checkpoints.writing("the metrics", self.folder):
            self.accelerator.log(values, step=self.done)
        if self.on_log is not None and self.accelerator.is_main_process:
            self.on_log(self.done, values)

    def save(self, validation: float | None = None) -> None:
        """A checkpoint of the steps done so far."""
        if self.accelerator.is_main_process:
            with checkpoints.writing("the metrics", self.folder):
                flush(self.accelerator.trackers)  # no step of the checkpoint may lack its metrics
            plain = self.accelerator.unwrap_model(self.model)
            checkpoints.save(
                self.folder,
                training_state.take(self.done, plain, self.optimizer, self.scheduler),
                keep=self.keep,
                extra={"identity": self.identity},
                validation=validation,
            )

    def finish(self) -> Path:
        """Write the result and close the trackers."""
        self.accelerator.wait_for_everyone()
        result = self.output / "final"
        if self.accelerator.is_main_process:
            model = self.accelerator.unwrap_model(self.model)
            place = checkpoints.place_of(self.folder, self.done)
            if self.run.recipe.train.result == "best":
                place = checkpoints.best(self.folder) or place
                state, _ = checkpoints.load(place)
                training_state.put_trainable(state, model)
            step, loss = checkpoints.step_of(place), checkpoints.validation_of(place)
            with (
                checkpoints.writing("the result", self.folder),
                durable.whole_folder(result) as scratch,
            ):
                save_result(self.run, model, scratch)
                output.write_trained(scratch, self.run.recipe, step, loss)
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
