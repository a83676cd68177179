"""A whole plugin without weights: a linear "diffusion model", a one-step sampler, rewards and a random search.

It doubles as the smallest example of every contract.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

import t2ialign
from t2ialign import seeding
from t2ialign.tensors.conditioning import Conditioning
from t2ialign.tensors.paths import FlowPath


def entry_point(name: str, plugin: Any, distribution: str = "toy-dist", version: str = "1.0") -> Any:
    """An object that looks like importlib.metadata's EntryPoint; an exception as plugin is raised on load."""

    def load() -> Any:
        if isinstance(plugin, Exception):
            raise plugin
        return plugin

    return SimpleNamespace(name=name, load=load, dist=SimpleNamespace(name=distribution, version=version))


class ToyDenoiser(t2ialign.Denoiser):
    def __init__(self, net: nn.Module, conditioning: Conditioning) -> None:
        super().__init__(FlowPath(), conditioning)
        self.net = net

    def predict(self, x: Tensor, t: Tensor) -> t2ialign.Prediction:
        text = self.conditioning.tensors["prompt_embeds"]
        x0 = self.net(torch.cat([x.flatten(1), text], 1)).view_as(x)
        return t2ialign.Prediction(x0, x)

    def rows(self, index: Tensor | Sequence[int]) -> ToyDenoiser:
        return ToyDenoiser(self.net, self.conditioning[index])


class ToyBackend(t2ialign.Backend):
    """48 noise numbers and 8 text numbers through two linear layers to a 4x4 image."""

    class Config(t2ialign.BackendConfig):
        def lora_targets(self) -> list[str]:
            return ["0", "2"]

    def __init__(self, config: Config, device: torch.device | str = "cpu") -> None:
        super().__init__(config, device)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Linear(56, 32), nn.Tanh(), nn.Linear(32, 48)).requires_grad_(False)
        self.info = t2ialign.BackendInfo("diffusion", (3, 4, 4), (4, 4), base_model="some/model")

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

    def load_lora(self, folder: Path) -> None:
        from safetensors.torch import load_file

        from t2ialign.lora.adapter import Adapter

        tensors = load_file(folder / "pytorch_lora_weights.safetensors")
        tensors = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
        config = t2ialign.LoraConfig(rank=tensors["0.lora_A.weight"].shape[0])
        Adapter(self.net, config, ["0", "2"]).load(tensors)


class ToyStep(t2ialign.Sampler):
    """One step from noise to x0."""

    def sample(self, denoiser: t2ialign.Denoiser, noise: Tensor, seeds: Sequence[int] | None = None) -> Tensor:
        return denoiser(noise, 1.0).x0


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
        same = torch.tensor([[a == b for a in prompts] for b in prompts]).fill_diagonal_(False)
        return (torch.cdist(colours, colours) * same).sum(1) / same.sum(1)


class Broken(t2ialign.Reward):
    """NaN for the prompt 'blue'."""

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return torch.tensor([torch.nan if prompt == "blue" else 0.0 for prompt in prompts])


class RandomSearch(t2ialign.LoraOptimizer):
    """Try a random change of the LoRA forwards and backwards; keep what scores best on the step's batch."""

    class Config(t2ialign.LoraOptimizerConfig):
        scale: float = Field(0.1, gt=0, description="size of the change")

    def step(self, index: int) -> t2ialign.StepResult:
        batch, seed = self.problem.draw(index), self.problem.spec.run.seed
        start = self.state().tensors
        change = {
            name: seeding.normal([seeding.derive(seed, "toy", index, name)], p.shape)[0] for name, p in start.items()
        }
        candidates = []
        for size in (0.0, self.config.scale, -self.config.scale):
            tensors = {name: p + size * change[name] for name, p in start.items()}
            self.problem.adapter.load(tensors)
            candidates.append((self._score(batch), tensors))
        best, tensors = max(candidates, key=lambda candidate: candidate[0])
        self.problem.adapter.load(tensors)
        return t2ialign.StepResult({"reward/toy-redness": best})

    def _score(self, batch: Any) -> float:
        images = self.problem.generate(batch.conditioning, batch.seeds)
        return (
            self.problem.rewards.combine(self.problem.rewards.score(images, batch.conditioning.prompts)).mean().item()
        )


class NeedsGradients(RandomSearch):
    """Wants a differentiable reward and a table-driven sampler."""


@t2ialign.hookimpl
def t2ialign_backends(register: Any) -> None:
    register("toy-model", ToyBackend, provides={"diffusion", "denoiser", "lora", "differentiable", "one-step"})
    register("toy-tokens", ToyBackend, summary="no denoiser, no LoRA", provides={"autoregressive"})


@t2ialign.hookimpl
def t2ialign_samplers(register: Any) -> None:
    register("toy-step", ToyStep, provides={"one-step"}, requires={"backend": {"denoiser"}})


@t2ialign.hookimpl
def t2ialign_rewards(register: Any) -> None:
    register("toy-redness", Redness)
    register("toy-darkness", Darkness)
    register("toy-broken", Broken)
    register("toy-variety", Variety)


@t2ialign.hookimpl
def t2ialign_optimizers(register: Any) -> None:
    register("toy-search", RandomSearch, requires={"backend": {"lora"}})
    register("toy-gradient", NeedsGradients, requires={"reward": {"differentiable"}, "sampler": {"table"}})
