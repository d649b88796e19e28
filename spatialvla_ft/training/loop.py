"""The training loop, on Accelerate: one process, several, mixed precision, accumulation."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import PartialState
from torch import Tensor, nn

from .. import files
from ..models.lora import save_adapter
from ..models.modeling_spatialvla import SpatialVLAOutput
from . import checkpoints, output
from .answers import answers
from .batches import make_loader, make_sampler
from .depth_plan import depth_in_forward, fill_depth, keep_depth
from .distributed import join, make_accelerator, prepare, wait_for_the_last
from .guard import Culprits, Guard
from .identity import check_same_run, identity
from .metrics import Totals
from .objective import label_weights, weighted_loss
from .point_loss import PointWatch, without_points
from .preflight.report import FILE as PREFLIGHT
from .preflight.report import Preflight, preflight
from .recipe import RecipeError
from .run import Run
from .speed import Meter
from .states import (
    TrainingState,
    gathered,
    put,
    put_sharded,
    put_trainable,
    put_zero,
    shard,
    take,
    take_sharded,
    take_zero,
    unshard,
    whole,
)
from .stopping import StoppedError, StopRequest, stop_requests
from .trackers import flush, forget_after, init_trackers, make_trackers
from .trainable import make_optimizer, make_scheduler
from .validation import Validation

logger = logging.getLogger(__name__)

Progress = Callable[[int, dict[str, float]], None]


def train(
    run: Run,
    *,
    resume: bool = True,
    on_log: Progress | None = None,
    on_depth: Callable[[int, int], None] | None = None,
    report: Preflight | None = None,
) -> Path:
    """Train to the end of the recipe; returns the folder with the result.

    Args:
        run: from `build`.
        resume: continue from the newest sound checkpoint of the output folder, if there is one;
            otherwise an earlier run there is moved aside.
        on_log: called with (completed steps, metrics) on the main process; without metrics where a
            run goes on at a step.
        on_depth: called with (frames looked at, frames of this process) while depth is estimated
            before the first step.
        report: of `preflight`; None makes it, and warns of what is suspicious.

    Raises:
        PreflightError: the run makes no sense; every reason is listed.
        FloatingPointError: loss or gradient are not finite, or the loss has run away; the samples
            are named, and the optimiser was not moved.
        OutputError: something could not be written; the last checkpoint is named.
        StoppedError: SIGTERM or SIGUSR1 came; a checkpoint was written.
    """
    if resume and (result := output.finished(run.recipe)) is not None:
        logger.info("%s holds the result of this recipe already", result)
        return result
    if run.recipe.train.threads is not None:
        torch.set_num_threads(run.recipe.train.threads)
    if report is None:
        report = preflight(run)
        for text in report.warnings:
            logger.warning("%s", text)
    report.refuse()
    loop = Loop(run, on_log)
    with loop.held:
        loop.begin(resume)
        loop.keep_report(report)
        if run.depth is not None:
            fill_depth(run, loop.accelerator, on_depth)
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
        self.memory: dict[str, Any] = {}
        self.held = ExitStack()
        keep = run.recipe.train
        self.keep = checkpoints.Keep(keep.keep_last, keep.keep_best, keep.keep_every)

    def begin(self, resume: bool) -> None:
        """Put everything on its device and take up the newest checkpoint, if there is one."""
        recipe, cfg = self.run.recipe, self.run.recipe.train
        if cfg.result == "best" and not self.run.heldout:
            raise RecipeError("train.result: best needs held-out episodes; set data.holdout")
        join(cfg)
        self.take_output(resume)
        found, damaged = checkpoints.newest(self.folder) if resume else (None, [])
        start = 0 if found is None else checkpoints.step_of(found)
        trackers = make_trackers(cfg.trackers, self.output, start)
        self.accelerator = make_accelerator(recipe, trackers)
        if cfg.sharding == "fsdp2":
            shard(self.run.model, self.run.spatialvla, self.accelerator.device)
        self.parameters = [p for p in self.run.model.parameters() if p.requires_grad]
        optimizer = make_optimizer(self.parameters, cfg)
        self.scheduler = make_scheduler(optimizer, cfg)
        self.points = None
        if cfg.point_loss is not None:
            self.points = PointWatch(self.run.spatialvla, cfg.point_loss)
        self.pointing: dict[str, float] = {}
        self.slot_weights = label_weights(cfg.slot_weights, self.run.processor)
        self.config = self.run.spatialvla.config
        self.model, self.optimizer = prepare(self.accelerator, self.run.model, optimizer)
        self.identity = identity(self.run, self.accelerator.num_processes)
        if found is not None:
            state, content = checkpoints.load(found, verified=True)
            self.keep_depth_as_begun(content["identity"])
            check_same_run(found, content["identity"], self.identity)
            put = self.states()[1]
            put(state, self.run.model, self.optimizer.optimizer, self.scheduler)
            self.done, self.memory = state.step, content["memory"]
            logger.info("resuming from %s", found)
            if self.on_log is not None and self.accelerator.is_main_process:
                self.on_log(self.done, {})
        if self.accelerator.is_main_process:
            with checkpoints.writing("the recipe and the metrics", self.folder):
                content = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)
                files.write_text(self.output / "recipe.yaml", content)
                forget_after(self.output / "metrics.jsonl", self.done)
            size = 3 * sum(p.nbytes for p in self.parameters)  # with AdamW's two moments
            output.warn_of_space(self.folder, size, cfg.steps, self.keep)
        init_trackers(self.accelerator, recipe)
        self.leave_damaged(damaged)

    def keep_depth_as_begun(self, saved: dict[str, Any]) -> None:
        """Where the recipe leaves it open whether depth is kept: as the run's first part did."""
        run, plan = self.run, self.run.depth_plan
        if plan is None or run.recipe.data.depth.cache is not None:
            return
        before = saved.get("depth fingerprint") is not None
        if before and not plan.cached:
            keep_depth(run, plan)
        elif plan.cached and not before:
            depth_in_forward(run, "this run began so")
            logger.info("this run estimates depth in every forward pass, as it began")
        self.identity = identity(run, self.accelerator.num_processes)

    def keep_report(self, report: Preflight) -> None:
        """The pre-flight report beside the recipe."""
        if self.accelerator.is_main_process:
            with checkpoints.writing("the pre-flight report", self.folder):
                content = json.dumps(report.to_dict(), indent=2, default=str)
                files.write_text(self.output / PREFLIGHT, content + "\n")

    def take_output(self, resume: bool) -> None:
        """The output folder for this run alone; without resuming, an earlier run moves aside."""
        place = PartialState()
        if place.is_main_process:
            self.held.enter_context(output.held(self.output))
            if not resume and (aside := output.move_aside(self.run.recipe)) is not None:
                logger.warning("the earlier run in %s is now %s", self.output, aside)
                self.held.enter_context(output.held(self.output))
        place.wait_for_everyone()

    def leave_damaged(self, damaged: list[files.DamagedError]) -> None:
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
        self.sampler = make_sampler(self.run, accelerator.num_processes, accelerator.process_index)
        loader = make_loader(self.run, self.sampler, self.done * micro, cfg.steps * micro)
        batches = iter(loader)
        validation = Validation(self.run, accelerator) if self.run.heldout else None
        self.guard = Guard(cfg.loss_guard)
        if self.memory:
            self.guard.load_state_dict(self.memory["guard"])
            if validation is not None:
                validation.watch.standing = self.memory.get("standing", {})
        meter = Meter(accelerator.device, cfg.precision, accelerator.num_processes)
        self.model.train()
        due = False
        for step in range(self.done, cfg.steps):
            last = step + 1 == cfg.steps
            totals = self.totals() if last or (step + 1) % cfg.log_every == 0 else None
            self.losses: list[Tensor] = []
            for k in range(step * micro, (step + 1) * micro):
                with meter.waiting():
                    batch = next(batches)
                meter.count(batch)
                batch = {name: tensor.to(accelerator.device) for name, tensor in batch.items()}
                with meter.arithmetic():
                    seen = self.micro_step(batch, k)
                if totals is not None:
                    self.add_up(totals, k, seen, batch)
            self.scheduler.step()
            self.done = step + 1
            meter.stepped()
            if totals is not None:
                self.log({**self.metrics(totals), **meter.restart()})
            with meter.paused():
                loss = None
                if validation is not None and (last or self.done % cfg.validate_every == 0):
                    with gathered(self.run.model):
                        found = validation(accelerator.unwrap_model(self.model), self.done)
                    self.log(found)
                    loss = found["validation/loss"]
                    self.memory["standing"] = validation.watch.standing
                    self.model.train()
                stop, good = self.any_rank(request.reason is not None, self.is_good(loss))
                due = due or good or self.done % cfg.save_every == 0
                if last or stop or (due and self.guard.calm):  # nothing of a rise is kept
                    self.save(loss)
                    due = False
            if stop and not last:
                self.leave()
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

    def micro_step(self, batch: dict[str, Tensor], step: int) -> SpatialVLAOutput:
        """Forward, backward, and the optimiser's turn where an accumulation ends.

        Returns:
            what the head saw and said: logits of label rows, or states and metrics.
        """
        accelerator, cfg = self.accelerator, self.run.recipe.train
        torch.manual_seed(self.seed(step))
        with accelerator.accumulate(self.model):
            seen, loss = self.objective(batch)
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                norm = accelerator.clip_grad_norm_(self.parameters, cfg.clip_norm)
                self.norm = whole(norm)
                self.check()
            self.optimizer.step()
            self.optimizer.zero_grad()
        return seen

    def objective(self, batch: dict[str, Tensor]) -> tuple[SpatialVLAOutput, Tensor]:
        """(what the head saw and said, what is minimised); the head's own loss joins `losses`."""
        inputs, places = without_points(batch)
        if not places:
            outputs = self.model(**inputs, logits_to_keep="labels")
        else:
            with self.points.watching(inputs):
                outputs = self.model(**inputs, logits_to_keep="labels")
        self.losses.append(outputs.loss.detach())
        loss = outputs.loss
        if self.slot_weights is not None and outputs.logits is not None:
            loss = weighted_loss(outputs.logits, inputs["labels"], self.slot_weights, self.config)
        if places:
            pointed, self.pointing = self.points.loss(places)
            self.pointing = {"loss/points": float(pointed.detach()), **self.pointing}
            loss = loss + self.points.weight * pointed
        kept = (None if t is None else t.detach() for t in (outputs.logits, outputs.states))
        logits, states = kept
        return SpatialVLAOutput(logits=logits, states=states, metrics=outputs.metrics), loss

    def check(self) -> None:
        """Stop before the optimiser moves if loss or gradient are none to follow, on all ranks."""
        norm = torch.as_tensor(self.norm).to(self.losses[0])  # DeepSpeed gives a float
        numbers = torch.stack([*self.losses, norm])
        everyone = self.accelerator.gather(numbers).view(-1, len(numbers)).tolist()
        losses, self.norm = [own[:-1] for own in everyone], everyone[0][-1]
        fault = self.guard.judge(losses, self.norm)
        if fault is not None:
            culprits = Culprits(self.run, self.accelerator, self.sampler, self.seed)
            words = culprits.report(self.model, fault, self.done, losses)
            raise FloatingPointError(
                f"{words} The weights and the newest checkpoint are those of before. Look at these "
                "episodes, lower train.learning_rate, or clip harder (train.clip_norm)"
            )

    def seed(self, micro_step: int) -> int:
        """Of the dropout of a micro-step on this rank."""
        return _seed(self.run.recipe.seed, micro_step, self.accelerator.process_index)

    def totals(self) -> Totals:
        """Sums for the metrics of a step."""
        return Totals(self.run.processor, self.run.datasets[0].action_space)

    def add_up(
        self, totals: Totals, micro_step: int, seen: SpatialVLAOutput, batch: dict[str, Tensor]
    ) -> None:
        """One more micro-batch of the step that is logged."""
        names = [self.run.datasets[d].name for d, _ in self.sampler.batch(micro_step)]
        totals.add_loss(float(self.losses[-1]) * len(names), len(names))
        totals.add_told(seen.metrics or {}, len(names))
        processor = self.run.processor
        said = answers(self.run.spatialvla, seen, batch, processor.grid)
        totals.add_tokens(said.tokens)
        units = (processor.to_robot_units(one, names) for one in (said.guess, said.wanted))
        totals.add_actions(*units, said.valid)

    def metrics(self, totals: Totals) -> dict[str, float]:
        """What the step tells, over all its micro-batches and ranks."""
        return {
            **totals.reduce(self.accelerator).metrics(),
            "learning_rate": self.scheduler.get_last_lr()[0],
            "grad_norm": self.norm,
            **self.pointing,
        }

    def log(self, values: dict[str, float]) -> None:
        """To all trackers and to the caller."""
        with checkpoints.writing("the metrics", self.folder):
            self.accelerator.log(values, step=self.done)
        if self.on_log is not None and self.accelerator.is_main_process:
            self.on_log(self.done, values)

    def states(self) -> tuple[Callable[..., TrainingState], Callable[..., None]]:
        """How the run's state is taken and put back, by how it is shared."""
        return {
            "none": (take, put),
            "fsdp2": (take_sharded, put_sharded),
        }.get(self.run.recipe.train.sharding, (take_zero, put_zero))

    def save(self, validation: float | None = None) -> None:
        """A checkpoint of the steps done so far."""
        take = self.states()[0]
        state = take(self.done, self.run.model, self.optimizer.optimizer, self.scheduler)
        if self.accelerator.is_main_process:
            with checkpoints.writing("the metrics", self.folder):
                flush(self.accelerator.trackers)  # no step of the checkpoint may lack its metrics
            self.memory["guard"] = self.guard.state_dict()
            checkpoints.save(
                self.folder,
                state,
                keep=self.keep,
                extra={"identity": self.identity, "memory": self.memory},
                validation=validation,
            )

    def finish(self) -> Path:
        """Write the result and close the trackers."""
        self.accelerator.wait_for_everyone()
        result = self.output / "final"
        unshard(self.run.model, keep=self.accelerator.is_main_process)
        if self.accelerator.is_main_process:
            model = self.run.model
            place = checkpoints.place_of(self.folder, self.done)
            if self.run.recipe.train.result == "best":
                place = checkpoints.best(self.folder) or place
                state, _ = checkpoints.load(place)
                put_trainable(state, model)
            step, loss = checkpoints.step_of(place), checkpoints.validation_of(place)
            with (
                checkpoints.writing("the result", self.folder),
                files.whole_folder(result) as scratch,
            ):
                save_result(self.run, model, scratch)
                output.write_trained(scratch, self.run, step, loss)
        self.leave()
        return result

    def leave(self) -> None:
        """Part from the other processes once all is written, and close the trackers."""
        wait_for_the_last()
        self.accelerator.end_training()


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


def _seed(seed: int, step: int, rank: int) -> int:
    return (seed * 1_000_003 + step) * 4099 + rank
