"""The assembled run: backend, sampler, rewards and prompts wired together, and every seed they use."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar, TypeVar

import torch
from torch import Tensor

from t2ialign.errors import blaming
from t2ialign.lora.adapter import Adapter, move_adapters
from t2ialign.lora.file import attach
from t2ialign.parts.backend import Backend
from t2ialign.parts.sampler import Sampler
from t2ialign.problem import checks, numerics
from t2ialign.problem.mix import MixedReward, RewardMix
from t2ialign.problem.rollout import Rollout, draw, joined
from t2ialign.spec.model import Chosen, Spec
from t2ialign.spec.parse import parse_sampler
from t2ialign.spec.prompts import Prompt, data_of
from t2ialign.tensors import distributed, seeding
from t2ialign.tensors.batching import split, with_oom_retry
from t2ialign.tensors.conditioning import Conditioning
from t2ialign.tensors.distributed import World

log = logging.getLogger(__name__)
T = TypeVar("T")
#: Draws one image for every row of a conditioning and its seed.
Generate = Callable[[Conditioning, Sequence[int]], Tensor]


@dataclass(frozen=True)
class Batch:
    """The prompts and images of one step, the same for everyone who looks at that step.

    Attributes:
        prompts: indices of the drawn prompts, distinct while there are enough.
        conditioning: one row per image, prompt-major: the images of a prompt are neighbours.
        seeds: one per image.
        prompt_index: position in ``prompts`` of each image (rows,).
    """

    prompts: list[int]
    conditioning: Conditioning
    seeds: list[int]
    prompt_index: Tensor


@dataclass
class Problem:
    """Everything an optimizer works on.

    Attributes:
        prompts: the training prompts.
        conditioning: their encodings, one row per prompt, on the CPU where the backend leaves them there.
        texts: all prompts that the spec names, each once, the training prompts first.
        encoded: their encodings.
        output: where an optimizer may put what is finished while the run goes on; None outside a run directory.
        micro_batch: images per forward pass.
        watchers: told the images of every pass of an autoregressive model, as ``Denoiser.watchers`` of calls.
    """

    watchers: ClassVar[list[Callable[[int], None]]] = []

    spec: Spec
    backend: Backend
    sampler: Sampler | None
    rewards: RewardMix
    prompts: list[str]
    conditioning: Conditioning
    device: torch.device
    world: World = field(default_factory=World)
    lora: Adapter | None = None
    output: Path | None = None
    texts: Sequence[str] = ()
    encoded: Conditioning | None = None

    def __post_init__(self) -> None:
        self.micro_batch = self.spec.run.micro_batch

    @property
    def adapter(self) -> Adapter:
        """The attached LoRA; optimizers that require "lora" always have one."""
        if self.lora is None:
            raise RuntimeError("no LoRA is attached: the optimizer does not declare that it requires 'lora'")
        return self.lora

    @property
    def sharded(self) -> bool:
        """Whether the network's weights are split over the ranks, so that all of them call it equally often."""
        return self.spec.backend_config.shard != "none" and self.world.size > 1

    def base(self) -> AbstractContextManager[None]:
        """Context in which the backend is the frozen base model."""
        return self.lora.disabled() if self.lora else nullcontext()

    def draw(self, step: int) -> Batch:
        """The prompts and seeds of a step, a function of (run seed, step) alone."""
        seed, options = self.spec.run.seed, self.spec.prompts
        chosen = seeding.choose(seeding.derive(seed, "prompts", step), len(self.prompts), options.per_step)
        index = torch.arange(len(chosen)).repeat_interleave(options.images_per_prompt)
        seeds = [
            seeding.derive(seed, "image", step, position, image)
            for position in range(len(chosen))
            for image in range(options.images_per_prompt)
        ]
        return Batch(chosen, self.conditioning[torch.tensor(chosen)[index]], seeds, index.to(self.device))

    def render(self, conditioning: Conditioning, seeds: Sequence[int], noise: Tensor | None = None) -> Tensor:
        """Images in one pass, with gradients if they are enabled."""
        with blaming(self.backend.label):
            batch = self.backend.generate(conditioning, seeds, self.sampler, noise)
        self._told(len(seeds))
        return checks.images(self.backend, batch, len(seeds))

    def _told(self, images: int) -> None:
        for watch in self.watchers if self.backend.info.family == "autoregressive" else ():
            watch(images)

    def retrying(self, run: Callable[[int], T]) -> T:
        """``run(micro_batch)``; a micro-batch that does not fit into memory is halved, for all that follows too."""
        result, self.micro_batch = with_oom_retry(run, self.micro_batch, fixed=self.sharded)
        return result

    @torch.no_grad()
    def generate(self, conditioning: Conditioning, seeds: Sequence[int], noise: Tensor | None = None) -> Tensor:
        """Images (B, 3, H, W) in micro-batches, without gradients."""

        def part(rows: slice) -> Tensor:
            return self.render(conditioning[rows], seeds[rows], None if noise is None else noise[rows])

        return self.retrying(lambda size: torch.cat([part(rows) for rows in split(len(conditioning), size)]))

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Clean latents (B, *latent) to images (B, 3, H, W) in micro-batches, without gradients."""

        def part(rows: slice) -> Tensor:
            with blaming(self.backend.label):
                return checks.images(self.backend, self.backend.decode(latents[rows]), len(latents[rows]))

        return self.retrying(lambda size: torch.cat([part(rows) for rows in split(len(latents), size)]))

    @torch.no_grad()
    def dealt(
        self,
        generate: Callable[[Conditioning, Sequence[int]], Tensor],
        conditioning: Conditioning,
        seeds: Sequence[int],
    ) -> Tensor:
        """``generate``'s images (B, 3, H, W) on every rank, each of them drawn by one; all ranks call this together."""
        mine = self.world.mine(len(seeds))
        if self.world.size == 1:
            return generate(conditioning, seeds)
        return self.world.collect(generate(conditioning[mine], [seeds[row] for row in mine]), len(seeds))

    @torch.no_grad()
    def rollout(
        self,
        conditioning: Conditioning,
        seeds: Sequence[int],
        sampler: Sampler | Callable[[slice], Sampler] | None = None,
        trajectory: bool = False,
        noise: Tensor | None = None,
    ) -> Rollout:
        """Latents and images of a diffusion model in micro-batches, without gradients.

        Args:
            conditioning: B rows.
            seeds: one per image.
            sampler: default: the run's; a function gives each slice of rows a sampler of its own.
            trajectory: keep what a ``StepSampler`` went through, too.
            noise: initial noise (B, *latent_shape) in place of the seeds' own.
        """
        chosen = sampler or self.sampler

        def part(rows: slice) -> Rollout:
            own = chosen if isinstance(chosen, Sampler) else chosen(rows) if chosen else None
            start = None if noise is None else noise[rows]
            return draw(self.backend, own, conditioning[rows], seeds[rows], trajectory, start)

        return self.retrying(lambda size: joined([part(rows) for rows in split(len(seeds), size)]))

    @torch.no_grad()
    def draw_tokens(
        self, conditioning: Conditioning, seeds: Sequence[int], plain: bool = True, guided: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Images and tokens of an autoregressive model in micro-batches; see ``Backend.draw_tokens``."""

        def part(rows: slice) -> tuple[Tensor, Tensor]:
            with blaming(self.backend.label):
                images, tokens = self.backend.draw_tokens(conditioning[rows], seeds[rows], plain, guided)
            self._told(len(images))
            return checks.images(self.backend, images, len(seeds[rows])), tokens

        def run(size: int) -> tuple[Tensor, Tensor]:
            images, tokens = zip(*map(part, split(len(seeds), size)), strict=True)
            return torch.cat(images), torch.cat(tokens)

        return self.retrying(run)

    def references(
        self, conditioning: Conditioning, seeds: Sequence[int], optimised_only: bool = False
    ) -> dict[str, Tensor]:
        """Reference images (B, 3, H, W) by reward, for the rewards that compare with some: the base model's."""
        wanted = [part for part in self.rewards.references if part.mix.weight != 0 or not optimised_only]
        with self.base():
            return {part.name: self._drawing_for(part).generate(conditioning, seeds) for part in wanted}

    def _drawing_for(self, part: MixedReward) -> Problem:
        """The problem with the sampler of a reward's references."""
        table = part.reward.config.sampler
        return self if table is None else self.with_sampler(parse_sampler(table))

    def with_sampler(self, chosen: Chosen) -> Problem:
        """The same problem with another sampler."""
        return replace(self, sampler=load_sampler(chosen, self.device))

    def encode(self, texts: Sequence[str]) -> Conditioning:
        """One row per prompt; no text encoder loads for a prompt that the spec names."""
        if self.encoded is None or any(text not in self._rows for text in texts):
            return self.backend.encode(texts)
        return lines(self.encoded, [self._rows[text] for text in texts], texts)

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {text: row for row, text in enumerate(self.texts)}

    @cached_property
    def evaluation_prompts(self) -> list[str]:
        return list(self.spec.evaluation_prompts())


def assemble(
    spec: Spec,
    world: World | None = None,
    report: Callable[[str], None] = log.info,
    output: Path | None = None,
    prompts: Sequence[str] | None = None,
) -> Problem:
    """Load everything that a spec names.

    Args:
        spec: a validated spec.
        world: this process among its peers.
        report: called with one line before each stage that may take a while.
        output: see ``Problem``.
        prompts: in place of all that the spec names.

    Raises:
        UsageError: a checkpoint or a LoRA target is not usable.
    """
    numerics.apply(spec.run)
    device = distributed.device(spec.run.device)
    if device.type == "cpu":
        numerics.keep_freed_memory()
    report(f"loading {spec.backend.kind} from {spec.backend_config.checkpoint}")
    for part in (spec.backend, spec.sampler, spec.optimizer, *spec.rewards):
        if part:
            part.declaration.load()  # a wrong class is told before the model takes its minutes
    backend: Backend = spec.backend.build(device)
    sampler = load_sampler(spec.sampler, device) if spec.sampler else None
    training: list[str] = list(spec.training_prompts() if prompts is None else prompts)
    others = [*spec.evaluation_prompts(), *spec.optimizer_config.further_prompts(spec)] if prompts is None else []
    texts = list(dict.fromkeys([*training, *others]))
    report(f"encoding {len(texts)} prompts")
    with blaming(backend.label):
        encoded = backend.encode(texts)  # together: text encoders load once, before the network
    problem = Problem(
        spec,
        backend,
        sampler,
        RewardMix([]),
        training,
        encoded,
        device,
        world or World(),
        output=output,
        texts=texts,
        encoded=encoded,
    )
    problem.conditioning = problem.encode(training)
    if spec.uses_lora:
        report("attaching the LoRA")
        problem.lora = attach_lora(problem)
        if problem.sharded:
            report("sharding the network")
            backend.shard(problem.adapter.parameters().values(), problem.world)
    report("loading rewards: " + ", ".join(reward.name for reward in spec.rewards))
    problem.rewards = load_rewards(spec, device)
    return problem


def lines(encoded: Conditioning, rows: list[int], texts: Sequence[str]) -> Conditioning:
    """Rows for the lines of a prompt file: one row serves a text that stands twice, and each line keeps its data."""
    together = rows == list(range(rows[0], rows[0] + len(rows))) if rows else False
    part = encoded[rows[0] : rows[0] + len(rows)] if together else encoded[rows]
    seen = zip(part.prompts, texts, strict=True)  # a class-conditional backend spells a prompt out
    return Conditioning(tuple(Prompt(text, data_of(own)) for text, own in seen), part.tensors)


def load_sampler(chosen: Chosen, device: torch.device) -> Sampler:
    sampler: Sampler = chosen.build(device)
    return sampler


def attach_lora(problem: Problem) -> Adapter:
    """Attach the spec's LoRA; with init = "activations" generate some images to start A from."""
    config, seed = problem.spec.backend_config, problem.spec.run.seed
    if config.lora.start is not None:
        adapter = attach(problem.backend.adapted, problem.backend.read_lora(config.lora.start))
        move_adapters(adapter.module, problem.device)
        return adapter
    adapter = Adapter(problem.backend.adapted, config.lora, config.lora.targets or config.lora_targets(), seed)
    move_adapters(adapter.module, problem.device)
    if config.lora.init == "activations":
        count = min(config.lora.init_prompts, len(problem.prompts))
        chosen = seeding.choose(seeding.derive(seed, "lora-prompts"), len(problem.prompts), count)
        seeds = [seeding.derive(seed, "lora-image", position) for position in range(count)]
        adapter.start_from_activations(lambda: problem.generate(problem.conditioning[chosen], seeds))
    return adapter


def load_rewards(spec: Spec, device: torch.device) -> RewardMix:
    parts = [MixedReward(r.name, r.build(device), r.mix) for r in spec.rewards]
    return RewardMix(parts, drop_nonfinite=spec.run.nonfinite == "drop")
