"""Two small tasks that tell action heads apart, with gates that must hold.

    python tools/measure_head_gates.py --seeds 5 --out docs/results/head_gates.jsonl

`vector`: 32 entangled numbers to a 3-D action, through a small encoder and the toolkit's own
heads; with one good action and 100 demonstrations, and with two good ones, of which a demonstration
shows either, and 1,000. `image`: two valid and two other blobs, 32 x 32 pixels, 10 demonstrations.
Steps, batch and learning rate are the same for every head; they were chosen on seeds from 100 on.
Success is an action within a tolerance of a good one, on 500 unseen inputs. One JSON line per head,
task and seed; exit code 1 where a gate does not hold.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spatialvla_ft.actions.spaces import ActionGroup, ActionSpace, joint_space
from spatialvla_ft.heads.registry import build_head
from spatialvla_ft.heads.voxels import VoxelGrid

STEPS, RATE, WIDTH, UNSEEN = 600, 2e-3, 64, 500
NEAR, PIXELS = 0.3, 2.5
"""Distance of an action, normalised, and of a pixel, that counts as success."""
POINT = ActionSpace((ActionGroup("translation", ("x", "y", "z"), "m", "base"),))
BINS = {"translation": [16, 16, 16]}
MAP = {"kind": "voxel_heatmap", "bins": BINS}
VECTOR: dict[str, tuple[dict[str, Any], str | None]] = {
    "l1": ({"kind": "l1"}, None),
    "heatmap, local": (MAP, "local"),
    "heatmap, argmax": (MAP, "argmax"),
    "heatmap, expectation": (MAP, "expectation"),
    "heatmap, top 10": (MAP, "top 10"),
    "heatmap, low rank 8": ({**MAP, "maps": "low_rank", "rank": 8}, "local"),
    "heatmap, low rank 32": ({**MAP, "maps": "low_rank", "rank": 32}, "local"),
    "heatmap, sigma 0.05": ({**MAP, "sigma": 0.05}, "local"),
    "heatmap, sigma 0.2": ({**MAP, "sigma": 0.2}, "local"),
    "linear_bins": ({"kind": "linear_bins"}, None),
    "flow": ({"kind": "flow", "expert": 64, "layers": 2}, None),
    "autoregressive": ({"kind": "autoregressive"}, None),
}
"""Heads by the name of their line: settings, and how they predict."""
IMAGE = ("convolutional map", "map of a vector", "l1", "autoregressive")


@dataclass(frozen=True)
class Task:
    """Inputs, and the actions that are good for each, (n, good, d)."""

    inputs: Tensor
    good: Tensor


def vector_task(count: int, ways: int, seed: int) -> Task:
    """Latent actions in [-0.9, 0.9]^3 and two nuisances, mixed; a second way mirrors it."""
    fixed = torch.Generator().manual_seed(1234)
    mix = [torch.randn(5, 48, generator=fixed) / 5**0.5, torch.randn(48, 32, generator=fixed) / 7]
    own = torch.Generator().manual_seed(seed)
    latent = torch.rand(count, 5, generator=own) * 1.8 - 0.9
    mixed = torch.tanh(torch.tanh(latent @ mix[0]) @ mix[1])
    action = latent[:, :3]
    return Task(mixed, torch.stack([action, -action][:ways], 1))


def image_task(count: int, seed: int) -> Task:
    """Two red blobs, which are good, a green and a blue one, on grey with noise."""
    own = torch.Generator().manual_seed(seed)
    at = torch.arange(32.0) + 0.5
    pictures, good = [], []
    colours = torch.tensor([[0.9, 0.1, 0.1]] * 2 + [[0.1, 0.8, 0.1], [0.1, 0.1, 0.9]])
    for _ in range(count):
        while True:
            spots = torch.rand(4, 2, generator=own) * 26 + 3
            if (torch.cdist(spots, spots) + 99 * torch.eye(4)).min() > 7:
                break
        picture = 0.5 + 0.05 * torch.randn(3, 32, 32, generator=own)
        for spot, colour in zip(spots, colours, strict=True):
            inside = (at[:, None] - spot[1]) ** 2 + (at[None] - spot[0]) ** 2 < 2.2**2
            picture[:, inside] = colour[:, None]
        pictures.append(picture)
        good.append(spots[:2] / 16 - 1)
    return Task(torch.stack(pictures), torch.stack(good))


class Autoregressive(nn.Module):
    """One number after the other, 256 even bins each: what tokens of single numbers do."""

    def __init__(self, width: int, numbers: int, bins: int = 256) -> None:
        super().__init__()
        self.bins, self.numbers = bins, numbers
        self.before = nn.Embedding(numbers * bins, width)
        self.outs = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, bins))
            for _ in range(numbers)
        )

    def loss(self, features: Tensor, actions: Tensor) -> Tensor:
        """Mean cross entropy along the recorded numbers."""
        ids = ((actions.clamp(-1, 1) + 1) * self.bins / 2).long().clamp_max(self.bins - 1)
        total, state = features.new_zeros(()), features
        for i, out in enumerate(self.outs):
            total = total + F.cross_entropy(out(state), ids[:, i])
            state = state + self.before(ids[:, i] + i * self.bins)
        return total / self.numbers

    def predict(self, features: Tensor) -> Tensor:
        """Greedy."""
        found, state = [], features
        for i, out in enumerate(self.outs):
            best = out(state).argmax(-1)
            found.append((best + 0.5) * 2 / self.bins - 1)
            state = state + self.before(best + i * self.bins)
        return torch.stack(found, -1)


class Policy(nn.Module):
    """An encoder and a head; `mode` is how the head predicts."""

    def __init__(self, encoder: nn.Module, settings: dict[str, Any], space: ActionSpace) -> None:
        super().__init__()
        self.encoder = encoder
        self.alone = settings["kind"] == "autoregressive"
        self.head: Any = (
            Autoregressive(WIDTH, space.dim)
            if self.alone
            else build_head({**settings, "space": space.to_dict()}, WIDTH, 1)
        )
        self.slots = 1 if self.alone else len(self.head.slots)

    def states(self, inputs: Tensor) -> Tensor:
        """What the head reads, the same for every slot."""
        features = self.encoder(inputs)
        return features if self.alone else features[:, None].expand(-1, self.slots, -1)

    def loss(self, inputs: Tensor, actions: Tensor) -> Tensor:
        """Of a batch."""
        if self.alone:
            return self.head.loss(self.states(inputs), actions)
        return self.head.loss(self.states(inputs), actions[:, None])[0]

    @torch.no_grad()
    def predict(self, inputs: Tensor, mode: str | None) -> Tensor:
        """(n, d) actions."""
        states = self.states(inputs)
        if self.alone:
            return self.head.predict(states)
        if mode == "top 10":
            return top_ten(self.head, states)
        return self.head.predict(states, mode).actions[:, 0]


def top_ten(head: Any, states: Tensor) -> Tensor:
    """The mean of the ten best cells wherever they lie, which published ActionMaps decode by."""
    (logits,) = head.logits(states)[0].values()
    best, cells = logits.softmax(-1).topk(10, -1)
    points = torch.as_tensor(head.cells[0].points(), dtype=torch.float32)[cells]
    return (best[..., None] * points).sum(1) / best.sum(-1, keepdim=True)


class Map(nn.Module):
    """A heatmap over the picture from logits of its pixels."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.grid = VoxelGrid((32, 32), low=-1 + 1 / 32, high=1 - 1 / 32)

    def loss(self, inputs: Tensor, actions: Tensor) -> Tensor:
        """Cross entropy with a target of one and a half pixels."""
        logits = self.network(inputs).flatten(1)
        return self.grid.soft_target(logits, actions.flip(-1), 1.5 / 16)[0].mean()

    @torch.no_grad()
    def predict(self, inputs: Tensor, mode: str | None) -> Tensor:
        """(n, 2), x and y."""
        return self.grid.read(self.network(inputs).flatten(1), "local", 2.5 / 16)[0].flip(-1)


