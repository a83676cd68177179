"""The checkpoints in Stable Diffusion's format load in its stock pipeline and are as good as their cards say."""

import json
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from shapes_training.benchmark import balanced_captions

from t2ialign_shapes import detector
from t2ialign_shapes.tokenizer import MAX_LENGTH, build_tokenizer

CHECKPOINTS = Path(str(files("t2ialign_shapes"))) / "checkpoints"
NAMES = ("sd", "sd-turbo")


def figures_of(name):
    return json.loads((CHECKPOINTS / name / "evaluation.json").read_text())


def call_of(name):
    """Arguments of the pipeline with which the card's accuracy was measured."""
    sampling = figures_of(name).get("sampling", {"steps": 1, "guidance": 0.0})
    return {"num_inference_steps": sampling["steps"], "guidance_scale": sampling["guidance"], "output_type": "pt"}


@pytest.fixture(scope="module")
def pipelines():
    from diffusers import DiffusionPipeline

    loaded = {name: DiffusionPipeline.from_pretrained(CHECKPOINTS / name) for name in NAMES}
    for pipeline in loaded.values():
        pipeline.set_progress_bar_config(disable=True)
    return loaded


def unit_noise(count, seed=0):
    return torch.randn(count, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_is_a_complete_float32_stable_diffusion(pipelines, name):
    pipeline = pipelines[name]
    assert type(pipeline).__name__ == "StableDiffusionPipeline"
    for part in (pipeline.unet, pipeline.text_encoder, pipeline.vae):
        assert part.dtype == torch.float32
    assert pipeline("a circle", **call_of(name)).images.shape == (1, 3, 32, 32)


@pytest.mark.parametrize("name", NAMES)
def test_the_tokenizer_is_the_one_of_the_package(pipelines, name):
    tokenizer, expected = pipelines[name].tokenizer, build_tokenizer()
    prompts = ["three red circles on a white background", ""]
    padding = {"padding": "max_length", "truncation": True}
    assert tokenizer.get_vocab() == expected.get_vocab()
    assert tokenizer.model_max_length == MAX_LENGTH
    assert tokenizer(prompts, **padding)["input_ids"] == expected(prompts, **padding)["input_ids"]
    assert pipelines[name].text_encoder.config.eos_token_id == expected.eos_token_id


@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_is_as_accurate_as_its_card_says(pipelines, name):
    benchmark = figures_of(name)["benchmark"]
    captions = balanced_captions(per_family=10)
    prompts = [str(caption) for caption in captions]
    images = pipelines[name](prompts, latents=unit_noise(len(prompts), seed=123), **call_of(name)).images
    accuracy = detector.check(images, captions).float().mean().item()
    promised = benchmark["accuracy"]
    assert accuracy >= promised - 3 * (promised * (1 - promised) / len(captions)) ** 0.5
    card = (CHECKPOINTS / name / "README.md").read_text()
    assert f"**overall** | {benchmark['n']} | {100 * promised:.1f}" in card


@torch.no_grad()
def test_one_step_is_the_equation_of_sd_turbo(pipelines):
    """x = sigma z, eps from the network at timestep 999 on x / sqrt(sigma^2 + 1), x0 = x - sigma eps."""
    pipeline = pipelines["sd-turbo"]
    prompts = ["a red circle", "three squares on a white background"]
    noise = unit_noise(2)
    alpha = pipeline.scheduler.alphas_cumprod[-1].sqrt()
    sigma = (1 - alpha**2).sqrt() / alpha
    x = sigma * noise
    scaled = x / (sigma**2 + 1).sqrt()
    tokens = pipeline.tokenizer(prompts, padding="max_length", return_tensors="pt")
    v = pipeline.unet(scaled, 999, encoder_hidden_states=pipeline.text_encoder(tokens["input_ids"])[0]).sample
    eps = alpha * v + alpha * sigma * scaled
    decoded = pipeline.vae.decode((x - sigma * eps) / pipeline.vae.config.scaling_factor).sample
    images = pipeline(prompts, latents=noise, **call_of("sd-turbo")).images
    torch.testing.assert_close(images, (decoded / 2 + 0.5).clamp(0, 1), atol=1e-4, rtol=0)


def test_the_schedule_suits_solvers_over_sigma(pipelines):
    scheduler = pipelines["sd"].scheduler
    last = scheduler.alphas_cumprod[-1].item()
    assert scheduler.config.prediction_type == "v_prediction"
    assert ((1 - last) / last) ** 0.5 == pytest.approx(14.6146, abs=1e-3)
    scheduler.set_timesteps(10)
    assert scheduler.timesteps.tolist() == list(range(999, 0, -100))


def rows_of(solver, schedule="native"):
    rows = figures_of("sd")["solvers"]["rows"]
    return [row for row in rows if (row["solver"], row["schedule"]) == (solver, schedule)]


@pytest.mark.parametrize("schedule", ["native", "logsnr"])
@pytest.mark.parametrize("solver", ["euler", "dpmpp-2m", "heun"])
def test_more_evaluations_come_closer_to_the_reference(solver, schedule):
    errors = [row["median"] for row in sorted(rows_of(solver, schedule), key=lambda row: row["nfe"])]
    assert errors[-1] < errors[0] / 4
    assert errors[-1] < errors[1] < errors[0]


def test_few_evaluations_cost_accuracy():
    """So that there is something to gain for whoever learns a solver."""
    accuracy = {row["nfe"]: row["accuracy"] for row in rows_of("euler")}
    assert accuracy[2] + 0.1 < accuracy[3] < accuracy[10]


def test_the_multi_step_model_knows_places_and_whose_colour_is_whose():
    """By chance, one relation in four is right; a confusion of two colours would leave half of them."""
    families = figures_of("sd")["benchmark"]["families"]
    for family, chance in (("position", 0.25), ("color_attr", 0.5)):
        assert families[family]["accuracy"] > chance + 3 * families[family]["se"]
