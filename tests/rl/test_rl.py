"""The optimizers on the toy world."""

import math
import tomllib
from pathlib import Path

import pytest
import torch

import t2ialign
from t2ialign.problem.optimizer import load_optimizer
from t2ialign.problem.problem import assemble
from t2ialign.spec import parse as specs
from t2ialign.testing import check_optimizer, installed, run_spec, write_spec
from t2ialign.testing.toy import ToyFlow
from t2ialign_rl import plugin
from t2ialign_rl.methods.awm import Awm
from t2ialign_rl.methods.draft import Draft
from t2ialign_rl.methods.flow_grpo import FlowGrpo
from t2ialign_rl.methods.nft import Nft
from t2ialign_rl.methods.online_dpo import OnlineDpo
from t2ialign_rl.methods.srpo import Srpo

FLOW = {
    "backend": {"kind": "toy-flow", "checkpoint": "some/model", "dtype": "float32", "lora": {"rank": 4}},
    "sampler": {"kind": "toy-steps"},
}
PROMPTS = {"file": "prompts.txt", "per_step": 5, "images_per_prompt": 8}


@pytest.mark.parametrize("optimizer", [Nft, Awm, FlowGrpo, OnlineDpo, Draft])
@pytest.mark.parametrize("options", [{}, {"updates": 2, "ema": 0.9}], ids=["plain", "several-updates"])
def test_contract(optimizer, options):
    check_optimizer(optimizer(optimizer.Config(**options)))


@pytest.mark.parametrize(
    ("optimizer", "options"),
    [
        (Draft, {"last": 3, "last_draw": "uniform", "kl": 0.1}),
        (Draft, {"refl": 2, "target": 0.5}),
        (Draft, {"noisings": 2}),
        (Draft, {"last_draw": "each", "kl": 0.1}),
        (Awm, {"ratio": "image", "kl_form": "elbo", "slow_kl_form": "elbo", "updates": 2}),
        (OnlineDpo, {"reference_every": 1, "time_draw": "uniform"}),
        (Srpo, {"levels": 50}),
    ],
)
def test_contract_of_variants(optimizer, options):
    check_optimizer(optimizer(optimizer.Config(**options)))


@pytest.mark.parametrize(
    ("kind", "options", "steps", "fresh"),
    [
        ("nft", {}, 30, 0.0),
        ("awm", {}, 30, 0.0),
        ("online-dpo", {}, 30, 0.0),
        ("flow-grpo", {}, 150, 1.0),
        ("flow-grpo", {"window": 1, "window_course": "random", "same_noise": True}, 60, 1.0),
        ("draft", {}, 10, 0.0),
        ("draft", {"last": 4, "last_draw": "uniform"}, 10, 0.5),
        ("draft", {"refl": 2}, 10, 0.0),
        ("draft", {"noisings": 2}, 10, 0.0),
    ],
)
def test_the_reward_rises_on_held_out_noise(tmp_path, kind, options, steps, fresh):
    run = run_spec(
        tmp_path,
        plugin,
        **FLOW | {"sampler": {"kind": "toy-steps", "fresh": fresh}},
        run={"steps": steps, "out": str(tmp_path / "runs")},
        optimizer={"kind": kind, "learning_rate": 1e-2, **options},
        prompts=PROMPTS,
        evaluation={"images_per_prompt": 16},
    )
    gain = run.summary()["paired"]["tuned"]["toy-redness"]
    assert gain["difference"] > 3 * gain["se"] > 0


@pytest.mark.parametrize("kind", ["nft", "awm"])
def test_the_first_step_is_at_the_base(tmp_path, kind):
    path = write_spec(tmp_path, **FLOW, optimizer={"kind": kind}, prompts=PROMPTS)
    with installed(plugin):
        metrics = load_optimizer(assemble(specs.load(path))).step(0).metrics
    assert metrics["learn/kl"] == 0
    if kind == "awm":
        assert metrics["learn/ratio"] == pytest.approx(1, abs=1e-5)
        assert metrics["learn/slow_kl"] == 0


def test_the_old_policy_draws(tmp_path):
    """With an old policy that stays what it was, images stay what they were while the LoRA changes."""
    with installed(plugin):
        spec = specs.load(
            write_spec(tmp_path, **FLOW, optimizer={"kind": "nft", "learning_rate": 0.1}, prompts=PROMPTS)
        )
        optimizer = load_optimizer(assemble(spec))
        before = optimizer.step(0)
        optimizer.old = {name: torch.zeros_like(tensor) for name, tensor in optimizer.old.items()}
        again = optimizer.step(0)
    assert torch.equal(again.images, before.images)
    assert again.metrics["learn/kl"] > 0


