"""What is shipped loads in plain diffusers and transformers, and is as good as its card says."""

import json
import random
from importlib.resources import files
from itertools import cycle, islice
from pathlib import Path

import pytest
import torch

from t2ialign_shapes import detector
from t2ialign_shapes.captions import FAMILIES, hard_negative, parse, sample
from t2ialign_shapes.layout import sample_layout
from t2ialign_shapes.render import render
from t2ialign_shapes.tokenizer import build_tokenizer

DATA = Path(str(files("t2ialign_shapes")))
BASES = ("sprint", "sprint-washed")
ONE_STEP = {
    "num_inference_steps": 1,
    "intermediate_timesteps": None,
    "max_timesteps": 1.57080,
    "height": 32,
    "width": 32,
    "use_resolution_binning": False,
    "complex_human_instruction": None,
    "clean_caption": False,
    "max_sequence_length": 16,
    "output_type": "pt",
}


@pytest.fixture(scope="module", params=BASES)
def base(request):
    """A shipped generator: its name and its pipeline."""
    from diffusers import DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained(DATA / "checkpoints" / request.param)
    pipeline.set_progress_bar_config(disable=True)
    return request.param, pipeline


def generate(pipeline, prompts, seed=0):
    noise = torch.randn(len(prompts), 8, 8, 8, generator=torch.Generator().manual_seed(seed))
    return pipeline(prompts, latents=noise, **ONE_STEP).images, noise


def read_card(name):
    folder = DATA / "checkpoints" / name
    return json.loads((folder / "evaluation.json").read_text()), (folder / "README.md").read_text()


def balanced_benchmark(per_family):
    """Benchmark captions, equally many of every family."""
    lines = (DATA / "prompts" / "benchmark.jsonl").read_text().splitlines()
    groups = {family: [] for family in FAMILIES}
    for entry in map(json.loads, lines):
        groups[entry["tag"]].append(parse(entry["prompt"]))
    return [caption for group in groups.values() for caption in islice(cycle(group), per_family)]


def test_a_base_is_a_complete_float32_sana_sprint(base):
    _, pipeline = base
    assert type(pipeline).__name__ == "SanaSprintPipeline"
    for part in (pipeline.transformer, pipeline.text_encoder, pipeline.vae):
        assert part.dtype == torch.float32
    assert pipeline.tokenizer.get_vocab() == build_tokenizer().get_vocab()


@torch.no_grad()
def test_one_step_of_the_pipeline_is_noise_minus_prediction(base):
    _, pipeline = base
    prompts = ["a red circle", "three squares on a white background"]
    images, noise = generate(pipeline, prompts)
    tokens = pipeline.tokenizer(prompts, padding="max_length", max_length=16, return_tensors="pt")
    mask = tokens["attention_mask"]
    prediction = pipeline.transformer(
        noise,
        encoder_hidden_states=pipeline.text_encoder(tokens["input_ids"], attention_mask=mask)[0],
        encoder_attention_mask=mask,
        guidance=torch.full((2,), 0.45),
        timestep=torch.ones(2),
    ).sample
    decoded = pipeline.vae.decode((noise - prediction) / pipeline.vae.config.scaling_factor).sample
    torch.testing.assert_close(images, (decoded / 2 + 0.5).clamp(0, 1), atol=1e-4, rtol=0)


def test_a_base_is_as_accurate_as_its_card_says(base):
    name, pipeline = base
    figures, card = read_card(name)
    captions = balanced_benchmark(per_family=16)
    images, _ = generate(pipeline, [str(caption) for caption in captions], seed=123)
    accuracy = detector.check(images, captions).float().mean().item()
    promised = figures["benchmark"]["accuracy"]
    standard_error = (promised * (1 - promised) / len(captions)) ** 0.5
    assert accuracy >= promised - 3 * standard_error
    assert f"**overall** | {figures['benchmark']['n']} | {100 * promised:.1f}" in card


def test_storing_half_precision_costs_nothing(base):
    figures, _ = read_card(base[0])
    stored, trained = figures["benchmark"], figures["benchmark_before_rounding"]
    assert abs(stored["accuracy"] - trained["accuracy"]) <= 0.01


def test_only_the_washed_base_lacks_contrast():
    clean, washed = (read_card(name)[0]["benchmark"]["accuracy"] for name in BASES)
    assert 0.5 <= clean <= 0.8
    assert 0.15 <= washed <= 0.4


def test_the_clip_tells_true_from_false_captions():
    from transformers import CLIPModel, PreTrainedTokenizerFast

    folder = DATA / "checkpoints" / "clip"
    clip = CLIPModel.from_pretrained(folder)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    assert clip.dtype == torch.float32
    assert tokenizer.get_vocab() == build_tokenizer().get_vocab()
    assert clip.config.text_config.eos_token_id == tokenizer.eos_token_id

    rng = random.Random(0)
    captions = [sample(rng) for _ in range(150)]
    texts = captions + [hard_negative(caption, rng) for caption in captions]
    images = render(sample_layout(captions, torch.Generator().manual_seed(0)))
    with torch.no_grad():
        output = clip(
            pixel_values=2 * images - 1,
            **tokenizer([str(text) for text in texts], padding=True, return_tensors="pt"),
        )
    own, wrong = (output.logits_per_image.diagonal(offset) for offset in (0, len(captions)))
    assert (own > wrong).float().mean() >= 0.8


def test_the_clip_ranks_generator_output():
    figures, card = read_card("clip")
    for name in BASES:
        assert figures["agreement"][name]["auc"] >= 0.7
        assert f"| {figures['agreement'][name]['auc']:.3f} |" in card
