"""EGGROLL and OpenAI-ES as optimizers of a text-to-image LoRA.

    for each step:
        draw prompts and initial noise, the same for all members
        for every member i: images with theta + sigma E_i, scored by the reward mix
        f = shaped scores; gain = how far they exceed chance
        theta += gain * solver step along scale * mean_i f_i E_i

E_i is low-rank for EGGROLL (arXiv 2511.16652), Gaussian for OpenAI-ES (arXiv 1703.03864). Members are evaluated many
at a time; their noise is drawn again for the update instead of being kept.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from t2ialign import LoraOptimizer, RewardError, State, StepResult
from t2ialign.problem.problem import Batch, Problem
from t2ialign.tensors.batching import split, split_evenly
from t2ialign.tensors.conditioning import Conditioning
from t2ialign_eggroll import checks
from t2ialign_eggroll.config import EggrollConfig, OpenESConfig
from t2ialign_eggroll.noise import Members, Noise, Perturbation
from t2ialign_eggroll.population import Chunk, Form
from t2ialign_eggroll.shaping import Fitness, shape
from t2ialign_eggroll.signal import Signal, spread
from t2ialign_eggroll.spaces import LoraSpace, Space, WeightSpace
from t2ialign_eggroll.update import ascend, make_solver, mean_perturbation, norm, schedule, step_scale

log = logging.getLogger(__name__)
#: Where prompts agree completely the averaged F has no bound; metrics are finite.
LARGEST_F = 1e6


class EvolutionStrategy(LoraOptimizer):
    """The loop that both optimizers share; they differ in the noise."""

    #: Rank of the perturbations; None is full rank.
    noise_rank: int | None = None
    sign_update = False

    def setup(self, problem: Problem) -> None:
        super().setup(problem)
        config = self.config
        self.seed = problem.spec.run.seed
        self.steps = problem.spec.run.steps
        self.space = self.make_space()
        self.members = Members(config.population, config.antithetic)
        self.noise = Noise({name: p.shape for name, p in self.space.parameters.items()}, self.noise_rank)
        self.solver = make_solver(config.solver, self.space.parameters, config.learning_rate, config.weight_decay)
        #: Natural size of each parameter: the unit of sigma and of the step. Measured before the first step.
        self.scales: dict[str, float] = {}
        self.uses_signal = config.uses_signal(problem.spec.prompts.per_step * problem.spec.prompts.images_per_prompt)
        self.signal = Signal()
        #: Steps so far that the signal held at zero length.
        self.held = 0
        #: How a batch of members is evaluated; None is one member at a time.
        self.form: Form | None = None if config.form == "sequential" else config.form
        self.ready = False
        self.stale = False

    def make_space(self) -> Space:
        return LoraSpace(self.problem.adapter, self.config.train, self.problem.backend.compiled)

    @torch.no_grad()
    def step(self, index: int) -> StepResult:
        self.prepare()
        batch = self.problem.draw(index)
        raw = self._evaluate(index, batch)
        combined = self.problem.rewards.combine(raw, batch.prompt_index)
        samples = combined.unflatten(1, (len(batch.prompts), -1))
        fitness = shape(samples, self.config.shaping, floor=self.config.floor)
        if fitness.constant:
            log.warning("step %d: nothing distinguishes the members' scores, so there is no update", index + 1)
        gain, trust = self._gain(index, samples) if self.uses_signal else (1.0, {})
        moved, rate = self._update(index, fitness, gain)
        return StepResult(self._metrics(raw, combined, fitness, moved, rate) | trust)

    def prepare(self) -> None:
        """Before the first step of a process: measure scales, refuse layers that do nothing, check the batching."""
        if self.ready:
            return
        batch = self.problem.draw(0)
        if not self.scales:
            self.scales = dict.fromkeys(self.space.parameters, 1.0)
            if self.config.sigma_scale == "relative":
                self.scales = self.space.scales(lambda: self.problem.generate(batch.conditioning, batch.seeds))
        two = self.member_noise(0, slice(0, 2))
        # The checks' batches have sizes of their own, for which nothing shall be compiled.
        with torch.compiler.set_stance("force_eager") if self.problem.backend.compiled else nullcontext():
            self.problem.retrying(
                lambda micro_batch: checks.every_layer_matters(
                    self.problem, self.space, two, batch, self.form, micro_batch
                )
            )
            if self.form is not None and self.problem.micro_batch > 1:
                checks.batched_equals_sequential(self.problem, self.space, two, batch, self.form)
        self.ready = True

    def _evaluate(self, index: int, batch: Batch) -> dict[str, Tensor]:
        """Raw scores by reward, each (N, images); every rank evaluates its own run of members."""
        world, count = self.problem.world, self.members.count
        share = -(-count // world.size)
        firsts = [min(rank * share, count - share) for rank in range(world.size)]  # the last run may overlap
        mine = slice(firsts[world.rank], firsts[world.rank] + share)
        noise = self.problem.backend.noise(batch.seeds)
        scores = self.problem.retrying(lambda micro_batch: self._score(index, batch, noise, mine, micro_batch))
        place = [m // share * share + m - firsts[m // share] for m in range(count)]
        return {name: world.gather(values)[place] for name, values in scores.items()}

    def _score(self, index: int, batch: Batch, noise: Tensor, mine: slice, micro_batch: int) -> dict[str, Tensor]:
        """Scores (members, images) of a run of members, in chunks of at most ``micro_batch`` images."""
        images = len(batch.seeds)
        together = 1 if self.form is None else max(1, micro_batch // images)
        # Compiled blocks are compiled for a number of members: rather draw a few once more than compile for the rest.
        chunks = split_evenly if self.problem.backend.compiled and self.form is not None else split
        scores = {
            name: torch.empty(mine.stop - mine.start, images, device=self.device) for name in self.problem.rewards.names
        }
        for rows in chunks(mine.stop - mine.start, together):
            perturbations = self.member_noise(index, slice(mine.start + rows.start, mine.start + rows.stop))
            for columns in chunks(images, micro_batch):
                chunk = Chunk(rows.stop - rows.start, columns.stop - columns.start)
                part = Rows.of(batch, noise, columns, chunk.members)
                pictures = self._render(perturbations, chunk, part)
                raw = self.problem.rewards.score(pictures, part.conditioning.prompts, check=False)
                for name, values in raw.items():
                    scores[name][rows, columns] = values.view(chunk.members, chunk.images)
        self._stop_at_nonfinite(index, batch, noise, mine.start, scores)
        return scores

    def _stop_at_nonfinite(
        self, index: int, batch: Batch, noise: Tensor, first: int, scores: dict[str, Tensor]
    ) -> None:
        """Check all scores at once, since a check of every batch would make the device wait; draw the bad image again.

        Args:
            first: the member that the first row of the scores belongs to.

        Raises:
            RewardError: see ``RewardMix.score``.
        """
        finite = torch.stack([values.isfinite() for values in scores.values()]).all(0)
        if self.problem.rewards.drop_nonfinite or bool(finite.all()):
            return
        if self.problem.sharded:  # the other ranks would not draw with this one
            raise RewardError(f"a reward gave a score that is not finite in step {index + 1}")
        member, image = (~finite).nonzero()[0].tolist()
        column = slice(image, image + 1)
        part = Rows.of(batch, noise, column, 1)
        perturbation = self.member_noise(index, slice(first + member, first + member + 1))
        picture = self._render(perturbation, Chunk(1, 1), part)
        for name, values in scores.items():
            self.problem.rewards.check(name, values[member, column], picture, part.conditioning.prompts)

    def _render(self, perturbations: Mapping[str, Perturbation], chunk: Chunk, part: Rows) -> Tensor:
        space = self.space
        with space.member(perturbations) if self.form is None else space.population(perturbations, chunk, self.form):
            return self.problem.render(part.conditioning, part.seeds, part.noise)

    def member_noise(self, index: int, members: slice) -> Mapping[str, Perturbation]:
        """sigma E_i of some members, in parameter units."""
        sigma = {name: self.config.sigma * scale for name, scale in self.scales.items()}
        return self.members.draw(self.noise.of(self.seed, index, self.device), members, self.device, sigma)

    def _update(self, index: int, fitness: Fitness, gain: float) -> tuple[Tensor, float]:
        """One solver step, shortened by the gain; returns its norm and the learning rate."""
        config = self.config
        rate = config.learning_rate * schedule(config.schedule, index / self.steps, config.final_fraction)
        for group in self.solver.param_groups:
            group["lr"] = gain * rate * self.units[group["name"]]
        scale = step_scale(config.step_rule, config.sigma, int(fitness.used.sum()), antithetic=config.antithetic)
        mean = mean_perturbation(
            self.noise.of(self.seed, index, self.device), self.members, fitness, sign_only=self.sign_update
        )
        direction = {name: scale * value for name, value in mean.items()}
        self.stale = True
        return ascend(self.solver, self.space.parameters, direction, config.max_step_norm, config.max_norm), rate

    def _metrics(
        self, raw: dict[str, Tensor], combined: Tensor, fitness: Fitness, moved: Tensor, rate: float
    ) -> dict[str, float]:
        """Means over the population estimate the centre's: the perturbations have mean zero."""
        members = combined.nanmean(1)
        known = members[~members.isnan()]
        known = known if len(known) else members.new_full((1,), torch.nan)
        numbers = {f"reward/{name}": values[values.isfinite()].mean() for name, values in raw.items()}
        numbers |= {
            "population/mean": known.mean(),
            "population/std": known.std() if len(known) > 1 else known.new_zeros(()),
            "population/max": known.max(),
            "population/min": known.min(),
            "population/nonfinite": (~combined.isfinite()).any(1).float().mean(),
            "fitness/constant": fitness.constant.float(),
            "update/norm": moved,
            "parameters/norm": norm(self.space.parameters.values()),
        }
        return dict(zip(numbers, torch.stack(list(numbers.values())).tolist(), strict=True)) | {
            "learning_rate": rate,
            "sigma": self.config.sigma,
        }

    def trained(self) -> Mapping[str, Tensor]:
        return self.space.parameters

    @property
    def units(self) -> dict[str, float]:
        """What a learning rate of 1 is for each parameter."""
        return self.space.step_units(self.scales) if self.config.step_rule == "output" else self.scales

    def _gain(self, index: int, samples: Tensor) -> tuple[float, dict[str, float]]:
        """The step's gain and what there is to log about it; the last step says how many were held at zero."""
        step = spread(samples, self.config.antithetic)
        gain = self.signal.add(step)
        self.held += gain == 0
        if index + 1 == self.steps and self.held:
            log.warning(
                "%d of %d steps were held at zero length: the reward did not distinguish the members beyond chance",
                self.held,
                self.steps,
            )
        return gain, {
            "step/gain": gain,
            "step/signal": self.signal.share,
            "fitness/F": min(self.signal.ratio, LARGEST_F),
            "fitness/spread": math.sqrt(step.between),
        }

    def after_step(self, index: int) -> None:
        super().after_step(index)
        if self.uses_signal and self.signal.gain == 0:
            self._unmoved = 0  # held for a reason that is told at the end, not by accident

    def generate(self, conditioning: Conditioning, seeds: Sequence[int]) -> Tensor:
        self._commit()
        return super().generate(conditioning, seeds)

    def export(self, folder: Path) -> None:
        self._commit()
        super().export(folder)

    def check(self, folder: Path) -> str:
        if self.held == self.steps:  # a zero LoRA is then what the scores justify, and no fault of the export
            return (
                "No step was taken, because the reward did not distinguish the members beyond chance: the LoRA is zero."
            )
        return super().check(folder)

    def _commit(self) -> None:
        if self.stale:
            self.space.commit()
        self.stale = False

    def state(self) -> State:
        state = super().state()
        for name, parameter in self.space.parameters.items():
            state.tensors[name] = parameter.detach().cpu().clone()
            for key, value in self.solver.state[parameter].items():
                state.tensors[f"solver.{key}.{name}"] = torch.as_tensor(value).detach().cpu().clone()
        state.values |= {"scales": dict(self.scales), "signal": self.signal.state(), "held": self.held}
        return state

    def load_state(self, state: State) -> None:
        super().load_state(state)
        self.stale = True
        self.scales = dict(state.values["scales"])
        self.signal = Signal.of(state.values.get("signal", {}))  # older checkpoints have none
        self.held = state.values.get("held", 0)
        for name, parameter in self.space.parameters.items():
            parameter.data.copy_(state.tensors[name])
        for key, value in state.tensors.items():
            if key.startswith("solver."):
                _, slot, name = key.split(".", 2)
                parameter = self.space.parameters[name]
                self.solver.state[parameter][slot] = value.to(parameter.device if value.ndim else "cpu").clone()


@dataclass(frozen=True)
class Rows:
    """The batch of one forward: some images of the step, once for every member of the chunk, member-major."""

    conditioning: Conditioning
    seeds: list[int]
    noise: Tensor

    @classmethod
    def of(cls, batch: Batch, noise: Tensor, columns: slice, members: int) -> Rows:
        index = torch.arange(columns.start, columns.stop).repeat(members)
        return cls(
            batch.conditioning[index], batch.seeds[columns] * members, noise[index.to(noise.device, non_blocking=True)]
        )


class OpenES(EvolutionStrategy):
    """OpenAI-ES: full-rank Gaussian perturbations."""

    Config = OpenESConfig


class Eggroll(EvolutionStrategy):
    """EGGROLL: low-rank perturbations."""

    Config = EggrollConfig

    def setup(self, problem: Problem) -> None:
        self.noise_rank, self.sign_update = self.config.noise_rank, self.config.sign_update
        super().setup(problem)

    def make_space(self) -> Space:
        if self.config.parameters == "weights":
            return WeightSpace(self.problem.adapter, self.problem.backend.compiled)
        return super().make_space()