def trained(policy: Any, task: Task, seed: int, steps: int, batch: int) -> Any:
    """By AdamW with a cosine; which good action a demonstration shows is drawn once."""
    own = torch.Generator().manual_seed(seed)
    shown = torch.randint(task.good.shape[1], (len(task.inputs),), generator=own)
    labels = task.good[torch.arange(len(shown)), shown]
    optimiser = torch.optim.AdamW(policy.parameters(), lr=RATE, weight_decay=1e-4)
    course = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    policy.train()
    for _ in range(steps):
        rows = torch.randint(len(labels), (min(batch, len(labels)),), generator=own)
        loss = policy.loss(task.inputs[rows], labels[rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        course.step()
    return policy.eval()


def distance(found: Tensor, good: Tensor) -> Tensor:
    """(n,) to the nearest good action."""
    return (found[:, None] - good).norm(dim=-1).amin(-1)


def runs(seeds: list[int], steps: int) -> Iterator[dict[str, Any]]:
    """The lines, seed by seed."""
    for seed in seeds:
        for ways, count in ((1, 100), (2, 1000)):
            task = vector_task(count, ways, 10_000 + seed)
            unseen = vector_task(UNSEEN, ways, 20_000 + seed)
            known: dict[str, Any] = {}
            for name, (settings, mode) in VECTOR.items():
                began, key = time.perf_counter(), json.dumps(settings)
                if key not in known:  # one training for all ways to read its maps
                    torch.manual_seed(seed)
                    encoder = nn.Sequential(nn.Linear(32, 128), nn.ReLU(), nn.Linear(128, WIDTH))
                    known[key] = trained(Policy(encoder, settings, POINT), task, seed, steps, 64)
                away = distance(known[key].predict(unseen.inputs, mode), unseen.good)
                yield line("vector", f"{ways} good, {count} shown", name, seed, away, NEAR, began)
        task, unseen = image_task(10, 10_000 + seed), image_task(UNSEEN, 20_000 + seed)
        for name in IMAGE:
            began = time.perf_counter()
            torch.manual_seed(seed)
            policy = trained(image_policy(name), task, seed, steps // 2, 10)
            away = 16 * distance(policy.predict(unseen.inputs, None), unseen.good)
            yield line("image", "2 good, 10 shown", name, seed, away, PIXELS, began)


def image_policy(name: str) -> Any:
    """A head for the picture; all but the convolutional one read a vector."""
    flat = [nn.Flatten(), nn.Linear(3 * 32 * 32, 128), nn.ReLU()]
    if name == "convolutional map":
        return Map(
            nn.Sequential(
                *(nn.Conv2d(3, 24, 5, padding=2), nn.ReLU()),
                *(nn.Conv2d(24, 24, 5, padding=2), nn.ReLU(), nn.Conv2d(24, 1, 1)),
            )
        )
    if name == "map of a vector":
        return Map(nn.Sequential(*flat, nn.Linear(128, 32 * 32)))
    settings = {"kind": name}
    return Policy(
        nn.Sequential(*flat, nn.Linear(128, WIDTH)), settings, joint_space(2, gripper=False)
    )


def line(
    task: str, kind: str, head: str, seed: int, away: Tensor, near: float, began: float
) -> dict[str, Any]:
    """One result."""
    return {
        "task": task,
        "kind": kind,
        "head": head,
        "seed": seed,
        "success": round(float((away < near).float().mean()), 4),
        "median_distance": round(float(away.median()), 4),
        "tolerance": near,
        "seconds": round(time.perf_counter() - began, 2),
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
    }


def gates(lines: list[dict[str, Any]]) -> dict[str, tuple[float, bool]]:
    """{gate: (points, whether it holds)}, of means over seeds."""

    def mean(kind: str, head: str) -> float:
        return 100 * fmean(r["success"] for r in lines if (r["kind"], r["head"]) == (kind, head))

    one, two, image = "1 good, 100 shown", "2 good, 1000 shown", "2 good, 10 shown"
    local = mean(two, "heatmap, local") - mean(two, "l1")
    tokens = mean(one, "heatmap, expectation") - mean(one, "autoregressive")
    best = max(mean(image, "l1"), mean(image, "autoregressive"))
    dense = mean(image, "convolutional map")
    return {
        "image: a convolutional map solves 95 and more": (dense, dense >= 95),
        "image: l1 and autoregressive solve at most 35": (best, best <= 35),
        "vector, one way: heatmap - autoregressive, 40 and more": (tokens, tokens >= 40),
        "vector, two ways: local heatmap - l1, 15 and more": (local, local >= 15),
    }


def report(lines: list[dict[str, Any]], say: Callable[[str], None] = print) -> bool:
    """The table; whether all gates hold."""
    keys = list(dict.fromkeys((r["task"], r["kind"], r["head"]) for r in lines))
    for task, kind, head in keys:
        found = [100 * r["success"] for r in lines if (r["kind"], r["head"]) == (kind, head)]
        told = f"{fmean(found):5.1f} % ({min(found):.1f} to {max(found):.1f})"
        say(f"{task:7} {kind:20} {head:22} {told}")
    one = "1 good, 100 shown"
    gap = [
        100 * fmean(r["success"] for r in lines if (r["kind"], r["head"]) == (one, head))
        for head in ("l1", "heatmap, expectation")
    ]
    say(f"one way: l1 is {gap[0] - gap[1]:+.1f} points beside the heatmap's expectation")
    held = gates(lines)
    for name, (points, holds) in held.items():
        say(f"{'holds' if holds else 'DOES NOT HOLD'}: {name} ({points:.1f})")
    return all(holds for _, holds in held.values())


def main() -> None:
    """Measure, write, tell."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("--seeds", type=int, default=5, help="so many, from --first on")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--out", type=Path, help="one JSON line per result")
    given = parser.parse_args()
    torch.set_num_threads(1)
    lines = []
    for found in runs(list(range(given.first, given.first + given.seeds)), given.steps):
        lines.append(found)
        if given.out is not None:
            given.out.parent.mkdir(parents=True, exist_ok=True)
            given.out.write_text("".join(json.dumps(r) + "\n" for r in lines))
    sys.exit(0 if report(lines) else 1)


if __name__ == "__main__":
    main()
