"""Every option that does nothing at some settings of the others is told there, and nowhere else."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from t2ialign.config import BackendConfig
from t2ialign.idle import Idle
from t2ialign.plugins import registry
from t2ialign.remarks.collect import remarks
from t2ialign.remarks.tables import IDLE, idle_of
from t2ialign.spec import parse as specs
from t2ialign.spec.model import Chosen, ChosenReward, Spec

Tables = dict[str, Any]
ROOT = Path(__file__).parents[2]
SD, CLIP = "pkg:t2ialign_shapes/checkpoints/sd", "pkg:t2ialign_shapes/checkpoints/clip"


@cache
def base() -> Spec:
    tables = {"backend": {"kind": "sd15", "checkpoint": SD}, "sampler": {"kind": "ddim"}}
    return specs.load(ROOT / "specs/quickstart.toml", ["prompts.images_per_prompt=4"], tables)


def built(tables: Tables) -> Spec:
    """The quickstart on a model with guidance, with other tables; whether its parts go together plays no part here."""
    spec, changes = base(), dict[str, Any]()
    for name, table in tables.items():
        if name in specs.PARTS:
            options = {key: value for key, value in table.items() if key != "kind"}
            declared = registry().find(name, table["kind"])
            mix = {
                key: options.pop(key)
                for key in specs.RewardMixConfig.model_fields
                if name == "reward" and key in options
            }
            config = declared.config.model_validate(options)
            if name == "reward":
                changes["rewards"] = (ChosenReward(declared, config, specs.RewardMixConfig.model_validate(mix)),)
            else:
                changes[name] = Chosen(declared, config)
        else:
            old = getattr(spec, name)
            changes[name] = type(old).model_validate(old.model_dump(mode="python") | table)
    return replace(spec, **changes)


def of(role: str, kind: str, **options: Any) -> Tables:
    return {role: {"kind": kind, **options}}


def back(**options: Any) -> Tables:
    return of("backend", "sd15", checkpoint=SD, **options)


def opt(kind: str, **options: Any) -> Tables:
    return of("optimizer", kind, **options)


def sam(kind: str, **options: Any) -> Tables:
    return of("sampler", kind, **options)


def rew(kind: str, **options: Any) -> Tables:
    return of("reward", kind, **options)


CASE_FILES = ROOT / "tests/golden/cases"
CLIPPING = str(ROOT / "tests/golden/clipping")
TXT, CSV = str(CASE_FILES / "04-unicode-line-breaks/p.txt"), str(CASE_FILES / "02-prompt-csv/drawbench.csv")
VAR = {"checkpoint": "pkg:t2ialign_shapes/checkpoints/var"}
JUDGE = {"model": "a/b"}
ONE, MANY = {"prompts": {"per_step": 1, "images_per_prompt": 1}}, {"prompts": {"per_step": 4, "images_per_prompt": 4}}
FAR = {"run": {"steps": 200}}

#: option -> (settings at which it does nothing, settings at which it counts), several pairs where it has several.
CASES: list[tuple[str, Tables, Tables]] = [
    ("run.steps", opt("fk-steering") | {"run": {"steps": 7}}, {"run": {"steps": 7}}),
    ("run.micro_batch", {"run": {"micro_batch": 4000}}, {"run": {"micro_batch": 2}}),
    (
        "run.checkpoint_every",
        {"run": {"steps": 4, "checkpoint_every": 9}},
        {"run": {"steps": 9, "checkpoint_every": 9}},
    ),
    ("run.timeout", {"run": {"timeout": 60.0}}, {}),
    (
        "run.keep_checkpoints",
        {"run": {"steps": 10, "keep_checkpoints": 3}},
        {"run": {"steps": 30, "keep_checkpoints": 3}},
    ),
    ("prompts.column", {"prompts": {"file": TXT, "column": "Category"}, "evaluation": {"prompts": CSV}}, {}),
    ("prompts.per_step", {"prompts": {"per_step": 4000}}, {"prompts": {"per_step": 2}}),
    ("evaluation.every", {"run": {"steps": 4}, "evaluation": {"every": 5}}, {"evaluation": {"every": 2}}),
    (
        "evaluation.drift_threshold",
        rew("jpeg-compressibility") | {"evaluation": {"drift_threshold": 2.0}},
        {"evaluation": {"drift_threshold": 2.0}},
    ),
    ("evaluation.limit", {"evaluation": {"limit": 9999}}, {"evaluation": {"limit": 2}}),
    ("evaluation.column", {"evaluation": {"prompts": None, "column": "Category"}}, {}),
    (
        "evaluation.column",
        {"evaluation": {"prompts": TXT, "column": "Category"}},
        {"evaluation": {"prompts": CSV, "column": "Category"}},
    ),
    (
        "samples.every",
        {"run": {"steps": 4}, "samples": {"every": 70}},
        {"run": {"steps": 90}, "samples": {"every": 70}},
    ),
    (
        "samples.count",
        {"evaluation": {"limit": 3}, "samples": {"count": 5}},
        {"evaluation": {"limit": 6}, "samples": {"count": 5}},
    ),
    (
        "trackers.timeout",
        {"trackers": {"timeout": 5.0}},
        {"run": {"trackers": ["wandb"]}, "trackers": {"timeout": 5.0}},
    ),
    *(
        (
            f"trackers.{name}.{option}",
            {"trackers": {name: {option: "x"}}},
            {"run": {"trackers": [name]}, "trackers": {name: {option: "x"}}},
        )
        for name, option in {
            "tensorboard": "folder",
            "wandb": "project",
            "trackio": "project",
            "mlflow": "experiment",
            "swanlab": "project",
        }.items()
    ),
    (
        "range",
        rew("jpeg-compressibility", range=[0.0, 1.0]),
        rew("jpeg-compressibility", range=[0.0, 1.0], normalise="range"),
    ),
    (
        "weight",
        rew("jpeg-compressibility", weight=2.0) | opt("eggroll", shaping="zscore"),
        rew("jpeg-compressibility", weight=2.0) | opt("eggroll"),
    ),
    *(
        ("weight", rew("jpeg-compressibility", weight=2.0) | opt(kind), rew("jpeg-compressibility", weight=2.0))
        for kind in ("evo-search", "zero-order", "image-select", "online-dpo")
    ),
    (
        "normalise",
        rew("jpeg-compressibility", weight=0.0, normalise="rank"),
        rew("jpeg-compressibility", normalise="rank"),
    ),
    ("backend.revision", back(revision="x"), of("backend", "sd15", revision="x")),
    ("backend.lora.rank", back(lora={"rank": 8}) | opt("reno"), back(lora={"rank": 8})),
    (
        "backend.lora.init_prompts",
        back(lora={"init_prompts": 8}),
        back(lora={"init_prompts": 8, "init": "activations"}),
    ),
    ("backend.lora.rank", back(lora={"rank": 8, "start": "a/b"}), back(lora={"rank": 8})),
    (
        "backend.image_size",
        back(image_size=[24, 32]) | of("reward", "clipscore", model=CLIP),
        back(image_size=[24, 32]) | of("reward", "clipscore", model=CLIP, resize="letterbox"),
    ),
    ("backend.vae_micro_batch", back(vae_micro_batch=2, vae_slicing=True), back(vae_micro_batch=2)),
    ("backend.vae_micro_batch", back(vae_micro_batch=900), back(vae_micro_batch=2)),
    (
        "backend.gradient_checkpointing",
        back(gradient_checkpointing=["network"]),
        back(gradient_checkpointing=["network"]) | opt("nft"),
    ),
    (
        "backend.gradient_checkpointing",
        back(gradient_checkpointing=["decoder"]) | opt("nft"),
        back(gradient_checkpointing=["decoder"]) | opt("draft"),
    ),
    ("backend.vae_tiling", back(vae_tiling=True), back(vae_tiling=True, image_size=64)),
    (
        "backend.checkpoint",
        of("backend", "sdxl", checkpoint=CLIPPING) | sam("ddim"),
        of("backend", "sdxl", checkpoint=CLIPPING) | sam("diffusers", scheduler="DDPMScheduler"),
    ),
    (
        "backend.checkpoint",
        of("backend", "pixart-sigma", checkpoint=CLIPPING),
        of("backend", "sd15", checkpoint=CLIPPING),
    ),
    ("backend.lora_decoder", back(lora_decoder=True) | opt("reno"), back(lora_decoder=True)),
    (
        "backend.offload",
        back(offload="model") | {"run": {"device": "cpu"}},
        back(offload="model") | {"run": {"device": "auto"}},
    ),
    (
        "backend.base_lora[0].weight",
        back(base_lora=[{"path": "a/b", "weight": 0.0}]),
        back(base_lora=[{"path": "a/b", "weight": 0.5}]),
    ),
    ("backend.negative_prompt", back(negative_prompt="x", guidance_scale=1.0), back(negative_prompt="x")),
    ("backend.guidance_scale", back(guidance_scale=0.5), back(guidance_scale=2.0)),
    (
        "backend.guidance_scale",
        of("backend", "flux2-klein", guidance_scale=4.0),
        of("backend", "flux2-klein", guidance_scale=4.0, checkpoint="black-forest-labs/FLUX.2-klein-base-4B"),
    ),
    ("backend.top_p", of("backend", "var", **VAR, top_k=1, top_p=0.5), of("backend", "var", **VAR, top_p=0.5)),
    ("backend.depth", of("backend", "var", **VAR, depth=20), of("backend", "var", depth=20)),
    (
        "backend.top_k",
        of("backend", "var", **VAR, top_k=1) | {"evaluation": {"images_per_prompt": 2}},
        of("backend", "var", **VAR, top_k=2) | {"evaluation": {"images_per_prompt": 2}},
    ),
    (
        "backend.guidance_scale",
        of("backend", "var", **VAR, guidance_scale=2.0) | opt("grpo-ar"),
        of("backend", "var", **VAR, guidance_scale=2.0),
    ),
    (
        "backend.top_k",
        of("backend", "var", **VAR, top_k=2) | opt("grpo-ar", policy="guided"),
        of("backend", "var", **VAR, top_k=2) | opt("grpo-ar", policy="surrogate"),
    ),
    (
        "backend.guidance_scale",
        of("backend", "var", **VAR, guidance_scale=2.0) | opt("grpo-ar"),
        of("backend", "var", **VAR, guidance_scale=2.0) | opt("grpo-ar", policy="guided"),
    ),
    ("backend.top_p", of("backend", "infinity", top_k=1, top_p=0.5), of("backend", "infinity", top_p=0.5)),
    (
        "backend.cfg_insertion_layer",
        of("backend", "infinity", cfg_insertion_layer=-5, guidance_scale=1.0),
        of("backend", "infinity", cfg_insertion_layer=-5),
    ),
    ("backend.tau", of("backend", "infinity", top_k=1, tau=0.7), of("backend", "infinity", tau=0.7)),
    ("sampler.rho", sam("ddim", rho=5.0), sam("ddim", rho=5.0, schedule="polynomial")),
    ("sampler.to_zero", sam("ddim", to_zero=False), sam("ddim", to_zero=False, schedule="polynomial")),
    ("sampler.eta", sam("ddim", eta=1.0, steps=1), sam("ddim", eta=1.0, steps=2)),
    ("sampler.order", sam("ipndm", order=3, steps=2), sam("ipndm", order=3, steps=3)),
    ("sampler.points", sam("epd", points=3, table="a/b"), sam("epd", points=3)),
    ("sampler.probes_per_call", sam("epd", probes_per_call=2), sam("epd", probes_per_call=1)),
    ("optimizer.floor", opt("eggroll", floor=0.1, shaping="zscore"), opt("eggroll", floor=0.1)),
    (
        "optimizer.final_fraction",
        opt("open-es", final_fraction=0.5, schedule="constant"),
        opt("open-es", final_fraction=0.5),
    ),
    ("optimizer.train", opt("eggroll", train=["B"], parameters="weights"), opt("eggroll", train=["B"])),
    (
        "optimizer.patience",
        opt("image-select", patience=9) | {"run": {"steps": 9}},
        opt("image-select", patience=9) | FAR,
    ),
    ("optimizer.momentum", opt("reno", momentum=0.5) | {"run": {"steps": 1}}, opt("reno", momentum=0.5) | FAR),
    ("optimizer.potential", opt("fk-steering", particles=1, potential="max"), opt("fk-steering", potential="max")),
    ("optimizer.lmbda", opt("fk-steering", particles=1, lmbda=2.0), opt("fk-steering", lmbda=2.0)),
    ("optimizer.potential", opt("fk-steering", lmbda=0.0, potential="max"), opt("fk-steering", potential="max")),
    (
        "optimizer.ess_threshold",
        opt("fk-steering", adaptive=False, ess_threshold=0.2),
        opt("fk-steering", ess_threshold=0.2),
    ),
    (
        "optimizer.resample_from",
        opt("fk-steering", resample_from=90) | sam("ddim", eta=1.0),
        opt("fk-steering", resample_from=2) | sam("ddim", eta=1.0),
    ),
    (
        "optimizer.reentry",
        opt("evo-search", reentry="input") | sam("euler"),
        opt("evo-search", reentry="input") | sam("ddim", eta=1.0),
    ),
    (
        "optimizer.mutation_rate",
        opt("evo-search", mutation_rate=0.5, evolution_schedule=[2, 3, 4, 5]) | sam("ddim", eta=1.0),
        opt("evo-search", mutation_rate=0.5) | sam("ddim", eta=1.0),
    ),
    ("optimizer.initial_search", opt("dav", initial_search=True, particles=1), opt("dav", initial_search=True)),
    ("optimizer.alpha", opt("dav", alpha=0.1, particles=1, value_gradient=False), opt("dav", alpha=0.1, particles=1)),
    ("optimizer.guidance_cap", opt("dav", guidance_cap=0.5, value_gradient=False), opt("dav", guidance_cap=0.5)),
    (
        "optimizer.importance_sampling",
        opt("dav-search", importance_sampling="off", value_gradient=False),
        opt("dav-search", importance_sampling="off"),
    ),
    ("optimizer.accumulation", opt("dav", accumulation=2) | ONE, opt("dav", accumulation=2) | MANY),
    ("optimizer.target", opt("dav", target="sample", particles=1), opt("dav", target="sample")),
    ("optimizer.scale_std", opt("ppo-epd", scale_std=0.1), opt("ppo-epd", scale_std=0.1, scale_dir="bounded")),
    (
        "optimizer.scale_bound",
        opt("ppo-epd", scale_bound=0.3, scale_dir="log-normal"),
        opt("ppo-epd", scale_bound=0.3, scale_time="bounded"),
    ),
    ("optimizer.minibatch", opt("ppo-epd", minibatch=20) | MANY, opt("ppo-epd", minibatch=8) | MANY),
    ("optimizer.clip", opt("ppo-epd", clip=0.1, minibatch=16) | MANY, opt("ppo-epd", clip=0.1) | MANY),
    (
        "optimizer.validation_images",
        opt("ppo-epd", validation_images=4, validate_every=0),
        opt("ppo-epd", validation_images=4),
    ),
    ("optimizer.validate_every", opt("ppo-epd", validate_every=500) | FAR, opt("ppo-epd", validate_every=50) | FAR),
    ("optimizer.validation_images", opt("ppo-epd", validation_images=9999), opt("ppo-epd", validation_images=4)),
    (
        "optimizer.few_step",
        back() | opt("nft", few_step="warn"),
        of("backend", "sd-turbo") | opt("nft", few_step="warn"),
    ),
    ("optimizer.clip", opt("awm", clip=0.5), opt("awm", clip=0.5, updates=2)),
    ("optimizer.power", opt("awm", power=0.5, weighting="t"), opt("awm", power=0.5)),
    ("optimizer.kl_form", opt("awm", kl_form="elbo", kl=0.0), opt("awm", kl_form="elbo")),
    ("optimizer.slow_decay", opt("awm", slow_decay=0.5, slow_kl=0.0), opt("awm", slow_decay=0.5)),
    ("optimizer.clip", opt("flow-grpo", clip=0.1), opt("flow-grpo", clip=0.1, updates=2)),
    (
        "optimizer.window_stride",
        opt("flow-grpo", window_stride=2),
        opt("flow-grpo", window_stride=2, window=2) | sam("flow-sde"),
    ),
    (
        "optimizer.window_stride",
        opt("flow-grpo", window_stride=2, window=2, window_course="fixed") | sam("flow-sde"),
        opt("flow-grpo", window_stride=2, window=2) | sam("flow-sde"),
    ),
    (
        "optimizer.window_decay_rate",
        opt("flow-grpo", window_decay_rate=0.2, window_decay="linear", window=2) | sam("flow-sde"),
        opt("flow-grpo", window_decay_rate=0.2, window_decay="exponential", window=2) | sam("flow-sde"),
    ),
    ("optimizer.window", opt("flow-grpo", window=10) | sam("flow-sde"), opt("flow-grpo", window=9) | sam("flow-sde")),
    ("optimizer.kl_form", opt("flow-grpo", kl_form="exact"), opt("flow-grpo", kl_form="exact", kl=0.1)),
    ("optimizer.clip", opt("grpo-ar", clip=0.1), opt("grpo-ar", clip=0.1, updates=2)),
    (
        "optimizer.reference_every",
        opt("online-dpo", reference_every=300) | FAR,
        opt("online-dpo", reference_every=200) | FAR,
    ),
    ("optimizer.last_draw", opt("draft", last_draw="uniform"), opt("draft", last_draw="uniform", last=2)),
    ("optimizer.last", opt("draft", last=2, last_draw="each"), opt("draft", last=2)),
    ("optimizer.last", opt("draft", last=5) | sam("euler", steps=4), opt("draft", last=4) | sam("euler", steps=4)),
    ("optimizer.refl", opt("draft", refl=5) | sam("euler", steps=4), opt("draft", refl=4) | sam("euler", steps=4)),
    ("optimizer.warmup", opt("hyper-noise", warmup=300) | FAR, opt("hyper-noise", warmup=30) | FAR),
    (
        "optimizer.regulariser",
        opt("hyper-noise", regulariser="norm", regularisation=0.0),
        opt("hyper-noise", regulariser="norm"),
    ),
    ("revision", rew("clipscore", model=CLIP, revision="x"), rew("clipscore", revision="x")),
    (
        "offload",
        rew("hps", offload=True) | {"run": {"device": "cpu"}},
        rew("hps", offload=True) | {"run": {"device": "auto"}},
    ),
    ("tokenizer", rew("clipscore", model=CLIP, tokenizer="a/b"), rew("clipscore", model="c/d", tokenizer="a/b")),
    ("silence", rew("remote", url="http://x", silence=90.0), rew("remote", url="http://x", silence=9.0)),
    (
        "backoff",
        rew("remote", url="http://x", backoff=2.0, retries=0, wait=0.0),
        rew("remote", url="http://x", backoff=2.0),
    ),
    ("revision", rew("geneval", model=CLIP, revision="x"), rew("geneval", revision="x")),
    ("clip_revision", rew("geneval", clip=CLIP, clip_revision="x"), rew("geneval", clip_revision="x")),
    ("text_threshold", rew("geneval", model=CLIP, text_threshold=0.5), rew("geneval", text_threshold=0.5)),
    ("contained", rew("ocr", form="exact", contained=False), rew("ocr", contained=False)),
    ("every", rew("ocr", key="x", every=True), rew("ocr", every=True)),
    ("votes", rew("vlm-judge", **JUDGE, votes=3), rew("vlm-judge", **JUDGE, votes=3, temperature=0.7)),
    (
        "token_variable",
        rew("vlm-judge", **JUDGE, token_variable="X"),
        rew("vlm-judge", **JUDGE, token_variable="X", url="http://x"),
    ),
    ("dtype", rew("vlm-judge", **JUDGE, dtype="float32", url="http://x"), rew("vlm-judge", **JUDGE, dtype="float32")),
    ("question", rew("vlm-judge", **JUDGE, question="q", rubric="r.txt"), rew("vlm-judge", **JUDGE, question="q")),
    ("relative", rew("vlm-judge", **JUDGE, relative=False, form="number"), rew("vlm-judge", **JUDGE, relative=False)),
    ("pattern", rew("vlm-judge", **JUDGE, pattern="(1)"), rew("vlm-judge", **JUDGE, pattern="(1)", form="number")),
    (
        "mean",
        rew("vlm-judge", **JUDGE, mean="geometric"),
        rew("vlm-judge", **JUDGE, mean="geometric", form="questions"),
    ),
]


@cache
def all_told(number: int, which: int) -> list[str]:
    """The remarks on one of the two settings of a case."""
    return remarks(built(CASES[number][1 + which]), [])


@pytest.mark.parametrize("number", range(len(CASES)), ids=[f"{i}-{case[0]}" for i, case in enumerate(CASES)])
def test_an_option_is_told_where_it_does_nothing_and_not_where_it_counts(number):
    idle, counts = ([line for line in all_told(number, k) if f" {CASES[number][0]} = " in f" {line}"] for k in (0, 1))
    assert idle
    assert counts == []


def every_idle() -> list[Idle]:
    parts = (declared.config for kinds in registry().parts.values() for declared in kinds.values())
    return list(dict.fromkeys([idle for kind in [*IDLE, *parts] for idle in idle_of(kind)]))


def test_every_declaration_is_tried_above_and_says_what_to_do():
    lines = [line for number in range(len(CASES)) for line in all_told(number, 0)]
    untried = [idle for idle in every_idle() if not any(line.endswith(f": {idle.when}") for line in lines)]
    assert not untried
    assert all(idle.remedy for idle in every_idle())


def test_declarations_name_options_that_there_are():
    parts = {declared.config for kinds in registry().parts.values() for declared in kinds.values()}
    for kind in [*IDLE, *parts]:
        for idle in idle_of(kind):
            assert set(idle.options.split()) <= set(kind.model_fields), (kind, idle.options)
    assert BackendConfig in IDLE


@pytest.mark.parametrize("spec", sorted((ROOT / "specs").glob("*.toml")), ids=lambda path: path.stem)
def test_shipped_specs_have_no_idle_option(spec):
    plain = "training images are drawn without it; grids and evaluation have it"  # which is what that spec wants
    assert [line for line in remarks(specs.load(spec), []) if not line.endswith(plain)] == []
