"""A whole plugin without weights: two "models", two samplers, three rewards and a random search.

It is the smallest complete example of every contract, and the world in which plugins are tested: a step takes
milliseconds on a CPU.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor, nn

import t2ialign
from t2ialign import seeding
from t2ialign.hookspecs import Register
from t2ialign.tensors.conditioning import Conditioning
from t2ialign.tensors.paths import DiffusionPath, FlowPath


def network(inputs: int, outputs: int = 48, gain: float = 1.0) -> nn.Sequential:
    """Two frozen linear layers with seeded weights, which no draw of anyone else changes."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(inputs, 32), nn.Tanh(), nn.Linear(32, outputs)).requires_grad_(False)
    for name, parameter in net.named_parameters():
        if name.endswith("weight"):
            parameter.mul_(gain)
    return net


class ToyDenoiser(t2ialign.Denoiser):
    """x0 from the noisy image and the prompt, whatever the time: fit for one step."""

    def __init__(self, net: nn.Module, conditioning: Conditioning) -> None:
        super().__init__(FlowPath(), conditioning)
        self.net = net

    def network_output(self, x: Tensor, t: Tensor) -> Tensor:
        text = self.conditioning.tensors["prompt_embeds"]
        return self.net(torch.cat([x.flatten(1), text], 1)).view_as(x)

    def predict(self, x: Tensor, t: Tensor) -> t2ialign.Prediction:
        x0 = self.network_output(x, t)
        t = t.view(-1, 1, 1, 1)
        return t2ialign.Prediction(x0, (x - self.path.alpha(t) * x0) / self.path.sigma(t).clamp(min=1e-6))

    def rows(self, index: Tensor | Sequence[int]) -> ToyDenoiser:
        return type(self)(self.net, self.conditioning[index])


class FlowDenoiser(ToyDenoiser):
    """The velocity eps - x0 of a rectified flow, from the noisy image, the prompt and the time."""

    def network_output(self, x: Tensor, t: Tensor) -> Tensor:
        text = self.conditioning.tensors["prompt_embeds"]
        return self.net(torch.cat([x.flatten(1), text, t[:, None]], 1)).view_as(x)

    def predict(self, x: Tensor, t: Tensor) -> t2ialign.Prediction:
        velocity = self.network_output(x, t)
        t = t.view(-1, 1, 1, 1)
        return t2ialign.Prediction(x - t * velocity, x + (1 - t) * velocity)


class ToyBackend(t2ialign.Backend):
    """One step from 48 noise numbers and 8 text numbers, through two linear layers, to a 4x4 image."""

    class Config(t2ialign.BackendConfig):
        can_shard = True
        image_size: t2ialign.ImageSize = Field(4, description="pixels per side, or [height, width]")

        def lora_targets(self) -> list[str]:
            return ["0", "2"]

    def __init__(self, config: Config, device: torch.device | str = "cpu") -> None:
        super().__init__(config, device)
        size = t2ialign.height_width(config.image_size)
        self.info = t2ialign.BackendInfo("diffusion", (3, *size), size, base_model="some/model")
        self.net = self.build().to(self.device)

    def build(self) -> nn.Sequential:
        numbers = 3 * math.prod(t2ialign.height_width(self.config.image_size))
        return network(numbers + 8, numbers)

    @property
    def trainable(self) -> nn.Module:
        return self.net

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        seeds = [int.from_bytes(hashlib.sha256(p.encode()).digest()[:4], "little") for p in prompts]
        return Conditioning(tuple(prompts), {"prompt_embeds": seeding.normal(seeds, (8,), self.device)})

    def denoiser(self, conditioning: Conditioning) -> ToyDenoiser:
        return ToyDenoiser(self.net, conditioning)

    def decode(self, latents: Tensor) -> Tensor:
        return torch.sigmoid(latents)

    def snippet(self, sampler: t2ialign.Sampler | None = None) -> str:
        return 't2ialign.lora.file.load_lora_file(net, "pytorch_lora_weights.safetensors")'


class ToyFlow(ToyBackend):
    """The same sizes as a rectified flow that depends on time, curved enough that solvers differ."""

    def build(self) -> nn.Sequential:
        numbers = 3 * math.prod(t2ialign.height_width(self.config.image_size))
        return network(numbers + 9, numbers, gain=3)

    def denoiser(self, conditioning: Conditioning) -> FlowDenoiser:
        return FlowDenoiser(self.net, conditioning)


