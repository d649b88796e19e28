"""The training loop, on Accelerate: one process, several, mixed precision, accumulation."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, Dataset
from transformers import get_scheduler

from ..data.image_path import fit_step
from ..data.sample import Sample
from ..data.sampler import Sampler
from ..models.lora import save_adapter
from . import checkpoints
from .build import Run
from .metrics import token_accuracy
from .trackers import forget_after, make_trackers

logger = logging.getLogger(__name__)

Progress = Callable[[int, dict[str, float]], None]


class Frames(Dataset[Sample]):
    """(dataset, frame, global slot) to a sample of the model's size, augmented by its slot."""

    def __init__(self, run: Run) -> None:
        self.datasets = run.datasets
        self.depth = run.depth
        self.augment = run.augment
        self.seed = run.recipe.seed
        self.size = run.processor.image_size
        self.path = run.recipe.data.images

    def __getitem__(self, place: tuple[int, int, int]) -> Sample:
        """The sample at a frame of a dataset."""
        dataset, frame, slot = place
        sample = self.datasets[dataset][frame]
        if self.depth is not None:
            sample = self.depth(sample)
        if self.augment is None:
            return fit_step(sample, self.size, self.path)
        return self.augment(sample, slot, self.seed, size=self.size, path=self.path)


class StepBatches(BatchSampler):
    """Batches of this rank, from a step on; a pure function of the step."""

    def __init__(self, sampler: Sampler, start: int, stop: int) -> None:
        self.sampler, self.start, self.stop = sampler, start, stop

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        """One list of (dataset, frame, global slot) per micro-batch."""
        for step in range(self.start, self.stop):
            slots = self.sampler.slots(step).tolist()
            yield [(d, f, g) for (d, f), g in zip(self.sampler.batch(step), slots, strict=True)]

    def __len__(self) -> int:
        """Number of micro-batches left."""
        return self.stop - self.start


def make_sampler(run: Run, world: int = 1, rank: int = 0) -> Sampler:
    """Which frames this rank trains on; a step of it is a micro-batch."""
    return Sampler(
        run.recipe.seed,
        run.weights,
        [len(dataset) for dataset in run.datasets],
        world=world,
        rank=rank,
        batch=run.recipe.train.batch_size,
    )


def make_loader(run: Run, sampler: Sampler, start: int, stop: int) -> DataLoader[Any]:
    """Micro-batches `start` to `stop` of a rank, collated; the order is the sampler's."""
    workers = run.recipe.data.workers
    return DataLoader(
        Frames(run),
        batch_sampler=StepBatches(sampler, start, stop),
        collate_fn=run.collate,
        num_workers=workers,
        persistent_workers=False,
        prefetch_factor=4 if workers else None,
    )


def epoch_words(run: Run, world: int = 1) -> str:
    """How many steps an epoch is, and how often each dataset comes in it."""
    sampler, micro = make_sampler(run, world), run.recipe.train.gradient_accumulation
    names = [dataset.name for dataset in run.datasets]
    steps = sampler.steps_per_epoch
    words = f"one epoch = {steps / micro:,.1f} steps, as many samples as there are frames"
    if len(names) == 1:
        return words
    passes = zip(names, sampler.passes(steps), strict=True)
    return f"{words}; in it come " + ", ".join(f"{name} {n:.2f} times" for name, n in passes)


