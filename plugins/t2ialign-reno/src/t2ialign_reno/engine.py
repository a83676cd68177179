"""Many searches at once: a fixed number of rows, each with a search; a row that is done takes the next one.

Public: a package with a search of its own subclasses ``Method`` and gives it to an ``Engine``, or returns it from
``NoiseSearch.method`` to have an optimizer that delivers images.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from t2ialign.problem.problem import Problem
from t2ialign.tensors.batching import split
from t2ialign.tensors.conditioning import Conditioning
from t2ialign.tensors.distributed import World
from t2ialign.tensors.state import State
from t2ialign_reno.searches import Found, Search

Point = dict[str, Tensor]
#: Sees the images (n, 3, H, W) of some searches, and each one's iteration.
Watch = Callable[[Tensor, Sequence[Search], Sequence[int]], None]


class Method(ABC):
    """How a search moves. Points and values are tensors by name with one row per search; rows never mix.

    Attributes:
        clean: what ``best`` gives are clean latents, which need only be decoded, and not noise.
    """

    clean: ClassVar[bool] = False

    @abstractmethod
    def begin(self, searches: Sequence[Search]) -> Point:
        """Points at the searches' own noise."""

    @abstractmethod
    def evaluate(
        self,
        point: Point,
        conditioning: Conditioning,
        searches: Sequence[Search],
        iterations: Sequence[int],
        move: bool,
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Generate and score one image per row.

        Args:
            iterations: how many images each search has seen before.
            move: whether any search goes on after this, so that ``update`` may want a gradient.

        Returns:
            Values with one row per search, among them "total" (n,) and "reward/<name>" (n,); the images.
        """

    @abstractmethod
    def update(self, point: Point, values: dict[str, Tensor], improved: Tensor) -> tuple[Point, dict[str, Tensor]]:
        """Remember the rows that ``improved`` (n,), and move on; also numbers (n,) worth logging."""

    @abstractmethod
    def best(self, point: Point, row: int, search: Search, iteration: int) -> tuple[int, Tensor | None]:
        """Seed and latents of a row's best image, seen at ``iteration``."""


class Engine:
    """Runs searches in order, ``slots`` at a time.

    The ranks of a world share the rows of every iteration; all of them hold all points.
    """

    def __init__(
        self,
        problem: Problem,
        method: Method,
        conditioning: Conditioning,
        searches: Sequence[Search],
        slots: int,
        patience: int | None = None,
        world: World | None = None,
        watch: Watch | None = None,
        iterations: int | None = None,
    ) -> None:
        """Nothing runs yet.

        Args:
            conditioning: rows as the items of ``searches`` name them.
            slots: searches at the same time.
            patience: end a search after so many iterations without improvement.
            world: the peers that call ``step`` together; without one, this process works alone.
            iterations: of every search; default: ``run.steps``.
        """
        self.problem, self.method, self.conditioning = problem, method, conditioning
        self.searches, self.patience, self.world, self.watch = list(searches), patience, world or World(), watch
        self.position = {search: index for index, search in enumerate(searches)}
        self.iterations = iterations or problem.spec.run.steps
        slots = min(slots, len(self.searches))
        #: Index of the search in each row; -1 where none is left.
        self.occupant = [-1] * slots
        self.next = 0
        self.point: Point = {}
        self.history: dict[str, Tensor] = {}
        self.iteration = torch.zeros(slots, dtype=torch.long)
        self.best_iteration = torch.zeros(slots, dtype=torch.long)
        self.best_reward = torch.full((slots,), -torch.inf)

    @property
    def done(self) -> bool:
        return self.next == len(self.searches) and all(index < 0 for index in self.occupant)

    def step(self) -> tuple[dict[str, float], list[Found]]:
        """One iteration of every running search: metrics, and the searches that ended with it."""
        self._fill()
        rows = [row for row, index in enumerate(self.occupant) if index >= 0]
        if not rows:
            return {}, []
        searches = [self.searches[self.occupant[row]] for row in rows]
        iterations = self.iteration[rows]
        point = {name: tensor[rows] for name, tensor in self.point.items()}
        values = self._evaluate(point, searches, iterations.tolist(), bool((iterations + 1 < self.iterations).any()))
        improved = values["total"] > self.best_reward[rows].to(values["total"].device)  # False where the total is NaN
        point, numbers = self.method.update(point, values, improved)
        for name, tensor in point.items():
            self.point[name][rows] = tensor
        numbers = {name: value for name, value in values.items() if value.ndim == 1} | numbers
        numbers = {name: value.float().cpu() for name, value in numbers.items()}
        self._record(rows, iterations, numbers, improved.cpu())
        metrics, ended = self._metrics(rows, numbers), [row for row in rows if self._ended(row)]
        found = [self._found(row) for row in ended]
        for row in ended:
            self.occupant[row] = -1
        return metrics, found

    def run(self) -> list[Found]:
        """All searches to their end."""
        found: list[Found] = []
        while not self.done:
            found += self.step()[1]
        return found

    def current(self, search: Search) -> Found | None:
        """The best of a search that is running; None for one that has ended."""
        index = self.position[search]
        if index in self.occupant:
            return self._found(self.occupant.index(index))
        if index < self.next:
            return None
        seed, noise = self.method.best(self.method.begin([search]), 0, search, 0)
        return Found(search, seed, noise, -torch.inf, 0, [])

    def _fill(self) -> None:
        """Give every free row the next search."""
        rows = [row for row, index in enumerate(self.occupant) if index < 0][: len(self.searches) - self.next]
        if not rows:
            return
        searches = self.searches[self.next : self.next + len(rows)]
        for name, tensor in self.method.begin(searches).items():
            if name not in self.point:
                self.point[name] = tensor.new_empty((len(self.occupant), *tensor.shape[1:]))
            self.point[name][rows] = tensor
        for row in rows:
            self.occupant[row] = self.next
            self.next += 1
        self.iteration[rows] = self.best_iteration[rows] = 0
        self.best_reward[rows] = -torch.inf
        for values in self.history.values():
            values[rows] = torch.nan

    def _evaluate(
        self, point: Point, searches: Sequence[Search], iterations: Sequence[int], move: bool
    ) -> dict[str, Tensor]:
        """The method's values for all rows, each rank doing its share."""
        mine = self.world.mine(len(searches))

        def part(rows: Sequence[int]) -> dict[str, Tensor]:
            chosen, seen = [searches[row] for row in rows], [iterations[row] for row in rows]
            conditioning = self.conditioning[[search.item.row for search in chosen]]
            rows_of = {name: tensor[rows] for name, tensor in point.items()}
            values, images = self.method.evaluate(rows_of, conditioning, chosen, seen, move)
            if self.watch:
                self.watch(images, chosen, seen)
            return values

        def run(micro_batch: int) -> dict[str, Tensor]:
            parts = [part(mine[rows]) for rows in split(len(mine), micro_batch)]
            return {name: torch.cat([values[name] for values in parts]) for name in parts[0]}

        values = self.problem.retrying(run)
        return {name: self.world.collect(tensor, len(searches)) for name, tensor in values.items()}

    def _record(self, rows: list[int], iterations: Tensor, numbers: dict[str, Tensor], improved: Tensor) -> None:
        for name, value in numbers.items():
            if name not in self.history:
                self.history[name] = torch.full((len(self.occupant), self.iterations), torch.nan)
            self.history[name][rows, iterations] = value
        self.best_reward[rows] = torch.where(improved, numbers["total"], self.best_reward[rows])
        self.best_iteration[rows] = torch.where(improved, iterations, self.best_iteration[rows])
        self.iteration[rows] += 1

    def _ended(self, row: int) -> bool:
        seen, best = int(self.iteration[row]), int(self.best_iteration[row])
        return seen == self.iterations or (self.patience is not None and seen - 1 - best >= self.patience)

    def _found(self, row: int) -> Found:
        """The row's best so far."""
        search, seen = self.searches[self.occupant[row]], int(self.iteration[row])
        iteration = int(self.best_iteration[row])
        seed, noise = self.method.best(self.point, row, search, iteration)
        trajectory = [
            {"iteration": i, **{name: self.history[name][row, i].item() for name in sorted(self.history)}}
            for i in range(seen)
        ]
        return Found(search, seed, noise, self.best_reward[row].item(), iteration, trajectory)

    def _metrics(self, rows: list[int], numbers: dict[str, Tensor]) -> dict[str, float]:
        """Means over the running searches."""
        metrics = {name if "/" in name else f"search/{name}": value.nanmean().item() for name, value in numbers.items()}
        return metrics | {
            "search/best": self.best_reward[rows].nan_to_num(neginf=torch.nan).nanmean().item(),
            "search/running": len(rows),
            "search/started": self.next,
        }

    def state(self) -> State:
        tensors = {
            **{f"point/{name}": tensor for name, tensor in self.point.items()},
            **{f"history/{name}": tensor for name, tensor in self.history.items()},
            "iteration": self.iteration,
            "best_iteration": self.best_iteration,
            "best_reward": self.best_reward,
        }
        copies = {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}
        return State(copies, {"occupant": list(self.occupant), "next": self.next})

    def load_state(self, state: State) -> None:
        device = self.problem.device
        tensors = {name: tensor.clone() for name, tensor in state.tensors.items()}
        self.point = {k.removeprefix("point/"): v.to(device) for k, v in tensors.items() if k.startswith("point/")}
        self.history = {k.removeprefix("history/"): v for k, v in tensors.items() if k.startswith("history/")}
        self.iteration, self.best_iteration = tensors["iteration"], tensors["best_iteration"]
        self.best_reward = tensors["best_reward"]
        self.occupant, self.next = list(state.values["occupant"]), state.values["next"]


def draw(problem: Problem, conditioning: Conditioning, found: Sequence[Found], clean: bool = False) -> Tensor:
    """The images (B, 3, H, W) of found latents; of the seeds, where nothing is found yet.

    Args:
        clean: the latents are clean ones and not noise, see ``Method``.
    """
    latents = [one.noise.to(problem.device) for one in found if one.noise is not None]
    if clean and latents:
        images = problem.decode(torch.stack(latents))
        if len(latents) == len(found):
            return images
        there = [row for row, one in enumerate(found) if one.noise is not None]
        absent = [row for row, one in enumerate(found) if one.noise is None]
        others = draw(problem, conditioning[absent], [found[row] for row in absent])
        return torch.cat([images, others])[torch.tensor([*there, *absent]).argsort()]
    return problem.generate(conditioning, [one.seed for one in found], torch.stack(latents) if latents else None)