class ToyStep(t2ialign.Sampler):
    """One step from noise to x0."""

    def sample(self, denoiser: t2ialign.Denoiser, noise: Tensor, seeds: Sequence[int] | None = None) -> Tensor:
        return denoiser(noise, 1.0).x0


class ToySteps(t2ialign.StepSampler):
    """DDIM's step on any path, with a share of the remaining noise drawn anew."""

    class Config(t2ialign.SamplerConfig):
        steps: int = Field(4, ge=1, description="network evaluations")
        fresh: float = Field(0.0, ge=0, le=1, description="share of the noise that every step draws anew")

        def evaluations(self) -> int:
            return self.steps

        def provides(self) -> set[str]:
            return {"stochastic"} if self.fresh else set()

    def times(self, path: DiffusionPath) -> Tensor:
        return path.times(self.config.steps)

    def transition(
        self, path: DiffusionPath, x: Tensor, prediction: t2ialign.Prediction, t: Tensor, s: Tensor
    ) -> tuple[Tensor, Tensor]:
        alpha, sigma = path.coefficients(s)
        kept = (1 - self.config.fresh**2) ** 0.5
        return alpha * prediction.x0 + kept * sigma * prediction.eps, self.config.fresh * sigma


class Redness(t2ialign.Reward):
    """Mean red minus the mean of green and blue, in [-1, 1]."""

    differentiable = True

    class Config(t2ialign.Config):
        gain: float = Field(1.0, gt=0, description="multiplies the score")

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return self.config.gain * (images[:, 0] - images[:, 1:].mean(1)).mean((1, 2))


class Darkness(t2ialign.Reward):
    """Number of pixels below one half."""

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return (images < 0.5).float().sum((1, 2, 3))


class Variety(t2ialign.Reward):
    """Mean distance of the mean colour to those of the prompt's other images."""

    per_prompt = True

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        colours = images.mean((2, 3))
        same = torch.tensor([[a == b for a in prompts] for b in prompts]).fill_diagonal_(False).to(images.device)
        return (torch.cdist(colours, colours) * same).sum(1) / same.sum(1)


class RandomSearch(t2ialign.LoraOptimizer):
    """Try a random change of the LoRA forwards and backwards; keep what scores best on the step's batch."""

    class Config(t2ialign.LoraOptimizerConfig):
        scale: float = Field(0.1, gt=0, description="size of the change")

    def step(self, index: int) -> t2ialign.StepResult:
        problem = self.problem
        batch, start = problem.draw(index), self.state().tensors
        change = {
            name: seeding.normal([seeding.derive(problem.spec.run.seed, "toy", index, name)], p.shape)[0]
            for name, p in start.items()
        }
        candidates, scores = [], []
        for size in (0.0, self.config.scale, -self.config.scale):
            candidates.append({name: p + size * change[name] for name, p in start.items()})
            problem.adapter.load(candidates[-1])
            images = problem.generate(batch.conditioning, batch.seeds)
            scores.append(problem.rewards.score(images, batch.conditioning.prompts))
        # What is normalised over the batch or over a prompt needs all candidates at once, or it could not compare them.
        raw = {name: torch.stack([score[name] for score in scores]) for name in scores[0]}  # (3, images)
        fitness = problem.rewards.combine(raw, batch.prompt_index).nanmean(1).tolist()
        best = max(range(len(candidates)), key=fitness.__getitem__)
        problem.adapter.load(candidates[best])
        return t2ialign.StepResult(
            {f"reward/{name}": values[best].nanmean().item() for name, values in raw.items()}, images
        )


@t2ialign.hookimpl
def t2ialign_backends(register: Register) -> None:
    can = {"diffusion", "denoiser", "lora", "differentiable"}
    register("toy-model", ToyBackend, provides={*can, "one-step"})
    register("toy-flow", ToyFlow, provides={*can, "multi-step"})


@t2ialign.hookimpl
def t2ialign_samplers(register: Register) -> None:
    denoiser = {"backend": {"denoiser"}}
    register("toy-step", ToyStep, provides={"one-step"}, requires=denoiser)
    register("toy-steps", ToySteps, provides={"multi-step", "differentiable"}, requires=denoiser)


@t2ialign.hookimpl
def t2ialign_rewards(register: Register) -> None:
    register("toy-redness", Redness)
    register("toy-darkness", Darkness)
    register("toy-variety", Variety)


@t2ialign.hookimpl
def t2ialign_optimizers(register: Register) -> None:
    register("toy-search", RandomSearch, requires={"backend": {"lora"}})
