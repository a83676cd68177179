"""Toy parts that a spec must refuse, or a run must stop at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import t2ialign
from t2ialign.testing import toy


class Broken(t2ialign.Reward):
    """NaN for the prompt 'blue'."""

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return torch.tensor([torch.nan if prompt == "blue" else 0.0 for prompt in prompts])


class NeedsGradients(toy.RandomSearch):
    """Wants a differentiable reward and a table-driven sampler."""


@t2ialign.hookimpl
def t2ialign_backends(register: Any) -> None:
    register("toy-tokens", toy.ToyBackend, summary="no denoiser, no LoRA", provides={"autoregressive"})


@t2ialign.hookimpl
def t2ialign_rewards(register: Any) -> None:
    register("toy-broken", Broken)


@t2ialign.hookimpl
def t2ialign_optimizers(register: Any) -> None:
    register("toy-gradient", NeedsGradients, requires={"reward": {"differentiable"}, "sampler": {"table"}})