@pytest.mark.parametrize(
    ("options", "tables", "says"),
    [
        ({"kind": "nft"}, {"prompts": {**PROMPTS, "images_per_prompt": 1}}, "images_per_prompt must be 2 or more"),
        ({"kind": "nft", "times": 20}, {}, "times must be at most 9"),
        ({"kind": "nft", "updates": 41}, {}, "40 images"),
        ({"kind": "draft"}, {"reward": [{"kind": "toy-redness", "normalise": "zscore"}]}, "compares images"),
        ({"kind": "draft"}, {"reward": [{"kind": "toy-darkness"}]}, "'differentiable'"),
        ({"kind": "draft", "noisings": 1, "last": 2}, {}, "leave refl, last and last_draw out"),
        ({"kind": "srpo", "between": [30, 20]}, {}, "two ascending steps from 1 to 49"),
    ],
)
def test_what_cannot_work_is_refused(tmp_path, options, tables, says):
    path = write_spec(tmp_path, **{**FLOW, "prompts": PROMPTS, **tables}, optimizer=options)

    def planned():
        spec = specs.load(path)
        return spec.optimizer_config.plan(spec)

    with installed(plugin), pytest.raises(t2ialign.T2IAlignError, match=says):
        planned()


class Colour(t2ialign.Reward):
    """How much more an image has of the colour that a prompt begins with than of the others, in [-1, 1]."""

    differentiable = True

    def score(self, images, prompts):
        wanted = torch.tensor([["red", "green", "blue"].index(prompt.partition(".")[0]) for prompt in prompts])
        means = images.mean((2, 3))
        return 1.5 * (means.gather(1, wanted.to(images.device)[:, None])[:, 0] - means.mean(1))


def test_srpo_comes_closer_to_the_good_phrase(tmp_path):
    """No prompt asks for red: only the phrase does."""

    class Colours:
        @t2ialign.hookimpl
        def t2ialign_rewards(self, register):
            register("colour", Colour)

    (tmp_path / "plain.txt").write_text("green\nblue\n")
    run = run_spec(
        tmp_path,
        plugin,
        Colours(),
        **FLOW,
        run={"steps": 10, "out": str(tmp_path / "runs")},
        optimizer={"kind": "srpo", "learning_rate": 1e-2, "positive": ["red"], "negative": ["blue"]},
        reward=[{"kind": "colour"}, {"kind": "toy-redness", "weight": 0.0}],
        prompts={"file": "plain.txt", "per_step": 2, "images_per_prompt": 8},
        evaluation={"images_per_prompt": 16},
    )
    gain = run.summary()["paired"]["tuned"]["toy-redness"]
    assert gain["difference"] > 0.01