def train(run: Run, *, resume: bool = True, on_log: Progress | None = None) -> Path:
    """Train to the end of the recipe; returns the folder with the result.

    Args:
        run: from `build`.
        resume: continue from the newest checkpoint of the output folder, if there is one.
        on_log: called with (completed steps, metrics) on the main process.

    Raises:
        FloatingPointError: the loss is not finite; the batch is named.
    """
    recipe, cfg = run.recipe, run.recipe.train
    if cfg.threads is not None:
        torch.set_num_threads(cfg.threads)
    output = Path(recipe.output)
    folder = output / "checkpoints"
    existing = checkpoints.all_checkpoints(folder) if resume else []
    begin = checkpoints.step_of(existing[-1]) if existing else 0
    accelerator = Accelerator(
        mixed_precision="no" if cfg.precision == "float32" else cfg.precision,
        gradient_accumulation_steps=cfg.gradient_accumulation,
        log_with=make_trackers(cfg.trackers, output, begin),
        project_config=ProjectConfiguration(project_dir=str(output), logging_dir=str(output)),
    )
    parameters = [p for p in run.model.parameters() if p.requires_grad]
    optimizer: torch.optim.Optimizer = torch.optim.AdamW(
        parameters,
        lr=cfg.learning_rate,
        betas=cfg.betas,
        weight_decay=cfg.weight_decay,
        fused=True,
    )
    scheduler = get_scheduler(
        "constant_with_warmup" if cfg.schedule == "constant" else cfg.schedule,
        optimizer,
        num_warmup_steps=round(cfg.warmup * cfg.steps),
        num_training_steps=cfg.steps,
    )
    model, optimizer = accelerator.prepare(run.model, optimizer)

    identity = {"recipe": _identity(run), "world": accelerator.num_processes}
    done = 0
    if existing:
        done = checkpoints.load(
            existing[-1],
            accelerator.unwrap_model(model),
            optimizer,
            scheduler,
            expected={"recipe": identity["recipe"]},
        )
        logger.info("resuming from %s", existing[-1])
    if accelerator.is_main_process:
        output.mkdir(parents=True, exist_ok=True)
        content = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)
        (output / "recipe.yaml").write_text(content)
        forget_after(output / "metrics.jsonl", done)
    accelerator.init_trackers("spatialvla_ft")

    if run.depth is not None:
        _fill_depth(run, accelerator)
    micro = cfg.gradient_accumulation
    sampler = make_sampler(run, accelerator.num_processes, accelerator.process_index)
    loader = make_loader(run, sampler, done * micro, cfg.steps * micro)
    batches = iter(loader)
    model.train()
    clock = time.perf_counter()
    waited, samples = 0.0, 0
    for step in range(done, cfg.steps):
        losses, outputs, batch = [], None, {}
        for k in range(micro):
            started = time.perf_counter()
            batch = {n: t.to(accelerator.device) for n, t in next(batches).items()}
            waited += time.perf_counter() - started
            samples += batch["input_ids"].shape[0] * accelerator.num_processes
            torch.manual_seed(_seed(recipe.seed, step * micro + k, accelerator.process_index))
            with accelerator.accumulate(model):
                outputs = model(**batch, logits_to_keep="labels")
                _check_finite(outputs.loss, sampler, step * micro + k, run)
                accelerator.backward(outputs.loss)
                norm = None
                if accelerator.sync_gradients:
                    norm = accelerator.clip_grad_norm_(parameters, cfg.clip_norm)
                optimizer.step()
                optimizer.zero_grad()
            losses.append(outputs.loss.detach())
        scheduler.step()
        completed = step + 1
        if completed % cfg.log_every == 0 or completed == cfg.steps:
            elapsed = time.perf_counter() - clock
            loss = accelerator.gather(torch.stack(losses).mean()[None]).mean()
            labels = batch["labels"][:, 1:]
            values = {
                "loss": float(loss),
                **token_accuracy(
                    outputs.logits,
                    labels[labels != -100],
                    run.spatialvla.config,
                    run.processor.grid.slots,
                ),
                "learning_rate": scheduler.get_last_lr()[0],
                "grad_norm": float(norm),
                "samples_per_second": samples / elapsed,
                "data_wait_share": waited / elapsed,
            }
            accelerator.log(values, step=completed)
            if on_log is not None and accelerator.is_main_process:
                on_log(completed, values)
            clock, waited, samples = time.perf_counter(), 0.0, 0
        if run.heldout and (completed % cfg.validate_every == 0 or completed == cfg.steps):
            values = validate(run, accelerator.unwrap_model(model), cfg.validate_samples)
            accelerator.log(values, step=completed)
            if on_log is not None and accelerator.is_main_process:
                on_log(completed, values)
            model.train()
        if accelerator.is_main_process and (
            completed % cfg.save_every == 0 or completed == cfg.steps
        ):
            checkpoints.save(
                folder,
                completed,
                accelerator.unwrap_model(model),
                optimizer,
                scheduler,
                keep_last=cfg.keep_last,
                extra=identity,
            )
    accelerator.wait_for_everyone()
    result = output / "final"
    if accelerator.is_main_process:
        save_result(run, accelerator.unwrap_model(model), result)
    accelerator.end_training()
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


@torch.no_grad()
def validate(run: Run, model: nn.Module, count: int) -> dict[str, float]:
    """Loss and token accuracy on held-out episodes, on the same evenly spaced frames each time."""
    model.eval()
    device = next(model.parameters()).device
    totals: dict[str, float] = {}
    batches = 0
    for dataset in run.heldout:
        frames = torch.linspace(0, len(dataset) - 1, min(count, len(dataset))).long().tolist()
        for start in range(0, len(frames), run.recipe.train.batch_size):
            chosen = frames[start : start + run.recipe.train.batch_size]
            batch = run.collate([run.sample(dataset, i) for i in chosen])
            batch = {name: tensor.to(device) for name, tensor in batch.items()}
            outputs = model(**batch, logits_to_keep="labels")
            labels = batch["labels"][:, 1:]
            values = {
                "loss": float(outputs.loss),
                **token_accuracy(
                    outputs.logits,
                    labels[labels != -100],
                    run.spatialvla.config,
                    run.processor.grid.slots,
                ),
            }
            for name, value in values.items():
                totals[name] = totals.get(name, 0.0) + value
            batches += 1
    return {f"validation/{name}": total / batches for name, total in totals.items()}


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


def _identity(run: Run) -> str:
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
