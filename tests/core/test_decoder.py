"""``backend.decoder``: a small decoder draws while a run searches, and the checkpoint's own whatever counts."""

from __future__ import annotations

import html
import json

import pytest
import torch
from diffusers import AutoencoderTiny
from safetensors.torch import load_file, save_file
from worlds import WORLD

from t2ialign import SpecError, UsageError
from t2ialign.evaluation.drafts import draft_remarks
from t2ialign.problem.optimizer import load_optimizer
from t2ialign.problem.problem import assemble
from t2ialign.run import runner
from t2ialign.spec import parse as specs
from t2ialign.storage.image_files import read_image

CLIP = 'kind = "clipscore"\nmodel = "pkg:t2ialign_shapes/checkpoints/clip"'

RENO = """
[run]
steps = 2
out = "OUT"
[backend]
kind = "sana-sprint"
checkpoint = "pkg:t2ialign_shapes/checkpoints/sprint-washed"
dtype = "float32"
complex_human_instruction = false
[sampler]
kind = "one-step"
[optimizer]
kind = "reno"
[[reward]]
kind = "clipscore"
model = "pkg:t2ialign_shapes/checkpoints/clip"
[prompts]
file = "two.txt"
"""


def tiny(folder, latent_channels=8, stages=3, **options):
    torch.manual_seed(0)
    model = AutoencoderTiny(
        latent_channels=latent_channels,
        decoder_block_out_channels=(8,) * stages,
        num_decoder_blocks=(1,) * stages,
        encoder_block_out_channels=(8,) * stages,
        num_encoder_blocks=(1,) * stages,
        **options,
    )
    model.save_pretrained(folder)
    return model.eval()


def load(tmp_path, text, *overrides):
    path = tmp_path / "spec.toml"
    (tmp_path / "two.txt").write_text("a red circle\na blue square\n")
    path.write_text(text.replace("OUT", str(tmp_path)))
    return specs.load(path, list(overrides))


@pytest.mark.parametrize("options", [{}, {"scaling_factor": 1.5, "shift_factor": 0.2}])
def test_images_inside_drafting_are_those_of_diffusers_and_gradients_pass(tmp_path, options):
    model = tiny(tmp_path / "tiny", **options)
    backend = assemble(load(tmp_path, WORLD, "backend.decoder='tiny'")).backend
    latents = torch.randn(3, 8, 8, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
    scaled = latents / options.get("scaling_factor", 1) + options.get("shift_factor", 0)
    expected = (model.decode(scaled).sample / 2 + 0.5).clamp(0, 1)
    real = backend.decode(latents)
    with backend.drafting():
        drafted = backend.decode(latents)
        with backend.drafting(False):
            assert torch.equal(backend.decode(latents), real)
    torch.testing.assert_close(drafted, expected)
    assert (real - drafted).abs().max() > 0.1
    assert torch.equal(backend.decode(latents), real)
    wanted = torch.autograd.grad(expected.square().sum(), latents)[0]
    torch.testing.assert_close(torch.autograd.grad(drafted.square().sum(), latents)[0], wanted)


def test_a_run_searches_with_it_and_delivers_without(tmp_path):
    """Every image that counts is the one that a run without it gives; every score that a step saw is another."""
    tiny(tmp_path / "tiny")
    world = WORLD.replace('kind = "shapes-graded"', CLIP)
    few = ["evaluation.limit=4", "samples.count=4", "evaluation.every=0"]
    plain = runner.start(load(tmp_path, world, "run.name='plain'", *few))
    draft = runner.start(load(tmp_path, world, "run.name='draft'", "backend.decoder='tiny'", *few))
    for file in ("samples/step-000000.png", "evaluation/base/00000.png"):
        assert (plain.path / file).read_bytes() == (draft.path / file).read_bytes()
    assert plain.summary()["variants"]["base"] == draft.summary()["variants"]["base"]
    assert plain.metrics()[0]["reward/clipscore"] != draft.metrics()[0]["reward/clipscore"]
    told = [line for line in draft.remarks() if "backend.decoder" in line]
    assert len(told) == 1
    assert told[0].startswith("4 images drawn with backend.decoder")
    assert "'clipscore'" in told[0]
    assert told[0] in (draft.path / "export/README.md").read_text()
    assert told[0] in html.unescape((draft.path / "report.html").read_text())
    assert not [line for line in plain.remarks() if "decoder" in line]


def test_the_images_of_a_noise_search_are_real_ones(tmp_path):
    """Gradients of the search are those through the small decoder."""
    tiny(tmp_path / "tiny")
    found = {}
    for name, decoder in (("plain", []), ("draft", ["backend.decoder='tiny'"])):
        problem = assemble(load(tmp_path, RENO, *decoder), output=tmp_path / name)
        optimizer = load_optimizer(problem)
        for index in range(2):
            with problem.backend.drafting():
                optimizer.step(index)
        found[name] = problem, optimizer
    problem, optimizer = found["draft"]
    for folder in sorted((tmp_path / "draft").iterdir()):
        other = tmp_path / "plain" / folder.name
        assert (folder / "initial.png").read_bytes() == (other / "initial.png").read_bytes()
        noise = load_file(folder / "latents.safetensors")["latents"]
        row = problem.prompts.index(json.loads((folder / "search.json").read_text())["prompt"])
        real = problem.generate(problem.conditioning[[row]], [0], noise)
        assert (real[0] - read_image(folder / "best.png")[0]).abs().max() < 0.01
    optimizer.export(tmp_path / "export")
    assert "within" in optimizer.check(tmp_path / "export")


def test_the_difference_to_every_reward_is_told(tmp_path):
    """The decoder's own weights drawn from twice differ in nothing; a reward that is constant has no correlation."""
    tiny(tmp_path / "tiny")
    problem = assemble(load(tmp_path, WORLD, "backend.decoder='tiny'", "evaluation.limit=3"))
    problem.backend.__dict__["draft_decoder"] = problem.backend.pipeline.vae
    (line,) = draft_remarks(problem)
    assert "correlation 1.000" in line


@pytest.mark.parametrize(
    ("options", "spoil", "message"),
    [
        ({"latent_channels": 4}, None, "takes latents of 4 channels, and the checkpoint's have 8"),
        ({"stages": 4}, None, "makes images 8 times as large as latents, and the checkpoint's own decoder 4 times"),
        ({}, {"_class_name": "AutoencoderKL"}, "is no AutoencoderTiny of diffusers"),
    ],
)
def test_a_decoder_of_other_latents_is_refused_before_any_weight_is_loaded(tmp_path, options, spoil, message):
    tiny(tmp_path / "tiny", **options)
    if spoil:
        file = tmp_path / "tiny/config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | spoil))
    with pytest.raises(SpecError, match=message) as error:
        load(tmp_path, WORLD, "backend.decoder='tiny'")
    assert "backend.decoder" in str(error.value)


def test_missing_weights_are_told_and_a_trained_decoder_is_not_replaced(tmp_path):
    tiny(tmp_path / "tiny")
    with pytest.raises(SpecError, match="lora_decoder trains the decoder that decoder would replace"):
        load(tmp_path, WORLD, "backend.decoder='tiny'", "backend.lora_decoder=true")
    file = tmp_path / "tiny/diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors.pop("decoder.layers.0.weight")
    save_file(tensors, file)
    backend = assemble(load(tmp_path, WORLD, "backend.decoder='tiny'")).backend
    with pytest.raises(UsageError, match=r"backend\.decoder.*lack 1 tensors"), backend.drafting():
        backend.decode(torch.zeros(1, 8, 8, 8))
