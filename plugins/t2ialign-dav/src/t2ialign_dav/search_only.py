"""DAV's E-step alone: better images at inference, from a frozen model."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from torch import Tensor

from t2ialign import Optimizer, State, StepResult
from t2ialign.problem.problem import Problem
from t2ialign.storage.images import save_png
from t2ialign.tensors.conditioning import Conditioning
from t2ialign.tensors.distributed import World
from t2ialign_dav.config import DavSearchConfig
from t2ialign_dav.cost import Cost
from t2ialign_dav.e_step import Trajectories
from t2ialign_dav.explore import SHOWN, explore, lockstep_search, report, reward_unit, step_sampler
from t2ialign_dav.model import Draws, Model


class DavSearch(Optimizer):
    """Every step searches the images of the prompts it draws and writes them; nothing is learnt."""

    Config = DavSearchConfig

    def setup(self, problem: Problem) -> None:
        super().setup(problem)
        self.sampler = step_sampler(problem)

    @cached_property
    def unit(self) -> float:
        """What rewards are divided by before the temperature divides them."""
        return reward_unit(self.problem, self.config.reward_unit)

    def search(self, model: Model, draws: Draws) -> Trajectories:
        return lockstep_search(self.config, model, self.sampler, draws)

    def step(self, index: int) -> StepResult:
        batch = self.problem.draw(index)
        world = self.problem.world
        found, cost = self._found(batch.conditioning, batch.seeds, world)
        if self.problem.output is not None and world.is_main:
            self.problem.output.mkdir(parents=True, exist_ok=True)
            for row, (image, prompt, seed) in enumerate(
                zip(found.images, batch.conditioning.prompts, batch.seeds, strict=True)
            ):
                file = self.problem.output / f"{index:05d}-{row:04d}.png"
                save_png(image, file, {"prompt": prompt, "seed": str(seed)})
        metrics = report(self.problem, batch.conditioning, batch.seeds, found, cost)
        return StepResult(metrics, found.images[:SHOWN])

    def generate(self, conditioning: Conditioning, seeds: Sequence[int]) -> Tensor:
        """Searched images; like all generation for evaluations, by one rank alone."""
        return self._found(conditioning, seeds, World())[0].images

    def _found(self, conditioning: Conditioning, seeds: Sequence[int], world: World) -> tuple[Trajectories, Cost]:
        """Searched trajectories, whose images are drawn as the run delivers them, whatever the search saw."""
        backend = self.problem.backend
        with backend.drafting():
            found, cost = explore(self.problem, self.search, conditioning, seeds, self.unit, world)
        if backend.drafts:
            with backend.drafting(False):
                found = replace(found, images=self.problem.decode(found.latents[:, -1]))
        return found, cost

    def state(self) -> State:
        return State()

    def load_state(self, state: State) -> None:
        pass

    def export(self, folder: Path) -> None:
        """The searched images, each with its prompt and seed in the PNG's text."""
        folder.mkdir(parents=True, exist_ok=True)
        found = sorted(self.problem.output.glob("*.png")) if self.problem.output is not None else []
        for file in found:
            shutil.copyfile(file, folder / file.name)
        card = f"# {len(found)} searched images\n\nSTEP-IMAGE.png; each has its prompt and seed in the PNG's text.\n"
        (folder / "README.md").write_text(card, encoding="utf-8")
