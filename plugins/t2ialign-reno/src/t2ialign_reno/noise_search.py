"""What searches for images share: which images a run delivers, and what becomes of a finished search."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from t2ialign import Optimizer, State, StepResult
from t2ialign.evaluation.evaluate import items_of
from t2ialign.problem.problem import Problem
from t2ialign.storage import images
from t2ialign.tensors.conditioning import Conditioning
from t2ialign.tensors.distributed import World
from t2ialign_reno.archive import Archive, finite
from t2ialign_reno.config import chosen_sampler
from t2ialign_reno.engine import Engine, Method, Watch, draw
from t2ialign_reno.export import check_latents, export_images
from t2ialign_reno.searches import Found, Item, Search, searches_of


class NoiseSearch(Optimizer):
    """An optimizer whose result is noise (or clean latents), and so images, for the run's own prompts.

    The images that a run delivers are ``prompts.images_per_prompt`` of every prompt, at the initial noises by which
    they are evaluated: the evaluation looks them up and compares each with the base's image of the same noise. Any
    other prompt or noise is searched when it is asked for.

    A finished search goes into the run's output folder at once; checkpoints hold only the running ones.
    """

    @abstractmethod
    def method(self) -> Method:
        """How the noise moves."""

    def setup(self, problem: Problem) -> None:
        super().setup(problem)
        self.starts = self.config.searches_per_image
        self.items = run_items(problem)
        self.searches = searches_of(self.items, self.starts, problem.spec.run.seed)
        self.starts_of: dict[tuple[str, int], list[Search]] = {}
        for search in self.searches:
            self.starts_of.setdefault(search.item.key, []).append(search)
        if problem.output is None:
            self._temporary = TemporaryDirectory()
        self.archive = Archive(problem.output or Path(self._temporary.name))
        self.second: Problem | None = None
        if table := getattr(self.config, "second_sampler", None):
            chosen = chosen_sampler(table)
            self.second = replace(problem, sampler=chosen.build(problem.device))
        watch = self._save_iterations if self.config.save_iterations else None
        self.engine = self._engine(problem.conditioning, self.searches, problem.world, watch)

    def _engine(
        self, conditioning: Conditioning, searches: Sequence[Search], world: World | None, watch: Watch | None
    ) -> Engine:
        config, spec = self.config, self.problem.spec
        slots, iterations = config.slots(spec), config.iterations(spec)
        return Engine(
            self.problem, self.method(), conditioning, searches, slots, config.patience, world, watch, iterations
        )

    def _draw(self, conditioning: Conditioning, found: Sequence[Found]) -> Tensor:
        return draw(self.problem, conditioning, found, self.engine.method.clean)

    def step(self, index: int) -> StepResult:
        """One iteration of the running searches; nothing once all have ended (early stops leave steps over)."""
        metrics, found = self.engine.step()
        if found:
            metrics |= self._deliver(found)
        return StepResult(metrics)

    @torch.no_grad()
    def _deliver(self, found: Sequence[Found]) -> dict[str, float]:
        """Draw, score and write the first and the best image of finished searches; metrics are the mean gains.

        Every rank draws a share, and rank 0 writes.
        """
        world = self.problem.world
        with self.problem.backend.drafting(False):
            pictures, scores = self._drawn([found[place] for place in world.mine(len(found))])
        for values in scores.values():
            values.update({name: world.collect(column, len(found)) for name, column in values.items()})
        pictures = {name: world.collect(batch, len(found)) for name, batch in pictures.items()}
        for row, one in enumerate(found if world.is_main else ()):
            self.archive.write(
                one,
                {name: batch[row] for name, batch in pictures.items()},
                {name: {k: finite(v[row].item()) for k, v in values.items()} for name, values in scores.items()},
            )
        return {
            f"gain/{name}": (scores["best"][name] - scores["initial"][name]).nanmean().item()
            for name in self.problem.rewards.names
        }

    def _drawn(self, found: Sequence[Found]) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
        """First and best images of some searches, and their scores."""
        problem, seeds = self.problem, [one.search.seed for one in found]
        conditioning = problem.conditioning[[one.search.item.row for one in found]]
        pictures = {"initial": problem.generate(conditioning, seeds), "best": self._draw(conditioning, found)}
        scores = {
            name: problem.rewards.score(batch, conditioning.prompts, micro_batch=problem.micro_batch)
            for name, batch in pictures.items()
        }
        if self.second:
            pictures["initial-second"] = self.second.generate(conditioning, seeds)
            pictures["best-second"] = draw(self.second, conditioning, found)
        return pictures, scores

    def _save_iterations(self, batch: Tensor, searches: Sequence[Search], iterations: Sequence[int]) -> None:
        for image, search, iteration in zip(batch, searches, iterations, strict=True):
            folder = self.archive.folder / "iterations" / self.archive.path(search).name
            folder.mkdir(parents=True, exist_ok=True)
            images.save_png(image, folder / f"{iteration:04d}.png", {"prompt": search.item.prompt})

    @torch.no_grad()
    def generate(self, conditioning: Conditioning, seeds: Sequence[int]) -> Tensor:
        """The best images so far. A (prompt, seed) pair that the run does not deliver is searched now, to the end."""
        keys = list(zip(conditioning.prompts, seeds, strict=True))
        found = {key: self.best(self.starts_of[key]) for key in keys if key in self.starts_of}
        unknown = {key: Item(*key, row) for row, key in enumerate(keys) if key not in found}
        if unknown:
            searches = searches_of(list(unknown.values()), self.starts, self.problem.spec.run.seed)
            with self.problem.backend.drafting():
                found |= best_by_item(self._engine(conditioning, searches, None, None).run())
        return self._draw(conditioning, [found[key] for key in keys])

    def best(self, searches: Sequence[Search]) -> Found:
        """The best of the starts of one of the run's images, whether they have ended, are running or are to come."""
        found = [self.engine.current(search) or self.archive.read(search) for search in searches]
        return max(found, key=lambda one: one.reward)

    def state(self) -> State:
        return self.engine.state()

    def load_state(self, state: State) -> None:
        self.engine.load_state(state)

    def export(self, folder: Path) -> None:
        clean = self.engine.method.clean
        export_images(self.problem, self.archive, self.finished(), self.config.layout, folder, clean)

    def check(self, folder: Path) -> str:
        return check_latents(self.problem, self.finished(), folder, self.engine.method.clean)

    def finished(self) -> dict[Item, Found]:
        """The run's images all of whose searches have ended, each with the best of them."""
        starts = {item: self.starts_of[item.key] for item in self.items}
        ended = {item: all(self.engine.current(search) is None for search in starts[item]) for item in self.items}
        return {item: self.best(starts[item]) for item in self.items if ended[item]}


def run_items(problem: Problem) -> list[Item]:
    """The images that a run delivers; a prompt that stands twice in the file gets other images each time."""
    count = problem.spec.prompts.images_per_prompt
    wanted = items_of(problem.prompts, count, problem.spec.evaluation.seed)
    return [
        Item(
            problem.conditioning.prompts[number // count],
            seed,
            number // count,
            f"{number // count:05d}-{number % count}",
        )
        for number, seed in enumerate(wanted.seeds)
    ]


def best_by_item(found: Sequence[Found]) -> dict[tuple[str, int], Found]:
    """The best start of every item."""
    best: dict[tuple[str, int], Found] = {}
    for one in found:
        key = one.search.item.key
        if key not in best or one.reward > best[key].reward:
            best[key] = one
    return best