def test_dpo_starts_at_the_reference(tmp_path):
    path = write_spec(tmp_path, **FLOW, optimizer={"kind": "online-dpo"}, prompts=PROMPTS)
    with installed(plugin):
        metrics = load_optimizer(assemble(specs.load(path))).step(0).metrics
    assert metrics["learn/pairs"] == 5
    assert metrics["learn/loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert metrics["learn/gradient_norm"] > 0


def test_draft_learns_from_nothing_but_its_last_calls(tmp_path):
    """More calls with a gradient draw the same images and give another update."""
    found = []
    for last in (1, 4):
        path = write_spec(tmp_path, **FLOW, optimizer={"kind": "draft", "last": last}, prompts=PROMPTS)
        with installed(plugin):
            optimizer = load_optimizer(assemble(specs.load(path)))
            found.append((optimizer.step(0).metrics, optimizer.state().tensors))
    (short, a), (long, b) = found
    assert short["reward/toy-redness"] == pytest.approx(long["reward/toy-redness"], abs=1e-6)
    assert short["learn/gradient_norm"] != pytest.approx(long["learn/gradient_norm"], rel=0.01)
    assert any(not torch.equal(a[name], b[name]) for name in a)


def test_draft_leaves_out_images_without_a_score(tmp_path):
    class Broken(t2ialign.Reward):
        """Redness, but nothing for prompts that begin with r."""

        differentiable = True

        def score(self, images, prompts):
            bad = torch.tensor([prompt.startswith("r") for prompt in prompts])
            redness = images[:, 0].mean((1, 2)) - images[:, 1:].mean((1, 2, 3))
            return torch.where(bad, (redness - 10).log(), redness)

    class Rewards:
        @t2ialign.hookimpl
        def t2ialign_rewards(self, register):
            register("broken", Broken)

    run = {"steps": 1, "out": str(tmp_path / "runs"), "nonfinite": "drop"}
    tables = FLOW | {"run": run, "reward": [{"kind": "broken"}], "prompts": PROMPTS}
    path = write_spec(tmp_path, **tables, optimizer={"kind": "draft"})
    with installed(plugin, Rewards()):
        optimizer = load_optimizer(assemble(specs.load(path)))
        metrics = optimizer.step(0).metrics
    assert -1 <= metrics["reward/broken"] <= 1
    assert metrics["learn/gradient_norm"] > 0
    assert all(bool(tensor.isfinite().all()) for tensor in optimizer.state().tensors.values())


@pytest.mark.parametrize(
    ("backend", "refused"),
    [
        ({"kind": "sd15"}, False),
        ({"kind": "sd-turbo", "checkpoint": "pkg:t2ialign_shapes/checkpoints/sd-turbo"}, True),
        ({"kind": "sd15", "base_lora": [{"path": "ByteDance/Hyper-SD/Hyper-SD15-8steps-CFG-lora.safetensors"}]}, True),
        ({"kind": "flux"}, True),
        ({"kind": "flux", "checkpoint": "black-forest-labs/FLUX.1-dev"}, False),
        ({"kind": "z-image"}, True),
        ({"kind": "z-image", "checkpoint": "Tongyi-MAI/Z-Image"}, False),
        ({"kind": "flux2-klein"}, True),
        ({"kind": "flux2-klein", "checkpoint": "black-forest-labs/FLUX.2-klein-base-4B"}, False),
        ({"kind": "qwen-image"}, False),
        ({"kind": "sana-sprint"}, True),
        ({"kind": "sana"}, False),
    ],
    ids=lambda value: value if isinstance(value, bool) else "-".join(map(str, value.values())).replace("/", "-"),
)
@pytest.mark.parametrize("kind", ["nft", "online-dpo", "draft"])
def test_models_distilled_to_a_few_steps(tmp_path, backend, refused, kind):
    path = write_spec(
        tmp_path,
        backend=backend,
        sampler={"kind": "ddim"},
        reward=[{"kind": "clipscore"}],
        prompts=PROMPTS,
        optimizer={"kind": kind},
    )

    def planned(*overrides):
        spec = specs.load(path, overrides)
        return spec.optimizer_config.plan(spec)

    with installed(everything=True):
        if not refused or kind == "draft":
            assert planned().images_per_step == 40
            return
        with pytest.raises(t2ialign.T2IAlignError, match="distilled to a few steps"):
            planned()
        assert planned("optimizer.few_step='warn'").images_per_step == 40


def test_a_distilled_model_is_warned_of(tmp_path, caplog):
    class Turbo:
        @t2ialign.hookimpl
        def t2ialign_backends(self, register):
            can = {"diffusion", "denoiser", "lora", "differentiable", "multi-step", "few-step"}
            register("turbo", ToyFlow, provides=can)

    tables = {**FLOW, "backend": {**FLOW["backend"], "kind": "turbo"}, "prompts": PROMPTS}
    path = write_spec(tmp_path, **tables, optimizer={"kind": "awm", "few_step": "warn"})
    with installed(plugin, Turbo()):
        load_optimizer(assemble(specs.load(path)))
    assert "distilled to a few steps: its images blur" in caplog.text


SPECS = sorted(Path(__file__).parents[2].glob("specs/*.toml"))
SHIPPED = [path for path in SPECS if path.name.startswith(("nft", "awm", "dpo", "flow-grpo", "grpo", "draft", "srpo"))]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_specs_are_valid(path):
    """The checkpoints of most are not on disk, and need not be."""
    with installed(everything=True):
        spec = specs.load(path)
        assert spec.optimizer_config.plan(spec).steps == spec.run.steps


def test_there_are_shipped_specs_of_every_method():
    with installed(plugin) as registry:
        kinds = {kind for kind, one in registry.parts["optimizer"].items() if one.distribution != "toy-dist"}
    found = {tomllib.loads(path.read_text(encoding="utf-8"))["optimizer"]["kind"] for path in SHIPPED}
    assert kinds - {"toy-search"} == found
