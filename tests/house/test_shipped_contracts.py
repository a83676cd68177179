"""Every part that we ship keeps the contract that authors of plugins are held to."""

from __future__ import annotations

import pytest

from t2ialign import plugins
from t2ialign.testing import check_backend, check_reward, check_sampler, installed, toy
from t2ialign.testing.optimizers import OptimizerContract
from t2ialign.testing.samplers import SamplerContract

SHAPES = "pkg:t2ialign_shapes/checkpoints"
PARTS = plugins.registry().parts


def load(role: str, kind: str, **options):
    declared = PARTS[role][kind]
    return declared.load()(declared.config(**options))


#: Kinds that are tried with other options than their defaults, or cannot be tried on a path alone.
SAMPLERS = [
    *((kind, {}) for kind in sorted(PARTS["sampler"]) if kind not in ("diffusers", "sana-upstream-one-step")),
    ("ddim", {"eta": 1.0, "steps": 6}),
    ("heun", {"schedule": "polynomial", "steps": 5, "afs": True}),
    ("epd", {"points": 3, "steps": 3, "to_zero": True}),
]


@pytest.mark.parametrize(("kind", "options"), SAMPLERS, ids=lambda value: value if isinstance(value, str) else "")
def test_samplers(kind, options):
    check_sampler(load("sampler", kind, **options), differentiable="differentiable" in PARTS["sampler"][kind].provides)


def test_the_upstream_sampler_leaves_noise_and_nothing_else_is_wrong_with_it():
    found = SamplerContract(load("sampler", "sana-upstream-one-step"), differentiable=True).outcomes()
    assert [outcome.title for outcome in found if outcome.error] == [
        "Where every prediction is the same picture, that picture comes out"
    ]


@pytest.mark.parametrize(
    "kind",
    ["shapes-exact", "shapes-graded", "jpeg-compressibility", "jpeg-incompressibility", "random-control", "agreement"],
)
def test_rewards_without_weights(kind):
    check_reward(load("reward", kind))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "checkpoint", "options", "steps"),
    [
        ("sana-sprint", "sprint", {"complex_human_instruction": False}, 2),
        ("sd15", "sd", {}, 2),
        ("sd-turbo", "sd-turbo", {}, 1),
        ("var", "var", {}, 0),
    ],
)
def test_backends_on_the_shapes_world(kind, checkpoint, options, steps):
    backend = load("backend", kind, checkpoint=f"{SHAPES}/{checkpoint}", dtype="float32", **options)
    sampler = toy.ToySteps(toy.ToySteps.Config(steps=steps)) if steps else None
    gradients = "differentiable" in PARTS["backend"][kind].provides
    check_backend(backend, ("a red circle", "a blue square", "a green triangle"), sampler, gradients)


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=[pytest.mark.slow] * kind.startswith("dav"))
        for kind in sorted(PARTS["optimizer"])
        if kind != "grpo-ar"  # the toy world draws no tokens; tests/rl holds it on one that does
    ],
)
def test_optimizers_on_the_toy_world(kind, tmp_path):
    with installed(everything=True):
        OptimizerContract(kind, tmp_path, {"kind": kind}, {}).hold()
