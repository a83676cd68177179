"""The small decoder of the shapes world draws through ``backend.decoder`` what its card says."""

import json
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from worlds import WORLD

from t2ialign.problem.problem import assemble
from t2ialign.spec import parse as specs

FOLDER = Path(str(files("t2ialign_shapes"))) / "checkpoints" / "tiny-decoder"
BASES = ("sprint", "sprint-washed")
CLIP = """
[[reward]]
kind = "clipscore"
model = "pkg:t2ialign_shapes/checkpoints/clip"
name = "clip"
"""


@pytest.fixture(scope="module", params=BASES)
def drawn(request, tmp_path_factory):
    """A base's name; 189 images of held-out prompts by the real and by the small decoder; their scores."""
    path = tmp_path_factory.mktemp("tiny") / "spec.toml"
    path.write_text(WORLD.replace("sprint-washed", request.param).replace("OUT", str(path.parent)) + CLIP)
    extra = ["backend.decoder='pkg:t2ialign_shapes/checkpoints/tiny-decoder'"]
    problem = assemble(specs.load(path, [*extra, "prompts.file='pkg:t2ialign_shapes/prompts/heldout.txt'"]))
    conditioning = problem.encode(problem.prompts)
    pictures, scores = [], []
    with torch.no_grad(), problem.base():
        for on in (False, True):
            with problem.backend.drafting(on):
                pictures.append(problem.generate(conditioning, list(range(len(problem.prompts)))))
            scores.append(problem.rewards.score(pictures[-1], conditioning.prompts, micro_batch=64))
    return request.param, pictures, scores


def figures(base):
    return json.loads((FOLDER / "evaluation.json").read_text())["agreement"][base]


def test_its_images_are_as_close_as_the_card_says(drawn):
    base, (real, small), _ = drawn
    psnr = (-10 * (small - real).square().mean((1, 2, 3)).log10()).mean().item()
    assert psnr == pytest.approx(figures(base)["psnr_db"], abs=0.7)


@pytest.mark.parametrize(("reward", "key"), [("clip", "correlation_clip"), ("shapes-graded", "correlation_graded")])
def test_its_scores_follow_the_real_ones_as_the_card_says(drawn, reward, key):
    base, _, (real, small) = drawn
    correlation = torch.stack([real[reward], small[reward]]).corrcoef()[0, 1].item()
    assert correlation == pytest.approx(figures(base)[key], abs=0.06)


def test_the_card_shows_the_figures_and_the_file_is_small():
    card = (FOLDER / "README.md").read_text()
    for base in BASES:
        f = figures(base)
        assert f"| `{base}` | {f['psnr_db']} | {f['correlation_clip']} | {f['correlation_graded']} |" in card
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) < 50_000
