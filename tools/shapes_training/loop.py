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

REPORT_EVERY = 50


@dataclass(frozen=True)
class Recipe:
    """How a stage trains.

    Attributes:
        steps: optimizer steps.
        batch: pictures per step.
        learning_rate: peak of a linear warm-up followed by a cosine to zero.
        horizon: steps in which the cosine reaches zero, if later than the last step.
        betas, weight_decay: of AdamW.
        warmup: steps of linear warm-up.
        clip: largest gradient norm.
        ema: final decay of the running average of the weights; 0 keeps the last weights.
        save_every, evaluate_every: in steps; there is an evaluation at the end in any case.
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
    horizon: int | None = None
    seed: int = 0


@dataclass
class Stage:
    """A named training task inside a work directory.

    Attributes:
        name: names the folder of checkpoints and logs.
        work: the work directory.
        model: everything that is trained.
        loss: (step, generator) -> scalar loss.
        evaluate: called now and then with the averaged weights in place; its result is logged.
        history: losses of the steps taken by this process.
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
    """Linear warm-up, then a cosine that reaches zero at the horizon."""
    warm = min(1.0, (step + 1) / recipe.warmup)
    progress = step / (recipe.horizon or recipe.steps)
    return recipe.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * progress))


def train(stage: Stage, recipe: Recipe) -> None:
    """Train to the end, from the newest checkpoint if there is one.

    Afterwards the model holds the averaged weights, saved as ``final.safetensors``; with that file
    in place the stage only loads it.
    """
    final = stage.folder / "final.safetensors"
    if not final.exists():
        run = _Run(stage, recipe)
        run.restore()
        run.finish()
        write_tensors(final, stage.model.state_dict())
    stage.model.load_state_dict(read_tensors(final))


class _Run:
    """The state of one training run: weights, optimizer, running average, steps and time."""

    def __init__(self, stage: Stage, recipe: Recipe) -> None:
        self.stage, self.recipe = stage, recipe
        self.weights = [p for p in stage.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.weights, recipe.learning_rate, recipe.betas, weight_decay=recipe.weight_decay
        )
        self.average = [p.detach().clone() for p in self.weights] if recipe.ema else []
        self.done = 0
        self.earlier = (0.0, 0.0)  # wall and CPU seconds of the processes before this one
        self.started = (time.monotonic(), time.process_time())

    def finish(self) -> None:
        """Take the remaining steps and leave the averaged weights in the model."""
        self.stage.model.train()
        while self.done < self.recipe.steps:
            self.step()
            last = self.done == self.recipe.steps
            if last or self.done % REPORT_EVERY == 0:
                self.report()
            if self.done % self.recipe.save_every == 0:
                self.save()
            if last or self.done % self.recipe.evaluate_every == 0:
                self.evaluate()
        self.swap()

    def step(self) -> None:
        """One optimizer step, and one of the running average."""
        stage, recipe = self.stage, self.recipe
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate_at(self.done, recipe)
        loss = stage.loss(self.done, generator_for(recipe.seed, stage.name, self.done))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.weights, recipe.clip)
        self.optimizer.step()
        self.done += 1
        stage.history.append(loss.item())
        if self.average:
            # The average forgets the first steps quickly: its horizon grows with the run.
            decay = min(recipe.ema, self.done / (self.done + 9))
            torch._foreach_lerp_(self.average, [p.detach() for p in self.weights], 1 - decay)

    def swap(self) -> None:
        """Exchange the trained weights and their running average, if there is one."""
        for weight, mean in zip(self.weights, self.average, strict=bool(self.average)):
            kept = weight.detach().clone()
            weight.data.copy_(mean)
            mean.copy_(kept)

    @property
    def spent(self) -> tuple[float, float]:
        """Wall and CPU seconds so far, resumed parts included."""
        return (
            self.earlier[0] + time.monotonic() - self.started[0],
            self.earlier[1] + time.process_time() - self.started[1],
        )

    def report(self) -> None:
        """Print progress with the time left, and append to the log."""
        recent = self.stage.history[-REPORT_EVERY:]
        loss, (wall, cpu) = sum(recent) / len(recent), self.spent
        pace = wall / self.done
        print(
            f"{self.stage.name} {self.done}/{self.recipe.steps}  loss {loss:.4f}  "
            f"{pace:.3f} s/step  {pace * (self.recipe.steps - self.done) / 60:.1f} min left",
            flush=True,
        )
        record = {"step": self.done, "loss": loss, "wall_s": wall, "cpu_s": cpu}
        append_json_line(self.stage.folder / "log.jsonl", record)

    def evaluate(self) -> None:
        """Evaluate the averaged weights, keep a snapshot of them, and log the result."""
        stage = self.stage
        if stage.evaluate is None:
            return
        self.swap()
        stage.model.eval()
        result = {"step": self.done, **stage.evaluate()}
        write_tensors(stage.folder / f"snapshot-{self.done:06d}.safetensors", stage.model.state_dict())
        stage.model.train()
        self.swap()
        append_json_line(stage.folder / "evaluation.jsonl", result)
        print(stage.name, result, flush=True)

    def save(self) -> None:
        """Write everything a resumed run needs, in one file that replaces the previous one."""
        tensors = {f"model.{name}": value for name, value in self.stage.model.state_dict().items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": value for name, value in state.items()}
        tensors |= {f"average.{index}": mean for index, mean in enumerate(self.average)}
        tensors["progress"] = torch.tensor([self.done, *self.spent], dtype=torch.float64)
        write_tensors(self.stage.folder / "checkpoint.safetensors", tensors)

    def restore(self) -> None:
        """Continue from the newest checkpoint, if there is one."""
        path = self.stage.folder / "checkpoint.safetensors"
        if not path.exists():
            return
        groups: dict[str, dict] = {"model": {}, "optimizer": {}, "average": {}, "progress": {}}
        for name, value in read_tensors(path).items():
            group, _, rest = name.partition(".")
            groups[group][rest] = value
        self.stage.model.load_state_dict(groups["model"])
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in groups["optimizer"].items():
            index, _, key = name.partition(".")
            state.setdefault(int(index), {})[key] = value
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": state})
        for index, mean in enumerate(self.average):
            mean.copy_(groups["average"][str(index)])
        done, *earlier = groups["progress"][""].tolist()
        self.done, self.earlier = int(done), tuple(earlier)
        print(f"{self.stage.name}: resumed at step {self.done}", flush=True)
