"""The toy world with a differentiable one-step sampler, a multi-step-only backend, and this plugin."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import misfits
import pytest
import tomli_w
from torch import Tensor

import t2ialign
from t2ialign import plugins
from t2ialign.testing import installed, toy
from t2ialign_reno import plugin


class ToyTwice(t2ialign.Sampler):
    """Two steps: half-way to x0, then to x0."""

    def sample(self, denoiser: t2ialign.Denoiser, noise: Tensor, seeds: Sequence[int] | None = None) -> Tensor:
        return denoiser((noise + denoiser(noise, 1.0).x0) / 2, 0.5).x0


class ToyWorld:
    """More of the toy plugin's parts under other capabilities."""

    @t2ialign.hookimpl
    def t2ialign_backends(self, register: Any) -> None:
        register("toy-diffusion", toy.ToyBackend, provides={"diffusion", "denoiser", "differentiable", "multi-step"})

    @t2ialign.hookimpl
    def t2ialign_samplers(self, register: Any) -> None:
        register("toy-differentiable", toy.ToyStep, provides={"one-step", "differentiable"})
        register("toy-twice", ToyTwice, provides={"multi-step"}, requires={"backend": {"denoiser"}})


@pytest.fixture
def registry() -> Iterator[plugins.Registry]:
    with installed(misfits, ToyWorld(), plugin) as found:
        yield found


@pytest.fixture
def reno_spec(tmp_path: Path, registry: plugins.Registry) -> Callable[..., Path]:
    """Write a spec of the toy world; keyword arguments update tables, or replace them where they are no tables."""

    def write(
        prompts_file: str = "prompts.txt", texts: str = "red\ngreen\nblue\nblack\nwhite\n", **tables: Any
    ) -> Path:
        (tmp_path / prompts_file).write_text(texts)
        tree: dict[str, Any] = {
            "run": {"steps": 6, "out": str(tmp_path / "runs"), "checkpoint_every": 2},
            "backend": {"kind": "toy-model", "checkpoint": "some/model", "dtype": "float32"},
            "sampler": {"kind": "toy-differentiable"},
            "optimizer": {"kind": "reno", "learning_rate": 40.0},
            "reward": [{"kind": "toy-redness"}, {"kind": "toy-darkness", "weight": 0.0}],
            "prompts": {"file": prompts_file, "per_step": 2, "images_per_prompt": 1},
            "samples": {"every": 0},
        }
        for name, table in tables.items():
            update = {**tree.get(name, {}), **table} if isinstance(table, dict) else table
            tree[name] = {k: v for k, v in update.items() if v is not None} if isinstance(table, dict) else table
        path = tmp_path / "spec.toml"
        path.write_text(tomli_w.dumps(tree))
        return path

    return write
