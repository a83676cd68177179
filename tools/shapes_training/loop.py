"""One training loop for all stages: seeded per step, resumable, averaged, logged.

The data of a step come from a generator seeded by (seed, stage, step) alone, so a run that was
killed and resumed sees the data that it would have seen.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from shapes_training.workdir import append_json_line, read_tensors, write_tensors


@dataclass(frozen=True)
class Recipe:
    """How a stage trains.

    Attributes:
        steps: optimizer steps.
        batch: pictures per step.
        learning_rate: peak of a linear warm-up followed by a cosine to zero.
        betas, weight_decay: of AdamW.
        warmup: steps of linear warm-up.
        clip: largest gradient norm.
        ema: final decay of the running average of the weights; 0 keeps the last weights.
        save_every, evaluate_every: in steps.
        seed: of data and initial weights.
    """

    steps: int
    batch: int
    learning_rate: float
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 1e-3
    warmup: int = 60
    clip: float = 1.0
    ema: float = 0.0
    save_every: int = 200
    evaluate_every: int = 1_000_000
    seed: int = 0


@dataclass
class Stage:
    """A named training task inside a work directory.

    Attributes:
        name: names the folder of checkpoints and log.
        work: the work directory.
        model: everything that is trained.
        loss: (step, generator) -> scalar loss.
        evaluate: called now and then with the averaged weights in place; its result is logged.
    """

    name: str
    work: Path
    model: nn.Module
    loss: Callable[[int, torch.Generator], Tensor]
    evaluate: Callable[[], dict] | None = None
    history: list[float] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        return self.work / self.name


def derive_seed(*parts: object) -> int:
    """Derive a 63-bit seed from any parts, the same in every process."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8]) >> 1


def generator_for(*parts: object) -> torch.Generator:
    """A CPU generator seeded by `derive_seed`."""
    return torch.Generator().manual_seed(derive_seed(*parts))


def learning_rate_at(step: int, recipe: Recipe) -> float:
    """Linear warm-up, then cosine to zero at the last step."""
    warm = min(1.0, (step + 1) / recipe.warmup)
    return recipe.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * step / recipe.steps))


def train(stage: Stage, recipe: Recipe) -> None:
    """Train to the end, from the newest checkpoint if there is one.

    Afterwards the model holds the averaged weights, saved as ``final.safetensors``; with that file
    in place the stage only loads it.
    """
    final = stage.folder / "final.safetensors"
    if final.exists():
        stage.model.load_state_dict(read_tensors(final))
        return
    weights = [p for p in stage.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        weights, recipe.learning_rate, recipe.betas, weight_decay=recipe.weight_decay
    )
    average = [p.detach().clone() for p in weights] if recipe.ema else None
    first, spent = _restore(stage, optimizer, average)
    wall, cpu = time.monotonic() - spent[0], time.process_time() - spent[1]
    stage.model.train()
    for step in range(first, recipe.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, recipe)
        loss = stage.loss(step, generator_for(recipe.seed, stage.name, step))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(weights, recipe.clip)
        optimizer.step()
        stage.history.append(loss.item())
        if average:
            # The average forgets the first steps quickly: its horizon grows with the run.
            decay = min(recipe.ema, (step + 1) / (step + 10))
            torch._foreach_lerp_(average, [p.detach() for p in weights], 1 - decay)

        done, last = step + 1, step + 1 == recipe.steps
        spent = (time.monotonic() - wall, time.process_time() - cpu)
        if done % 50 == 0 or last:
            _report(stage, recipe, done, spent)
        if done % recipe.save_every == 0 and not last:
            _save(stage, optimizer, average, done, spent)
        if stage.evaluate and (done % recipe.evaluate_every == 0 or last):
            _evaluate(stage, weights, average, done, spent)
    if average:
        _swap(weights, average)
    write_tensors(final, stage.model.state_dict())


def _report(stage: Stage, recipe: Recipe, done: int, spent: tuple[float, float]) -> None:
    loss = sum(stage.history[-50:]) / len(stage.history[-50:])
    minutes = spent[0] / done * (recipe.steps - done) / 60
    print(
        f"{stage.name} {done}/{recipe.steps}  loss {loss:.4f}  "
        f"{spent[0] / done:.3f} s/step  {minutes:.1f} min left",
        flush=True,
    )
    record = {"step": done, "loss": round(loss, 5), "wall_s": round(spent[0], 1)}
    append_json_line(stage.folder / "log.jsonl", record | {"cpu_s": round(spent[1], 1)})


def _evaluate(stage: Stage, weights: list, average: list | None, done: int, spent) -> None:
    if average:
        _swap(weights, average)
    stage.model.eval()
    result = {"step": done, "wall_s": round(spent[0], 1), **stage.evaluate()}
    stage.model.train()
    if average:
        write_tensors(stage.folder / f"snapshot-{done:06d}.safetensors", stage.model.state_dict())
        _swap(weights, average)
    append_json_line(stage.folder / "evaluation.jsonl", result)
    print(stage.name, result, flush=True)


def _swap(weights: list[nn.Parameter], average: list[Tensor]) -> None:
    """Exchange the trained weights and their running average in place."""
    for weight, mean in zip(weights, average, strict=True):
        kept = weight.detach().clone()
        weight.data.copy_(mean)
        mean.copy_(kept)


def _save(stage: Stage, optimizer, average: list | None, done: int, spent) -> None:
    """Write everything a resumed run needs, in one file that replaces the previous one."""
    tensors = {f"model.{name}": value for name, value in stage.model.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in state.items()}
    tensors |= {f"average.{index}": value for index, value in enumerate(average or [])}
    tensors["progress"] = torch.tensor([done, *spent], dtype=torch.float64)
    write_tensors(stage.folder / "checkpoint.safetensors", tensors)


def _restore(stage: Stage, optimizer, average: list | None) -> tuple[int, tuple[float, float]]:
    """Load the newest checkpoint; return the next step and the wall and CPU seconds spent."""
    path = stage.folder / "checkpoint.safetensors"
    if not path.exists():
        return 0, (0.0, 0.0)
    groups: dict[str, dict] = {"model": {}, "optimizer": {}, "average": {}, "progress": {}}
    for name, value in read_tensors(path).items():
        group, _, rest = name.partition(".")
        groups[group][rest] = value
    stage.model.load_state_dict(groups["model"])
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in groups["optimizer"].items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
    for index, mean in enumerate(average or []):
        mean.copy_(groups["average"][str(index)])
    done, *spent = groups["progress"][""].tolist()
    print(f"{stage.name}: resumed at step {int(done)}", flush=True)
    return int(done), tuple(spent)
